"""Follow a training while it runs: a line and numbers per epoch, progress.png, and which share of it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medseg3d.events import Event, Listener
from medseg3d.reporting.figures import progress_figure
from medseg3d.training.state import EpochRecord, read_history

SECONDS_BETWEEN_FIGURES = 20.0
"""Drawing progress.png takes half a second; short epochs need not pay it each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long a training is to be, by epochs or by a time budget, of which ``used_seconds`` were gone before it went on."""

    epochs: int
    hours: float | None = None
    used_seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def done(self, epoch: int, share_of_epoch: float) -> float:
        """The share of the training that is over, 0 to 1, by whichever is further."""
        share = (epoch + share_of_epoch) / self.epochs
        if self.hours is not None:
            share = max(share, (self.used_seconds + time.monotonic() - self.began) / (self.hours * 3600))
        return min(1.0, share)


def follow(epochs: Iterator[EpochRecord], title: str, target: Path, on: Listener) -> None:
    """Drive a training to its end: a line and numbers per epoch, ``progress.png`` now and then and at the end."""
    last_figure = time.monotonic()
    for record in epochs:
        on(Event(stage="train", message=epoch_line(record), values=epoch_values(record), step=record.epoch))
        if time.monotonic() - last_figure > SECONDS_BETWEEN_FIGURES:
            progress_figure(read_history(target), target / "progress.png", title=title)
            last_figure = time.monotonic()
    history = read_history(target)
    if history:
        progress_figure(history, target / "progress.png", title=title)


def epoch_line(record: EpochRecord) -> str:
    """One line for people: losses, pseudo-Dice per label, seconds, waiting; ``*`` marks the best epoch so far."""
    labels = " ".join(f"{name} {value:.3f}" if value is not None else f"{name} –" for name, value in list(record.pseudo_dice.items())[:8])
    more = f" … ({len(record.pseudo_dice)} labels)" if len(record.pseudo_dice) > 8 else ""
    losses = "/".join("–" if loss is None else f"{loss:.3f}" for loss in (record.train_loss, record.validation_loss))
    skipped = f", {record.skipped_iterations} steps skipped" if record.skipped_iterations else ""
    dice = f", pseudo-Dice {record.pseudo_dice_mean:.3f} ({labels}{more})" if record.pseudo_dice_mean is not None else ""
    dice += f", averaged weights {record.averaged_dice_mean:.3f}" if record.averaged_dice_mean is not None else ""
    return (
        f"epoch {record.epoch:4d}{'*' if record.is_best else ' '} loss {losses}{dice}, {record.iterations} steps in {record.seconds:.1f} s "
        f"(waiting for data {100 * record.waiting_share:.0f} %){skipped}, lr {record.learning_rate:.2g}"
    )


def epoch_values(record: EpochRecord) -> dict[str, float]:
    """The numbers of an epoch that are worth a curve."""
    names = (
        "train_loss",
        "validation_loss",
        "pseudo_dice_mean",
        "pseudo_dice_smoothed",
        "averaged_dice_mean",
        "learning_rate",
        "seconds",
        "waiting_share",
    )
    values = {name: getattr(record, name) for name in names} | {f"pseudo_dice/{label}": dice for label, dice in record.pseudo_dice.items()}
    return {name: value for name, value in values.items() if value is not None}
