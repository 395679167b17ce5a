"""Normalize the channels of a cropped image: raw intensities in, the values that networks see out.

The formulas and the floor of the standard deviation are nnU-Net 2.8.1's ``default_normalization_schemes``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medseg3d.errors import PlanError
from medseg3d.plan import Normalization

SMALLEST_STD = 1e-8
"""Divisors are at least this: a constant image becomes zeros instead of NaN."""


def normalize(
    image: np.ndarray, normalization: Sequence[Normalization], *, mask: np.ndarray | None = None, in_place: bool = False
) -> np.ndarray:
    """A normalized float32 copy of ``(channel, n0, n1, n2)``, or with ``in_place`` the float32 array itself with new values.

    ``mask`` (bool, spatial) is the non-zero region for channels with ``use_mask``; outside of it they keep their values, which are zeros.
    Raises :class:`PlanError` where a rule lacks its numbers or its mask.
    """
    result = image if in_place else np.empty(image.shape, np.float32)
    for channel, rule, out in zip(image, normalization, result, strict=True):
        SCHEMES[rule.scheme](channel, rule, mask, out)
    return result


def _ct(channel: np.ndarray, rule: Normalization, mask: np.ndarray | None, out: np.ndarray) -> None:
    if rule.lower is None or rule.upper is None or rule.mean is None or rule.std is None:
        raise PlanError("CT normalization needs lower, upper, mean and std; the plan lacks some of them. Plan again.")
    np.clip(channel, np.float32(rule.lower), np.float32(rule.upper), out=out)
    out -= np.float32(rule.mean)
    out /= np.float32(max(rule.std, SMALLEST_STD))


def _zscore(channel: np.ndarray, rule: Normalization, mask: np.ndarray | None, out: np.ndarray) -> None:
    if not rule.use_mask:
        np.subtract(channel, np.float32(channel.mean(dtype=np.float64)), out=out)
        out /= np.float32(max(_std(out), SMALLEST_STD))
        return
    if mask is None:
        raise PlanError("Normalization inside a mask needs the mask of the non-zero region.")
    out[...] = channel
    inside = channel[mask]
    if inside.size:
        inside = inside - np.float32(inside.mean(dtype=np.float64))
        out[mask] = inside / np.float32(max(_std(inside), SMALLEST_STD))


def _std(centered: np.ndarray) -> float:
    """The standard deviation of values whose mean is about zero, without a temporary copy in float64."""
    total = squares = 0.0
    rows = max(1, (1 << 20) * len(centered) // centered.size)
    for start in range(0, len(centered), rows):
        part = centered[start : start + rows].astype(np.float64).reshape(-1)
        total += float(part.sum())
        squares += float(part @ part)
    return float(np.sqrt(max(0.0, squares / centered.size - (total / centered.size) ** 2)))


def _rescale_0_1(channel: np.ndarray, rule: Normalization, mask: np.ndarray | None, out: np.ndarray) -> None:
    np.subtract(channel, channel.min(), out=out)
    out /= max(out.max(), np.float32(SMALLEST_STD))


def _rgb_0_1(channel: np.ndarray, rule: Normalization, mask: np.ndarray | None, out: np.ndarray) -> None:
    np.divide(channel, np.float32(255), out=out)


def _none(channel: np.ndarray, rule: Normalization, mask: np.ndarray | None, out: np.ndarray) -> None:
    out[...] = channel


SCHEMES: dict[str, Callable[[np.ndarray, Normalization, np.ndarray | None, np.ndarray], None]] = {
    "ct": _ct,
    "zscore": _zscore,
    "rescale_0_1": _rescale_0_1,
    "rgb_0_1": _rgb_0_1,
    "none": _none,
}
