"""What goes wrong in a training, in words that say what to do: errors and bad steps go in, errors of ours come out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from medseg3d.devices import Device, is_not_deterministic, is_out_of_memory
from medseg3d.errors import DivergedError, InputError
from medseg3d.team import Team
from medseg3d.training.state import TrainingState

logger = logging.getLogger(__name__)

MAX_BAD_STEPS_IN_A_ROW = 20
"""So many steps with a NaN or infinite loss one after the other are no accident of a batch any more."""


def explained(error: RuntimeError, state: TrainingState, device: Device) -> InputError | None:
    """What the user can do about an error of torch; None where that is nothing."""
    if torch.are_deterministic_algorithms_enabled() and is_not_deterministic(error):
        reason = str(error).partition(". ")[0]
        return InputError(f"{state.configuration}: cannot be trained with --deterministic here ({reason}). Leave it out.")
    if not is_out_of_memory(error):
        return None
    sizes = ", ".join(map(str, state.batch_sizes))
    return InputError(
        f"{state.configuration}, fold {state.fold}: a training step with a batch of {sizes} does not fit the memory of {device.device}. "
        "Close what else uses it, give a smaller --batch-size, or plan again with a smaller --gpu-memory. What is trained so far is kept."
    )


def check_shares(state: TrainingState, team: Team) -> None:
    """Raise :class:`InputError` where a process would have nothing to do."""
    if min(state.batch_sizes) < team.size:
        raise InputError(
            f"A batch of {min(state.batch_sizes)} cannot be shared by {team.size} processes. Give fewer --devices, or --batch-size "
            f"{team.size} or more (with --restart where the fold is begun)."
        )


def check_not_diverged(names: Sequence[str], bad_in_a_row: Sequence[str]) -> None:
    """Log a bad step; raise :class:`DivergedError` where it is one too many."""
    logger.warning("Skipped a step with a NaN or infinite loss or gradient; cases of the batch: %s.", ", ".join(names))
    if len(bad_in_a_row) >= MAX_BAD_STEPS_IN_A_ROW * len(names):
        raise DivergedError(
            f"Training diverged: {MAX_BAD_STEPS_IN_A_ROW} steps in a row gave a NaN or infinite loss "
            f"(cases {', '.join(sorted(set(bad_in_a_row))[:10])}). The weights of the best epoch are kept. "
            "Look at these images with medseg3d doctor, or train with a lower learning rate (planner file, training.learning_rate)."
        )
