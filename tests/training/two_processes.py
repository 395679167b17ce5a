"""What the tests of shared training run in each of two processes: ``python -m tests.training.two_processes WORK OUTPUT STEPS``.

The first process then does the same alone, and writes both results into the folder OUTPUT.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg3d.devices import Device
from medseg3d.losses import LOSSES, LossSettings, make_loss
from medseg3d.options import TrainingOptions
from medseg3d.preprocessing.store import Store
from medseg3d.signals import StopRequest
from medseg3d.team import ALONE, Team, joined_team
from medseg3d.training.domains import NO_NAME, TrainingDomain
from medseg3d.training.loop import train_domains
from medseg3d.training.pooled_norm import pool_batch_norms
from medseg3d.training.state import TrainingState, read_history, read_summary
from medseg3d.work_folder import WorkFolder

FLOAT32 = Device(device=torch.device("cpu"), precision="float32")
SAMPLES, CLASSES = 3, 3


def train(work: WorkFolder, folder: Path, team: Team, *, steps: int, batch_size: int, stop_at: int | None = None) -> list[Any]:
    """The history of a training with pooled Dice; two epochs of so many steps."""
    plan = work.read_plan()
    planned = plan.configuration(None)
    # SGD: the first steps of AdamW have one size, so that of a gradient that is nearly 0 the last digit decides where they go
    configuration = replace(planned, batch_dice=True, training=replace(planned.training, follows_budget=False))
    store = Store(work.store(configuration.data))
    cases = [store.read(name, in_memory=True) for name in store.names()]
    domain = TrainingDomain(name=NO_NAME, plan=plan, configuration=configuration, training=cases[:4], validation=cases[4:])
    stop, done = StopRequest(), [0]

    def count(*place: int) -> None:
        done[0] += 1
        if done[0] == stop_at and not team.is_first:
            stop.set(15)  # one process alone is told

    list(
        train_domains(
            [domain],
            name=configuration.name,
            fold="0",
            folder=folder,
            device=FLOAT32,
            options=TrainingOptions(epochs=2, iterations=steps, batch_size=batch_size),
            plan_digest="x",
            stop=stop,
            team=team,
            on_step=count,
        )
    )
    team.wait()
    return read_history(folder)


def load_state_of(folder: Path) -> TrainingState:
    """What a folder says of its run."""
    state = read_summary(folder)
    assert state is not None
    return state


def losses_and_gradients(team: Team) -> dict[str, list[float]]:
    """Of every loss that is built in, on a batch of three of which each process has a part: value and the gradient of a shared number."""
    found = {}
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(SAMPLES, CLASSES, 4, 6, 6, generator=generator)
    labels = torch.randint(0, CLASSES, (SAMPLES, 4, 6, 6), generator=generator)
    for name in LOSSES.built_in:
        for batch_dice in (False, True):
            loss = make_loss(name, LossSettings(num_classes=CLASSES, batch_dice=batch_dice), class_voxels=lambda: (9.0, 3.0, 1.0))
            found[f"{name} {batch_dice}"] = _shared(team, lambda scale, own, loss=loss: loss(scale * logits[own], labels[own]))
    network = nn.Sequential(nn.BatchNorm3d(CLASSES))
    if team.size > 1:
        pool_batch_norms(network)
    found["batch norm"] = _shared(team, lambda scale, own: (network(scale * logits[own]) * logits[own].square()).mean())
    found["its memory"] = [value for buffer in network.buffers() for value in buffer.float().flatten().tolist()]
    return found


def _shared(team: Team, loss: Callable[[Tensor, slice], Tensor]) -> list[float]:
    scale = torch.tensor([1.0, 0.5, 2.0]).view(1, -1, 1, 1, 1).requires_grad_()
    part = team.part(SAMPLES)
    with team.sharing(SAMPLES) as share:
        value = share * loss(scale, slice(part.start, part.stop))
    value.backward()  # type: ignore[no-untyped-call]
    gradient = [] if scale.grad is None else scale.grad.flatten().tolist()
    return team.summed([float(value.detach()), *gradient])


def main(work: str, output: str, steps: str) -> None:
    """Both trainings, and all losses."""
    folder, place = Path(output), WorkFolder(Path(work))
    torch.set_num_threads(1)
    with joined_team(os.environ, gpu=None) as team:
        results = {}
        for name, group in (("together", team), ("alone", ALONE)):
            if group.size > 1 or team.is_first:
                history = train(place, folder / name, group, steps=int(steps), batch_size=3)
                results[name] = {"history": history, "losses": losses_and_gradients(group)}
            team.wait()
        train(place, folder / "stopped", team, steps=int(steps), batch_size=3, stop_at=1)
        if team.is_first:
            results["stopped"] = {"iteration": load_state_of(folder / "stopped").iteration}
            train(place, folder / "stopped", ALONE, steps=int(steps), batch_size=3)
            (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
