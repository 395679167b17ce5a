"""Learn from generated shapes alone, and keep the weights for ``train --init shapes``: a command of its own, which few need once.

python -m medseg3d.commandline.learn_shapes --minutes 60                # 48³ voxels: four stages of the default planner
python -m medseg3d.commandline.learn_shapes --minutes 60 --edge 64      # five stages
python -m medseg3d.commandline.learn_shapes --minutes 60 -c 2d          # for networks of slices
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from medseg3d.errors import MedsegError


def main(words: Sequence[str] | None = None) -> int:
    """Learn, and print the file that was written; returns the exit code."""
    from medseg3d.workflows.initial_weights import place_for_shapes
    from medseg3d.workflows.learn_shapes import learn_shapes

    parser = argparse.ArgumentParser(prog="python -m medseg3d.commandline.learn_shapes", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("-o", "--output", type=Path, help="where the weights go (default: where --init shapes looks)")
    parser.add_argument("--work", type=Path, help="where dataset and training go, to go on with (default: a folder that is deleted)")
    parser.add_argument("--planner", default="default")
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="3d_fullres or 2d (default: 3d_fullres)")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--edge", type=int, default=48, help="voxels; decides the number of stages (default: 48)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="of training")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--iterations", type=int)
    options = parser.parse_args(words)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            file = learn_shapes(
                options.work or Path(scratch),
                options.output or place_for_shapes(),
                configuration=options.configuration,
                planner=options.planner,
                num_cases=options.cases,
                edge=options.edge,
                seed=options.seed,
                minutes=options.minutes,
                epochs=options.epochs,
                iterations=options.iterations,
            )
    except MedsegError as error:
        sys.stderr.write(f"medseg3d: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{file}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
