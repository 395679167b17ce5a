"""What it is worth to begin with another model: Dice after minutes of a core, with its weights and without, on the same folds and seeds.

In: MEDSEG3D_DATA, a folder with ACDC, LeftAtrium and Hippocampus. Out: ``fine_tuning.jsonl``, a line per training, and a Markdown table.

- ``acdc``: a model of ACDC (chambers of the heart, thick slices) teaches LeftAtrium (another chamber, other scanner, even voxels).
- ``hippocampus``: a model of the two parts of one half of Hippocampus teaches the whole, under another name, on the other half.

The target is trained from ``fresh`` weights, with ``init`` (its own plan, of the model what fits), and with ``inherited`` (the model's plan
and weights). Minutes are CPU seconds of one core: a step is timed first, and as many as fit are trained. ``--steps`` says them instead.
What stands in the file is not done again, and a run that was killed goes on.

    python scripts/bench/fine_tuning.py --output OUT
    python scripts/bench/fine_tuning.py --output OUT --pairs hippocampus --most-cases 10 --base-steps 8 --steps 8 --seeds 0   # does it run
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel
import numpy as np
from contenders import case_names, link_dataset
from dice import dice_of_folders
from measuring import run_measured

EPOCHS = 8
"""The learning rate falls in so many parts, and the pseudo-Dice is noted after each."""
BASE_MINUTES, MINUTES = 30.0, 5.0
TIMED_STEPS = 12
STARTS = ("fresh", "init", "inherited")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A model's dataset and the dataset that it teaches, as folders below the output."""

    name: str
    base: Path
    target: Path
    labels: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Row:
    """One training of the target; ``dice`` is the mean over labels and validation cases, ``curve`` the pseudo-Dice after each epoch."""

    pair: str
    start: str
    seed: int
    steps: int
    minutes: float
    dice: float
    num_cases: int
    curve: list[float | None]


def main() -> int:
    """Train what is not done, then show all of it."""
    options = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core if options.core is not None else min(os.sched_getaffinity(0))})
    data, rows = Path(os.environ["MEDSEG3D_DATA"]), read_rows(options.output)
    for name in options.pairs:
        pair = PAIRS[name](data, options.output / name, options.most_cases)
        model = base_model(pair, options)
        for seed in options.seeds:
            for start in options.starts:
                if not any((row.pair, row.start, row.seed) == (name, start, seed) for row in rows):
                    row = fine_tuned(pair, model, start, seed, options)
                    rows.append(row)
                    with (options.output / "fine_tuning.jsonl").open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(asdict(row)) + "\n")
                    print(f"{name} {start} seed {seed}: {row.dice:.3f}", flush=True)
    print(table(rows))
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--planner", default="small")
    parser.add_argument("--base-minutes", type=float, default=BASE_MINUTES, help="of a core, for the model that teaches")
    parser.add_argument("--base-steps", type=int, help="instead of minutes")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of a core, for each training of the target")
    parser.add_argument("--steps", type=int, help="instead of minutes")
    parser.add_argument("--most-cases", type=int, metavar="N", help="of each dataset, to try the script")
    parser.add_argument("--core", type=int, help="the core to run on (default: the first)")
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


# ---- datasets


def acdc(data: Path, folder: Path, most: int | None) -> Pair:
    """As they are."""
    base, target = (link_dataset(data / name, folder / name, cases=case_names(data / name)[:most]) for name in ("ACDC", "LeftAtrium"))
    return Pair(name="acdc", base=base, target=target, labels=(1,))


def hippocampus(data: Path, folder: Path, most: int | None) -> Pair:
    """Neighbors in the list are the two sides of one subject, so the halves share none; in the second the labels are merged and renamed."""
    root = data / "Hippocampus"
    cases = case_names(root)[: None if most is None else 2 * most]
    half = len(cases) // 4 * 2
    base = link_dataset(root, folder / "Parts", cases=cases[:half])
    target = link_dataset(root, folder / "Whole", cases=cases[half:])
    for path in sorted((target / "labelsTr").glob("*.nii.gz")):
        image = nibabel.load(path)
        merged = nibabel.Nifti1Image((np.asanyarray(image.dataobj) > 0).astype(np.uint8), image.affine)
        path.unlink()  # a link; the file that it leads to stays
        nibabel.save(merged, path)
    description = json.loads((target / "dataset.json").read_text(encoding="utf-8"))
    description["labels"] = {"background": 0, "hippocampus": 1}
    (target / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return Pair(name="hippocampus", base=base, target=target, labels=(1,))


PAIRS = {"acdc": acdc, "hippocampus": hippocampus}


# ---- trainings


def base_model(pair: Pair, options: argparse.Namespace) -> Path:
    """The work folder of the model that teaches, trained on all of its cases."""
    work = pair.base.parent / "base"
    if not (work / "plan.json").exists():
        medseg3d(work, "plan", pair.base, "-w", work, "--planner", options.planner)
        medseg3d(work, "preprocess", pair.base, "-w", work, "-c", recommended(work))
    steps = options.base_steps or steps_in(options.base_minutes, pair.base, work)
    medseg3d(work, "train", pair.base, "-w", work, "--fold", "all", *length(steps), "--device", "cpu")
    return work


def fine_tuned(pair: Pair, model: Path, start: str, seed: int, options: argparse.Namespace) -> Row:
    """One training of the target, and the Dice of its validation cases."""
    work = pair.target.parent / f"{start}_{seed}"
    if not (work / "plan.json").exists():
        shutil.rmtree(work, ignore_errors=True)
        planned = ["--inherit-plan", model] if start == "inherited" else ["--planner", options.planner]
        medseg3d(work, "plan", pair.target, "-w", work, *planned)
        medseg3d(work, "preprocess", pair.target, "-w", work, "-c", recommended(work))
    steps = options.steps or steps_in(options.minutes, pair.target, work)
    init = [] if start == "fresh" else ["--init", model]
    how = ("--fold", "0", "--seed", seed, "--device", "cpu", "--tta", "off")
    medseg3d(work, "train", pair.target, "-w", work, *how, *length(steps), *init)
    fold = work / "models" / recommended(work) / "fold_0"
    predictions = sorted((fold / "validation").glob("*.nii.gz"))
    cases = [path.name.removesuffix(".nii.gz") for path in predictions]
    found = dice_of_folders(fold / "validation", pair.target / "labelsTr", cases=cases, labels=pair.labels)
    history = [json.loads(line) for line in (fold / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return Row(
        pair=pair.name,
        start=start,
        seed=seed,
        steps=steps,
        minutes=options.minutes,
        dice=found.mean,
        num_cases=len(cases),
        curve=[line["pseudo_dice_mean"] for line in history],
    )


def length(steps: int) -> tuple[str, ...]:
    """So many steps in all, in parts that end with a validation of few patches."""
    return ("--epochs", str(EPOCHS), "--iterations", str(max(1, steps // EPOCHS)))


def steps_in(minutes: float, dataset: Path, work: Path) -> int:
    """How many steps a core does in so many minutes; measured once per work folder."""
    note = work / "step_seconds.json"
    if not note.exists():
        script = Path(__file__).with_name("one_core.py")
        log = work / "steps.log"
        run_measured([sys.executable, script, "step", dataset, work, recommended(work)], log=log)
        note.write_text(log.read_text(encoding="utf-8").strip().splitlines()[-1] + "\n", encoding="utf-8")
    return max(EPOCHS, int(minutes * 60 / json.loads(note.read_text(encoding="utf-8"))["step_seconds"]))


def recommended(work: Path) -> str:
    """The configuration of a plan that is trained."""
    return str(json.loads((work / "plan.json").read_text(encoding="utf-8"))["recommended"])


def medseg3d(work: Path, *words: object) -> None:
    """A command, with its output in ``WORK.log`` beside the work folder."""
    run_measured([sys.executable, "-m", "medseg3d", *map(str, words)], log=work.with_suffix(".log"))


# ---- the table


def read_rows(output: Path) -> list[Row]:
    """What was trained already."""
    path = output / "fine_tuning.jsonl"
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(rows: Sequence[Row]) -> str:
    """A line per pair and start: Dice at the end over seeds, its difference from fresh weights seed by seed, and the way there."""
    lines = [
        "| pair | start | steps | cases | Dice (mean, range over seeds) | minus fresh | pseudo-Dice after 1/8, 1/4, 1/2 |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair in dict.fromkeys(row.pair for row in rows):
        fresh = {row.seed: row.dice for row in rows if (row.pair, row.start) == (pair, "fresh")}
        for start in STARTS:
            own = [row for row in rows if (row.pair, row.start) == (pair, start)]
            if own:
                dice = [row.dice for row in own]
                differences = [row.dice - fresh[row.seed] for row in own if row.seed in fresh]
                difference = f"{statistics.mean(differences):+.3f}" if differences and start != "fresh" else ""
                early = ", ".join(_mean([row.curve[place] for row in own if len(row.curve) > place]) for place in (0, 1, 3))
                lines.append(
                    f"| {pair} | {start} | {own[0].steps} | {own[0].num_cases} | {statistics.mean(dice):.3f} "
                    f"({min(dice):.3f} to {max(dice):.3f}, n = {len(dice)}) | {difference} | {early} |"
                )
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.3f}" if known else "–"


if __name__ == "__main__":
    sys.exit(main())
