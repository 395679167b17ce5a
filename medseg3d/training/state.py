"""The state of a training run on disk: ``last.safetensors`` holds all that a bit-equal continuation needs.

Batches and augmentation are drawn from (seed, epoch, iteration) alone, so that beside weights and optimizer only the place in
the run and the running numbers are kept. ``training.json`` is the same, without tensors, to be read by people.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch

from medseg3d.devices import Precision
from medseg3d.errors import InputError, PlanMismatchError
from medseg3d.extensions import version_of
from medseg3d.files import remove_file, write_text
from medseg3d.models.checkpoints import FORMAT_VERSION, load_into, load_tensors, save_tensors
from medseg3d.parsing import parse_json
from medseg3d.plan import TrainingPlan
from medseg3d.records import Checked, from_plain, read_record, to_plain, write_record
from medseg3d.training.initial import TakenOver
from medseg3d.training.judging import Judged
from medseg3d.training.pseudo_dice import Smoothed
from medseg3d.training.step import Step
from medseg3d.training.tuning import Tuning
from medseg3d.weights_header import METADATA_KEY, weights_metadata

logger = logging.getLogger(__name__)

LAST, BEST, STATE, HISTORY = "last.safetensors", "weights.safetensors", "training.json", "history.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One line of ``history.jsonl``. Losses are means over the epoch; pseudo-Dice is over the validation patches, null for
    labels that none of them holds; ``waiting_share`` is the share of the time in which the network waited for data."""

    epoch: int
    train_loss: float | None
    validation_loss: float | None
    pseudo_dice: dict[str, float | None]
    pseudo_dice_mean: float | None
    pseudo_dice_smoothed: float | None
    learning_rate: float
    seconds: float
    waiting_share: float
    iterations: int
    skipped_iterations: int
    is_best: bool
    elapsed_seconds: float
    averaged_dice_mean: float | None = None
    """Of the averaged weights, measured on the same patches; None where weights are not averaged."""
    is_average: bool = False
    """The averaged weights are the better ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState(Checked):
    """Where a run stands: the next step to take is ``iteration`` of ``epoch``. ``batch_sizes`` has one entry per domain,
    as have ``gradient_norms``, the running norms of gradient normalization. ``threads`` of
    a CPU, and ``processes`` that share a batch; with another number sums are rounded otherwise. No threads are noted of a GPU."""

    configuration: str
    fold: str
    seed: int
    epochs: int
    iterations_per_epoch: int | None
    hours: float | None
    batch_sizes: tuple[int, ...]
    precision: Precision
    plan_digest: str
    epoch: int = 0
    iteration: int = 0
    elapsed_seconds: float = 0.0
    epoch_seconds: float = 0.0
    epoch_waiting: float = 0.0
    loss_sum: float = 0.0
    num_losses: int = 0
    skipped: int = 0
    skipped_total: int = 0
    skipped_cases: dict[str, int] = field(default_factory=dict)
    gradient_norms: tuple[float, ...] = ()
    threads: int | None = None
    processes: int = 1
    best: float | None = None
    best_epoch: int | None = None
    smoothed: float | None = None
    smoothed_weight: float | None = None
    is_finished: bool = False
    init: str | None = None
    """The digest of the weights that the run began with; None for fresh ones."""
    providers: dict[str, str] = field(default_factory=dict)
    """Which extensions the network, the loss and the augmentations were from; without those that are built in."""
    taken: TakenOver | None = None
    """What it took of the weights that it began with."""
    tuning: Tuning | None = None
    """What was changed of the plan's training; None for nothing."""
    silent: dict[str, int] = field(default_factory=dict)
    """Labels that the last epochs predicted nowhere, and in how many of them in a row."""
    case_dice: dict[str, float] = field(default_factory=dict)
    """How well the training cases are known, where hard ones are drawn more often; by name, ``DOMAIN/CASE`` of several datasets."""
    recipe: TrainingPlan | None = None
    """The training numbers that it follows in the place of the plan's, as they were chosen for its length; None for the plan's."""
    averaged_steps: int = 0
    """How many steps its averaged weights are the mean of."""
    averaged: Smoothed | None = None
    """The smoothed pseudo-Dice of the averaged weights."""
    came_later: ClassVar[tuple[str, ...]] = ("taken", "tuning", "silent", "case_dice", "recipe", "averaged_steps", "averaged")

    @property
    def is_over(self) -> bool:
        """The time or the epochs that it was given are used up."""
        is_late = self.hours is not None and self.elapsed_seconds >= self.hours * 3600
        return is_late or self.epoch >= self.epochs

    def progress(self, share_of_epoch: float = 0.0) -> float:
        """The share of the run that is over, by epochs or by the time budget, whichever is further.

        The clock is only read where hours are given: a continued run must repeat the numbers of an uninterrupted one.
        """
        progress = (self.epoch + share_of_epoch) / self.epochs
        return progress if self.hours is None else max(progress, self.elapsed_seconds / (self.hours * 3600))

    @property
    def progress_at_epoch_start(self) -> float:
        """:meth:`progress` as it was then, also where the run goes on in the middle of the epoch."""
        return replace(self, elapsed_seconds=self.elapsed_seconds - self.epoch_seconds).progress()

    def running_norm(self, domain: int) -> float:
        """Of a domain's gradients; 0 before its first step."""
        return self.gradient_norms[domain] if self.gradient_norms else 0.0

    def after_step(
        self,
        step: Step,
        *,
        domain: int,
        cases: Sequence[str],
        began: TrainingState,
        seconds: float,
        waited: float,
        is_averaged: bool = False,
    ) -> TrainingState:
        """With one more step on a batch of these cases; ``seconds`` ago the state was ``began``, and ``waited`` of them went to waiting."""
        norms = list(self.gradient_norms or (0.0,) * len(self.batch_sizes))
        norms[domain] = step.running_norm
        after = replace(
            self,
            iteration=self.iteration + 1,
            elapsed_seconds=began.elapsed_seconds + seconds,
            epoch_seconds=began.epoch_seconds + seconds,
            epoch_waiting=began.epoch_waiting + waited,
            gradient_norms=tuple(norms) if any(norms) else self.gradient_norms,
            averaged_steps=self.averaged_steps + int(is_averaged and step.is_finite),
        )
        if step.is_finite:
            return replace(after, loss_sum=self.loss_sum + step.loss, num_losses=self.num_losses + 1)
        counts = {**self.skipped_cases}
        for name in cases:
            counts[name] = counts.get(name, 0) + 1
        return replace(after, skipped=self.skipped + 1, skipped_total=self.skipped_total + 1, skipped_cases=counts)

    def after_epoch(self, record: EpochRecord, judged: Judged) -> TrainingState:
        """At the beginning of the next epoch, or at the end of the run."""
        smooth = judged.smooth
        after = replace(
            self,
            epoch=self.epoch + 1,
            iteration=0,
            iterations_per_epoch=self.iterations_per_epoch or self.iteration,
            elapsed_seconds=record.elapsed_seconds,
            epoch_seconds=0.0,
            epoch_waiting=0.0,
            loss_sum=0.0,
            num_losses=0,
            skipped=0,
            smoothed=record.pseudo_dice_smoothed,
            smoothed_weight=None if smooth is None else smooth.weight,
            averaged=judged.averaged_smooth,
            best=judged.value if record.is_best else self.best,
            best_epoch=self.epoch if record.is_best else self.best_epoch,
        )
        return replace(after, is_finished=after.is_over)

    @property
    def smoothed_dice(self) -> Smoothed | None:
        """The smoothed pseudo-Dice so far; runs of before it was corrected for its start go on as they began, with the whole weight."""
        if self.smoothed is None:
            return None
        return Smoothed(value=self.smoothed, weight=1.0 if self.smoothed_weight is None else self.smoothed_weight)


SavedRun = tuple[TrainingState, dict[str, torch.Tensor], dict[str, object]]
"""State, tensors and metadata of ``last.safetensors``."""


def save_state(
    folder: Path,
    state: TrainingState,
    weights: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    averaged: Mapping[str, torch.Tensor],
) -> None:
    """Write weights, averaged ones if there are any, optimizer and place in the run: one file, atomically; then what people read of it."""
    tensors = {f"network.{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"averaged.{name}": tensor for name, tensor in averaged.items()}
    plain = optimizer.state_dict()
    numbers: dict[str, dict[str, float]] = {}
    for index, slots in plain["state"].items():
        for name, value in slots.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            elif value is not None:
                numbers.setdefault(str(index), {})[name] = value
    metadata: dict[str, object] = {
        "format_version": FORMAT_VERSION,
        "state": to_plain(state),
        "optimizer_numbers": numbers,
        "scaler": scaler.state_dict(),
    }
    save_tensors(folder / LAST, tensors, metadata)
    write_summary(folder, state)


def write_summary(folder: Path, state: TrainingState) -> None:
    """Write ``training.json`` where it does not say so already: a run may have been killed before it."""
    if read_summary(folder) != state:
        write_record(folder / STATE, state, "training", is_sealed=True)


def read_summary(folder: Path) -> TrainingState | None:
    """What ``training.json`` says; None where it is not there or cannot be read."""
    try:
        return read_record(folder / STATE, TrainingState, "training")
    except InputError:
        return None


def saved_tuning(folder: Path) -> Tuning | None:
    """What was changed of the plan's training in the run of a folder, without its tensors; None where there is no run."""
    path = folder / LAST
    if not path.exists():
        return None
    metadata = parse_json(weights_metadata(path).get(METADATA_KEY, "{}"), str(path))
    said = metadata.get("state", {}) if isinstance(metadata, dict) else {}
    return from_plain(said.get("tuning") or {}, Tuning, str(path)) if isinstance(said, dict) else None


def remove_run(folder: Path) -> None:
    """Delete a run, its state first and its summary last: where this is stopped half-way, the summary without a state tells it."""
    for name in (LAST, BEST, HISTORY, STATE):
        remove_file(folder / name)


def load_state(folder: Path) -> SavedRun | None:
    """The saved run; None where nothing was saved."""
    path = folder / LAST
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path)
    return from_plain(metadata["state"], TrainingState, str(path)), tensors, metadata


def restore_state(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, object],
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Fill network, optimizer and scaler from a saved run."""
    path = folder / LAST
    load_into(network, {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}, path)
    numbers = metadata.get("optimizer_numbers")
    slots: dict[int, dict[str, object]] = {}
    for index, values in (numbers if isinstance(numbers, dict) else {}).items():
        slots.setdefault(int(index), {}).update(values)
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            slots.setdefault(int(index), {})[slot] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    scaler_state = metadata.get("scaler")
    if isinstance(scaler_state, dict) and scaler_state:
        scaler.load_state_dict(scaler_state)


def saved_average(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The averaged weights among the tensors of a saved run; empty where it has none."""
    return {name.removeprefix("averaged."): tensor for name, tensor in tensors.items() if name.startswith("averaged.")}


def check_same_run(saved: TrainingState, asked: TrainingState, folder: Path) -> None:
    """Raise :class:`PlanMismatchError` where the saved run had other settings that would change its meaning."""
    for name in ("configuration", "fold", "seed", "batch_sizes", "plan_digest"):
        if getattr(saved, name) != getattr(asked, name):
            what = (
                "the plan or the cases of the fold changed"
                if name == "plan_digest"
                else f"{name} was {getattr(saved, name)}, now {getattr(asked, name)}"
            )
            raise PlanMismatchError(
                f"{folder}: holds a run with other settings ({what}). Give the old setting to continue it, or --restart to begin anew."
            )


def check_same_parts(before: Mapping[str, str], now: Mapping[str, str], folder: Path, *, is_over: bool) -> None:
    """Say which parts of a run are of another version of an extension now; parts that are not known here are left to who needs them.

    Raises :class:`PlanMismatchError` where versions would be mixed: training goes on, or its weights are used by another network.
    """
    changed = [part for part, provider in before.items() if version_of(now.get(part, provider)) != version_of(provider)]
    said = "; ".join(f"the {part} was that of the {before[part]}, now it is that of the {now[part]}" for part in changed)
    if changed and (not is_over or any(part.startswith("network ") for part in changed)):
        raise PlanMismatchError(
            f"{folder}: was trained with another version of an extension ({said}). Name the old version with --extension to go on with it, "
            "or give --restart to train anew."
        )
    if changed:
        logger.warning("%s: was trained with another version of an extension (%s). Its weights go on being used.", folder, said)


def append_history(folder: Path, record: EpochRecord) -> None:
    """Add a line to ``history.jsonl``; lines of epochs that are trained again after a resume are dropped."""
    kept = [line for line in read_history(folder) if int(str(line["epoch"])) < record.epoch]
    lines = [json.dumps(line) for line in [*kept, to_plain(record)]]
    write_text(folder / HISTORY, "\n".join(lines) + "\n")


def read_history(folder: Path) -> list[dict[str, object]]:
    """The lines of ``history.jsonl``, empty where there is none; damaged ones are left out, as training does not depend on them."""
    path = folder / HISTORY
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, str(path))
            int(str(record["epoch"]))
        except (InputError, ValueError, TypeError, KeyError):
            logger.warning("%s: line %d cannot be read and is left out.", path, number)
            continue
        records.append(record)
    return records
