"""One 3D U2-Net for five datasets beside five networks of their own, at equal training time per dataset.

The ways: ``universal`` (depthwise convolutions, norms, stem and heads belong to a dataset, pointwise convolutions are shared; datasets
with small patches get more steps, and gradients of one size), ``in_turn`` (the same, but datasets in turn and gradients as they are),
``shared`` (all convolutions are full and shared; only norms, stem and heads belong to a dataset) and ``independent`` (a full network
for each dataset). Then a sixth dataset joins the universal network, and the predictions for the others are compared bit by bit.

In: MEDSEG3D_DATA, minutes of training per dataset and way. Out: Markdown tables and ``universal.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from contenders import Ours, case_names, link_dataset
from measuring import machine, markdown_table, run_measured, write_json
from splits import paired_folds

DATASETS = {"Hippocampus": None, "ACDC": r"^(acdc_\d+)", "OpenKBP": None, "LeftAtrium": None, "CHAOS_T2": None}
"""The five, with the pattern that groups the cases of a patient; Hippocampus pairs 2k-1 and 2k are one patient."""
ADDED = "BraTS15"
WAYS = {
    "universal": 'extends = "universal"\n',
    "in_turn": 'extends = "universal"\n\n[training]\ndomain_sampling = "round_robin"\nunit_gradients = false\n',
    "shared": 'extends = "universal"\n\n[network.options]\nadapters = "none"\n',
    "independent": 'extends = "u2net"\n\n[network.options]\nadapters = "none"\n',
}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Mean foreground Dice of each dataset's validation cases, parameters and seconds."""

    way: str
    dice: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    seconds: float = 0.0


def main() -> int:
    """Train all ways, then add a dataset."""
    options = parse_arguments()
    data = os.environ.get("MEDSEG3D_DATA")
    if not data:
        print("MEDSEG3D_DATA names no folder of datasets; nothing to measure.", file=sys.stderr)
        return 2
    ours = Ours(python=options.our_python)
    datasets = {name: prepare(Path(data).resolve() / name, options.output / "data" / name, options.cases) for name in options.datasets}
    outcomes = []
    for way in options.ways:
        outcomes.append(train(way, datasets, ours, options))
        print(f"{way}: {outcomes[-1].dice}", flush=True)
        write_json(options.output / "universal.json", {"machine": machine(), "outcomes": [asdict(o) for o in outcomes]})
    print(table(outcomes, options.minutes))
    if options.add and "universal" in options.ways:
        print(add(Path(data).resolve() / ADDED, datasets, ours, options))
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--our-python", type=Path, default=Path(sys.executable), help="with medseg3d (default: this one)")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--minutes", type=float, default=4.0, help="of training per dataset and way (default: 4)")
    parser.add_argument("--cases", type=int, default=40, help="at most so many cases of a dataset (default: 40)")
    parser.add_argument("--gpu-memory", default="4", help="that the plans are made for (default: 4, for small patches)")
    parser.add_argument("--width", type=float, default=1.0, help="alpha of all networks (default: 1)")
    parser.add_argument("--resolution", type=float, default=1.0, help="rho of all plans: 0.65 makes 0.27 times the voxels (default: 1)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--add", action=argparse.BooleanOptionalAction, default=True, help=f"add {ADDED} to the universal network")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def prepare(source: Path, target: Path, most: int) -> Path:
    """Links to the first cases of a dataset, with folds that keep patients together."""
    from medseg3d.training.folds import groups_from_pattern, make_splits

    names = case_names(source)[:most]
    folder = link_dataset(source, target, cases=names)
    if source.name == "Hippocampus":
        document = paired_folds(names)
    else:
        pattern = DATASETS.get(source.name)
        splits, _ = make_splits(names, labels_present={}, group_of=groups_from_pattern(names, pattern) if pattern else {})
        document = [{"train": list(split.train), "val": list(split.validation)} for split in splits]
    (folder / "splits_final.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def planner_file(way: str, options: argparse.Namespace) -> Path:
    """The planner of a way; the same numbers but for what is compared."""
    file = options.output / f"{way}.toml"
    text = WAYS[way]
    head, _, tail = text.partition("\n\n")
    size = f"[spacing]\nresolution_multiplier = {options.resolution}\n\n[network]\nwidth_multiplier = {options.width}"
    file.write_text(f"{head.rstrip()}\n\n{size}\n\n{tail}", encoding="utf-8")
    return file


def train(way: str, datasets: dict[str, Path], ours: Ours, options: argparse.Namespace) -> Outcome:
    """One way, from plans to Dice."""
    outcome = Outcome(way=way)
    planner, log = planner_file(way, options), options.output / f"{way}.log"
    common = ["--planner", planner, "--gpu-memory", options.gpu_memory]
    if way == "independent":
        for name, dataset in datasets.items():
            work = options.output / way / name
            run_measured(ours.command("plan", dataset, "-w", work, *common), log=log)
            recommend_3d(work)
            run_measured(ours.command("preprocess", dataset, "-w", work, "-c", "3d_fullres"), log=log)
            length = [
                "-c",
                "3d_fullres",
                "--fold",
                "0",
                "--hours",
                f"{options.minutes / 60:.5f}",
                "--device",
                options.device,
                "--tta",
                "off",
            ]
            outcome.seconds += run_measured(ours.command("train", dataset, "-w", work, *length), log=log).seconds
            read_fold(name, work, outcome)
            outcome.parameters += parameters_of(work / "models/3d_fullres/fold_0/weights.safetensors")
        return outcome
    work = options.output / way
    run_measured(ours.command("plan", *datasets.values(), "-w", work, *common), log=log)
    run_measured(ours.command("preprocess", "-w", work), log=log)
    hours = len(datasets) * options.minutes / 60
    length = ["--fold", "0", "--hours", f"{hours:.5f}", "--device", options.device, "--tta", "off"]
    outcome.seconds = run_measured(ours.command("train", "-w", work, *length), log=log).seconds
    for name in datasets:
        read_fold(name, work / "domains" / name, outcome)
    steps = sum(json.loads(line)["iterations"] for line in (work / "models/universal/fold_0/history.jsonl").read_text().splitlines())
    outcome.steps = dict.fromkeys(datasets, steps // len(datasets))  # of the ways with unequal steps only the mean
    outcome.parameters = parameters_of(work / "models/universal/fold_0/weights.safetensors")
    return outcome


def recommend_3d(work: Path) -> None:
    """A dataset of its own may be recommended 2D; all train 3D here, so only the name matters."""
    if "3d_fullres" not in json.loads((work / "plan.json").read_text(encoding="utf-8"))["configurations"]:
        raise SystemExit(f"{work}: no 3d_fullres is planned; this comparison needs volumes.")


def read_fold(name: str, work: Path, outcome: Outcome) -> None:
    """The measured validation cases of a dataset."""
    from medseg3d.evaluation.metrics import read_evaluation

    fold = work / "models/3d_fullres/fold_0"
    outcome.dice[name] = read_evaluation(fold / "validation/metrics.json").foreground_dice.mean or 0.0
    if (fold / "history.jsonl").exists():
        outcome.steps[name] = sum(json.loads(line)["iterations"] for line in (fold / "history.jsonl").read_text().splitlines())


def parameters_of(weights: Path) -> int:
    """Numbers in a weights file."""
    from medseg3d.models.checkpoints import load_tensors

    return sum(tensor.numel() for tensor in load_tensors(weights)[0].values())


def add(source: Path, datasets: dict[str, Path], ours: Ours, options: argparse.Namespace) -> str:
    """Add a dataset; digests of the other datasets' predictions before and after."""
    work, log = options.output / "universal", options.output / "add.log"
    extra = prepare(source, options.output / "data" / source.name, options.cases)

    def digests(stage: str) -> dict[str, str]:
        found = {}
        for name, dataset in datasets.items():
            image = dataset / "imagesTr" / f"{case_names(dataset)[0]}_0000.nii.gz"
            out = options.output / "added" / stage / name
            run_measured(
                ours.command("predict", "-w", work, "--domain", name, "-i", image, "-o", out, "--tta", "off", "--device", options.device),
                log=log,
            )
            (file,) = out.glob("*.nii.gz")
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        return found

    before = digests("before")
    length = ["--fold", "0", "--hours", f"{options.minutes / 60:.5f}", "--device", options.device, "--tta", "off"]
    run_measured(ours.command("train", "-w", work, "--add-domain", extra, *length), log=log)
    after = digests("after")
    outcome = Outcome(way="added")
    read_fold(source.name, work / "domains" / source.name, outcome)
    same = [name for name in datasets if before[name] == after[name]]
    write_json(options.output / "added.json", {"before": before, "after": after, "dice": outcome.dice})
    joined = f"{source.name} joined with a Dice of {outcome.dice[source.name]:.3f}"
    return f"{joined}; predictions of {len(same)} of {len(datasets)} others are bit-identical."


def steps_of(outcome: Outcome, names: list[str]) -> str:
    """Of each dataset; where small patches get more, only the mean is known."""
    if outcome.way in ("universal", "shared"):
        return f"{outcome.steps[names[0]]} in the mean"
    return ", ".join(str(outcome.steps[name]) for name in names)


def table(outcomes: list[Outcome], minutes: float) -> str:
    """One row per way."""
    names = list(outcomes[0].dice)
    header = ("way", "parameters", *names, "mean Dice", f"steps per dataset in {minutes:g} min")
    rows = [
        (
            outcome.way,
            f"{outcome.parameters / 1e6:.2f} M",
            *(f"{outcome.dice[name]:.3f}" for name in names),
            f"{sum(outcome.dice.values()) / len(names):.3f}",
            steps_of(outcome, names),
        )
        for outcome in outcomes
    ]
    return markdown_table(header, rows)


if __name__ == "__main__":
    sys.exit(main())
