"""A slice of ``scripts/fuzz``: mutated files of every format are read or refused, in a process with limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
INPUTS = 128


@pytest.mark.fault("B", "mutated files of 16 formats (a slice of scripts/fuzz)", "read or refused with a message")
def test_mutated_files_are_read_or_refused(record_property) -> None:
    record_property("tries", INPUTS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fuzz", "--quick", "--inputs", str(INPUTS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if "**all**" in line)
    total, refused, read = (int(cell) for cell in row.split("|")[2:5])
    assert total == refused + read == INPUTS
    assert refused > INPUTS // 3
    assert read > INPUTS // 10
