"""What run asks on a terminal: only what it must, with what the files tell; elsewhere it goes on by default."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medseg3d.commandline.cli import main
from medseg3d.commandline.questions import Terminal, answered, asked_hours
from medseg3d.data.open_dataset import open_dataset
from medseg3d.fingerprint.make_fingerprint import make_fingerprint
from medseg3d.fingerprint.records import Fingerprint
from medseg3d.options import RunOptions
from medseg3d.plan import Plan
from medseg3d.planning import load_planner
from medseg3d.workflows.estimate import FoldEstimate
from medseg3d.workflows.plan_dataset import describe_dataset
from medseg3d.workflows.unknown import ChannelQuestion, GroupQuestion, LabelQuestion, Unknown, unknown_of


class Typed:
    """A terminal on which lines are typed; what was shown is kept."""

    def __init__(self, *lines: str) -> None:
        self.shown, self._lines = "", list(lines)

    @property
    def terminal(self) -> Terminal:
        return Terminal(self._write, lambda: self._lines.pop(0) + "\n" if self._lines else "")

    def _write(self, text: str) -> None:
        self.shown += text

    @property
    def left(self) -> list[str]:
        return self._lines


@pytest.fixture(scope="module")
def plain(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and labels, and nothing that names them; two images of the first of five patients."""
    root = tmp_path_factory.mktemp("plain") / "Balls"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for number in range(6):
        name = f"p{max(0, number - 1)}_{'ES' if number else 'ED'}.nii.gz"
        shutil.copy(tiny_source / f"imagesTr/ball_{number}_0000.nii.gz", root / "images" / name)
        shutil.copy(tiny_source / f"labelsTr/ball_{number}.nii.gz", root / "labels" / name)
    shutil.copy(tiny_source / "tiny.toml", root)
    return root


@pytest.fixture(scope="module")
def measured(plain: Path) -> tuple[Plan, Fingerprint]:
    dataset = open_dataset(plain)
    described = describe_dataset(dataset, make_fingerprint(dataset), {})
    return described.plan_by(load_planner(plain / "tiny.toml"), None).value, described.fingerprint


def test_names_that_nobody_gave_are_asked_with_what_the_files_tell(measured: tuple[Plan, Fingerprint]) -> None:
    found = unknown_of(*measured, RunOptions())
    assert [(channel.number, channel.taken) for channel in found.channels] == [(0, "MRI")]
    assert "whole numbers" in found.channels[0].seen
    assert [(label.value, label.taken) for label in found.labels] == [(3, "label_3"), (7, "label_7")]
    assert all(label.seen.startswith("in 6 of 6 cases, median ") for label in found.labels)
    assert found.groups is not None
    assert found.groups.seen.startswith("6 cases look like 5 patients by their names")


def test_what_was_said_is_not_asked(measured: tuple[Plan, Fingerprint]) -> None:
    said = RunOptions(channels=["CT"], label_names={3: "shell", 7: "core"}, no_groups=True)
    assert not unknown_of(*measured, said).is_any
    part = unknown_of(*measured, RunOptions(label_names={3: "shell"}, group_pattern="p"))
    assert [label.value for label in part.labels] == [7]
    assert part.groups is None


def test_a_dataset_that_names_everything_is_asked_nothing(tiny_source: Path) -> None:
    dataset = open_dataset(tiny_source)
    described = describe_dataset(dataset, make_fingerprint(dataset), {})
    plan = described.plan_by(load_planner(tiny_source / "tiny.toml"), None).value
    assert unknown_of(plan, described.fingerprint, RunOptions()) == Unknown()
    typed = Typed()
    assert answered(Unknown(), RunOptions(), typed.terminal) == RunOptions()
    assert typed.shown == ""


ALL = Unknown(
    channels=(ChannelQuestion(number=0, seen="grey values 0 to 9, whole numbers", taken="MRI"),),
    labels=(
        LabelQuestion(value=3, seen="in 2 of 2 cases", taken="label_3"),
        LabelQuestion(value=7, seen="in 1 of 2 cases", taken="label_7"),
    ),
    groups=GroupQuestion(seen="6 cases look like 3 patients by their names (p0_ED, p0_ES)", is_found=True),
)


def test_answers_become_options() -> None:
    typed = Typed("CT", "left kidney", "right kidney", "no")
    options = answered(ALL, RunOptions(), typed.terminal)
    assert (options.channels, options.label_names) == (("CT",), {3: "left kidney", 7: "right kidney"})
    assert options.no_groups
    for seen in ("grey values 0 to 9", "in 1 of 2 cases", "3 patients"):
        assert seen in " ".join(typed.shown.split())


@pytest.mark.parametrize("lines", [[""] * 4, []], ids=["enter", "end of input"])
def test_enter_and_the_end_of_the_input_take_what_was_found_and_are_answers(lines: list[str]) -> None:
    options = answered(ALL, RunOptions(), Typed(*lines).terminal)
    assert (options.channels, options.label_names) == (("MRI",), {3: "label_3", 7: "label_7"})
    assert (options.no_groups, options.groups, options.group_pattern) == (False, None, None)


def test_answers_that_cannot_be_are_asked_again(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("case,group\na1,a\na2,a\nb1,b\n", encoding="utf-8")
    unknown = Unknown(labels=ALL.labels, groups=GroupQuestion(seen="", is_found=False, cases=("a1", "a2", "b1")))
    typed = Typed("kidney", "kidney", "a=b", "spleen", "maybe", "yes", str(tmp_path / "none.csv"), "(", "^(c)", str(table))
    options = answered(unknown, RunOptions(), typed.terminal)
    assert (options.label_names, options.groups) == ({3: "kidney", 7: "spleen"}, table)
    assert typed.left == []
    shown = " ".join(typed.shown.split())
    for said in ("A name stands once", "Expected yes or no", "Say which", "does not match"):
        assert said in shown
    assert "none.csv" in "".join(typed.shown.split())  # a long path is broken


def test_many_labels_are_named_by_a_file(tmp_path: Path) -> None:
    many = Unknown(labels=tuple(LabelQuestion(value=n, seen="", taken=f"label_{n}") for n in range(1, 41)))
    table = tmp_path / "labels.csv"
    table.write_text("value,name\n2,liver\n", encoding="utf-8")
    options = answered(many, RunOptions(), Typed("wrong.csv", str(table)).terminal)
    assert options.label_names is not None
    assert (options.label_names[1], options.label_names[2], len(options.label_names)) == ("label_1", "liver", 40)


def fold(seconds: float) -> FoldEstimate:
    return FoldEstimate(configuration="2d", fold="0", epochs=1000, epochs_done=0, seconds=seconds, disk_bytes=0, is_measured=False)


def test_hours_are_asked_where_training_takes_longer_than_a_night() -> None:
    assert asked_hours([fold(3600.0)], "cpu", RunOptions(), Typed().terminal) == RunOptions()
    typed = Typed("ten", "-1", "8h")
    assert asked_hours([fold(1e6)] * 2, "cpu", RunOptions(), typed.terminal).hours == 8
    assert "2 trainings of 1000 epochs on cpu: about 23 days" in " ".join(typed.shown.split())
    assert typed.shown.count("Expected a number above 0") == 2
    assert asked_hours([fold(1e6)], "cpu", RunOptions(), Typed("").terminal).hours is None


def lines_of(descriptor: int, process: subprocess.Popen[bytes]) -> Iterator[str]:
    """What appears on a terminal, as it grows."""
    shown, end = "", time.monotonic() + 240
    while time.monotonic() < end:
        ready, _, _ = select.select([descriptor], [], [], 0.2)
        if ready:
            try:
                shown += os.read(descriptor, 4096).decode(errors="replace")
            except OSError:  # the other side is closed
                return
            yield shown
        elif process.poll() is not None:
            return


OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""What a terminal's shell does: the command that follows leads a session of its own, whose terminal is standard input."""
IN_THE_BACKGROUND = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    from medseg3d.commandline.questions import is_interactive
    os._exit(int(is_interactive()))
_, status = os.waitpid(job, os.WUNTRACED)
print("asks" if status else "goes on")
"""


def test_a_job_in_the_background_of_a_shell_is_not_asked() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", OWN_TERMINAL, "-c", IN_THE_BACKGROUND]
    done = subprocess.run(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True, timeout=60)
    os.close(ours), os.close(theirs)
    assert done.stdout == "goes on\n"


@pytest.mark.parametrize("redirection", ["<&-", "2>&-", "<&- 2>&- >&-"])
def test_with_a_closed_input_or_output_nothing_is_asked(redirection: str) -> None:
    code = "from medseg3d.commandline.questions import is_interactive; import sys; sys.exit(int(is_interactive()))"
    subprocess.run(["sh", "-c", f'"$0" -c "$1" {redirection}', sys.executable, code], check=True, timeout=60)


def words_of(plain: Path, work: Path) -> list[str]:
    """A run that ends with an error right after it has planned."""
    planner = str(plain / "tiny.toml")
    return ["run", str(plain), "-w", str(work), "--planner", planner, "--epochs", "1", "-c", "none", "--device", "cpu"]


def test_a_person_at_a_terminal_is_asked_and_the_plan_has_the_answers(plain: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    asked = iter([("another modality", "CT"), ("Label 3", "shell"), ("Label 7", ""), ("5 patients", "yes")])
    words = [sys.executable, "-m", "medseg3d", *words_of(plain, tmp_path / "work")]
    shown = ""
    with subprocess.Popen([sys.executable, "-c", OWN_TERMINAL, *words[1:]], stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        expected, answer = next(asked)
        for shown in lines_of(ours, process):
            if expected in shown and shown.rstrip(" ").endswith("]:"):
                os.write(ours, f"{answer}\n".encode())
                expected, answer = next(asked, ("\0", ""))
    os.close(ours)
    assert process.returncode == 2
    assert "Kept in the plan" in shown
    assert "has no configuration 'none'" in shown
    made = json.loads((tmp_path / "work/plan.json").read_text(encoding="utf-8"))
    assert (made["channels"], made["given_names"]) == (["CT"], {"3": "shell", "7": "label_7"})


def test_without_a_terminal_nothing_is_asked(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words_of(plain, tmp_path / "work")) == 2
    shown = capsys.readouterr()
    assert "Enter takes" not in shown.err + shown.out
    assert json.loads((tmp_path / "work/plan.json").read_text(encoding="utf-8"))["channels"] == ["MRI"]
