"""docs/concepts/networks.md and its pictures are what scripts/draw_networks.py makes of the presets now."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from medseg3d.planning import load_planner, make_plan
from medseg3d.planning.candidates import FEW_CASES
from medseg3d.planning.planner import planner_names

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/concepts/networks.md").read_text(encoding="utf-8")
RENEW = "run python scripts/draw_networks.py --write-docs"
LONG_SEARCHES = ("unet_3d", "u2net")
"""Presets whose patch takes many traces to find."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_networks", ROOT / "scripts/draw_networks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # records look their types up there
    spec.loader.exec_module(module)
    return module


def test_the_families_tables_are_those_of_today(script: ModuleType) -> None:
    assert script.with_tables(PAGE, script.quick_tables()) == PAGE, RENEW


def test_the_rows_of_the_plans_table_are_those_of_today(script: ModuleType) -> None:
    rows = script.plans_table([row for row in script.PLANNED if row[0] not in LONG_SEARCHES])
    assert [row for row in rows.splitlines() if row not in PAGE] == [], RENEW


@pytest.mark.slow
def test_the_plans_table_is_that_of_today(script: ModuleType) -> None:
    assert script.with_tables(PAGE, {"plans": script.plans_table()}) == PAGE, RENEW


@pytest.mark.parametrize(("preset", "configuration"), [("default", "3d_fullres"), ("default", "2d"), ("residual_xl", "3d_fullres")])
def test_the_shortcut_of_the_script_plans_what_a_whole_plan_holds(script: ModuleType, preset: str, configuration: str) -> None:
    shown = script.planned(preset, configuration)
    whole = make_plan(script.dataset(), load_planner(preset)).configurations[configuration]
    assert (shown.network, shown.patch, shown.batch) == (script.checked_plan(whole.network), whole.patch_size, whole.batch_size)


def test_the_pictures_are_those_of_today(script: ModuleType) -> None:
    for name, picture in script.pictures().items():
        assert (script.PICTURES / f"{name}.svg").read_text(encoding="utf-8") == picture, f"{name}: {RENEW}"


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
