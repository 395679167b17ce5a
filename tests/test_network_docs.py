"""docs/concepts/networks.md and its pictures show what scripts/draw_networks.py makes of the presets now."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from medseg3d.networks.build import checked_plan
from medseg3d.planning import load_planner, make_plan
from medseg3d.planning.planner import planner_names
from medseg3d.planning.proposals import FEW_CASES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/concepts/networks.md").read_text(encoding="utf-8")
RENEW = "run python scripts/draw_networks.py --write-docs"
QUICK = ("plain", "effects", "universal")
"""Tables of which the others are more of the same, traced for seconds."""


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield import_module("draw_networks")


@pytest.fixture(scope="module")
def tables(script: ModuleType) -> ModuleType:
    return import_module("network_tables")


@pytest.mark.parametrize("name", QUICK)
def test_a_table_of_the_page_is_that_of_today(tables: ModuleType, name: str) -> None:
    assert tables.with_tables(PAGE, {name: tables.TABLES[name]()}) == PAGE, RENEW


@pytest.mark.slow
def test_all_tables_of_the_page_are_those_of_today(tables: ModuleType) -> None:
    assert tables.with_tables(PAGE, {name: make() for name, make in tables.TABLES.items()}) == PAGE, RENEW


def test_a_row_of_the_plans_table_is_that_of_today(tables: ModuleType) -> None:
    rows = tables.plans_table([("default", "3d_fullres")])
    assert [row for row in rows.splitlines() if row not in PAGE] == [], RENEW


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(("preset", "configuration"), [("default", "3d_fullres"), ("default", "2d"), ("residual_xl", "3d_fullres")])
def test_the_shortcut_of_the_script_plans_what_a_whole_plan_holds(preset: str, configuration: str) -> None:
    examples = import_module("network_examples")
    shown = examples.planned(preset, configuration)
    whole = make_plan(examples.dataset(), load_planner(preset)).configurations[configuration]
    assert (shown.network, shown.patch, shown.batch) == (checked_plan(whole.network), whole.patch_size, whole.batch_size)


def test_the_pictures_say_what_those_of_today_say(script: ModuleType) -> None:
    for name, picture in script.pictures().items():
        assert words_of((script.PICTURES / f"{name}.svg").read_text(encoding="utf-8")) == words_of(picture), f"{name}: {RENEW}"


@pytest.mark.parametrize("name", ["unet_plus_plus", "bisenet"])
def test_a_picture_of_what_feeds_what_is_that_of_today(script: ModuleType, name: str) -> None:
    assert (script.PICTURES / f"{name}.svg").read_text(encoding="utf-8") == script.draw_flow(name), RENEW


@pytest.mark.slow
def test_all_pictures_of_what_feeds_what_are_those_of_today(script: ModuleType) -> None:
    for name, picture in script.flows().items():
        assert (script.PICTURES / f"{name}.svg").read_text(encoding="utf-8") == picture, f"{name}: {RENEW}"


def words_of(picture: str) -> list[str]:
    """Channels, sizes, blocks and parameters stand in a picture as words; where they stand does not matter."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", picture)


def test_every_preset_and_every_picture_stands_in_the_page(script: ModuleType) -> None:
    assert [name for name in planner_names() if f"`{name}`" not in PAGE] == []
    shown = re.findall(r"\]\(\.\./images/networks/(\w+)\.svg\)", PAGE)
    assert sorted(shown) == sorted(path.stem for path in script.PICTURES.glob("*.svg"))


def test_the_page_counts_few_cases_as_the_code_does() -> None:
    assert f"fewer than {FEW_CASES})" in PAGE


def test_the_planner_files_of_the_page_can_be_loaded(tmp_path: Path) -> None:
    files = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert files
    for text in files:
        path = tmp_path / "my.toml"
        path.write_text(text, encoding="utf-8")
        load_planner(path)
