"""Draw how runs of changed recipes learned: the logs that ``recipes.py`` leaves go in, ``docs/images/short-runs.png`` comes out.

Each log is given with its name and the minutes of a core that its training took, as steps of different networks take different times.

python scripts/bench/recipe_curves.py "32 features@10=OUT/work/Hippocampus/adamw_10_core_minutes_fold_0_seed_0.log" "16 features@10=…"
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from matplotlib.figure import Figure

PAGE = Path(__file__).parents[2] / "docs/images/short-runs.png"
EPOCH = re.compile(r"^epoch +\d+.*?pseudo-Dice ([\d.]+).*?(?:averaged weights ([\d.]+))?, (\d+) steps in", re.MULTILINE)
"""A line of a finished epoch: pseudo-Dice of the last weights, of the averaged ones where they were measured, and steps."""
COLORS = ("#868e96", "#1c7ed6", "#e8590c", "#2f9e44", "#9c36b5")


def main(named: list[str]) -> int:
    """Draw each log under its name over its minutes; averaged weights are dotted."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for color, (name, _, file) in zip(COLORS, (each.partition("=") for each in named), strict=False):
        label, _, length = name.partition("@")
        done, last, averaged = curve(Path(file))
        minutes = [float(length) * steps / done[-1] for steps in done]
        axes.plot(minutes, last, color=color, label=label)
        if any(value is not None for value in averaged):
            axes.plot(minutes, [float("nan") if value is None else value for value in averaged], color=color, linestyle=":")
    axes.set_xlabel("minutes of a core")
    axes.set_ylabel("pseudo-Dice (dotted: averaged weights)")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PAGE, dpi=150)
    return 0


def curve(log: Path) -> tuple[list[int], list[float], list[float | None]]:
    """Steps so far, and what each kind of weights reached after them."""
    steps, last, averaged, done = [], [], [], 0
    for found in EPOCH.finditer(log.read_text(encoding="utf-8", errors="replace")):
        done += int(found[3])
        steps.append(done)
        last.append(float(found[1]))
        averaged.append(None if found[2] is None else float(found[2]))
    return steps, last, averaged


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
