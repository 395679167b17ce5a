"""nnU-Net's three resampling functions with their arguments → our one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from medseg3d.errors import UnsupportedError
from medseg3d.plan import Resampling
from medseg3d.records import from_plain

FUNCTION = "resample_data_or_seg_to_shape"
"""The only function of nnU-Net that ours equals; those on torch interpolate otherwise."""
ALWAYS_APART = 0.0
"""The old spacing's coarsest axis is apart whatever the ratio, and two equally coarse ones never are: nnU-Net's rule for True."""
NEVER_APART = 1e12
"""No two spacings differ by this factor; infinity would not go into JSON."""
ORDERS = {"data": ((0, 1, 3), (0, 1, 3)), "seg": ((0, 1), (0,)), "probabilities": ((0, 1), (0, 1))}
"""The spline orders that we have, in general and along an axis apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arguments:
    """The keywords of nnU-Net's function, with its defaults."""

    is_seg: bool = False
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = False
    separate_z_anisotropy_threshold: float = 3.0

    @property
    def threshold(self) -> float:
        if self.force_separate_z is None:
            return self.separate_z_anisotropy_threshold
        return ALWAYS_APART if self.force_separate_z else NEVER_APART


def resampling_of(configuration: Mapping[str, Any], *, source: str) -> Resampling:
    """The record; raises :class:`UnsupportedError` for functions, orders and combinations that it cannot say exactly."""
    image, label, logits = (_arguments(configuration, kind, source) for kind in ("data", "seg", "probabilities"))
    if not image.threshold == label.threshold == logits.threshold:
        raise UnsupportedError(
            f"{source}: force_separate_z differs between the resampling of images, labels and probabilities "
            f"({image.force_separate_z}, {label.force_separate_z}, {logits.force_separate_z}). Predict with nnU-Net."
        )
    return Resampling(
        image_order=image.order,
        image_coarse_order=image.order_z,
        label_order=label.order,
        label_coarse_order=label.order_z,
        logits_order=logits.order,
        logits_coarse_order=logits.order_z,
        separate_threshold=image.threshold,
    )


def _arguments(configuration: Mapping[str, Any], kind: str, source: str) -> _Arguments:
    key = f"resampling_fn_{kind}"
    function = configuration.get(key)
    if function != FUNCTION:
        raise UnsupportedError(f"{source}: {key} is {function}; only {FUNCTION} gives the same voxels here. Predict with nnU-Net.")
    plain = configuration.get(f"{key}_kwargs") or {}
    unknown = sorted(set(plain) - {field.name for field in fields(_Arguments)})
    if unknown:
        raise UnsupportedError(f"{source}: {key}_kwargs has {', '.join(unknown)}, which {FUNCTION} of nnU-Net 2.8.1 does not take.")
    arguments = from_plain(plain, _Arguments, f"{source}.{key}_kwargs")
    orders, coarse_orders = ORDERS[kind]
    if arguments.is_seg != (kind == "seg") or arguments.order not in orders or arguments.order_z not in coarse_orders:
        raise UnsupportedError(
            f"{source}: {key}_kwargs has is_seg {arguments.is_seg}, order {arguments.order} and order_z {arguments.order_z}; expected "
            f"is_seg {kind == 'seg'}, order {orders} and order_z {coarse_orders}. Predict with nnU-Net."
        )
    return arguments
