"""Two processes that train together give the numbers of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg3d.models.checkpoints import load_tensors
from medseg3d.team import Team
from medseg3d.workflows.processes import common_store, environment_of

ROOT = Path(__file__).parent.parent.parent


def run_two(work: Path, output: Path, steps: int) -> dict[str, Any]:
    """The results of ``two_processes.py``."""
    command = [sys.executable, "-m", "tests.training.two_processes", str(work), str(output), str(steps)]
    with common_store() as port:
        both = [
            subprocess.Popen(command, env=environment_of(rank, 2, port), cwd=ROOT, stderr=subprocess.PIPE, encoding="utf-8")
            for rank in range(2)
        ]
        for process in both:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
    found: dict[str, Any] = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return found


def difference(folder: Path, other: Path) -> float:
    """Of the weights, relative to their norm."""
    one, two = (
        torch.cat([tensor.flatten() for name, tensor in sorted(load_tensors(each / "last.safetensors")[0].items()) if "network." in name])
        for each in (folder, other)
    )
    return float((one - two).norm() / one.norm())


@pytest.fixture(scope="module")
def results(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A short training of two processes, the same of one, and the losses of both."""
    folder = tmp_path_factory.mktemp("team")
    return folder, run_two(trained / "medseg3d-work", folder, 2)


def test_weights_and_losses_are_those_of_one_process_with_the_same_batch(results: tuple[Path, dict[str, Any]]) -> None:
    folder, found = results
    assert difference(folder / "together", folder / "alone") < 1e-5
    together, alone = ([epoch | {"seconds": 0} for epoch in found[name]["history"]] for name in ("together", "alone"))
    for one, other in zip(together, alone, strict=True):
        for number in ("train_loss", "validation_loss", "learning_rate", "pseudo_dice_mean"):
            assert one[number] == pytest.approx(other[number], rel=1e-4), number


def test_every_loss_and_batch_norm_is_that_of_the_whole_batch_with_its_gradient(results: tuple[Path, dict[str, Any]]) -> None:
    together, alone = (results[1][name]["losses"] for name in ("together", "alone"))
    assert together.keys() == alone.keys()
    for name, values in alone.items():
        assert together[name] == pytest.approx(values, rel=2e-4, abs=2e-6), name


def test_a_stop_in_one_process_ends_both_after_the_next_step_and_one_process_goes_on(results: tuple[Path, dict[str, Any]]) -> None:
    folder, found = results
    assert found["stopped"] == {"iteration": 2}  # told during the first
    assert difference(folder / "stopped", folder / "alone") < 1e-5


@pytest.mark.slow
def test_weights_after_twenty_steps_are_those_of_one_process(trained: Path, tmp_path: Path) -> None:
    run_two(trained / "medseg3d-work", tmp_path, 10)
    assert difference(tmp_path / "together", tmp_path / "alone") < 1e-5


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_sample_is_one_processs_and_their_numbers_differ_by_one_at_most(size: int) -> None:
    for count in range(size, 12):
        parts = [Team(rank=rank, size=size).part(count) for rank in range(size)]
        assert [sample for part in parts for sample in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
