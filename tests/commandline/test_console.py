"""What is printed where: sentences, one JSON document, or nothing; and tables that stay readable in a narrow terminal."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import rich.console

from medseg3d.commandline.console import Console
from medseg3d.commandline.tables import table_of_names
from medseg3d.data.checks import DoctorReport, Finding
from medseg3d.errors import CaseFailure
from medseg3d.events import Event
from medseg3d.training.initial import TakenOver
from medseg3d.workflows.predict import PredictResult
from medseg3d.workflows.preprocess import PreprocessResult
from medseg3d.workflows.run import RunResult


def printed(names: list[str], width: int) -> list[list[str]]:
    """The cells of each line of a table with eight numbers."""
    text = io.StringIO()
    rows = [[name, *(f"{column}.123 (24)" for column in range(7))] for name in names]
    header = ["label", "Dice (cases)", "HD95 mm", "ASSD mm", "NSD", "volume ml", "false positives", "false negatives"]
    rich.console.Console(file=text, width=width).print(table_of_names("Validation of fold 0", header, rows))
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in text.getvalue().splitlines() if "│" in line]


@pytest.mark.fault("E", "labels whose names begin alike, in a table of 80 columns", "names go on in the next line and are never cut off")
@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_stay_whole_in_a_narrow_table(width: int) -> None:
    names = ["organ_outer", "organ_inner", "left_superior_colliculi_of_the_midbrain", "[bold]L5[/bold]"]
    column = "".join(cells[0] for cells in printed(names, width))
    assert column == "".join(names)


def console(*, json: bool = False, quiet: bool = False, verbose: bool = False) -> Console:
    return Console(SimpleNamespace(json=json, quiet=quiet, verbose=verbose))  # type: ignore[arg-type]


Read = Callable[[], tuple[str, str]]


@pytest.fixture
def read(capsys: pytest.CaptureFixture[str]) -> Read:
    """What was printed since the last call: standard output and standard error."""
    return lambda: tuple(capsys.readouterr())  # type: ignore[return-value]


def test_messages_go_to_standard_error_and_results_to_standard_output(read: Read) -> None:
    with console() as shown:
        shown.listen(Event(stage="plan", message="[bold]left_kidney[/bold] is rare"))
        shown.say("done [1]")
    assert read() == ("done [1]\n", "[bold]left_kidney[/bold] is rare\n")


def test_quiet_says_nothing(read: Read) -> None:
    with console(quiet=True) as shown:
        shown.listen(Event(stage="plan", message="rare"))
        shown.listen(Event(stage="plan", done=1, total=2))
        shown.say("done")
        shown.show_preprocessed(PREPROCESSED)
    assert read() == ("", "")


TAKEN = TakenOver(source="theirs", used={"as they are": ("a",)}, unused={"a head for other labels": ("b",)}, fresh=("c",))


def test_what_training_began_with_stands_in_its_document(read: Read) -> None:
    with console(json=True) as shown:
        shown.show_evaluation(None, title="", began_with=TAKEN)
    assert json.loads(read()[0])["began_with"]["unused"] == {"a head for other labels": ["b"]}
    with console() as shown:
        shown.show_evaluation(None, title="", began_with=TAKEN)
    assert read()[0] == ""


PREPROCESSED = PreprocessResult(
    configurations=("2d",),
    made=("a",),
    kept=("b", "c"),
    failures=(CaseFailure(case="d", stage="preprocess", reason="lost"),),
    folders=(),
)


def test_one_json_document_stands_in_the_place_of_sentences(read: Read) -> None:
    console().show_preprocessed(PREPROCESSED)
    assert read()[0] == "1 case preprocessed, 2 unchanged and kept, 1 failed.\n"
    console(json=True).show_preprocessed(PREPROCESSED)
    document = json.loads(read()[0])
    assert document == {"made": ["a"], "kept": ["b", "c"], "failures": [{"case": "d", "stage": "preprocess", "reason": "lost"}]}
    console(json=True).say("ready")
    assert json.loads(read()[0]) == {"message": "ready"}


def test_one_label_map_is_named_and_several_are_counted(read: Read, tmp_path: Path) -> None:
    files = (tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    console().show_predicted(PredictResult(written=(), kept=files[:1], failures=()))
    assert read()[0] == f"Label map kept from before: {files[0]}\n"
    console().show_predicted(PredictResult(written=files, kept=(), failures=()))
    assert read()[0] == f"2 label maps written in {tmp_path}, 0 kept from before.\n"
    console(json=True).show_predicted(PredictResult(written=files, kept=(), failures=()))
    assert json.loads(read()[0])["written"] == list(map(str, files))


@pytest.mark.parametrize("severity", ["error", "warning"])
def test_the_exit_code_of_doctor_is_that_of_its_errors(severity: str, read: Read) -> None:
    findings = (
        Finding(case="a", kind="x", severity="note", message="first"),
        Finding(case=None, kind="x", severity=severity, message="second", fix="turn it"),  # type: ignore[arg-type]
    )
    report = DoctorReport(dataset="d", num_training=2, num_test=1, findings=findings)
    code = 2 if severity == "error" else 0
    assert console().show_doctor(report) == code
    lines = read()[0].splitlines()
    assert [line.split()[0] for line in lines[:2]] == [severity, "note"], "the worst first"
    assert lines[2:] == [
        f"3 cases read, {'1 error' if code else 'no errors'}.",
        "1 finding can be repaired: run the same command with --fix.",
    ]
    assert console(json=True).show_doctor(report) == code
    assert [found["message"] for found in json.loads(read()[0])["findings"]] == ["first", "second"]
    assert console(quiet=True).show_doctor(report) == code
    assert read() == ("", "error    dataset: second\n" if code else "")


def test_only_a_domain_with_a_name_gets_a_heading(read: Read) -> None:
    shown = console()
    shown.show({None: "alone"}, shown.say)
    assert read()[0] == "alone\n"
    shown.show({"Heart": "first", "Liver": None, "Lung": "third"}, shown.say)
    assert read()[0] == "— Heart —\nfirst\n— Lung —\nthird\n"


def test_json_holds_an_entry_for_each_domain_with_a_name(read: Read) -> None:
    shown = console(json=True)
    shown.show({None: "alone"}, shown.say)
    assert json.loads(read()[0]) == {"message": "alone"}
    shown.show({"Heart": "first", "Liver": None}, shown.say)
    assert json.loads(read()[0]) == {"domains": {"Heart": {"message": "first"}}}


def test_every_verb_that_trained_names_the_cases_it_went_on_without(read: Read) -> None:
    shown = console(json=True)
    shown.listen(Event(stage="train", failures=(CaseFailure(case="a", stage="train", reason="is damaged"),)))
    result = RunResult(report=Path("report.html"), selection=None, test=None, failures=())
    left_out = [{"case": "a", "stage": "train", "reason": "is damaged"}]
    shown.show({None: result}, shown.show_run)
    assert json.loads(read()[0])["left_out"] == left_out
    shown.show({"Balls": result, "Cubes": result}, shown.show_run)
    document = json.loads(read()[0])
    assert document["left_out"] == left_out
    assert all("left_out" not in part for part in document["domains"].values())
