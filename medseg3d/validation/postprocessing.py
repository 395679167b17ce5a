"""Label indices → cleaner label indices, by steps that validation showed to help (:mod:`medseg3d.validation.postprocessing_choice`).

Steps are remembered as a record (JSON) with the Dice before and after each, so that a prediction can say why it was changed.
Index arrays have three axes in any order; objects are 26-connected, the background around them 6-connected, as their counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from medseg3d.data.cropping import Box
from medseg3d.errors import CaseFailure
from medseg3d.evaluation.lesions import components
from medseg3d.records import Checked

Operation = Literal["keep_largest_foreground", "keep_largest", "fill_holes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Checked):
    """One operation; ``index`` is the label's or region's index, None for the whole foreground.

    ``parts`` are the indices that make up a region; empty for a label, which is its own. ``enclosing`` is the index that voxels get which
    a step takes from a region: that of the smallest region around it, or the background.
    """

    operation: Operation
    index: int | None = None
    parts: tuple[int, ...] = ()
    enclosing: int = 0
    came_later: ClassVar[tuple[str, ...]] = ("parts", "enclosing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What validation said about one step: mean Dice before and after (of ``label``, or of the foreground) over ``num_cases``."""

    step: Step
    label: str
    dice_before: float | None
    dice_after: float | None
    num_cases: int
    accepted: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Postprocessing:
    """Steps in the order in which they are applied, and every decision that led to them."""

    steps: tuple[Step, ...] = ()
    decisions: tuple[Decision, ...] = ()
    failures: tuple[CaseFailure, ...] = ()


NO_POSTPROCESSING = Postprocessing()


def apply_postprocessing(indices: np.ndarray, postprocessing: Postprocessing) -> np.ndarray:
    """Apply the steps in their order to an index array of three axes; the input is not modified.

    Without steps the input itself comes back. A label that an array does not have is left alone.
    """
    if not postprocessing.steps:
        return indices
    result = indices.copy()
    for step in postprocessing.steps:
        if step.operation == "keep_largest_foreground":
            keep_largest_foreground(result)
        elif step.index is not None and step.operation == "keep_largest":
            keep_largest(result, step.index, step.parts, step.enclosing)
        elif step.index is not None:
            fill_holes(result, step.index, step.parts)
    return result


def keep_largest_foreground(indices: np.ndarray) -> None:
    """Set to background, in place, everything outside the largest object of all labels taken together."""
    box = _box_of(indices > 0)
    if box is not None:
        crop = indices[box]
        crop[outside_largest(crop > 0)] = 0


def keep_largest(indices: np.ndarray, index: int, parts: Sequence[int] = (), enclosing: int = 0) -> None:
    """Set to background, in place, all objects of a label but the largest; of equal ones the first in array order stays.

    A region is the union of its ``parts``; where it lies in another one, its further objects become ``enclosing``, or they would leave
    holes in that one.
    """
    mask = np.isin(indices, parts) if parts else indices == index
    box = _box_of(mask)
    if box is not None:
        indices[box][outside_largest(mask[box])] = enclosing


def fill_holes(indices: np.ndarray, index: int, parts: Sequence[int] = ()) -> None:
    """Give, in place, to a label the background voxels that it, or a region of ``parts``, encloses; other labels inside it stay.

    A hole is a part of the complement that cannot be left through faces of voxels; the image's border is not a wall, except
    across a single slice.
    """
    mask = np.isin(indices, parts) if parts else indices == index
    box = _box_of(mask)
    if box is not None:
        indices[box][holes(mask[box], extended_axes(indices)) & (indices[box] == 0)] = index


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionHoles:
    """:func:`fill_holes` of a region as a function of a label map ``(1, …)``, a tensor or an array, which exported MONAI bundles name."""

    index: int
    parts: Sequence[int]

    def __call__(self, indices: Any) -> Any:
        """The same type, with its holes filled."""
        return _changed(indices, lambda array: fill_holes(array, self.index, self.parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionLargest:
    """:func:`keep_largest` of a region that lies in another one, as :class:`RegionHoles`."""

    index: int
    parts: Sequence[int]
    enclosing: int

    def __call__(self, indices: Any) -> Any:
        """The same type, with one object of the region."""
        return _changed(indices, lambda array: keep_largest(array, self.index, self.parts, self.enclosing))


def _changed(indices: Any, change: Callable[[np.ndarray], None]) -> Any:
    """A copy of a label map ``(1, …)``, a tensor with its metadata or an array, after ``change`` of its three axes in place."""
    array = np.array(indices if isinstance(indices, np.ndarray) else indices.numpy())
    change(array[0])
    if isinstance(indices, np.ndarray):
        return array
    result = indices.clone()
    result.copy_(result.new_tensor(array))
    return result


def outside_largest(mask: np.ndarray) -> np.ndarray:
    """The voxels of a bool mask that are not in its largest object."""
    numbers, count = components(mask)
    if count < 2:
        return np.zeros(mask.shape, bool)
    sizes = np.zeros(count + 1, np.int64)
    for plane in numbers:  # by planes, because counting turns numbers into eight bytes each
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    sizes[0] = 0
    outside: np.ndarray = mask & (numbers != int(np.argmax(sizes)))
    return outside


def holes(mask: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The voxels that a bool mask encloses; ``axes`` are those along which the outside can be left."""
    border = [(1, 1) if axis in axes else (0, 0) for axis in range(3)]
    numbers, _ = components(~np.pad(mask, border), connectivity=6)
    inner = numbers[tuple(slice(low, size - high) for (low, high), size in zip(border, numbers.shape, strict=True))]
    enclosed: np.ndarray = ~mask & (inner != numbers[0, 0, 0])
    return enclosed


def extended_axes(array: np.ndarray) -> tuple[int, ...]:
    return tuple(axis for axis in range(3) if array.shape[axis] > 1) or (0, 1, 2)


def _box_of(mask: np.ndarray) -> Box | None:
    """The smallest box that holds a bool mask; None of an empty one."""
    sides = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if found.size == 0:
            return None
        sides.append(slice(int(found[0]), int(found[-1]) + 1))
    return (sides[0], sides[1], sides[2])
