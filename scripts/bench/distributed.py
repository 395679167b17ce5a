"""Two processes of one core each beside one of one core and one of both cores: the work per second, and how far their weights are apart.

``python scripts/bench/distributed.py [--steps 20] [--planner small] [--dataset DIR] [--output DIR]``. Out: a Markdown table. Without a
dataset the phantom is used. All train the same fold in float32 with the same batch; the seconds are those of the second epoch, as the
first one makes kernels. It needs two cores that nothing else uses.

How far weights are apart says something beside the process with two threads alone: there nothing but the order of float32 sums differs
from one thread, and training makes more of it with every step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measuring import markdown_table

from medseg3d.models.checkpoints import load_tensors

FLOAT32 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
"""A CPU without bf16 units, as medseg3d sees it: bf16 would round the weights of both runs to three digits."""
KINDS: dict[str, tuple[int, int, list[object]]] = {
    "one process, one core": (1, 1, ["--device", "cpu"]),
    "one process, two cores": (2, 2, ["--device", "cpu"]),
    "two processes, one core each": (2, 1, ["--devices", "cpu:2"]),
}
"""Cores of all, threads of each process, and where it trains."""


def main() -> int:
    """All kinds, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="of each of the two epochs")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--planner", default="small")
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.output or Path(temporary)
        dataset = arguments.dataset or place / "phantom"
        if not dataset.exists():
            medseg3d(["demo", dataset])
        seconds, weights = {}, {}
        for number, (kind, (cores, threads, device)) in enumerate(KINDS.items()):
            work = place / f"work-{number}"
            medseg3d(["plan", dataset, "-w", work, "--planner", arguments.planner, "-q"])
            medseg3d(["preprocess", dataset, "-w", work, "-c", "3d_fullres", "-q"])
            train = ["train", dataset, "-w", work, "-c", "3d_fullres", "--fold", "all", "--epochs", 2, "--iterations", arguments.steps]
            medseg3d([*train, "--batch-size", arguments.batch_size, "--restart", *device, "-q"], cores, threads)
            fold = work / "models/3d_fullres/fold_all"
            lines = [json.loads(line) for line in (fold / "history.jsonl").read_text(encoding="utf-8").splitlines()]
            seconds[kind], weights[kind] = lines[-1]["seconds"], vector(fold)
    one = next(iter(KINDS))
    apart = {kind: float((weights[one] - found).norm() / weights[one].norm()) for kind, found in weights.items()}
    rows = [
        (kind, f"{arguments.steps / found:.3f}", f"{seconds[one] / found:.2f}×", f"{apart[kind]:.1e}" if apart[kind] else "0")
        for kind, found in seconds.items()
    ]
    print(markdown_table(("training", "steps per second", "work per second", f"weights after {2 * arguments.steps} steps differ by"), rows))
    return 0


def medseg3d(words: list[object], cores: int = 1, threads: int = 1) -> None:
    """Run a command on the first cores of this process."""
    chosen = sorted(os.sched_getaffinity(0))[:cores]

    def keep() -> None:
        os.sched_setaffinity(0, chosen)

    command = [sys.executable, "-m", "medseg3d", *map(str, words)]
    environment = os.environ | FLOAT32 | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, env=environment, check=True, preexec_fn=keep)


def vector(fold: Path) -> torch.Tensor:
    """All weights of the newest state of a fold in a row."""
    tensors = load_tensors(fold / "last.safetensors")[0]
    return torch.cat([tensor.flatten().double() for name, tensor in sorted(tensors.items()) if name.startswith("network.")])


if __name__ == "__main__":
    sys.exit(main())
