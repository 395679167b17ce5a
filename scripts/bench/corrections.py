"""What a round of ``propose`` and ``correct`` is worth: a model of few cases learns on from proposed cases, random ones, and none.

In: a dataset in nnU-Net's layout, whose labels play the annotator. Out: ``corrections.json`` and a table: Dice on the same validation
cases before and after, with the paired interval. ``none`` trains on for as long without a new case: what the others gain beyond it, the
cases gave.

    python scripts/bench/corrections.py DATASET --output OUT --epochs 20 --iterations 50
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WAYS = ("none", "random", "proposed")


def main() -> int:
    """Train the first model once, then a round in each way from a copy of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--start", type=int, default=8, help="labelled cases of the first model (default: 8)")
    parser.add_argument("--validate", type=int, default=30, help="validation cases (default: 30)")
    parser.add_argument("--pool", type=int, default=40, help="images without labels (default: 40)")
    parser.add_argument("--take", type=int, default=8, help="cases that are annotated in a round (default: 8)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--planner", default="small")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = sorted(file.name.removesuffix(".nii.gz") for file in (options.dataset / "labelsTr").glob("*.nii.gz"))
    random.Random(options.seed).shuffle(names)
    start, validated, pool = _parts(names, (options.start, options.validate, options.pool))
    first = options.output / "first"
    length = ["--epochs", options.epochs, "--iterations", options.iterations, "--seed", options.seed, "--tta", "off"]
    if not first.exists():
        _make_dataset(options.dataset, first, start, validated)
        _call(["plan", first, "--planner", options.planner, "--no-groups"])
        _call(["preprocess", first])
        _call(["train", first, "--fold", "0", *length])
    scans = options.output / "scans"
    _link_images(options.dataset, scans, pool)
    found = {way: _round(way, first, options, scans, start, pool, length) for way in WAYS}
    (options.output / "corrections.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for way, change in found.items():
        low, high = change["difference"]["low"], change["difference"]["high"]
        print(f"{way:9} {change['before']['mean']:.4f} → {change['after']['mean']:.4f}  {low:+.4f} to {high:+.4f}  {change['verdict']}")
    return 0


def _parts(names: Sequence[str], counts: Sequence[int]) -> list[list[str]]:
    parts, done = [], 0
    for count in counts:
        parts.append(list(names[done : done + count]))
        done += count
    return parts


def _make_dataset(source: Path, target: Path, start: Sequence[str], validated: Sequence[str]) -> None:
    """Links to some cases; one fold that trains on the first ones, and its opposite, which stays untrained and takes new cases in."""
    _link_images(source, target / "imagesTr", [*start, *validated])
    (target / "labelsTr").mkdir()
    for name in (*start, *validated):
        (target / "labelsTr" / f"{name}.nii.gz").symlink_to((source / "labelsTr" / f"{name}.nii.gz").resolve())
    shutil.copyfile(source / "dataset.json", target / "dataset.json")
    described = json.loads((target / "dataset.json").read_text(encoding="utf-8"))
    described = {key: value for key, value in described.items() if key not in ("training", "test", "numTraining")}
    (target / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    folds = [{"train": list(start), "val": list(validated)}, {"train": list(validated), "val": list(start)}]
    (target / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")


def _link_images(source: Path, target: Path, names: Sequence[str]) -> None:
    """Images as ``CASE_0000``, whichever way the dataset calls them."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        for file in sorted((source / "imagesTr").glob(f"{name}*.nii.gz")):
            if file.name not in (f"{name}.nii.gz", *(f"{name}_{number:04d}.nii.gz" for number in range(100))):
                continue
            called = f"{name}_0000.nii.gz" if file.name == f"{name}.nii.gz" else file.name
            if not (target / called).exists():
                (target / called).symlink_to(file.resolve())


def _round(
    way: str, first: Path, options: argparse.Namespace, scans: Path, start: Sequence[str], pool: Sequence[str], length: Sequence[object]
) -> dict:
    """The change of the only configuration in one way."""
    root = options.output / way
    record, chosen_file = root / "medseg3d-work/corrections.json", root / "chosen.json"
    if not root.exists():
        shutil.copytree(first, root, symlinks=True)
    if record.exists() and (done := _last_round(record))["is_finished"]:  # of an earlier call of this script
        return done["changes"][0] | {"taken": json.loads(chosen_file.read_text(encoding="utf-8"))}
    if way == "proposed":
        _call(["propose", root, "-i", scans, "-n", options.take, "--tta", "off"])
        listed = json.loads((root / "medseg3d-work/proposals/proposals.json").read_text(encoding="utf-8"))
        chosen = [each["case"] for each in listed["proposed"]]
    else:
        chosen = list(pool[: options.take]) if way == "random" else list(start[:1])
    chosen_file.write_text(json.dumps(chosen), encoding="utf-8")
    (root / "corrections").mkdir(exist_ok=True)
    for name in chosen:
        shutil.copyfile(options.dataset / "labelsTr" / f"{name}.nii.gz", root / "corrections" / f"{name}.nii.gz")
    _call(["correct", root, "-i", scans, *length])
    return _last_round(record)["changes"][0] | {"taken": chosen}


def _last_round(record: Path) -> dict:
    return json.loads(record.read_text(encoding="utf-8"))["rounds"][-1]


def _call(words: Sequence[object]) -> None:
    command = [sys.executable, "-m", "medseg3d", *map(str, words), "-q"]
    print("$", *command[2:], flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
