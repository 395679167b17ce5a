"""What is printed comes through: any output, any name, no warning twice, a line a minute in a file."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from medseg3d.commandline.terminal import Once, ProgressLines, make_printable, wrapped
from medseg3d.events import Event

ENVIRONMENTS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "cp437:strict"},
    {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "utf-8:strict"},
]


def run(arguments: list[str | bytes], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONIO", "PYTHONUTF8", "LC_", "LANG"))}
    return subprocess.run(
        [sys.executable, "-m", "medseg3d", *arguments], capture_output=True, env={**usual, **environment}, cwd=folder, timeout=120
    )


@pytest.mark.fault(
    "E", "a standard output that is not UTF-8 (Windows redirection, LANG=C)", "tables and arrows are printed in ASCII, no traceback"
)
@pytest.mark.parametrize("environment", [ENVIRONMENTS[0], ENVIRONMENTS[1], ENVIRONMENTS[3]], ids=lambda each: "-".join(each.values()))
def test_a_plan_is_printed_whatever_the_output_can_show(tiny: Path, environment: dict[str, str]) -> None:
    done = run(["plan", str(tiny), "--planner", str(tiny / "tiny.toml")], environment, tiny)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr[-2000:]
    assert b"Recommended: " in done.stdout
    if environment.get("PYTHONIOENCODING") == "ascii":
        assert b"->" in done.stdout
        assert b"20x18x12" in done.stdout or b"12x18x20" in done.stdout


@pytest.mark.fault("E", "a name with a byte that is no UTF-8 in a message", "the message is printed, the byte as a number, no traceback")
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda each: "-".join(each.values()))
def test_a_name_that_is_no_utf8_is_printed_in_a_message(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run(["doctor", os.fsencode(tmp_path) + b"/M\xfcller"], environment, tmp_path)
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False), done.stderr[-2000:]
    assert b"/M\\xfcller: " in done.stdout + done.stderr


def printed(text: str, encoding: str) -> bytes:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, errors="strict", write_through=True)
    make_printable(stream)
    stream.write(text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("2×3 → 4 … a–b", "ascii", b"2x3 -> 4 ... a-b"),
        ("2×3 → Müller", "cp1252", "2×3 -> Müller".encode("cp1252")),
        ("┃ 3³ │", "latin-1", "| 3³ |".encode("latin-1")),
        ("M\udcfcller ü", "utf-8", "M\\xfcller ü".encode()),
        ("M\udcfcller 肝", "ascii", b"M\\xfcller \\u809d"),
        ("2×3 → 4", "utf-8", "2×3 → 4".encode()),
    ],
)
def test_characters_that_an_encoding_lacks_are_replaced_by_what_looks_alike(text: str, encoding: str, expected: bytes) -> None:
    assert printed(text, encoding) == expected


@pytest.mark.fault("E", "the same warning from every stage of a run", "printed once")
def test_a_warning_is_printed_once_and_errors_always() -> None:
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.addFilter(Once())
    logger = logging.getLogger("test_terminal")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        for number in (1, 1, 2, 1):
            logger.warning("warning %d", number)
            logger.error("error")
    finally:
        logger.removeHandler(handler)
    assert output.getvalue().splitlines() == ["warning 1", "error", "error", "warning 2", "error", "error"]


class Wide(io.StringIO):
    """Text that believes to be on a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_message_is_broken_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = "medseg3d: the dataset cannot be used as it is:\n  - a_name_of_a_case_that_is_longer_than_any_line_can_be: no label"
    assert wrapped(text, io.StringIO()) == text
    lines = wrapped(text, Wide()).splitlines()
    assert all(len(line) <= 40 or " " not in line.strip() for line in lines)
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert lines[-1] == "    no label"


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.fault("E", "a redirected log that is silent for hours", "a line where a stage begins and one a minute while it goes on")
def test_a_log_file_gets_a_line_per_stage_and_per_minute() -> None:
    lines: list[str] = []
    clock = Clock()
    progress = ProgressLines(lines.append, clock=clock)
    for stage, total in (("fingerprint", 3), ("preprocess", 3)):
        for done in range(total + 1):
            progress.listen(Event(stage=stage, done=done, total=total))
            clock.now += 1
    for step in range(1, 200):
        progress.listen(Event(stage="train 2d fold 0, epoch 0", done=step, total=250))
        clock.now += 1
    progress.listen(Event(stage="train 2d fold 0, epoch 0, validating", done=0, total=50))
    clock.now += 61
    progress.tell()  # a batch that takes long is told of as well
    progress.listen(Event(stage="train", message="epoch 0 loss 0.5"))
    progress.listen(Event(stage="train 2d fold 0, epoch 1", done=1, total=250))
    assert lines == [
        "fingerprint …",
        "preprocess …",
        "train 2d fold 0 …",
        "train 2d fold 0, epoch 0: 61 of 250, after 1 min, about 3 min left",
        "train 2d fold 0, epoch 0: 121 of 250, after 2 min, about 2 min left",
        "train 2d fold 0, epoch 0: 181 of 250, after 3 min, about 1 min left",
        "train 2d fold 0, epoch 0, validating: 0 of 50, after 4 min",
    ]


def test_all_is_never_said_to_be_done_while_more_follows() -> None:
    lines: list[str] = []
    clock = Clock()
    progress = ProgressLines(lines.append, clock=clock)
    for epoch in range(5):
        progress.listen(Event(stage="train 2d fold 0", done=epoch, total=4, overall=epoch / 4))
        progress.listen(Event(stage="train", message=f"epoch {epoch}"))
        clock.now += 100
    assert [line for line in lines if "of all done" in line] == [f"{share} % of all done, about {left} left" for share, left in LEFT]


LEFT = ((25, "5 min"), (50, "3 min"), (75, "1 min"))


def test_a_stage_that_says_nothing_is_told_of_by_a_thread() -> None:
    told = threading.Event()

    def write(line: str) -> None:
        if line.startswith("plan: 0 of 1"):
            told.set()

    with ProgressLines(write, seconds=0.02) as progress:
        progress.listen(Event(stage="plan", total=1))
        assert told.wait(10)


@pytest.mark.fault(
    "E", "a bar at 100 % while an epoch or a fold is validated", "the bar says `validating` and goes on; measuring has a bar of its own"
)
def test_training_tells_of_its_validation(trained: Path, tmp_path: Path) -> None:
    from medseg3d.workflows.train import train

    copied = Path(shutil.copytree(trained, tmp_path / "Balls"))
    heard: list[Event] = []
    train(copied, fold="1", device="cpu", epochs=1, iterations=2, on=heard.append)
    stage = "train 3d_fullres fold 1"
    kinds = list(dict.fromkeys(event.stage for event in heard if event.total))
    assert kinds == [stage, f"{stage}, epoch 0", f"{stage}, epoch 0, validating", "validate", "evaluate"]
    of_epoch = [(event.done, event.total) for event in heard if event.stage == f"{stage}, epoch 0, validating"]
    assert of_epoch == [(done, of_epoch[-1][0]) for done in range(len(of_epoch))]
    assert len(of_epoch) > 1
    assert next((event.done, event.total) for event in heard if event.stage == "validate") == (0, 1)
