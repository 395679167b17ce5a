"""Learn from generated shapes alone, and keep the weights for ``train --init shapes``.

In: a seed, a time or a number of steps, and a planner. Out: ``3d_STAGES.safetensors`` in the folder that ``--init shapes`` looks in, or
in another one. No image of anyone goes into it: what is learned from is made by medseg3d/data/generated_shapes.py.

    python scripts/learn_shapes.py --minutes 60                # 48³ voxels: four stages of the default planner
    python scripts/learn_shapes.py --minutes 60 --edge 64      # five stages
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from medseg3d.data.generated_shapes import make_shapes_dataset
from medseg3d.files import copy_file
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.initial_weights import SHAPES_FOLDER, shapes_file
from medseg3d.workflows.plan import plan
from medseg3d.workflows.preprocess import preprocess
from medseg3d.workflows.train import train

CONFIGURATION = "3d_fullres"


def main() -> int:
    """Make, plan, train, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=SHAPES_FOLDER, help="where the weights go (default: where --init shapes looks)")
    parser.add_argument("--work", type=Path, help="where dataset and training go, to go on with (default: a folder that is deleted)")
    parser.add_argument("--planner", default="default")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--edge", type=int, default=48, help="voxels; decides the number of stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="of training")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--iterations", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(learn(options.work or Path(scratch), options))
    return 0


def learn(folder: Path, options: argparse.Namespace) -> Path:
    """The weights file that was written."""
    dataset = make_shapes_dataset(folder / "GeneratedShapes", num_cases=options.cases, edge=options.edge, seed=options.seed)
    made = plan(dataset, planner=options.planner)
    preprocess(dataset, configurations=[CONFIGURATION])
    train(
        dataset,
        configuration=CONFIGURATION,
        fold="0",
        seed=options.seed,
        batch_size=2,
        epochs=options.epochs,
        iterations=options.iterations,
        hours=None if options.minutes is None else options.minutes / 60,
    )
    target = shapes_file(made.plan.configuration(CONFIGURATION).network, options.output)
    copy_file(WorkFolder(dataset / "medseg3d-work").weights(CONFIGURATION, "0"), target)
    return target


if __name__ == "__main__":
    sys.exit(main())
