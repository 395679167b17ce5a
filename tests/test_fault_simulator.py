"""Runs that are cut off at an operation on the disk, each followed by the same command: see ``tests/fault_simulator.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault_simulator import COMMANDS

ROOT = Path(__file__).parents[1]
QUICK = ("plan", "preprocess")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


def simulate(verbs: tuple[str, ...], *, every: int, record: Callable[[str, object], None]) -> None:
    """Assert that nothing was corrupt or left over, and record how many operations were tried."""
    command = [sys.executable, "-m", "tests.fault_simulator", "--every", str(every), "--verbs", *verbs]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert finished.stdout, finished.stderr
    found = json.loads(finished.stdout)
    assert [problem for kinds in found.values() for outcome in kinds.values() for problem in outcome["problems"]] == []
    tried = sum(outcome["tried"] for kinds in found.values() for outcome in kinds.values())
    assert tried >= 4 * len(verbs)
    record("tries", tried)


FAULT = (
    "C",
    "a command that is killed, stopped, or finds the disk full or broken, at any operation on the disk",
    "the same command ends with the bytes of an undisturbed run, and nothing is left over",
)


@pytest.mark.fault(*FAULT)
def test_planning_and_preprocessing_can_be_cut_off_anywhere(record_property: Callable[[str, object], None]) -> None:
    simulate(QUICK, every=40, record=record_property)


@pytest.mark.slow
@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.fault(*FAULT)
def test_every_command_can_be_cut_off_at_every_operation(verb: str, record_property: Callable[[str, object], None]) -> None:
    simulate((verb,), every=1, record=record_property)
