"""The batches for a loop of one's own are those of training."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from medseg3d.commandline.cli import main
from medseg3d.errors import InputError
from medseg3d.plan import Plan
from medseg3d.preprocessing.store import Store
from medseg3d.training.training_patches import training_patches
from medseg3d.work_folder import WorkFolder


@pytest.fixture
def plan(trained: Path) -> Plan:
    return WorkFolder(trained / "medseg3d-work").read_plan()


@pytest.fixture
def store(trained: Path, plan: Plan) -> Store:
    return Store(WorkFolder(trained / "medseg3d-work").store(plan.configuration(None).data))


def test_the_batches_are_those_that_training_sees(trained: Path, tmp_path: Path, plan: Plan, store: Store) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "Balls"))
    steps = plan.configuration(None).training.iterations_per_epoch
    seen: list[torch.Tensor] = []

    def see(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if hasattr(module, "deep_supervision") and module.training and torch.is_grad_enabled():
            seen.append(inputs[0].clone())

    hook = register_module_forward_pre_hook(see)
    try:
        assert main(["train", str(root), "--fold", "all", "--epochs", "2", "--seed", "5", "--device", "cpu", "-q"]) == 0
    finally:
        hook.remove()
    batches = list(islice(training_patches(store, plan, seed=5), 2 * steps))
    assert len(seen) >= 2 * steps  # the precision is tried on a batch first
    for (image, _), trained_on in zip(batches, seen[-2 * steps :], strict=True):
        assert torch.equal(image, trained_on)


def test_a_run_goes_on_at_the_epoch_that_is_named(store: Store, plan: Plan) -> None:
    steps = plan.configuration(None).training.iterations_per_epoch
    beginning = list(islice(training_patches(store, plan, seed=1), 2 * steps))
    rest = list(islice(training_patches(store, plan, seed=1, first_epoch=1), steps))
    for (image, labels), (same_image, same_labels) in zip(beginning[steps:], rest, strict=True):
        assert torch.equal(image, same_image)
        assert torch.equal(labels, same_labels)


def test_patches_of_named_cases_that_are_left_as_they_are_lie_in_their_volumes(store: Store, plan: Plan) -> None:
    name = store.names()[2]
    image, labels = next(training_patches(store, plan, cases=[name], batch_size=3, is_augmented=False))
    assert (image.shape[0], image.dtype, labels.dtype) == (3, torch.float32, torch.int64)
    assert tuple(image.shape[2:]) == tuple(labels.shape[1:]) == plan.configuration(None).patch_size
    whole = store.read(name).image[:].astype("float32")
    assert set(image.unique().tolist()) <= {0.0, *whole.ravel().tolist()}
    assert set(labels.unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"cases": []}, "no case to take patches from"),
        ({"cases": "ball_0"}, r"cases is 'ball_0', expected a list of names, such as \['ball_0'\]"),
        ({"cases": ["nobody"]}, "nobody: there is no preprocessed case here"),
        ({"cases": [3]}, "3: there is no preprocessed case here"),
        ({"batch_size": 0}, "--batch-size 0: expected a whole number of at least 1"),
        ({"batch_size": -1}, "--batch-size -1: expected"),
        ({"seed": -1}, "--seed -1: expected a whole number of at least 0"),
        ({"seed": None}, "--seed None: expected"),
        ({"first_epoch": -1}, "first_epoch is -1, expected"),
        ({"device": "gpu"}, "--device gpu: not a device"),
        ({"device": "cuda:99"}, "--device cuda"),
        ({"configuration": "2d"}, "preprocessed for another configuration or plan than 2d"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_asked_for(store: Store, plan: Plan, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        training_patches(store, plan, **arguments)


def test_a_store_that_is_not_there_or_none_is_refused(tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(InputError, match="there is no store of preprocessed cases here"):
        training_patches(Store(tmp_path / "nope"), plan)
    with pytest.raises(InputError, match="no case to take patches from"):
        training_patches(Store(tmp_path), plan)
    with pytest.raises(InputError, match=r"expected a store, such as medseg3d\.Store"):
        training_patches(tmp_path, plan)  # type: ignore[arg-type]


def test_the_device_may_be_left_to_the_machine(store: Store, plan: Plan) -> None:
    image, _ = next(training_patches(store, plan, device="auto"))
    assert image.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
