"""Detect, then segment: Dice and seconds of a crop cascade beside the plain way, trained with equal steps.

In: the mandible of OpenKBP (of the folder MEDSEG3D_DATA), or synthetic volumes of 512 x 512 x 300 voxels of which the phantom's organs are
one percent. Out: ``cascades.jsonl``, a line per dataset and way, and a Markdown table. Seconds are those of prediction per image, from
``predictions.json``, on the CPU and without mirroring for both.

Cases are cut into two folds and a test set; the coarse network is trained on both folds, the plain and the fine one on the first. What is
done is not done again: cases that are there stay, trainings go on, label maps are kept.

    python scripts/bench/cascades.py --output OUT --epochs 20 --iterations 100             # both datasets
    python scripts/bench/cascades.py --output OUT --only volumes --epochs 1 --iterations 2 --cases 4 --scale 0.15     # does it run
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from contenders import Ours, case_names
from dice import dice_of_folders
from measuring import CommandFailedError, machine, markdown_table, run_measured, write_json

from medseg3d.data.phantom import make_case

PLAIN, DETECTOR, CROPPED = "3d_fullres", "3d_detect", "3d_crop_fullres"
MANDIBLE = "Mandible"
VOLUME = (300, 512, 512)
"""S, A, R: a stack of electron microscopy, or a body CT."""
FOREGROUND_SHARE = 0.01
NOISE, AIR, TISSUE = 40.0, 20.0, 300.0
"""As the phantom's scanner has them: what surrounds the organs is body and air."""
GPU_MEMORY_GB = {"mandible": 0.5, "volumes": 4.0}
"""OpenKBP's images are small: with this memory a patch covers a part of them, as it does of a CT at full resolution."""
TEST_CASES = {"mandible": 6, "volumes": 2}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One way on one dataset; seconds are the mean per test image."""

    dataset: str
    way: str
    dice: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    boxes: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, object] = field(default_factory=machine)


def main() -> int:
    """Both ways on each dataset that was asked for; exit code 1 where one failed."""
    options = parse_arguments()
    outcomes: list[Outcome] = []
    failed = False
    for name in options.only or ("mandible", "volumes"):
        try:
            outcomes += list(measured(name, options))
        except CommandFailedError as error:
            print(error, file=sys.stderr)
            failed = True
    lines = "".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)
    (options.output / "cascades.jsonl").write_text(lines, encoding="utf-8")
    rows = [
        (one.dataset, one.way, f"{one.dice:.3f}", f"{one.seconds:.1f}", f"{_plain(outcomes, one).seconds / max(one.seconds, 1e-9):.1f}")
        for one in outcomes
    ]
    print(markdown_table(("dataset", "way", "Dice of the test cases", "seconds per image", "times faster than plain"), rows))
    return int(failed)


def _plain(outcomes: list[Outcome], one: Outcome) -> Outcome:
    return next(other for other in outcomes if other.dataset == one.dataset and other.way == PLAIN)


def measured(name: str, options: argparse.Namespace) -> Iterator[Outcome]:
    """Make the dataset, train what is not trained, predict what is not predicted, and compare."""
    root, log = options.output / name, options.output / f"{name}.log"
    make = make_mandible if name == "mandible" else make_volumes
    num_test = min(TEST_CASES[name], max(1, options.cases // 3)) if options.cases else TEST_CASES[name]
    test = make(root, options, num_test)
    ours = Ours(python=Path(sys.executable))

    def run(*words: str | Path) -> None:
        run_measured(ours.command(*words), log=log, environment={"OMP_NUM_THREADS": str(options.threads)})

    run("plan", root, "--planner", "small", "--gpu-memory", str(GPU_MEMORY_GB[name] * options.scale**3))
    plan = json.loads((root / "medseg3d-work/plan.json").read_text(encoding="utf-8"))
    if CROPPED not in plan["configurations"]:
        raise CommandFailedError(f"{name}: no crop cascade is planned; {plan['notes']}")
    run("preprocess", root, "-c", PLAIN, DETECTOR, CROPPED)
    length = ["--epochs", str(options.epochs), "--iterations", str(options.iterations), "--device", "cpu", "--tta", "off"]
    for configuration, fold in ((DETECTOR, "0"), (DETECTOR, "1"), (PLAIN, "0"), (CROPPED, "0")):
        run("train", root, "-c", configuration, "--fold", fold, *length)
    for way in (PLAIN, CROPPED):
        out = options.output / f"{name}-{way}"
        words = ["-c", way, "--fold", "0", "--tta", "off", "--device", "cpu", "--overwrite"]
        run("predict", root, "-i", root / "imagesTs", "-o", out, *words)
        yield outcome_of(name, way, root, out, test, options)


def outcome_of(name: str, way: str, root: Path, out: Path, test: list[str], options: argparse.Namespace) -> Outcome:
    """From the label maps and records that are there."""
    labels = json.loads((root / "dataset.json").read_text(encoding="utf-8"))["labels"]
    table = dice_of_folders(out, root / "labelsTs", cases=test, labels=[value for value in labels.values() if value])
    cases = json.loads((out / "predictions.json").read_text(encoding="utf-8"))["cases"].values()
    boxes = root / f"medseg3d-work/models/{way}/fold_0/boxes.json"
    return Outcome(
        dataset=name,
        way=way,
        dice=table.mean,
        seconds=float(np.mean([sum(case["seconds"].values()) for case in cases])),
        steps=options.epochs * options.iterations,
        boxes=json.loads(boxes.read_text(encoding="utf-8")) if boxes.exists() else {},
        notes=[note for case in cases for note in case["notes"]],
    )


def make_mandible(root: Path, options: argparse.Namespace, num_test: int) -> list[str]:
    """OpenKBP with the mandible as its only label."""
    source = Path(os.environ["MEDSEG3D_DATA"]) / "OpenKBP"
    described = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    value = described["labels"][MANDIBLE]

    def mandible(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image = nibabel.load(source / f"imagesTr/{name}_0000.nii.gz")
        labels = np.asarray(nibabel.load(source / f"labelsTr/{name}.nii.gz").dataobj) == value
        return np.asarray(image.dataobj), labels.astype(np.uint8), image.affine

    has_it = [name for name in case_names(source) if (np.asarray(nibabel.load(source / f"labelsTr/{name}.nii.gz").dataobj) == value).any()]
    names = has_it[: options.cases or None]
    return write_dataset(root, names, num_test, mandible, {"channel_names": {"0": "CT"}, "labels": {"background": 0, MANDIBLE: 1}})


def make_volumes(root: Path, options: argparse.Namespace, num_test: int) -> list[str]:
    """Large volumes of noise with a body in them, and the phantom's organs, enlarged, somewhere in the body."""
    shape = tuple(int(edge * options.scale) for edge in VOLUME)

    def volume(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        number = int(name.removeprefix("volume_"))
        rng, case = np.random.default_rng([7, number]), make_case(8 * number, seed=0)  # every eighth is stored as RAS
        grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
        image = np.where(sum(axis**2 for axis in grid) < 1.2, TISSUE, AIR).astype(np.float32)
        labels = np.zeros(shape, np.uint8)
        organs = np.isin(case.labels, (1, 2)) * case.labels
        factor = (FOREGROUND_SHARE * np.prod(shape) / (organs > 0).sum()) ** (1 / 3)
        edges = [min(round(n * factor), full // 2) for n, full in zip(case.labels.shape[::-1], shape, strict=True)]
        take = np.ix_(*((np.arange(edge) / edge * n).astype(int) for edge, n in zip(edges, case.labels.shape[::-1], strict=True)))
        start = [int(rng.integers(full // 5, full - full // 5 - edge + 1)) for full, edge in zip(shape, edges, strict=True)]
        place = tuple(slice(first, first + edge) for first, edge in zip(start, edges, strict=True))
        labels[place] = organs.T[take]
        inside = labels[place] > 0
        image[place][inside] = case.image.T[take][inside]
        image += rng.normal(0, NOISE, shape).astype(np.float32)
        return image.T.astype(np.int16), labels.T, np.eye(4)

    names = [f"volume_{number}" for number in range(options.cases or 8)]
    labels = {"background": 0, "organ_outer": 1, "organ_inner": 2}
    return write_dataset(root, names, num_test, volume, {"channel_names": {"0": "MRI"}, "labels": labels})


def write_dataset(root: Path, names: list[str], num_test: int, make, description: dict[str, object]) -> list[str]:  # type: ignore[no-untyped-def]
    """nnU-Net's layout with two folds; files that are there stay. Gives the test cases."""
    test, training = names[:num_test], names[num_test:]
    for name in names:
        part = "Ts" if name in test else "Tr"
        image, label = root / f"images{part}/{name}_0000.nii.gz", root / f"labels{part}/{name}.nii.gz"
        if image.exists() and label.exists():
            continue
        voxels, labels, affine = make(name)
        for path, array in ((label, labels), (image, voxels)):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}")
            nibabel.save(nibabel.Nifti1Image(array, affine), temporary)
            temporary.replace(path)
    half = (len(training) + 1) // 2
    folds = [{"train": training[half:], "val": training[:half]}, {"train": training[:half], "val": training[half:]}]
    write_json(root / "splits_final.json", folds)
    write_json(root / "dataset.json", {**description, "numTraining": len(training), "file_ending": ".nii.gz"})
    return test


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=("mandible", "volumes"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--cases", type=int, default=0, help="all of OpenKBP, eight volumes where it is left out")
    parser.add_argument("--scale", type=float, default=1.0, help="of the edges of the volumes and of the planned memory, to try the script")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
