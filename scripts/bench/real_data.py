"""Each real dataset through the whole chain: plan, preprocess, train one short epoch, predict, check the files.

In: the folder of datasets that MEDSEG3D_DATA names. Out: a Markdown table and ``real_data.json``; exit code 1 where a command
failed, or a predicted file is not exactly on its image's grid or holds a value that is no label of its dataset.
The weights are worthless after so few steps, so predicted values are checked to be labels, not to be right.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from contenders import Ours, case_names, link_dataset
from measuring import CommandFailedError, markdown_table, run_measured, write_json

DATASETS = ("CHAOS_T2", "BraTS15", "OpenKBP", "TotalSegExamples/CT_total", "Mouse", "FlyEM")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one dataset; ``problems`` is empty where all is right."""

    dataset: str
    cases: int
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: float = 0.0
    values: int = 0
    problems: list[str] = field(default_factory=list)


def main() -> int:
    """Run all datasets that were asked for; a failure of one does not keep the others from running."""
    options = parse_arguments()
    data = os.environ.get("MEDSEG3D_DATA")
    if not data:
        print("MEDSEG3D_DATA names no folder of datasets; nothing to check.", file=sys.stderr)
        return 2
    outcomes = []
    for name in options.datasets:
        outcomes.append(check_dataset(Path(data).resolve() / name, name, options))
        print(f"{name}: {'; '.join(outcomes[-1].problems) or 'all right'}", flush=True)
        write_json(options.output / "real_data.json", [asdict(outcome) for outcome in outcomes])
    print(table(outcomes))
    return 1 if any(outcome.problems for outcome in outcomes) else 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--our-python", type=Path, default=Path(sys.executable), help="with medseg3d (default: this one)")
    parser.add_argument("--datasets", nargs="+", default=DATASETS, help=f"default: {' '.join(DATASETS)}")
    parser.add_argument("--cases", type=int, default=0, help="use only the first N cases of each dataset (default: all)")
    parser.add_argument("--iterations", type=int, default=2, help="training steps of the one epoch (default: 2)")
    parser.add_argument("--batch-size", type=int, help="a smaller batch, for slow machines")
    parser.add_argument("--gpu-memory", type=float, help="plan for so many GB; smaller patches for slow machines")
    parser.add_argument("--planner", help="our planner; its default if left out")
    parser.add_argument("--configuration", help="configuration to train; the recommended one if left out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tta", default="auto", choices=("auto", "on", "off"))
    return parser.parse_args()


def check_dataset(root: Path, name: str, options: argparse.Namespace) -> Outcome:
    """The chain for one dataset, with its work folder inside the output folder, and the check of what came out."""
    folder = options.output.resolve() / name.replace("/", "_")
    cases = case_names(root)
    if options.cases and options.cases < len(cases):
        cases = cases[: options.cases]
        root = link_dataset(root, folder / "dataset", cases=cases)
    outcome = Outcome(dataset=name, cases=len(cases))
    for step, command in commands(root, folder, options).items():
        try:
            measured = run_measured(command, log=folder / "log.txt")
        except CommandFailedError as error:
            outcome.problems.append(f"{step}: {error}")
            return outcome
        outcome.seconds[step] = round(measured.seconds, 1)
        outcome.peak_mib = max(outcome.peak_mib, measured.peak_mib or 0)
    values = label_values(root)
    found: set[int] = set()
    for case in cases:
        problems, present = check_prediction(case, folder / "predictions", root, values)
        outcome.problems += problems
        found |= present
    outcome.values = len(found)
    extra = sorted({path.name for path in (folder / "predictions").glob("*.nii.gz")} - {f"{case}.nii.gz" for case in cases})
    if extra:
        outcome.problems.append(f"predicted files of no case: {', '.join(extra)}")
    return outcome


def commands(root: Path, folder: Path, options: argparse.Namespace) -> dict[str, list[str]]:
    """The four commands, in their order."""
    ours, work = Ours(python=options.our_python), folder / "work"
    planner = ("--planner", options.planner) if options.planner else ()
    memory = ("--gpu-memory", str(options.gpu_memory)) if options.gpu_memory else ()
    configuration = ("-c", options.configuration) if options.configuration else ()
    batch = ("--batch-size", str(options.batch_size)) if options.batch_size else ()
    device = ("--device", options.device)
    short = ("--fold", "0", "--epochs", "1", "--iterations", str(options.iterations), *batch)
    files = ("-i", root / "imagesTr", "-o", folder / "predictions", "--fold", "0", "--tta", options.tta, "--overwrite")
    return {
        "plan": ours.command("plan", root, "-w", work, *planner, *memory),
        "preprocess": ours.command("preprocess", root, "-w", work, *configuration),
        "train": ours.command("train", root, "-w", work, *configuration, *short, *device),
        "predict": ours.command("predict", root, "-w", work, *configuration, *files, *device),
    }


def label_values(root: Path) -> set[int]:
    """The values that a label map of this dataset may hold, by its ``dataset.json``."""
    labels = json.loads((root / "dataset.json").read_text(encoding="utf-8"))["labels"]
    return {int(value) for value in labels.values()} | {0}


def check_prediction(case: str, predictions: Path, root: Path, values: set[int]) -> tuple[list[str], set[int]]:
    """What is wrong with the predicted file of one case, and the values in it."""
    path = predictions / f"{case}.nii.gz"
    if not path.exists():
        return [f"{case}: not predicted"], set()
    prediction, image = nibabel.load(path), nibabel.load(root / "imagesTr" / f"{case}_0000.nii.gz")
    problems = []
    if prediction.shape != image.shape:
        problems.append(f"{case}: shape {prediction.shape}, its image {image.shape}")
    if not np.array_equal(prediction.affine, image.affine):
        problems.append(f"{case}: affine differs from its image's by up to {np.abs(prediction.affine - image.affine).max():.3g}")
    for code in ("sform_code", "qform_code"):
        if int(prediction.header[code]) != int(image.header[code]):
            problems.append(f"{case}: {code} {int(prediction.header[code])}, its image {int(image.header[code])}")
    array = np.asanyarray(prediction.dataobj)
    if array.dtype.kind not in "iu":
        problems.append(f"{case}: voxels are {array.dtype}, not integers")
    found = {int(value) for value in np.unique(array)}
    if not found <= values:
        problems.append(f"{case}: values {sorted(found - values)} are no labels of the dataset")
    return problems, found


def table(outcomes: list[Outcome]) -> str:
    """One row per dataset."""
    steps = ("plan", "preprocess", "train", "predict")
    rows = [
        (
            outcome.dataset,
            outcome.cases,
            *(outcome.seconds.get(step, "") for step in steps),
            f"{outcome.peak_mib:.0f}",
            outcome.values,
            summary(outcome.problems),
        )
        for outcome in outcomes
    ]
    header = ("dataset", "cases", *(f"{step} s" for step in steps), "peak MiB", "values predicted", "problems")
    return markdown_table(header, rows)


def summary(problems: list[str]) -> str:
    """The first problem in one line (of a failed command the end of its output), and how many more there are."""
    if not problems:
        return "none"
    lines = problems[0].splitlines()
    text = lines[0] if len(lines) == 1 else f"{lines[0].split(':')[0]}: {lines[-1]}"
    return text + (f" (+{len(problems) - 1})" if len(problems) > 1 else "")


if __name__ == "__main__":
    raise SystemExit(main())
