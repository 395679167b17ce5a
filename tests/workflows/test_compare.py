"""``compare`` trains presets alike on one fold, goes on where it stopped, and leaves out what cannot be planned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medseg3d import compare
from medseg3d.commandline.cli import main
from medseg3d.errors import InputError, PlanError
from medseg3d.options import CompareOptions
from medseg3d.records import read_record
from medseg3d.training.state import read_history
from medseg3d.validation.preset_comparison import Comparison
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.compare import contenders_of, seconds_per_case
from medseg3d.workflows.splits import read_split
from tests.tiny_planner import tiny_planner

CANNOT_BE = '\n[network]\nfamily = "icnet"\nmax_stages = 2\n'


@pytest.fixture(scope="module")
def dataset(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with planner files for two networks and for one that no patch allows."""
    root = Path(shutil.copytree(tiny_source, tmp_path_factory.mktemp("compared") / "Balls"))
    for name, features in (("narrow", (4, 8)), ("wide", (6, 12))):
        (root / f"{name}.toml").write_text(tiny_planner(features=features), encoding="utf-8")
    (root / "hopeless.toml").write_text(f'extends = "default"\ndescription = "No such plan."\n{CANNOT_BE}', encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def presets(dataset: Path) -> list[str]:
    return [str(dataset / f"{name}.toml") for name in ("narrow", "wide", "hopeless")]


@pytest.fixture(scope="module")
def first(dataset: Path, presets: list[str]) -> Comparison:
    return compare(dataset, presets=presets, steps=1, device="cpu", tta="off")


@pytest.mark.slow
def test_all_are_trained_for_the_same_steps_on_the_same_fold(dataset: Path, first: Comparison) -> None:
    folder = dataset / "medseg3d-compare"
    assert [row.trained.name for row in first.rows] == ["narrow", "wide"]
    assert {row.trained.steps for row in first.rows} == {1}
    assert len({(folder / name / "splits.json").read_bytes() for name in ("narrow", "wide")}) == 1
    assert all(tuple(sorted(row.trained.dice)) == first.cases for row in first.rows)
    assert first.rows[1].trained.parameters > first.rows[0].trained.parameters
    assert all(row.trained.seconds_per_case > 0 for row in first.rows)


@pytest.mark.slow
def test_what_cannot_be_planned_is_left_out_with_its_reason(first: Comparison, dataset: Path) -> None:
    assert list(first.problems) == ["hopeless"]
    page = (dataset / "medseg3d-compare" / "comparison.html").read_text(encoding="utf-8")
    assert "<b>hopeless</b> is left out" in page
    assert "<script" not in page


@pytest.mark.slow
def test_a_second_call_trains_nothing_again(
    dataset: Path, presets: list[str], first: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = [dataset / "medseg3d-compare" / name / "models" / "3d_fullres" / "fold_0" for name in ("narrow", "wide")]
    before = [(fold / "weights.safetensors").stat().st_mtime_ns for fold in folds]
    assert main(["compare", *presets[:2], "-d", str(dataset), "--steps", "1", "--device", "cpu", "--tta", "off", "--json"]) == 0
    assert [(fold / "weights.safetensors").stat().st_mtime_ns for fold in folds] == before
    assert all(sum(int(str(epoch["iterations"])) for epoch in read_history(fold)) == 1 for fold in folds)
    shown = json.loads(capsys.readouterr().out)
    assert [row["trained"]["name"] for row in shown["rows"]] == ["narrow", "wide"]
    assert read_record(dataset / "medseg3d-compare" / "comparison.json", Comparison, "comparison").rows == first.rows


@pytest.mark.slow
def test_the_table_is_printed(dataset: Path, presets: list[str], first: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *presets[:2], "-d", str(dataset), "--steps", "1", "--device", "cpu", "--tta", "off"]) == 0
    shown = capsys.readouterr().out
    assert f"{first.rows[0].trained.name}" in shown
    assert "− narrow" in shown


def test_where_nothing_can_be_planned_that_is_an_error(dataset: Path, presets: list[str], tmp_path: Path) -> None:
    other = Path(shutil.copy(presets[2], tmp_path / "another.toml"))
    with pytest.raises(PlanError, match=r"^hopeless: .* another: "):
        compare(dataset, tmp_path / "work", presets=[presets[2], str(other)], steps=1, device="cpu")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["default"], "1 preset named, expected two or more"),
        (["default", "default"], "default is named twice"),
        (["a/x.toml", "b/x.toml"], "x is named twice"),
    ],
)
def test_presets_that_cannot_be_compared_are_refused(named: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        contenders_of(named)


def test_a_configuration_may_be_named_behind_a_preset() -> None:
    one, other = contenders_of(["default@2d", "default"])
    assert (one.preset, one.configuration, one.name) == ("default", "2d", "default@2d")
    assert other.configuration is None
    assert [each.is_first for each in (one, other)] == [True, False]
    (mine, _) = contenders_of(["/home/me@work/small.toml@2d", "default"])
    assert (mine.preset, mine.configuration, mine.name) == ("/home/me@work/small.toml", "2d", "small@2d")


@pytest.mark.fault(
    "B", "compare: a validation image that cannot be read when prediction is timed", "others are timed; the comparison is kept"
)
def test_an_image_that_cannot_be_read_is_not_timed(trained: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "Balls"))
    work = WorkFolder(root / "medseg3d-work")
    images = [root / "imagesTr" / f"{name}_0000.nii.gz" for name in read_split(work, "0").validation]
    for image, is_left in zip(images, [True, False], strict=True):
        image.write_bytes(image.read_bytes()[:200])
        options = CompareOptions(presets=(), fold="0", device="cpu")
        assert (seconds_per_case(root, work, work.read_plan().configuration(None), options) is not None) is is_left


@pytest.mark.slow
def test_other_groups_than_those_of_the_folds_are_refused(dataset: Path, presets: list[str], first: Comparison) -> None:
    folds = (dataset / "medseg3d-compare" / "splits.json").read_bytes()
    with pytest.raises(InputError, match="give other folds"):
        compare(dataset, presets=presets[:2], steps=1, device="cpu", group_pattern="(ball_[0-3]|ball_)")
    assert (dataset / "medseg3d-compare" / "splits.json").read_bytes() == folds


@pytest.mark.parametrize(
    ("named", "error", "message"),
    [
        (["default", "nosuch"], PlanError, "There is no planner 'nosuch'"),
        (["default", "default@nosuch"], InputError, "has no configuration nosuch"),
        (["default", "default@3d_fullres"], InputError, "default and default@3d_fullres are the same network"),
    ],
)
def test_what_is_not_there_is_told_before_anything_is_trained(
    tiny_source: Path, tmp_path: Path, named: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compare(tiny_source, tmp_path / "work", presets=named, steps=1, device="cpu")
    assert not list((tmp_path / "work").rglob("weights.safetensors"))


def test_steps_exclude_hours() -> None:
    with pytest.raises(InputError, match="either steps, or hours"):
        compare(".", presets=["a", "b"], steps=1, hours=1.0)
