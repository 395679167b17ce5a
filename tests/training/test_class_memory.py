"""A memory of classes learns in training, goes on after a stop as if there had been none, and knows what labels mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from medseg3d.labels import Labels
from medseg3d.models.checkpoints import load_tensors
from medseg3d.networks.class_memory import memories
from medseg3d.plan import Configuration, NetworkPlan, Plan
from medseg3d.preprocessing.store import StoredCase
from medseg3d.training.domains import NO_NAME, TrainingDomain
from medseg3d.training.learner import make_learner
from medseg3d.training.step import rate_share
from tests.training.test_loop import FLOAT32, run

OPTIONS = {"head_features": 8, "attention_features": 4, "context": "none", "norm": "instance"}


def with_memory(configuration: Configuration) -> Configuration:
    """The configuration with a small network that has a memory."""
    given = configuration.network
    network = NetworkPlan(
        family="mcibi",
        dimensions=given.dimensions,
        in_channels=given.in_channels,
        num_classes=given.num_classes,
        features=(4, 4, 8),
        kernel_sizes=((3,) * given.dimensions,) * 3,
        strides=((1,) * given.dimensions, *((2,) * given.dimensions,) * 2),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
        options={**OPTIONS},
    )
    return replace(configuration, network=network)


def test_a_stopped_training_remembers_what_an_uninterrupted_one_does(
    material: tuple[Plan, Configuration, list[StoredCase]],
    tmp_path: Path,
) -> None:
    plan, configuration, cases = material
    given = (plan, with_memory(configuration), cases)
    run(given, tmp_path / "whole", epochs=1, iterations=2, seed=1)
    run(given, tmp_path / "stopped", epochs=1, iterations=2, seed=1, stop_after=1)
    run(given, tmp_path / "stopped", epochs=1, iterations=2, seed=1)
    whole, stopped = (load_tensors(tmp_path / name / "last.safetensors")[0] for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert whole["network.memory.memory"].any(1).all()


def test_a_memory_is_told_what_codes_mean(material: tuple[Plan, Configuration, list[StoredCase]]) -> None:
    plan, configuration, cases = material
    names = plan.labels.names
    regions = Labels(names=names, values=plan.labels.values, regions=(plan.labels.values[1:], plan.labels.values[2:]))
    configuration = with_memory(configuration)
    configuration = replace(configuration, network=replace(configuration.network, num_classes=2))
    domain = TrainingDomain(name=NO_NAME, plan=replace(plan, labels=regions), configuration=configuration, training=cases, validation=cases)
    learner = make_learner([domain], FLOAT32, seed=0)
    (memory,) = memories(learner.network)
    assert memory.contents is not None
    assert memory.contents.tolist() == [[False, True, True], [False, False, True]]
    assert learner.network.label_codes == domain.codes


def test_the_share_of_the_learning_rate_is_that_of_the_first_group() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "factor": 0.5}], lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.01
    assert abs(rate_share(optimizer) - 0.2) < 1e-12
    optimizer.param_groups[0]["factor"] = 0.0
    assert rate_share(optimizer) == 0
