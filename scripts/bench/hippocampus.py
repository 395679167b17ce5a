"""Train this project and nnU-Net 2.8.1 on the same fold of Hippocampus, and compare their Dice on its validation cases.

In: the folder of datasets that MEDSEG3D_DATA names. Out: a Markdown table, and a JSON file per program with every
case. Without ``--gpu``: 250 iterations of nnU-Net against ``--hours`` of ours (training clock, without the final validation),
on the CPU. With ``--gpu``: 25 epochs of 250 iterations of both. Finished parts found in the output folder are used again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from contenders import Ours, Peer, case_names, link_dataset
from dice import dice_of_folders
from measuring import machine, markdown_table, run_measured, write_json
from splits import paired_folds

CONFIGURATION = "3d_fullres"
LABELS = (1, 2)
DATASET_NUMBER = 4


def main() -> int:
    """Train what was asked for and print the comparison of all results in the output folder."""
    options = parse_arguments()
    data = os.environ.get("MEDSEG3D_DATA")
    if not data:
        print("MEDSEG3D_DATA names no folder of datasets; nothing to measure.", file=sys.stderr)
        return 2
    root = Path(data).resolve() / "Hippocampus"
    output = options.output.resolve()
    folds = paired_folds(case_names(root))
    write_json(output / "splits_final.json", folds)
    mode = "gpu" if options.gpu else "cpu"
    if options.only != "peer":
        write_json(output / f"ours_{mode}.json", train_ours(root, output, folds, options))
    if options.only != "ours":
        write_json(output / f"peer_{mode}.json", train_peer(root, output, folds, options))
    print(report(output, mode))
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--peer-python", type=Path, help="interpreter beside which nnU-Net 2.8.1 is installed")
    parser.add_argument("--our-python", type=Path, default=Path(sys.executable), help="with medseg3d (default: this one)")
    parser.add_argument("--only", choices=("ours", "peer"), help="train one of them; the table shows what is there")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--hours", type=float, default=0.4166, help="our training time on the CPU (default: 25 minutes)")
    parser.add_argument("--planner", help="our planner; its default if left out")
    parser.add_argument("--gpu", action="store_true", help="25 epochs x 250 iterations of both on a CUDA device")
    parser.add_argument("--peer-workers", type=int, help="nnU-Net's augmentation processes (default: CPU 1, GPU its own choice)")
    options = parser.parse_args()
    if options.only != "ours" and options.peer_python is None:
        parser.error("--peer-python is needed, or --only ours")
    return options


def train_ours(root: Path, output: Path, folds: list[dict[str, list[str]]], options: argparse.Namespace) -> dict[str, Any]:
    """Plan, preprocess, train one fold, predict its validation cases; the split is the dataset's ``splits_final.json``."""
    ours = Ours(python=options.our_python)
    work = output / f"ours_{'gpu' if options.gpu else 'cpu'}"
    dataset = link_dataset(root, output / "dataset")
    write_json(dataset / "splits_final.json", folds)
    device = ["--device", "cuda" if options.gpu else "cpu"]
    planner = ["--planner", options.planner] if options.planner else []
    budget = ["--epochs", "25", "--iterations", "250"] if options.gpu else ["--hours", str(options.hours)]
    fold = ["-c", CONFIGURATION, "--fold", str(options.fold)]
    log = output / f"{work.name}.log"
    validation = folds[options.fold]["val"]
    steps = {
        "plan": ours.command("plan", dataset, "-w", work, *planner),
        "preprocess": ours.command("preprocess", dataset, "-w", work, "-c", CONFIGURATION),
        "train": ours.command("train", dataset, "-w", work, *fold, *budget, *device),
    }
    seconds = {name: run_measured(command, log=log).seconds for name, command in steps.items()}
    images = link_images(root, output / f"validation_fold_{options.fold}", validation)
    predictions = output / f"{work.name}_predictions"
    predict = ours.command("predict", dataset, "-w", work, "-i", images, "-o", predictions, *fold, *device, "--overwrite")
    seconds["predict"] = run_measured(predict, log=log).seconds
    return {"program": "medseg3d", "seconds": seconds, **score(predictions, root, validation)}


def train_peer(root: Path, output: Path, folds: list[dict[str, list[str]]], options: argparse.Namespace) -> dict[str, Any]:
    """nnU-Net's fingerprint, plan, preprocessing and training; it predicts its validation cases at the end of training."""
    peer = Peer(python=options.peer_python, folder=output / f"peer_{'gpu' if options.gpu else 'cpu'}")
    number = str(DATASET_NUMBER)
    workers = options.peer_workers if options.peer_workers is not None or options.gpu else 1
    environment = peer.environment(data_workers=workers)
    if not options.gpu:
        environment["nnUNet_compile"] = "f"
    name = peer.add_dataset(root, number=DATASET_NUMBER, name="Hippocampus")
    trainer = "Bench25Epochs" if options.gpu else "Bench250Iterations"
    log = output / f"{peer.folder.name}.log"
    words = (number, CONFIGURATION, str(options.fold), "-tr", trainer, "-device", "cuda" if options.gpu else "cpu")
    seconds = {}
    plan = peer.command("nnUNetv2_plan_and_preprocess", "-d", number, "--no_pp")
    seconds["plan"] = run_measured(plan, log=log, environment=environment).seconds
    preprocess = peer.command("nnUNetv2_preprocess", "-d", number, "-c", CONFIGURATION)
    seconds["preprocess"] = run_measured(preprocess, log=log, environment=environment).seconds
    write_json(peer.preprocessed / name / "splits_final.json", folds)
    fold_folder = peer.results / name / f"{trainer}__nnUNetPlans__{CONFIGURATION}" / f"fold_{options.fold}"
    if not (fold_folder / "validation" / "summary.json").exists():
        (fold_folder / "iterations.jsonl").unlink(missing_ok=True)
        seconds["train"] = run_measured(peer.command("nnUNetv2_train", *words), log=log, environment=environment).seconds
    scores = score(fold_folder / "validation", root, folds[options.fold]["val"])
    result = {"program": "nnU-Net 2.8.1", "seconds": seconds, **scores}
    summary = json.loads((fold_folder / "validation" / "summary.json").read_text(encoding="utf-8"))
    result["own_foreground_mean"] = summary["foreground_mean"]["Dice"]
    result["iterations"] = iteration_times(fold_folder / "iterations.jsonl")
    return result


def link_images(root: Path, folder: Path, cases: list[str]) -> Path:
    """A folder of links to the images of some cases."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        for image in (root / "imagesTr").glob(f"{case}_????.nii.gz"):
            link = folder / image.name
            if not link.is_symlink():
                link.symlink_to(image)
    return folder


def score(predictions: Path, root: Path, validation: list[str]) -> dict[str, Any]:
    """Mean whole-volume Dice, per label and per case."""
    table = dice_of_folders(predictions, root / "labelsTr", cases=validation, labels=LABELS)
    return {"dice": table.mean, "dice_per_label": table.per_label, "cases": table.scores, "machine": machine()}


def iteration_times(path: Path) -> dict[str, float]:
    """Number and median seconds of nnU-Net's iterations, waiting for data included."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    seconds = [line["waiting_s"] + line["step_s"] for line in lines]
    return {"count": len(seconds), "median_s": statistics.median(seconds), "total_s": sum(seconds)}


def report(output: Path, mode: str) -> str:
    """The table of what was measured in this mode, and whether the target is met when both are there."""
    paths = {who: output / f"{who}_{mode}.json" for who in ("ours", "peer")}
    results = {who: json.loads(path.read_text(encoding="utf-8")) for who, path in paths.items() if path.exists()}
    rows = [
        (
            result["program"],
            f"{result['dice']:.4f}",
            ", ".join(f"{label}: {value:.4f}" for label, value in result["dice_per_label"].items()),
            len(result["cases"]),
            *(f"{result['seconds'][name]:.0f}" if name in result["seconds"] else "" for name in ("plan", "preprocess", "train")),
        )
        for result in results.values()
    ]
    text = markdown_table(("program", "mean Dice", "per label", "cases", "plan s", "preprocess s", "train s"), rows)
    if len(results) == 2:
        ours, peer = results["ours"]["dice"], results["peer"]["dice"]
        wanted = peer - 0.005 if mode == "gpu" else max(peer + 0.1, 0.75)
        text += f"\n\nWanted: at least {wanted:.4f}; ours {ours:.4f}: {'met' if ours >= wanted else 'NOT met'}."
    return text


if __name__ == "__main__":
    raise SystemExit(main())
