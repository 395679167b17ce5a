"""A process is known by its number and its start, and is seen to have ended only from its own host."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from medseg3d.processes import Process, parse_process, this_process


def ended_process() -> Process:
    """A process of this host that ran and ended."""
    code = "from medseg3d.processes import this_process; print(this_process())"
    found = parse_process(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    assert found is not None
    return found


def test_this_process_lives_and_another_start_with_its_number_does_not() -> None:
    mine = this_process()
    assert mine.is_alive
    assert mine.pid == os.getpid()
    assert replace(mine, start=mine.start + 1).is_alive is False
    assert ended_process().is_alive is False


def test_of_another_host_nothing_is_known() -> None:
    assert replace(this_process(), host="00000000").is_alive is None


def test_a_process_that_ended_but_was_not_asked_for_its_code_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "from medseg3d.processes import this_process; print(this_process(), flush=True)"],
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert child.stdout is not None
    found = parse_process(child.stdout.read().strip())
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert found is not None
    assert found.is_alive is False
    child.communicate()


@pytest.mark.parametrize("text", ["", "9f3a21bc", "9f3a21bc-3fae2", "9F3A21BC-1-2", "9f3a21bc-3fae2-9d8f7-00"])
def test_other_names_name_no_process(text: str) -> None:
    assert parse_process(text) is None
    assert parse_process(str(this_process())) == this_process()
