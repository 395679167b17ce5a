"""What sampling and losses for hard cases are worth: variants of one planner, trained alike on one fold of a dataset and compared.

In: a dataset in nnU-Net's layout. Out: a planner file per variant, and what ``medseg3d compare`` writes: a table with the differences to
the unchanged planner case by case, and their intervals. A comparison that was stopped goes on.

    python scripts/bench/hard_cases.py DATASET --output OUT --steps 2000
    python scripts/bench/hard_cases.py DATASET --output OUT --steps 2000 --only cc_dice_ce skeleton_recall
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

VARIANTS = {
    "balanced_classes": "balanced_classes = true",
    "balanced_cases": "balanced_cases = true",
    "hard_cases": "hard_cases = 0.5",
    "cc_dice_ce": 'loss = "cc_dice_ce"',
    "skeleton_recall": 'loss = "skeleton_recall"',
    "cldice": 'loss = "cldice"',
    "dice_focal": 'loss = "dice_focal"',
}
"""What each changes in the planner's ``[training]``."""


def main() -> int:
    """Write the planner files and compare them with the planner that they extend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--planner", default="small", help="that the variants change (default: small)")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--steps", type=int, default=2000, help="of each training (default: 2000)")
    parser.add_argument("--fold", default="0")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    files = []
    for name in options.only:
        path = options.output / f"{name}.toml"
        text = f'extends = "{options.planner}"\ndescription = "{options.planner} with {name}."\n[training]\n{VARIANTS[name]}\n'
        path.write_text(text, encoding="utf-8")
        files.append(path)
    words = ["compare", options.planner, *files, "-d", options.dataset, "-w", options.output / "compared"]
    how = ["--steps", options.steps, "--fold", options.fold, "--tta", "off"]
    return subprocess.call([sys.executable, "-m", "medseg3d", *map(str, [*words, *how])])


if __name__ == "__main__":
    sys.exit(main())
