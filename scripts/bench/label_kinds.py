"""Regions, an ignore label and partial labels on real data: what each is worth, and nnU-Net 2.8.1 beside it at equal steps and batch.

In: datasets of the folder MEDSEG3D_DATA, and an interpreter that has nnunetv2. Out: ``label_kinds.jsonl``, a line per training, and a
Markdown table of the Dice of the validation cases against their complete labels, computed alike for both programs.

Every training of an experiment sees the same cases, takes the same number of steps of the same batch with nnU-Net's plain plan, and
predicts with mirroring. What stands in the file is not done again, and a training that was cut off goes on.

    python scripts/bench/label_kinds.py --output OUT --peer-python PEER/bin/python --epochs 25 --iterations 100
    python scripts/bench/label_kinds.py --output OUT --peer-python PEER/bin/python --base-features 8 --cases 40      # on a CPU
    python scripts/bench/label_kinds.py --output OUT --only ignore-hippocampus --epochs 1 --iterations 2 --cases 6   # does it run
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from contenders import Ours, Peer, case_names
from measuring import CommandFailedError, machine, markdown_table, run_measured
from splits import SPLIT_SEED

CONFIGURATION = "3d_fullres"
IGNORE = "ignore"
FEATURES = (32, 64, 128, 256, 320, 320, 320, 320)
"""Of the stages of nnU-Net's 3D networks."""
EVERY = 5
"""Of the slices one is annotated."""

Change = Callable[[str, int, np.ndarray], np.ndarray]
"""(case, its place among the cases, label map) → the label map to train with."""
Regions = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One training of an experiment: labels as ``dataset.json`` has them, and what is done to the label maps of training cases.

    ``annotated`` names the labels of a case, None for all. ``by_nnunet`` where nnU-Net can train it as well.
    """

    labels: dict[str, int | list[int]]
    change: Change = lambda case, place, labels: labels
    class_order: tuple[int, ...] = ()
    annotated: Callable[[int], list[str] | None] = lambda place: None
    by_nnunet: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Trainings on one dataset; ``measured`` are the unions of complete labels that are measured, under their names."""

    dataset: str
    arms: dict[str, Arm]
    measured: Regions
    batch: int = 2


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one training reached."""

    experiment: str
    arm: str
    program: str
    steps: int
    batch: int
    cases: int
    features: int = FEATURES[0]
    dice: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    problem: str = ""
    machine: dict[str, object] = field(default_factory=machine)


def key_of(outcome: Outcome) -> tuple[object, ...]:
    """What tells trainings apart."""
    return (outcome.experiment, outcome.arm, outcome.program, outcome.steps, outcome.cases, outcome.features)


def experiments(data: Path) -> dict[str, Experiment]:
    """All of them, from the lists of labels of the datasets."""
    heart, brain, kbp, hippocampus = (labels_of(data / name) for name in ("ACDC", "BraTS15", "OpenKBP", "Hippocampus"))
    organs = [name for name, value in kbp.items() if value]
    lost = organs[1::2]
    """Every second organ is erased, in every second case."""

    def erased(case: str, place: int, labels: np.ndarray) -> np.ndarray:
        return np.where(np.isin(labels, [kbp[name] for name in lost]), 0, labels) if place % 2 else labels

    def sparse(case: str, place: int, labels: np.ndarray) -> np.ndarray:
        hidden = np.full_like(labels, max(hippocampus.values()) + 1)
        hidden[..., place % EVERY :: EVERY] = labels[..., place % EVERY :: EVERY]
        return hidden

    def kept(place: int) -> list[str] | None:
        return [name for name in organs if name not in lost] if place % 2 else None

    def plain(labels: dict[str, int]) -> dict[str, int | list[int]]:
        return dict(labels)

    def each(labels: dict[str, int]) -> Regions:
        return {name: (value,) for name, value in labels.items() if value}

    return {
        "regions-acdc": Experiment(
            dataset="ACDC",
            arms={
                "regions": Arm(labels={"background": 0, "whole_heart": [1, 2, 3], "ventricles": [1, 3]}, class_order=(2, 1)),
                "labels": Arm(labels=plain(heart)),
            },
            measured={"whole_heart": (1, 2, 3), "ventricles": (1, 3)},
        ),
        "regions-brats": Experiment(
            dataset="BraTS15",
            arms={
                "regions": Arm(labels={"background": 0, "whole": [1, 2, 3, 4], "core": [1, 3, 4], "enhancing": 4}, class_order=(2, 1, 4)),
                "labels": Arm(labels=plain(brain)),
            },
            measured={"whole": (1, 2, 3, 4), "core": (1, 3, 4), "enhancing": (4,)},
        ),
        "ignore-hippocampus": Experiment(
            dataset="Hippocampus",
            arms={
                "all slices": Arm(labels=plain(hippocampus)),
                "one slice in five": Arm(labels={**plain(hippocampus), IGNORE: max(hippocampus.values()) + 1}, change=sparse),
            },
            measured=each(hippocampus),
            batch=9,
        ),
        "partial-openkbp": Experiment(
            dataset="OpenKBP",
            arms={
                "all labels": Arm(labels=plain(kbp), by_nnunet=False),
                "partial labels": Arm(labels=plain(kbp), change=erased, annotated=kept, by_nnunet=False),
                "erased as background": Arm(labels=plain(kbp), change=erased),
            },
            measured=each(kbp),
        ),
    }


def labels_of(root: Path) -> dict[str, int]:
    """The list of labels of a dataset."""
    found: dict[str, int] = json.loads((root / "dataset.json").read_text(encoding="utf-8"))["labels"]
    return found


def main() -> int:
    """Train all that was asked for and is not done, and print the table."""
    options = parse_arguments()
    data = Path(os.environ["MEDSEG3D_DATA"])
    known = experiments(data)
    done = {key_of(each) for each in read_outcomes(options.output) if not each.problem}
    for name in options.only or known:
        for arm, program in trainings(known[name], options):
            experiment = known[name]
            cases, validation = chosen_cases(data / experiment.dataset, options.cases)
            outcome = Outcome(
                experiment=name,
                arm=arm,
                program=program,
                steps=options.epochs * options.iterations,
                batch=experiment.batch,
                cases=len(cases),
                features=options.base_features,
            )
            if key_of(outcome) in done:
                continue
            length = f"{options.epochs}x{options.iterations}_{len(cases)}_cases_{options.base_features}_features"
            folder = options.output / name / arm.replace(" ", "_") / length
            try:
                root = make_dataset(data / experiment.dataset, folder / "data", experiment.arms[arm], cases, validation)
                run = train_ours if program == "medseg3d" else train_nnunet
                predictions, outcome.seconds = run(root, folder, validation, experiment, options)
                outcome.dice = measure(predictions, data / experiment.dataset / "labelsTr", validation, experiment.measured)
            except CommandFailedError as error:
                outcome.problem = str(error)
                print(error, file=sys.stderr)
            with (options.output / "label_kinds.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(outcome)) + "\n")
    print(table(read_outcomes(options.output)))
    return 0


def trainings(experiment: Experiment, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """(arm, program)."""
    for name, arm in experiment.arms.items():
        yield name, "medseg3d"
        if arm.by_nnunet and options.peer_python is not None:
            yield name, "nnunet"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=("regions-acdc", "regions-brats", "ignore-hippocampus", "partial-openkbp"))
    parser.add_argument("--our-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--peer-python", type=Path, help="of an environment with nnunetv2; without it only ours trains")
    parser.add_argument("--epochs", type=int, default=25, help="the learning rate of both falls once per epoch")
    parser.add_argument("--iterations", type=int, default=40, help="steps of an epoch")
    parser.add_argument("--base-features", type=int, default=FEATURES[0], help="of both networks' first stage; fewer where there is no GPU")
    parser.add_argument("--cases", type=int, help="of each dataset; all by default")
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def chosen_cases(root: Path, count: int | None) -> tuple[list[str], list[str]]:
    """The cases, and those of them that are validated: a fifth, one at least; neighbors, which may be one patient's, stay together."""
    cases = case_names(root)[:count]
    number = max(1, len(cases) // 5)
    first = int(np.random.default_rng(SPLIT_SEED).integers(len(cases) // number)) * number
    return cases, cases[first : first + number]


def make_dataset(root: Path, folder: Path, arm: Arm, cases: Sequence[str], validation: Sequence[str]) -> Path:
    """The images as links, label maps as the arm wants them; validation cases keep what the complete map says in the arm's terms."""
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    (folder / "labelsTr").mkdir(exist_ok=True)
    description = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    for place, case in enumerate(cases):
        for channel in range(len(description["channel_names"])):
            link = folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz"
            if not link.exists():
                link.symlink_to((root / "imagesTr" / link.name).resolve())
        image = nibabel.load(root / "labelsTr" / f"{case}.nii.gz")
        labels = np.rint(np.asanyarray(image.dataobj)).astype(np.uint8)
        changed = labels if case in validation else arm.change(case, place, labels)
        nibabel.save(nibabel.Nifti1Image(changed, image.affine), folder / "labelsTr" / f"{case}.nii.gz")
    more = {"regions_class_order": list(arm.class_order)} if arm.class_order else {}
    description = {**description, "labels": arm.labels, "numTraining": len(cases), **more}
    (folder / "dataset.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    rows = [(case, names) for place, case in enumerate(cases) if case not in validation and (names := arm.annotated(place)) is not None]
    if rows:
        lines = ["case,labels", *(f"{case},{';'.join(names)}" for case, names in rows)]
        (folder / "annotated.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    split = [{"train": [case for case in cases if case not in validation], "val": list(validation)}]
    (folder / "splits_final.json").write_text(json.dumps(split), encoding="utf-8")
    return folder


def train_ours(
    root: Path, folder: Path, validation: Sequence[str], experiment: Experiment, options: argparse.Namespace
) -> tuple[Path, float]:
    """Plan, preprocess, train and validate fold 0; the folder of its label maps, and the seconds of the training."""
    ours, work, log = Ours(python=options.our_python), folder / "work", folder / "medseg3d.log"
    run_measured(ours.command("plan", root, "-w", work, "--planner", "nnunet_plain"), log=log)
    plan = json.loads((work / "plan.json").read_text(encoding="utf-8"))
    network = plan["configurations"][CONFIGURATION]["network"]
    network["features"] = thinner(FEATURES[: len(network["features"])], options.base_features)
    (work / "plan.json").write_text(json.dumps(plan, indent=2), encoding="utf-8")
    run_measured(ours.command("preprocess", root, "-w", work, "-c", CONFIGURATION), log=log)
    length = ("--epochs", str(options.epochs), "--iterations", str(options.iterations), "--batch-size", str(experiment.batch))
    words = ("train", root, "-w", work, "-c", CONFIGURATION, "--fold", "0", "--tta", "on", *length)
    measured = run_measured(ours.command(*words), log=log)
    return work / f"models/{CONFIGURATION}/fold_0/validation", measured.seconds


def train_nnunet(
    root: Path, folder: Path, validation: Sequence[str], experiment: Experiment, options: argparse.Namespace
) -> tuple[Path, float]:
    """The same by nnU-Net, its batch replaced in its plans."""
    peer, log = Peer(python=options.peer_python, folder=folder / "peer"), folder / "nnunet.log"
    environment = {
        **peer.environment(data_workers=2),
        "MEDSEG3D_BENCH_EPOCHS": str(options.epochs),
        "MEDSEG3D_BENCH_ITERATIONS": str(options.iterations),
    }
    name = peer.add_dataset(root, number=1, name="Kinds")
    planned = peer.preprocessed / name / "nnUNetPlans.json"
    split = peer.preprocessed / name / "splits_final.json"
    if not split.exists():  # written last
        run_measured(peer.command("nnUNetv2_plan_and_preprocess", "-d", "1", "--no_pp", "-npfp", "2"), log=log, environment=environment)
        plans = json.loads(planned.read_text(encoding="utf-8"))
        configuration = plans["configurations"][CONFIGURATION]
        configuration["batch_size"] = experiment.batch
        network = configuration["architecture"]["arch_kwargs"]
        network["features_per_stage"] = thinner(FEATURES[: network["n_stages"]], options.base_features)
        planned.write_text(json.dumps(plans, indent=1), encoding="utf-8")
        preprocess = ("nnUNetv2_preprocess", "-d", "1", "-c", CONFIGURATION, "-np", "2")
        run_measured(peer.command(*preprocess), log=log, environment=environment)
        split.write_bytes((root / "splits_final.json").read_bytes())
    result = peer.results / name / f"BenchEqualSteps__nnUNetPlans__{CONFIGURATION}/fold_0"
    words = ["nnUNetv2_train", "1", CONFIGURATION, "0", "-tr", "BenchEqualSteps", "-device", options_device()]
    if (result / "checkpoint_latest.pth").exists():
        words.append("--c")
    measured = run_measured(peer.command(*words), log=log, environment=environment)
    return result / "validation", measured.seconds


def thinner(features: Sequence[int], first: int) -> list[int]:
    """The same in proportion to those of the first stage, for machines without a GPU."""
    return [max(1, width * first // FEATURES[0]) for width in features]


def options_device() -> str:
    """What nnU-Net calls the device that is at hand."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def measure(predictions: Path, references: Path, cases: Sequence[str], regions: Regions) -> dict[str, float]:
    """The mean Dice over cases of each union of values; a case in which neither has it does not count."""
    found: dict[str, list[float]] = {name: [] for name in regions}
    for case in cases:
        maps = [np.rint(np.asanyarray(nibabel.load(folder / f"{case}.nii.gz").dataobj)) for folder in (predictions, references)]
        for name, values in regions.items():
            prediction, reference = (np.isin(array, values) for array in maps)
            size = int(prediction.sum()) + int(reference.sum())
            if size:
                found[name].append(2 * int((prediction & reference).sum()) / size)
    return {name: float(np.mean(scores)) for name, scores in found.items() if scores}


def read_outcomes(output: Path) -> list[Outcome]:
    """What stands in the file; the last line of a training counts."""
    file = output / "label_kinds.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    found = [Outcome(**json.loads(line)) for line in lines if line.strip()]
    return list({key_of(each): each for each in found}.values())


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, a row per training."""
    rows = [
        (
            each.experiment,
            each.arm,
            each.program,
            f"{each.steps} of {each.batch}",
            each.features,
            each.cases,
            each.problem.splitlines()[0] if each.problem else ", ".join(f"{name} {dice:.3f}" for name, dice in each.dice.items()),
            f"{np.mean(list(each.dice.values())):.3f}" if each.dice else "–",
            f"{each.seconds:.0f}",
        )
        for each in outcomes
    ]
    return markdown_table(("experiment", "training", "program", "steps", "features", "cases", "Dice", "mean", "training s"), rows)


if __name__ == "__main__":
    raise SystemExit(main())
