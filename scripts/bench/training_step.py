"""Where the CPU time of a training step goes, and how much of it another tree of the code takes for the same step.

In: a dataset and its work folder with preprocessed cases. Out: Markdown tables: CPU seconds of one thread for loading, augmentation and
step, and the shares of operators. Seconds are those of the process, so what else runs on the machine hardly counts; trees take turns.

    python training_step.py DATASET WORK [--configuration 3d_fullres] [--precision auto float32] [--tree OTHER_CHECKOUT]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import markdown_table

if TYPE_CHECKING:
    from torch.profiler import profile

HERE = Path(__file__).resolve().parents[2]
WARM_UP, PROFILED = 2, 2
"""Steps that set up memory and kernels, and those that are looked into, which takes longer than they do."""
KINDS = (
    ("convolution, forward", ("aten::mkldnn_convolution", "aten::_convolution", "aten::conv2d", "aten::conv3d", "aten::addmm", "_InTiles")),
    ("convolution, backward", ("aten::convolution_backward", "_InTilesBackward")),
    ("norm", ("batch_norm", "NativeBatchNorm")),
    ("activation", ("leaky_relu",)),
    ("loss", ("softmax", "gather", "scatter", "nll_loss", "aten::exp")),
    ("joining and copying", ("aten::cat", "aten::copy_", "aten::_to_copy", "aten::contiguous", "aten::clone", "constant_pad")),
    ("optimizer", ("Optimizer", "_foreach", "linalg_vector_norm")),
)
"""Operators by the beginning of, or a part of, their names; what is left is ``everything else``."""


def main() -> int:
    """The tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--precision", nargs="+", default=["auto", "float32"], choices=["auto", "float32"])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a call")
    parser.add_argument("--repeat", type=int, default=2, help="calls of each tree, in turns")
    parser.add_argument("--tree", type=Path, action="append", default=[], help="another checkout; timed beside this one")
    parser.add_argument("--one", choices=["auto", "float32"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options, options.one)))
        return 0
    trees = [HERE, *(tree.resolve() for tree in options.tree)]
    for precision in options.precision:
        found: dict[Path, list[dict[str, Any]]] = {tree: [] for tree in trees}
        for _ in range(options.repeat):
            for tree in trees:
                found[tree].append(_in_tree(tree, precision))
        _show(precision, found)
    return 0


def _in_tree(tree: Path, precision: str) -> dict[str, Any]:
    """What a process that imports the package from a tree measures."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *sys.argv[1:], "--one", precision]
    finished = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def measured(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """CPU seconds per step of this tree, and the shares of operators."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from medseg3d.devices import choose_device, use_all_cores
    from medseg3d.domain import Domain
    from medseg3d.patches.augmentation import augment
    from medseg3d.training.domains import patch_loader
    from medseg3d.training.learner import make_learner
    from medseg3d.training.step import take_step
    from medseg3d.work_folder import WorkFolder
    from medseg3d.workflows.train import training_domain

    use_all_cores()
    torch.set_num_threads(1)
    device = choose_device("cpu", precision)
    domain = training_domain(Domain(dataset=options.dataset, folder=WorkFolder(options.work), configuration=options.configuration), "0")
    learner = make_learner([domain], device, seed=0)
    learner.begin_training()
    loader = patch_loader(domain, batch_size=options.batch_size, seed=0, on_gpu=False)
    seconds: list[tuple[float, float, float]] = []

    def step(iteration: int) -> None:
        marks = [time.process_time()]
        batch = loader.make_batch(0, iteration)
        marks.append(time.process_time())
        image, labels = augment(batch, domain.policy, device.device)
        marks.append(time.process_time())
        take_step(learner, image, labels, domain.loss)
        marks.append(time.process_time())
        seconds.append((marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]))

    for iteration in range(WARM_UP + options.steps):
        step(iteration)
    timed = seconds[WARM_UP:]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for iteration in range(PROFILED):
            step(iteration)
    loading, augmentation, steps = (list(each) for each in zip(*timed, strict=True))
    return {
        "precision": device.precision,
        "loading": statistics.mean(loading),
        "augmentation": statistics.mean(augmentation),
        "step": min(steps),
        "shares": _shares(profiled),
    }


def _shares(profiled: profile) -> dict[str, float]:
    """Of the time that operators themselves take, by kind."""
    found: dict[str, float] = {}
    for event in profiled.key_averages():
        kind = next((name for name, parts in KINDS if any(part in event.key for part in parts)), "everything else")
        found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(found.values())
    return {kind: value / total for kind, value in found.items()}


def _show(precision: str, found: dict[Path, list[dict[str, Any]]]) -> None:
    calls = {("this tree" if tree == HERE else str(tree)): results for tree, results in found.items()}
    first = next(iter(calls.values()))[0]
    print(f"\nPrecision {precision}, which is {first['precision']} here:\n")
    rows = []
    best = {name: min(result["step"] for result in results) for name, results in calls.items()}
    for name, results in calls.items():
        loading, augmentation = (statistics.mean(result[part] for result in results) for part in ("loading", "augmentation"))
        gain = f"{best[name] / best['this tree']:.2f}×"
        rows.append((name, f"{loading:.4f}", f"{augmentation:.3f}", f"{best[name]:.3f}", gain))
    print(markdown_table(("tree", "loading s", "augmentation s", "step s", "against this tree"), rows))
    kinds = [*(name for name, _ in KINDS), "everything else"]
    shares = [
        (kind, *(f"{statistics.mean(result['shares'].get(kind, 0.0) for result in results):.1%}" for results in calls.values()))
        for kind in kinds
    ]
    print()
    print(markdown_table(("share of a step", *calls), shares))


if __name__ == "__main__":
    sys.exit(main())
