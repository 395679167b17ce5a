"""Names and order of axes: canonical (S, A, R) and the plan's network order.

Inside the package a volume is ``(channel, S, A, R)``: the C-order view of a RAS+ NIfTI file, slices first. The plan permutes the
three spatial axes once more into *network order*, coarsest spacing first, so that anisotropy is always axis 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CANONICAL = ("S", "A", "R")
"""The canonical order of the spatial axes of an array: superior, anterior, right (each the direction of a growing index)."""

Triple = tuple[float, float, float]
"""A number per axis of a volume."""

AxisOrder = tuple[int, int, int]
"""A permutation of the canonical axes: ``order[i]`` is the canonical axis that stands at place ``i``."""


def network_order(spacing: Sequence[float]) -> AxisOrder:
    """The axis with the coarsest spacing first, the others as they were; ties keep the order.

    >>> network_order((1.0, 1.0, 1.0))
    (0, 1, 2)
    >>> network_order((0.8, 5.0, 0.8))
    (1, 0, 2)
    """
    first = int(np.argmax(spacing))
    others = [axis for axis in range(3) if axis != first]
    return (first, others[0], others[1])


def triple(values: Sequence[float] | np.ndarray) -> Triple:
    """Three numbers as a tuple."""
    first, second, third = (float(value) for value in values)
    return first, second, third


def permute(values: Sequence[float], order: AxisOrder) -> tuple[float, ...]:
    """Three numbers in canonical order, in network order."""
    return tuple(values[axis] for axis in order)


def to_network_order(array: np.ndarray, order: AxisOrder) -> np.ndarray:
    """A view of ``(..., S, A, R)`` with the last three axes in network order."""
    lead = array.ndim - 3
    return array.transpose(*range(lead), *(lead + axis for axis in order))
