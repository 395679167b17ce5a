"""What training minimizes: one entry per loss, with its options and what it is; and its sum over the outputs of a network."""

from __future__ import annotations

from medseg3d.losses.build import LOSSES, check_loss, find_loss, make_loss
from medseg3d.losses.loss import Loss, LossFunction, LossOption, LossSettings
from medseg3d.losses.supervision import supervised_loss

__all__ = [
    "LOSSES",
    "Loss",
    "LossFunction",
    "LossOption",
    "LossSettings",
    "check_loss",
    "find_loss",
    "make_loss",
    "supervised_loss",
]
