"""What a checkpoint of nnU-Net says: its weights, and how they were trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from medseg3d.errors import InputError
from medseg3d.models.torch_file import is_dense, load_torch_file

_ADVICE = "Copy or download it again, or name only the other folds with --fold."


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What prediction needs of a checkpoint, and what is worth knowing; ``weights`` under nnU-Net's names.

    ``mirror_axes`` are empty where the file says None or nothing: nnU-Net 2.8.1 then predicts without mirroring.
    """

    weights: Mapping[str, torch.Tensor]
    trainer: str
    configuration: str | None
    mirror_axes: tuple[int, ...]
    epoch: int | None
    dice: float | None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one; raises :class:`InputError` where the file is missing, damaged, no checkpoint, or names what is not admitted."""
    document = load_torch_file(path, _ADVICE)
    weights = document.get("network_weights") if isinstance(document, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) and is_dense(value) for name, value in weights.items()):
        raise InputError(f"{path}: not a checkpoint of nnU-Net v2; it holds no network_weights of dense float tensors by name.")
    arguments = document.get("init_args")
    configuration = arguments.get("configuration") if isinstance(arguments, dict) else None
    axes = document.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(axes, list | tuple) or not all(type(axis) is int and 0 <= axis < 3 for axis in axes):
        raise InputError(f"{path}: inference_allowed_mirroring_axes is {axes!r}; expected axes from 0 to 2.")
    epoch, dice = document.get("current_epoch"), document.get("_best_ema")
    return Checkpoint(
        weights=weights,
        trainer=str(document.get("trainer_name") or "nnUNetTrainer"),
        configuration=configuration if isinstance(configuration, str) else None,
        mirror_axes=tuple(sorted(set(axes))),
        epoch=epoch if isinstance(epoch, int) else None,
        dice=float(dice) if isinstance(dice, int | float) else None,
    )
