"""Left and right without names: a dataset is stripped of the names of its labels, planned, trained, and its validation maps are counted.

In: datasets with names such as ``left_kidney`` and ``right_kidney``, and steps of training for each. Out: a Markdown table and
``left_right.json``; exit code 1 where our rule confuses a voxel. A voxel is confused where it is predicted as the left one and the
reference holds the right one of the same pair, or the other way round. Each dataset is trained twice: by our rule, which does not mirror
where labels without names could be left and right of the same, and with mirroring forced, as before.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel
import numpy as np
from contenders import Ours
from measuring import machine, markdown_table, run_measured, write_json

from medseg3d.data.side_names import left_right_pairs

RULES = {"our rule": "where_safe", "mirroring forced": "unless_pairs"}
STEPS_PER_EPOCH = 25
PLANNER = """
extends = "small"
[network]
base_features = {features}
[spacing]
resolution_multiplier = {resolution}
[mirroring]
left_right = "{left_right}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a network did; voxels are those of all validation cases."""

    dataset: str
    rule: str
    mirror_axes: tuple[int, ...]
    seconds: float
    paired_voxels: int
    confused_voxels: int
    dice: float


def main() -> int:
    """Strip, train and count all that were asked for."""
    options = parse_arguments()
    ours = Ours(python=options.our_python)
    sources = options.dataset or [options.output / "phantom"]
    if not options.dataset and not (sources[0] / "dataset.json").exists():
        run_measured(ours.command("demo", sources[0]), log=options.output / "demo.log")
    outcomes = []
    for source in sources:
        stripped = strip(source, options.output / f"{source.name}_without_names")
        for rule, left_right in RULES.items():
            outcomes.append(train(source, stripped, rule, left_right, ours, options))
            print(outcomes[-1], flush=True)
            write_json(options.output / "left_right.json", {"machine": machine(), "outcomes": [asdict(outcome) for outcome in outcomes]})
    print(table(outcomes))
    return 1 if any(outcome.confused_voxels for outcome in outcomes if outcome.rule == "our rule") else 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--our-python", type=Path, default=Path(sys.executable), help="with medseg3d (default: this one)")
    parser.add_argument("--dataset", type=Path, nargs="+", help="nnU-Net folders with one channel (default: the phantom)")
    parser.add_argument("--steps", type=int, default=1000, help="of training for each, in epochs of 25 (default: 1000)")
    parser.add_argument("--features", type=int, default=8, help="of the first stage (default: 8)")
    parser.add_argument("--resolution", type=float, default=0.5, help="voxels per axis against the dataset's own (default: 0.5)")
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="default: 3d_fullres")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def strip(source: Path, target: Path) -> Path:
    """Two plain folders with the files of an nnU-Net folder, and no word about labels."""
    shutil.rmtree(target, ignore_errors=True)
    for name, folder in (("images", "imagesTr"), ("labels", "labelsTr")):
        (target / name).mkdir(parents=True)
        for file in (source / folder).glob("*.nii.gz"):
            (target / name / file.name.replace("_0000", "")).symlink_to(file.resolve())
    return target


def train(source: Path, stripped: Path, rule: str, left_right: str, ours: Ours, options: argparse.Namespace) -> Outcome:
    """One network, from plan to confused voxels."""
    work = options.output / f"{source.name}_{left_right}"
    file = options.output / f"{left_right}.toml"
    file.write_text(PLANNER.format(left_right=left_right, features=options.features, resolution=options.resolution), encoding="utf-8")
    channels = ",".join(json.loads((source / "dataset.json").read_text(encoding="utf-8"))["channel_names"].values())
    epochs = max(1, options.steps // STEPS_PER_EPOCH)
    length = ("-c", options.configuration, "--folds", "0", "--epochs", str(epochs), "--iterations", str(STEPS_PER_EPOCH))
    command = ours.command("run", stripped, "-w", work, "--planner", file, "--channels", channels, *length, "--device", "cpu")
    run = run_measured(command, log=options.output / f"{source.name}_{left_right}.log")
    plan = json.loads((work / "plan.json").read_text(encoding="utf-8"))
    validation = work / "models" / options.configuration / "fold_0" / "validation"
    measures = json.loads((validation / "metrics.json").read_text(encoding="utf-8"))
    paired, confused = count(validation, source)
    dice = [label["dice"] for case in measures["cases"] for label in case["labels"] if label["dice"] is not None]
    return Outcome(
        dataset=source.name,
        rule=rule,
        mirror_axes=tuple(plan["configurations"][options.configuration]["mirror_axes"]),
        seconds=run.seconds,
        paired_voxels=paired,
        confused_voxels=confused,
        dice=float(np.mean(dice)),
    )


def count(validation: Path, source: Path) -> tuple[int, int]:
    """Voxels of paired labels in the references, and those of them that are predicted as the other one of the pair."""
    labels = json.loads((source / "dataset.json").read_text(encoding="utf-8"))["labels"]
    names, values = list(labels), list(labels.values())
    paired = confused = 0
    for file in sorted(validation.glob("*.nii.gz")):
        predicted = np.asarray(nibabel.load(file).dataobj)
        reference = np.asarray(nibabel.load(source / "labelsTr" / file.name).dataobj)
        for left, right in left_right_pairs(names):
            one, other = values[left], values[right]
            paired += int(np.isin(reference, (one, other)).sum())
            confused += int(((predicted == one) & (reference == other)).sum() + ((predicted == other) & (reference == one)).sum())
    return paired, confused


def table(outcomes: list[Outcome]) -> str:
    """Markdown, a row per network."""
    rows = [
        [o.dataset, o.rule, " ".join(map(str, o.mirror_axes)), str(o.paired_voxels), f"**{o.confused_voxels}**", f"{o.dice:.3f}"]
        for o in outcomes
    ]
    return markdown_table(["dataset", "rule", "mirrored axes", "voxels of pairs", "on the wrong side", "mean Dice"], rows)


if __name__ == "__main__":
    sys.exit(main())
