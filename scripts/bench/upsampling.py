"""What each way up costs and how well it draws borders: the ways of ``medseg3d/networks/upsampling.py`` alone, trained on synthetic shapes.

The task is what a decoder stage does, without all that stands around it: labels of smooth random shapes, averaged over cells, come in; the
labels at full resolution are wanted. Every way is trained alike (Adam, cross-entropy, the same batches) and measured on shapes it has not
seen. Out: a Markdown table, and ``upsampling.json`` in OUT. Seconds are CPU seconds of one thread.

    python scripts/bench/upsampling.py --output OUT
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import machine, markdown_table, write_json
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medseg3d.networks.blocks import initialize
from medseg3d.networks.resizing import window_means
from medseg3d.networks.upsampling import UPSAMPLING

NUM_CLASSES, CHANNELS = 4, 32
"""Channels of a decoder stage that still runs in seconds; the labels are projected to them at random."""
FACTORS: dict[str, tuple[int, ...]] = {"2D, 2x2": (2, 2), "3D, 2x2x2": (2, 2, 2), "3D, 1x4x4": (1, 4, 4)}
SIZES = {"2D, 2x2": (48, 48), "3D, 2x2x2": (24, 24, 24), "3D, 1x4x4": (8, 32, 32)}
"""Of the labels."""
SMOOTHNESS = 3.0
"""Standard deviation of the shapes' outlines in voxels of the labels: several cells, as organs have."""
BATCH, STEPS, LEARNING_RATE, TESTED = 4, 300, 0.01, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``border_dice`` is over voxels within one of a border, ``seconds`` of a forward pass of one sample."""

    way: str
    task: str
    parameters: int
    multiply_adds: int
    seconds: float
    dice: float
    border_dice: float


def main() -> int:
    """All ways and tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for upsampling.json")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--tasks", nargs="+", default=list(FACTORS), choices=list(FACTORS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = []
    for task in options.tasks:
        for way in UPSAMPLING:
            outcomes.append(measured(way, task, options.steps))
            print(outcomes[-1], flush=True)
            write_json(options.output / "upsampling.json", {"machine": machine(), "outcomes": [asdict(outcome) for outcome in outcomes]})
    print(table(outcomes))
    return 0


def measured(way: str, task: str, steps: int) -> Outcome:
    """Train one way on a task, and measure it."""
    factors, generator = FACTORS[task], torch.Generator().manual_seed(0)
    projection = torch.randn(CHANNELS, NUM_CLASSES, generator=generator)
    module = UPSAMPLING[way](CHANNELS, NUM_CLASSES, factors)
    initialize(module, generator)
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        labels = shapes(BATCH, SIZES[task], generator)
        optimizer.zero_grad()
        F.cross_entropy(module(coarse(labels, factors, projection)), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    labels = shapes(TESTED, SIZES[task], torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = coarse(labels, factors, projection)
        predicted = torch.cat([module(sample[None]).argmax(1) for sample in features])
        seconds = seconds_of(module, features[:1])
        with FlopCounterMode(display=False) as counter:
            module(features[:1])
    return Outcome(
        way=way,
        task=task,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        multiply_adds=counter.get_total_flops() // 2,
        seconds=seconds,
        dice=dice(predicted, labels, torch.ones_like(labels, dtype=torch.bool)),
        border_dice=dice(predicted, labels, near_border(labels)),
    )


def shapes(number: int, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Labels ``(number, …)``: which of several smooth random fields is the largest."""
    field = torch.randn(number, NUM_CLASSES, *size, generator=generator)
    reach = round(3 * SMOOTHNESS)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / SMOOTHNESS) ** 2)
    for axis in range(2, field.ndim):
        lines = field.movedim(axis, -1)
        smooth = F.conv1d(F.pad(lines.reshape(-1, 1, lines.shape[-1]), (reach, reach)), kernel.view(1, 1, -1))
        field = smooth.view(lines.shape).movedim(-1, axis)
    return field.argmax(1)


def coarse(labels: Tensor, factors: tuple[int, ...], projection: Tensor) -> Tensor:
    """The share of each class in cells of ``factors`` voxels, projected to the channels of a stage."""
    shares = F.one_hot(labels, NUM_CLASSES).movedim(-1, 1).float()
    windows = [[(c * f, (c + 1) * f) for c in range(n // f)] for n, f in zip(labels.shape[1:], factors, strict=True)]
    return torch.einsum("oc,bc...->bo...", projection, window_means(shares, windows))


def near_border(labels: Tensor) -> Tensor:
    """Voxels with another label among the nearest."""
    member = F.one_hot(labels, NUM_CLASSES).movedim(-1, 1).float()
    pool = F.max_pool2d if labels.ndim == 3 else F.max_pool3d
    return pool(member, 3, 1, 1).sum(1) > 1


def dice(predicted: Tensor, labels: Tensor, where: Tensor) -> float:
    """The mean over the classes, of the voxels in a mask of all samples."""
    scores = [
        2 * float((p := (predicted == c) & where).logical_and(r := (labels == c) & where).sum()) / max(1.0, float(p.sum() + r.sum()))
        for c in range(NUM_CLASSES)
    ]
    return sum(scores) / len(scores)


def seconds_of(module: nn.Module, sample: Tensor) -> float:
    """CPU seconds of a forward pass: the least of several, after one to warm up."""
    module(sample)
    found = []
    for _ in range(20):
        start = time.process_time()
        module(sample)
        found.append(time.process_time() - start)
    return min(found)


def table(outcomes: list[Outcome]) -> str:
    """One row per way, its three tasks beside each other."""
    tasks = list(dict.fromkeys(outcome.task for outcome in outcomes))
    rows = []
    for way in UPSAMPLING:
        own = [outcome for task in tasks for outcome in outcomes if outcome.way == way and outcome.task == task]
        cells = (f"{o.parameters:,} / {o.multiply_adds / 1e6:.1f} M / {1000 * o.seconds:.1f} ms / {o.border_dice:.3f}" for o in own)
        rows.append((f"`{way}`", *cells))
    return markdown_table(("way up", *tasks), rows)


if __name__ == "__main__":
    sys.exit(main())
