"""Each family of networks learns the phantom dataset on a CPU: plan, preprocess, train one fold, predict, measure the test cases.

In: minutes of training for each. Out: a Markdown table and ``families.json``; exit code 1 where a family stays below the wanted Dice.
All are trained alike (Dice and cross-entropy, AdamW, the phantom's fold 0, the same minutes), in a width that a CPU can train:
alpha brings every family to about 16 features in the first stage, V-Net with its 5-voxel kernels to 8. Networks without normalization
take a quarter of the learning rate.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from contenders import Ours
from measuring import CommandFailedError, machine, markdown_table, run_measured, write_json

WIDTHS = {
    "default": 0.5,
    "residual_m": 0.5,
    "unet_2015": 0.25,
    "unet_3d": 0.25,
    "unet_wide": 0.46,
    "vnet": 0.5,
    "vnet_batch_norm": 0.5,
    "u2net": 1.0,
}
"""The presets, and the alpha that gives about 16 features in the first stage."""
CONFIGURATIONS = {"unet_2015": "2d", "unet_wide": "2d"}
"""Where another configuration than the recommended one is trained: these networks were made for slices."""
CHANGES = {"unet_wide": "[network.options]\ndropout = 0.0\n"}
"""Without its published dropout of a half, which takes more steps than a CPU has time for (it has no norms that would take back
what dropout does to the activations)."""
WANTED_DICE = 0.7
LEARNING_RATE = 2e-3
OTHER_RATES = {"unet_2015": 5e-4, "unet_wide": 5e-4, "vnet": 5e-4, "u2net": 4e-3}
"""Of networks without norms, and the preset's own of the 3D U2-Net."""
ALIKE = """
[training]
loss = "dice_ce"
optimizer = "adamw"
weight_decay = 1e-2
"""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a family reached; ``dice`` is the mean over labels and test cases."""

    planner: str
    dice: float | None = None
    per_label: dict[str, float] = field(default_factory=dict)
    parameters: int = 0
    multiply_adds: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    predicted_seconds: float = 0.0
    batch: int = 0
    patch: tuple[int, ...] = ()
    peak_mib: float | None = None
    problem: str = ""


def main() -> int:
    """Train all that were asked for; a failure of one does not keep the others from running."""
    options = parse_arguments()
    dataset = options.output / "phantom"
    ours = Ours(python=options.our_python)
    if not (dataset / "dataset.json").exists():
        run_measured(ours.command("demo", dataset), log=options.output / "demo.log")
    outcomes = []
    for planner in options.planners:
        outcomes.append(train(planner, dataset, ours, options))
        print(f"{planner}: {outcomes[-1].problem or outcomes[-1].dice}", flush=True)
        write_json(options.output / "families.json", {"machine": machine(), "outcomes": [asdict(outcome) for outcome in outcomes]})
    print(table(outcomes, options.minutes))
    return 1 if any(outcome.dice is None or outcome.dice < WANTED_DICE for outcome in outcomes) else 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--our-python", type=Path, default=Path(sys.executable), help="with medseg3d (default: this one)")
    parser.add_argument("--planners", nargs="+", default=list(WIDTHS), choices=list(WIDTHS), help="default: all")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training for each (default: 6)")
    parser.add_argument("--published", action="store_true", help="with the dropout of the wide U-Net, which the table leaves out")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def train(planner: str, dataset: Path, ours: Ours, options: argparse.Namespace) -> Outcome:
    """One family, from plan to Dice."""
    work = options.output / planner
    file = options.output / f"{planner}_cpu.toml"
    rate = OTHER_RATES.get(planner, LEARNING_RATE)
    lines = [
        f'extends = "{planner}"\n',
        f"[network]\nwidth_multiplier = {WIDTHS[planner]}\n",
        "" if options.published else CHANGES.get(planner, ""),
    ]
    file.write_text("\n".join([*lines, f"{ALIKE}learning_rate = {rate}\n"]), encoding="utf-8")
    command = ours.command(
        "run", dataset, "-w", work, "--planner", file, "--folds", "0", "--hours", f"{options.minutes / 60:.5f}", "--device", "cpu"
    )
    if planner in CONFIGURATIONS:
        command += ["-c", CONFIGURATIONS[planner]]
    outcome = Outcome(planner=planner)
    try:
        run = run_measured(command, log=options.output / f"{planner}.log")
    except CommandFailedError as error:
        outcome.problem = str(error)
        return outcome
    outcome.peak_mib = run.peak_mib
    plan = json.loads((work / "plan.json").read_text(encoding="utf-8"))
    name = CONFIGURATIONS.get(planner, plan["recommended"])
    configuration = plan["configurations"][name]
    fold = work / "models" / name / "fold_0"
    history = [json.loads(line) for line in (fold / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    outcome.steps = sum(epoch["iterations"] for epoch in history)
    outcome.step_seconds = sum(epoch["seconds"] for epoch in history) / max(1, outcome.steps)
    outcome.batch = json.loads((fold / "training.json").read_text(encoding="utf-8"))["batch_sizes"][0]
    outcome.patch = tuple(configuration["patch_size"])
    outcome.parameters, outcome.multiply_adds, outcome.predicted_seconds = costs(configuration, outcome.batch)
    outcome.dice, outcome.per_label = test_dice(work / "predictions" / "metrics.json")
    return outcome


def costs(configuration: dict[str, object], batch: int) -> tuple[int, int, float]:
    """Parameters, multiply-adds of the forward pass of one patch, and the seconds of a step as ``plan --explain`` predicts them here."""
    from medseg3d.devices import choose_device, measure_speed
    from medseg3d.networks.cost import step_cost
    from medseg3d.patches.augmentation import measure_augmentation
    from medseg3d.plan import Configuration
    from medseg3d.planning.candidates import Speed, step_seconds
    from medseg3d.records import from_plain

    record = from_plain(configuration, Configuration, "plan.json")
    cost = step_cost(record.network, record.patch_size, 1)
    of_batch = step_cost(record.network, record.patch_size, batch, optimizer="adamw")
    multiply_adds, moved = measure_speed(choose_device("cpu"))
    device = choose_device("cpu").device
    speed = Speed(device="cpu", multiply_adds=multiply_adds, bytes=moved, augmented_voxels=measure_augmentation(device))
    predicted = step_seconds(of_batch, record, batch, speed)
    return cost.parameters, cost.multiply_adds, predicted


def test_dice(metrics: Path) -> tuple[float, dict[str, float]]:
    """The mean Dice over test cases and labels, and the mean of each label."""
    from medseg3d.evaluation.metrics import read_evaluation

    evaluation = read_evaluation(metrics)
    return evaluation.foreground_dice.mean or 0.0, {label.name: label.dice.mean or 0.0 for label in evaluation.labels}


def table(outcomes: list[Outcome], minutes: float) -> str:
    """One row per family."""
    header = (
        "planner",
        "parameters",
        "G multiply-adds per patch",
        "patch",
        "batch",
        "s per step",
        "predicted",
        f"steps in {minutes:g} min",
        "test Dice",
        "peak MiB",
    )
    rows = [
        (
            outcome.planner,
            f"{outcome.parameters / 1e6:.2f} M",
            f"{outcome.multiply_adds / 1e9:.2f}",
            "×".join(map(str, outcome.patch)),
            outcome.batch,
            f"{outcome.step_seconds:.2f}",
            f"{outcome.predicted_seconds:.2f}",
            outcome.steps,
            "–" if outcome.dice is None else f"{outcome.dice:.3f}",
            "–" if outcome.peak_mib is None else f"{outcome.peak_mib:.0f}",
        )
        for outcome in outcomes
    ]
    return markdown_table(header, rows)


if __name__ == "__main__":
    sys.exit(main())
