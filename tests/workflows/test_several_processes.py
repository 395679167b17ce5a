"""The processes of one training as the one that started them sees them: what they say, and how all end where one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg3d.commandline.cli import main
from medseg3d.devices import several_devices
from medseg3d.errors import InputError, ProcessError
from medseg3d.events import Event
from medseg3d.records import to_plain
from medseg3d.workflows.processes import Processes, Report

WAIT = "import time; time.sleep(60)"


def started(*programs: str) -> Processes:
    """A process for each Python program, which finds its text in its environment."""
    run = "import os; exec(os.environ['PROGRAM'])"
    return Processes([sys.executable, "-c", run], [{**os.environ, "PROGRAM": program} for program in programs])


def says(report: Report) -> str:
    """A program that reports."""
    return f"print({json.dumps(to_plain(report))!r}, flush=True)"


def heard(team: Processes) -> list[Report]:
    """All that they say until they have ended."""
    found = [report for report in team.reports() if report is not None]
    team.end_and_wait()
    return found


def test_events_come_through_and_other_lines_do_not(capfd: pytest.CaptureFixture[str]) -> None:
    event = Event(stage="train", done=1, total=4, values={"train_loss": 0.5}, step=3)
    team = started(f"{says(Report(event=event))}; print('hello from a library', flush=True)", "pass")
    assert [report.event for report in heard(team)] == [event]
    assert "hello from a library" in capfd.readouterr().err
    team.raise_failure()


def test_where_one_says_why_it_failed_all_end_and_that_is_the_error() -> None:
    began = time.monotonic()
    team = started(WAIT, f"{says(Report(message='no such case', exit_code=2))}; raise SystemExit(2)", WAIT)
    assert heard(team) == []
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessError, match=r"^no such case$") as raised:
        team.raise_failure()
    assert raised.value.exit_code == 2


def test_where_one_is_killed_all_end_and_the_signal_is_named() -> None:
    team = started(WAIT, "import os; os.kill(os.getpid(), 9)")
    assert heard(team) == []
    with pytest.raises(ProcessError, match=r"Process 2 of 2 was killed by SIGKILL; the others were ended\. .*short of memory"):
        team.raise_failure()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "names no devices"),
        ("cpu:1,2", "names no devices"),
        ("cpu:0", "one device or more"),
        ("cuda:99", "CUDA devices? that PyTorch sees"),
    ],
)
def test_devices_that_are_not_there_are_refused_with_what_to_say(text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"--devices {text}: .*{message}.*Say how many GPUs, which ones"):
        several_devices(text)


@pytest.mark.slow
def test_a_batch_that_is_too_small_and_a_process_that_is_killed_are_one_message(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(trained), "--fold", "1", "--devices", "cpu:2", "--batch-size"]
    assert main([*command, "1", "-q"]) == 2
    assert capsys.readouterr().err.count("medseg3d: A batch of 1 cannot be shared by 2 processes.") == 1
    words = [sys.executable, "-m", "medseg3d", *command, "2", "--epochs", "2", "--iterations", "200"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, encoding="utf-8") as parent:
        state = trained / "medseg3d-work/models/3d_fullres/fold_1/training.json"
        children: list[int] = []
        while not state.exists() and parent.poll() is None:
            time.sleep(0.2)
        text = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text(encoding="ascii")
        children = [int(number) for number in text.split()]
        assert len(children) >= 2
        os.kill(children[1], signal.SIGKILL)
        killed = time.monotonic()
        _, errors = parent.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert parent.returncode == 2
    assert errors.count("medseg3d: ") == 1
    assert "was killed by SIGKILL" in errors


@pytest.mark.slow
def test_torchrun_starts_the_same_training(trained: Path, tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517", "-m", "medseg3d", "train", str(trained)]
    more = ["--fold", "2", "--device", "cpu", "--epochs", "1", "--iterations", "2"]
    done = subprocess.run([sys.executable, *command, *more], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    state = json.loads((trained / "medseg3d-work/models/3d_fullres/fold_2/training.json").read_text(encoding="utf-8"))
    assert (state["processes"], state["is_finished"]) == (2, True)
    assert done.stdout.count("Validation of fold 2") == 1
