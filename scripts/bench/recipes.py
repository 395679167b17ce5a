"""What a change of the training recipe is worth: paired with what it changes, by the Dice of the same validation cases.

A change is a planner file in ``scripts/bench/recipes``, and is measured against the file that it extends. Both train the same fold with
the same seed, for the same work (``--steps`` of the recipe ``present``, which other work on the machine does not falsify; a change whose
steps take fewer multiply-adds trains as many more), for the same minutes of a core (``--core-minutes``: a step is timed by the CPU clock
first, and as many are trained as fit), or for the same minutes by the clock on the wall (``--minutes``, for cores that nothing is shared
with). Where a run averages its weights, the last weights and the averaged ones are measured as well, of one and the same training. In: the
folder of datasets that MEDSEG3D_DATA names. Out: a line per run in ``recipes.jsonl``, and Markdown tables with the paired differences and
their 95 % intervals. A run that was killed goes on where it was: what stands in ``recipes.jsonl`` is not trained again.

    python scripts/bench/recipes.py --output OUT --only adamw --datasets Hippocampus ACDC --steps 600 --core 0
    python scripts/bench/recipes.py --output OUT --only narrow narrow_8 --core-minutes 10 --core 0
    python scripts/bench/recipes.py --output OUT --only growth --minutes 5 --seeds 0 1 2
    python scripts/bench/recipes.py --output OUT --report               # the tables of what is there
    python scripts/bench/recipes.py --output OUT --also OUT2 --write-docs   # of several folders, into docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from contenders import Ours, case_names, link_dataset
from dice import DiceTable, dice_of_folders
from family_tables import DOCS, write_tables
from measuring import CommandFailedError, machine, run_measured, write_json
from recipe_tables import Run, read_runs, tables
from splits import paired_folds

CHANGES = Path(__file__).with_name("recipes")
DATASETS = ("Hippocampus", "ACDC", "CHAOS_T2", "OpenKBP", "LeftAtrium", "phantom")
PRESENT = "present"
"""What changes are measured against in the end; ``--steps`` are steps of it."""
EPOCHS = 20
"""By steps a run has so many epochs: enough to choose the best of, few enough that their ends cost little."""
BATCH = 2
"""What a short run on two cores gets by itself, as the number of steps counts for more than their size."""


def main() -> int:
    """Train what was asked for and is not there, each change after what it extends; print the tables."""
    options = parse_arguments()
    if not options.report and not options.write_docs:
        os.environ["OMP_NUM_THREADS"] = "1"
        if options.core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {options.core})
        for seed in options.seeds:
            for name in options.datasets:
                for change in options.only if options.alone else in_order(options.only):
                    measure(Chain(name, change, seed, options), options)
    made = tables(
        [run for folder in (options.output, *options.also) for run in read_runs(folder)], {name: base_of(name) for name in changes()}
    )
    if options.write_docs:
        write_tables(DOCS / "benchmarks.md", made)
    else:
        print("\n\n".join(made.values()))
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--our-python", type=Path, default=Path(sys.executable), help="with medseg3d (default: this one)")
    parser.add_argument("--only", nargs="+", default=changes(), choices=changes(), metavar="CHANGE", help=f"of {', '.join(changes())}")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS, metavar="DATASET", help=", ".join(DATASETS))
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=600, help="of training, each as much work as one of the present recipe (default: 600)")
    length.add_argument("--minutes", type=float, help="of training, by the clock on the wall")
    length.add_argument("--core-minutes", type=float, help="of training, by the CPU clock of a core, however much else runs beside it")
    parser.add_argument("--batch", type=int, default=BATCH, help="samples of a step, with --steps and --core-minutes (default: 2)")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--core", type=int, help="the core to run on (default: all)")
    parser.add_argument("--alone", action="store_true", help="without what a change is measured against, which runs elsewhere (--also)")
    parser.add_argument("--narrow", action="store_true", help="half of all widths, a quarter of the work: more seeds in the same time")
    parser.add_argument("--keep", action="store_true", help="keep the work folders of finished runs")
    parser.add_argument("--report", action="store_true", help="only print the tables of what is there")
    parser.add_argument("--write-docs", action="store_true", help="only write the tables into docs/benchmarks.md")
    parser.add_argument("--also", nargs="+", type=Path, default=[], metavar="OUT", help="tables are of the runs in these folders as well")
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def changes() -> list[str]:
    """The names of all changes."""
    return sorted(path.stem for path in CHANGES.glob("*.toml"))


def base_of(change: str) -> str | None:
    """What a change is measured against: the file that it extends; None for one that extends a preset."""
    extends = tomllib.loads((CHANGES / f"{change}.toml").read_text(encoding="utf-8"))["extends"]
    return Path(extends).stem if extends.endswith(".toml") else None


def in_order(asked: list[str]) -> list[str]:
    """The asked changes and what they are measured against, each after that."""
    found: list[str] = []
    for change in asked:
        chain = [change]
        if (base := base_of(change)) is not None:
            chain.insert(0, base)
        found += [name for name in chain if name not in found]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Where the images lie, and which labels are measured."""

    root: Path
    labels: dict[int, str] = field(default_factory=dict)


def dataset(name: str, options: argparse.Namespace) -> Dataset:
    """A dataset by its name; of Hippocampus both cases of a subject are in one fold."""
    root = options.output / "datasets" / name
    if not (root / "dataset.json").exists():
        if name == "phantom":
            run_measured(Ours(python=options.our_python).command("demo", root), log=options.output / "demo.log")
        else:
            place = os.environ.get("MEDSEG3D_DATA")
            if not place:
                sys.exit("MEDSEG3D_DATA names no folder of datasets; nothing to measure.")
            source = Path(place).resolve() / name
            link_dataset(source, root)
            if name == "Hippocampus":
                write_json(root / "splits_final.json", paired_folds(case_names(source)))
    labels = json.loads((root / "dataset.json").read_text(encoding="utf-8"))["labels"]
    return Dataset(root=root, labels={value: label for label, value in labels.items() if value})


def measure(chain: Chain, options: argparse.Namespace) -> None:
    """Train and measure a run that is not there yet, and note it; a failure does not keep the others from running."""
    known = {(run.dataset, run.change, run.seed, run.budget, run.fold) for run in read_runs(options.output)}
    if (chain.name, chain.change, chain.seed, chain.budget, options.fold) in known:
        return
    try:
        for run in chain.runs():
            with (options.output / "recipes.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(run)) + "\n")
            print(f"{run.dataset} {run.change} {run.budget} seed {run.seed}: {run.dice:.4f}, {run.cpu_seconds:.0f} CPU s", flush=True)
    except CommandFailedError as error:
        print(f"{chain.name} {chain.change} seed {chain.seed}: {error}", file=sys.stderr, flush=True)
        return
    if not options.keep:
        shutil.rmtree(chain.work)


class Chain:
    """The commands of one run, and what they left behind."""

    def __init__(self, name: str, change: str, seed: int, options: argparse.Namespace) -> None:
        self.name, self.change, self.seed, self.options = name, change, seed, options
        self.ours, self.dataset = Ours(python=options.our_python), dataset(name, options)
        self.budget = f"{options.steps} steps" if options.minutes is None else f"{options.minutes:g} minutes"
        if options.core_minutes is not None:
            self.budget = f"{options.core_minutes:g} core minutes"
        self.budget += " narrow" if options.narrow else ""
        self.budget += f" batch {options.batch}" if options.batch != BATCH and options.minutes is None else ""
        self.shared = options.output / "work" / name
        self.work = self.shared / f"{change}_{self.budget.replace(' ', '_')}_fold_{options.fold}_seed_{seed}"
        self.log = self.work.with_suffix(".log")
        self.configuration = ""

    def runs(self) -> Iterator[Run]:
        """Train, and measure the weights that it kept; then, where it averaged them, the last ones and the average."""
        self.prepare()
        words = ("--fold", self.options.fold, "-c", self.configuration, "--device", "cpu", "--tta", "off")
        trained = self.run("train", *words, "--seed", str(self.seed), *self.length())
        kept = self.outcome(self.change, trained)
        runs = [kept]
        child = [self.options.our_python, Path(__file__).with_name("recipe_weights.py"), self.fold]
        for variant in ("last", "averaged") if self.has_average() else ():
            run_measured([*child, variant], log=self.log)
            self.run("validate", *words)
            runs.append(self.outcome(f"{self.change}:{variant}", trained))
        yield from reversed(runs)  # the run itself last: where this is killed before, all of it is measured again

    def prepare(self) -> None:
        """Plan and preprocess; the fingerprint and the stored cases are those of all runs of the dataset."""
        self.work.mkdir(parents=True, exist_ok=True)
        for file in ("fingerprint.json", "splits.json"):
            if (self.shared / file).exists() and not (self.work / file).exists():
                shutil.copyfile(self.shared / file, self.work / file)
        (self.shared / "preprocessed").mkdir(exist_ok=True)
        if not (self.work / "preprocessed").exists():
            (self.work / "preprocessed").symlink_to(self.shared / "preprocessed")
        self.run("plan", "--planner", str(self.planner(self.work, self.change)))
        for file in ("fingerprint.json", "splits.json"):
            shutil.copyfile(self.work / file, self.shared / file)
        self.configuration = json.loads((self.work / "plan.json").read_text(encoding="utf-8"))["recommended"]
        self.run("preprocess", "-c", self.configuration)

    def planner(self, folder: Path, change: str) -> Path:
        """The file of a change, or one beside the plan that makes its networks narrow."""
        file = CHANGES / f"{change}.toml"
        if not self.options.narrow:
            return file
        numbers = tomllib.loads((CHANGES / "narrow.toml").read_text(encoding="utf-8"))["network"]
        lines = [f'extends = "{file}"', f'description = "{change}, narrow"', "[network]", *(f"{key} = {n}" for key, n in numbers.items())]
        narrow = folder / f"{change}.toml"
        narrow.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return narrow

    def length(self) -> tuple[str, ...]:
        """The words for how long it trains."""
        if self.options.minutes is not None:
            return ("--hours", f"{self.options.minutes / 60:.5f}")
        if self.options.core_minutes is not None:
            steps = self.options.core_minutes * 60 / self.step_seconds()
        else:
            steps = self.options.steps * self.share_of_steps()
        per_epoch = max(1, round(steps / EPOCHS))
        return ("--epochs", str(EPOCHS), "--iterations", str(per_epoch), "--batch-size", str(self.options.batch))

    def step_seconds(self) -> float:
        """Of a core for itself: as long as the timed ones took, less by what other work made the same convolution slower."""
        core, output = self.options.output / "core.json", self.work / "one_core.txt"
        words = ("step", self.dataset.root, self.work, self.configuration, str(self.options.batch))
        if not output.exists() or "{" not in output.read_text(encoding="utf-8"):
            run_measured([self.options.our_python, Path(__file__).with_name("one_core.py"), *words], log=output)
        found = json.loads(next(line for line in output.read_text(encoding="utf-8").splitlines() if line.startswith("{")))
        known = json.loads(core.read_text(encoding="utf-8"))["reference_seconds"] if core.exists() else float("inf")
        fastest = min(known, found["fastest_reference_seconds"])
        write_json(core, {"reference_seconds": fastest})
        return float(found["step_seconds"] * fastest / found["reference_seconds"])

    def share_of_steps(self) -> float:
        """How many steps cost what one of the present recipe costs."""
        reference = self.shared / ("reference_narrow" if self.options.narrow else "reference")
        if not (reference / "plan.json").exists():
            reference.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.shared / "fingerprint.json", reference / "fingerprint.json")
            words = (self.dataset.root, "-w", reference, "--planner", self.planner(reference, PRESENT))
            run_measured(self.ours.command("plan", *words), log=self.log)
        return multiply_adds(reference / "plan.json") / multiply_adds(self.work / "plan.json")

    @property
    def fold(self) -> Path:
        """The folder of the trained fold."""
        return self.work / "models" / self.configuration / f"fold_{self.options.fold}"

    def has_average(self) -> bool:
        """The run averaged its weights."""
        return bool(json.loads((self.fold / "training.json").read_text(encoding="utf-8")).get("averaged_steps"))

    def outcome(self, change: str, seconds: float) -> Run:
        """What the label maps of the validation cases are worth."""
        history = [json.loads(line) for line in (self.fold / "history.jsonl").read_text(encoding="utf-8").splitlines()]
        table, middle = self.dice(), history[(len(history) - 1) // 2]
        return Run(
            dataset=self.name,
            change=change,
            seed=self.seed,
            budget=self.budget,
            fold=self.options.fold,
            dice=table.mean,
            cases={case: {self.dataset.labels[label]: value for label, value in row.items()} for case, row in table.scores.items()},
            steps=sum(epoch["iterations"] for epoch in history),
            best_epoch=max((epoch["epoch"] for epoch in history if epoch["is_best"]), default=-1),
            cpu_seconds=seconds,
            halfway={"last": middle["pseudo_dice_mean"], "averaged": middle.get("averaged_dice_mean")},
            machine=machine(),
        )

    def dice(self) -> DiceTable:
        """Of the fold's validation cases."""
        folder = self.fold / "validation"
        cases = sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz"))
        return dice_of_folders(folder, self.dataset.root / "labelsTr", cases=cases, labels=list(self.dataset.labels))

    def run(self, verb: str, *words: str) -> float:
        """A command of ours; the seconds that it took of a core."""
        return run_measured(self.ours.command(verb, self.dataset.root, "-w", self.work, *words), log=self.log).cpu_seconds


def multiply_adds(plan: Path) -> int:
    """Of a forward pass of one patch, with the configuration that a plan recommends."""
    from medseg3d.networks.cost import step_cost
    from medseg3d.plan import Plan
    from medseg3d.records import read_record

    record = read_record(plan, Plan, "plan").configuration(None)
    return step_cost(record.network, record.patch_size, 1).multiply_adds


if __name__ == "__main__":
    sys.exit(main())
