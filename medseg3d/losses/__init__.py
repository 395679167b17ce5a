"""What training minimizes: one entry per loss, with its options and what it is; and its sum over the outputs of a network."""

from __future__ import annotations

from medseg3d.losses.build import LOSSES, check_loss, find_loss, make_loss, provider_of
from medseg3d.losses.loss import Loss, LossFunction, LossSettings
from medseg3d.losses.supervision import supervised_loss
from medseg3d.number_options import NumberOption

__all__ = [
    "LOSSES",
    "Loss",
    "LossFunction",
    "LossSettings",
    "NumberOption",
    "check_loss",
    "find_loss",
    "make_loss",
    "provider_of",
    "supervised_loss",
]
