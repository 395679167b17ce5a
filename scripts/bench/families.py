"""Each family of networks learns on one core: plan, preprocess, train fold 0, predict, measure.

In: a dataset and a budget for each preset in minutes of a core. Out: a line per preset in ``families.jsonl``, and a Markdown table; exit
code 1 where a family stays below the wanted Dice. All are trained alike; ``family_settings.py`` has what differs, with reasons.

Other work on the machine does not falsify the table: the budget is counted in CPU seconds of a core that nothing is shared with. A
training step is timed first, by the CPU clock, with a convolution beside it whose fastest time in the whole output folder says how fast
the core is when nothing else uses its units and caches; the network then trains as many steps as fit the budget. With ``--wall-clock``
it trains so many minutes by the clock on the wall instead. A run that was killed goes on where it was: what stands in
``families.jsonl`` is not done again, and a training continues.

    python scripts/bench/families.py --output OUT                                 # the phantom; 8 minutes each, less where 0.7 is reached
    python scripts/bench/families.py --output OUT --dataset hippocampus           # of the folder MEDSEG3D_DATA; 10 minutes each
    python scripts/bench/families.py --output OUT --only fcn dla --minutes 2
    python scripts/bench/families.py --output OUT --write-docs                    # the tables of what is there, into docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from contenders import Ours, case_names, link_dataset
from dice import DiceTable, dice_of_folders
from family_settings import SETTINGS, Setting
from family_tables import tables, write_docs
from measuring import CommandFailedError, machine, run_measured, write_json
from splits import paired_folds

WANTED_DICE = 0.7
"""On the phantom; a network that has it has understood all labels but the lesions."""
MINUTES = {"phantom": 8.0, "hippocampus": 10.0}
EPOCHS = 32
"""The learning rate falls in so many parts; a power of two, so that a half, a quarter and an eighth of the budget are whole epochs."""
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
"""After these parts of the budget the Dice is asked for where reaching it is enough. The first ones continue each other, with learning
rates that fell to zero; the whole budget begins anew, as a training of that length has one schedule."""
PREDICTED_CASES = 6
"""The phantom's test cases; as many of Hippocampus are enough for the time of one."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a family reached; ``dice`` is the mean over labels and cases, seconds are those of a core. ``levels`` are those of a UNet++.

    ``slowed_down``: how many times as long the timed steps took beside other work; ``step_seconds`` is without that, and ``case_seconds``
    with what there was then.
    """

    dataset: str
    preset: str
    dice: float | None = None
    per_label: dict[str, float] = field(default_factory=dict)
    parameters: int = 0
    multiply_adds: int = 0
    configuration: str = ""
    patch: tuple[int, ...] = ()
    batch: int = 0
    alpha: float = 1.0
    rho: float = 1.0
    rate: float = 0.0
    budget_minutes: float = 0.0
    step_seconds: float = 0.0
    slowed_down: float = 1.0
    steps: int = 0
    minutes: float = 0.0
    case_seconds: float = 0.0
    peak_mib: float | None = None
    levels: list[dict[str, float]] = field(default_factory=list)
    clock: str = "cpu"
    problem: str = ""
    machine: dict[str, object] = field(default_factory=machine)


def main() -> int:
    """Train all that were asked for and are not done; a failure of one does not keep the others from running."""
    options = parse_arguments()
    if options.write_docs:
        write_docs(read_outcomes(options.output))
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core if options.core is not None else min(os.sched_getaffinity(0))})
    done = {(row["dataset"], row["preset"]) for row in read_outcomes(options.output)}
    dataset = DATASETS[options.dataset](options)
    for preset in options.only:
        if (options.dataset, preset) in done and not options.again:
            continue
        outcome = train(preset, dataset, options)
        with (options.output / "families.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(outcome)) + "\n")
        print(f"{options.dataset} {preset}: {outcome.problem or outcome.dice}", flush=True)
    outcomes = read_outcomes(options.output)
    print("\n\n".join(tables(outcomes).values()))
    asked = [row for row in outcomes if row["dataset"] == options.dataset and row["preset"] in options.only]
    is_short = options.dataset == "phantom" and any((row["dice"] or 0) < WANTED_DICE for row in asked)
    return 1 if is_short or any(row["problem"] for row in asked) else 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--our-python", type=Path, default=Path(sys.executable), help="with medseg3d (default: this one)")
    parser.add_argument("--dataset", choices=list(MINUTES), default="phantom")
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), metavar="PRESET", help="default: all")
    parser.add_argument("--minutes", type=float, help="of training for each (default: phantom 8, hippocampus 10)")
    parser.add_argument("--stop-at", type=float, metavar="DICE", help="enough on the phantom: ends early, and says after how many minutes")
    parser.add_argument("--wall-clock", action="store_true", help="minutes of the clock on the wall, for a machine that does nothing else")
    parser.add_argument("--core", type=int, help="the core to run on (default: the first)")
    parser.add_argument("--again", action="store_true", help="also what is done already")
    parser.add_argument("--keep", action="store_true", help="keep the work folders of finished presets")
    parser.add_argument("--published", action="store_true", help="without the further changes, such as the wide U-Net's dropout")
    parser.add_argument("--write-docs", action="store_true", help="only write the tables into docs/benchmarks.md")
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    options.minutes = options.minutes or MINUTES[options.dataset]
    return options


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Where the images lie, and what is measured: the labels of ``cases``, in ``validation`` where the training predicts them itself."""

    root: Path
    images: tuple[Path, ...]
    references: Path
    cases: tuple[str, ...]
    labels: dict[int, str]
    is_validation: bool


def phantom(options: argparse.Namespace) -> Dataset:
    """The synthetic dataset of the demo; its test cases are measured."""
    root = options.output / "phantom"
    if not (root / "dataset.json").exists():
        run_measured(Ours(python=options.our_python).command("demo", root), log=options.output / "demo.log")
    images = tuple(sorted((root / "imagesTs").glob("*_0000.nii.gz")))
    cases = tuple(image.name.removesuffix("_0000.nii.gz") for image in images)
    return Dataset(root=root, images=images, references=root / "labelsTs", cases=cases, labels=labels_of(root), is_validation=False)


def hippocampus(options: argparse.Namespace) -> Dataset:
    """Fold 0 of the real data, both cases of a subject in one fold; its validation cases are measured."""
    place = os.environ.get("MEDSEG3D_DATA")
    if not place:
        sys.exit("MEDSEG3D_DATA names no folder of datasets; nothing to measure.")
    source, root = Path(place).resolve() / "Hippocampus", options.output / "hippocampus"
    folds = paired_folds(case_names(source))
    if not (root / "splits_final.json").exists():
        write_json(link_dataset(source, root) / "splits_final.json", folds)
    cases = tuple(folds[0]["val"])
    images = tuple(root / "imagesTr" / f"{case}_0000.nii.gz" for case in cases[:PREDICTED_CASES])
    return Dataset(root=root, images=images, references=root / "labelsTr", cases=cases, labels=labels_of(root), is_validation=True)


DATASETS = {"phantom": phantom, "hippocampus": hippocampus}


def labels_of(root: Path) -> dict[int, str]:
    """The foreground of a dataset."""
    labels = json.loads((root / "dataset.json").read_text(encoding="utf-8"))["labels"]
    return {value: name for name, value in labels.items() if value}


def train(preset: str, dataset: Dataset, options: argparse.Namespace) -> Outcome:
    """One family, from plan to Dice."""
    setting = SETTINGS[preset]
    outcome = Outcome(
        dataset=options.dataset,
        preset=preset,
        alpha=setting.alpha,
        rho=setting.rho,
        rate=setting.rate,
        budget_minutes=options.minutes,
        clock="wall" if options.wall_clock else "cpu",
    )
    chain = Chain(preset, setting, dataset, options)
    try:
        chain.prepare(outcome)
        chain.train(outcome)
    except CommandFailedError as error:
        outcome.problem = str(error)
    if not options.keep and not outcome.problem:
        shutil.rmtree(chain.work / "preprocessed", ignore_errors=True)
    return outcome


class Chain:
    """The commands for one preset, and what they left behind."""

    def __init__(self, preset: str, setting: Setting, dataset: Dataset, options: argparse.Namespace) -> None:
        self.ours = Ours(python=options.our_python)
        self.dataset, self.options = dataset, options
        folder = options.output / "work" / options.dataset / preset
        self.work, self.log, self.planner = folder, folder.with_suffix(".log"), folder.with_name(f"{preset}_cpu.toml")
        if options.again:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.planner.write_text(setting.planner(preset, is_published=options.published), encoding="utf-8")
        self.name = setting.configuration or ""

    def prepare(self, outcome: Outcome) -> None:
        """Plan, preprocess, count."""
        if not (self.work / "plan.json").exists():
            self.run("plan", self.dataset.root, "-w", self.work, "--planner", self.planner)
        plan = json.loads((self.work / "plan.json").read_text(encoding="utf-8"))
        self.name = self.name or plan["recommended"]
        configuration = plan["configurations"][self.name]
        outcome.configuration, outcome.patch, outcome.batch = self.name, tuple(configuration["patch_size"]), configuration["batch_size"]
        outcome.parameters, outcome.multiply_adds = costs(configuration)
        self.run("preprocess", self.dataset.root, "-w", self.work, "-c", self.name)

    def train(self, outcome: Outcome) -> None:
        """Train for the budget; where a Dice is enough, in parts, after each of which it is asked for."""
        length = ["--hours", f"{self.options.minutes / 60:.5f}"]
        if not self.options.wall_clock:
            outcome.step_seconds = self.step_seconds(outcome)
            per_epoch = max(1, round(self.options.minutes * 60 / outcome.step_seconds / EPOCHS))
            length = ["--iterations", str(per_epoch)]
        is_in_parts = self.options.stop_at is not None and not self.dataset.is_validation and not self.options.wall_clock
        for share in SHARES if is_in_parts else (1,):
            epochs = [] if self.options.wall_clock else ["--epochs", str(round(EPOCHS * share))]
            if is_in_parts and share == 1:
                shutil.rmtree(self.work / "models", ignore_errors=True)
            self.run("train", self.dataset.root, "-w", self.work, *self.fold, "--tta", "off", *length, *epochs, outcome=outcome)
            self.measure(outcome)
            if is_in_parts and (outcome.dice or 0) >= self.options.stop_at:
                break

    def step_seconds(self, outcome: Outcome) -> float:
        """Of the work folder's network on a core for itself, measured once."""
        file, core = self.work / "step_seconds.json", self.options.output / "core.json"
        if not file.exists():
            found = json.loads(self.child("step", self.dataset.root, self.work, self.name))
            known = json.loads(core.read_text(encoding="utf-8"))["reference_seconds"] if core.exists() else float("inf")
            fastest = min(known, found["fastest_reference_seconds"])
            write_json(core, {"reference_seconds": fastest})
            write_json(file, {**found, "slowed_down": found["reference_seconds"] / fastest})
        found = json.loads(file.read_text(encoding="utf-8"))
        outcome.slowed_down = found.get("slowed_down", 1.0)
        return float(found["step_seconds"] / outcome.slowed_down)

    def measure(self, outcome: Outcome) -> None:
        """Dice, prediction time, and what the training took."""
        fold, predictions = self.work / "models" / self.name / "fold_0", self.work / "predictions"
        history = [json.loads(line) for line in (fold / "history.jsonl").read_text(encoding="utf-8").splitlines()]
        outcome.steps = sum(epoch["iterations"] for epoch in history)
        seconds = sum(epoch["seconds"] for epoch in history)
        outcome.step_seconds = outcome.step_seconds or seconds / max(1, outcome.steps)
        outcome.minutes = outcome.steps * outcome.step_seconds / 60
        found = json.loads(self.child("predict", self.work, self.name, predictions, *self.dataset.images))
        outcome.case_seconds = found["case_seconds"]
        measured = fold / "validation" if self.dataset.is_validation else predictions
        table = self.dice(measured)
        outcome.dice = table.mean
        outcome.per_label = {self.dataset.labels[label]: value for label, value in table.per_label.items()}
        outcome.levels = []
        for level, seconds in found.get("levels", {}).items():
            place = measured / "levels" / f"{level}_plain" if self.dataset.is_validation else predictions / f"level_{level}"
            is_deepest = int(level) == max(map(int, found["levels"]))
            dice = outcome.dice if is_deepest else self.dice(place).mean
            outcome.levels.append({"level": int(level), "dice": dice, "case_seconds": seconds, "window_seconds": windows(fold)[int(level)]})

    def dice(self, folder: Path) -> DiceTable:
        """Of the label maps in a folder."""
        return dice_of_folders(folder, self.dataset.references, cases=self.dataset.cases, labels=list(self.dataset.labels))

    @property
    def fold(self) -> tuple[str, ...]:
        """The words for fold 0."""
        return ("-c", self.name, "--fold", "0", "--device", "cpu")

    def run(self, verb: str, *words: str | Path, outcome: Outcome | None = None) -> None:
        """A command of ours."""
        found = run_measured(self.ours.command(verb, *words), log=self.log)
        if outcome is not None and found.peak_mib is not None:
            outcome.peak_mib = max(outcome.peak_mib or 0, found.peak_mib)

    def child(self, *words: str | Path) -> str:
        """The JSON that ``one_core.py`` prints."""
        output = self.work / "one_core.txt"
        output.unlink(missing_ok=True)
        run_measured([self.options.our_python, Path(__file__).with_name("one_core.py"), *words], log=output)
        text = output.read_text(encoding="utf-8")
        with self.log.open("a", encoding="utf-8") as log:
            log.write(text)
        return next(line for line in reversed(text.splitlines()) if line.startswith("{"))


def windows(fold: Path) -> dict[int, float]:
    """By level, the seconds of a window by the clock on the wall, as validation measured them."""
    scores = json.loads((fold / "validation" / "levels.json").read_text(encoding="utf-8"))["scores"]
    return {score["level"]: score["seconds_per_window"] for score in scores}


def costs(configuration: dict[str, object]) -> tuple[int, int]:
    """Parameters, and multiply-adds of the forward pass of one patch."""
    from medseg3d.networks.cost import step_cost
    from medseg3d.plan import Configuration
    from medseg3d.records import from_plain

    record = from_plain(configuration, Configuration, "plan.json")
    cost = step_cost(record.network, record.patch_size, 1)
    return cost.parameters, cost.multiply_adds


def read_outcomes(output: Path) -> list[dict[str, object]]:
    """The newest of each dataset and preset, in the order of the settings; a line that a kill cut off is left out."""
    found: dict[tuple[str, str], dict[str, object]] = {}
    file = output / "families.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row["dataset"], row["preset"]] = row
    order: Sequence[str] = list(SETTINGS)
    return sorted(found.values(), key=lambda row: (row["dataset"] != "phantom", order.index(str(row["preset"]))))


if __name__ == "__main__":
    sys.exit(main())
