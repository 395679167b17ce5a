"""Choose cases and boxes for a batch, and read the boxes out of stored cases.

Volumes are ``(channel, n0, n1, n2)`` in network order. A 2D patch is a box of one slice along axis 0. Every choice comes from a
numpy generator that is seeded by numbers alone (:func:`generator`), so a resumed run sees the same patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class PatchSource(Protocol):
    """What a patch needs of a stored case."""

    @property
    def name(self) -> str:
        """The name of the case."""

    @property
    def image(self) -> Any:
        """``(channel, n0, n1, n2)``: an array, or anything with ``shape`` whose slices are arrays."""

    @property
    def labels(self) -> Any:
        """``(n0, n1, n2)`` label indices, likewise."""

    @property
    def outside(self) -> Any:
        """``(n0, n1, n2)`` bool, true outside the mask of masked normalization; None where no channel has one."""

    @property
    def foreground(self) -> Mapping[int, np.ndarray]:
        """Voxel coordinates ``(n, 3)`` of (a sample of) each label that is present."""

    @property
    def annotated(self) -> np.ndarray | None:
        """Voxel coordinates ``(n, 3)`` of (a sample of) what somebody has annotated; None where all is."""


class SoftCase:
    """A stored case of soft labels whose probabilities come as further channels of its image: they move with it, wherever it goes."""

    def __init__(self, case: Any) -> None:
        self.name, self.labels, self.outside = case.name, case.labels, case.outside
        self.foreground, self.annotated = case.foreground, case.annotated
        self.image = _Stacked(case.image, case.soft)


class _Stacked:
    """Two arrays ``(channel, n0, n1, n2)``, one behind the other, read where they are sliced."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts
        self.shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.concatenate([np.asarray(part[key], np.float32) for part in self._parts])


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchBox:
    """A box of voxels; it may reach beyond the volume on either side."""

    start: tuple[int, ...]
    size: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """Voxels of a box: float32 image ``(channel, …)`` and int16 labels ``(…)``.

    Labels are ``OUTSIDE`` where the voxel lies outside the non-zero region, if that was asked for, else 0 there.
    """

    image: np.ndarray
    labels: np.ndarray


OUTSIDE = -1
"""The label of voxels that masked normalization left out."""


def generator(seed: int, *stream: int) -> np.random.Generator:
    """An independent generator for each tuple of non-negative numbers, for instance ``(seed, epoch, iteration, sample)``."""
    return np.random.default_rng((seed, *stream))


def is_forced(sample: int, *, batch_size: int, iteration: int, share: float) -> bool:
    """Whether a sample must contain foreground: the last ``round(share * batch_size)`` of a batch, as nnU-Net counts them.

    A batch of one would never be forced by that rule; there a sample is forced whenever the running share would fall short.

    >>> [sum(is_forced(j, batch_size=b, iteration=0, share=0.33) for j in range(b)) for b in (2, 3, 5, 9, 12)]
    [1, 1, 2, 3, 4]
    >>> sum(is_forced(0, batch_size=1, iteration=i, share=0.33) for i in range(100))
    33
    """
    if batch_size == 1:
        return math.floor((iteration + 1) * share) > math.floor(iteration * share)
    return not sample < round(batch_size * (1 - share))


def place_patch(
    shape: Sequence[int],
    patch_size: Sequence[int],
    *,
    foreground: Mapping[int, np.ndarray] | None,
    rng: np.random.Generator,
) -> PatchBox:
    """A box of ``patch_size`` in a volume of ``shape``: uniform, or around a foreground voxel where ``foreground`` is given.

    A foreground voxel is drawn by class first (uniform over the classes present), then uniformly among the class's voxels;
    the box is moved back inside the volume where it would overhang (nnU-Net does so at the lower end only; a window of
    prediction never overhangs). Where the volume is smaller than the patch, the patch surrounds it. Without any foreground
    voxel the box is uniform. A ``patch_size`` of two numbers gives one slice along axis 0.
    """
    size = (1, *patch_size) if len(patch_size) == 2 else tuple(patch_size)
    lowest = [min(0, -math.ceil((p - n) / 2)) for n, p in zip(shape, size, strict=True)]
    highest = [n - p if n >= p else -((p - n) // 2) for n, p in zip(shape, size, strict=True)]
    classes = sorted(label for label, voxels in (foreground or {}).items() if len(voxels))
    if not classes:
        start = [int(rng.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]
    else:
        voxels = (foreground or {})[classes[int(rng.integers(len(classes)))]]
        voxel = voxels[int(rng.integers(len(voxels)))]
        start = [min(max(int(v) - p // 2, low), high) for v, p, low, high in zip(voxel, size, lowest, highest, strict=True)]
    return PatchBox(start=tuple(start), size=size)


def reflected(start: int, size: int, length: int) -> np.ndarray:
    """The voxels of an axis of ``length`` that ``start`` … ``start + size - 1`` mean when the axis is mirrored at its ends.

    >>> reflected(-2, 6, 3).tolist()
    [2, 1, 0, 1, 2, 1]
    """
    if length == 1:
        return np.zeros(size, np.int64)
    period = 2 * (length - 1)
    place = np.arange(start, start + size) % period
    return np.minimum(place, period - place)


def _read_reflected(image: Any, labels: Any, box: PatchBox, outside: Any, mark_outside: bool) -> Patch:
    """As :func:`read_patch`, with the volume mirrored at its borders."""
    places = [reflected(start, size, n) for start, size, n in zip(box.start, box.size, labels.shape, strict=True)]
    inside = tuple(slice(int(place.min()), int(place.max()) + 1) for place in places)
    take = np.ix_(*(place - place.min() for place in places))
    patch_labels = np.asarray(labels[inside]).astype(np.int16)
    if mark_outside and outside is not None:
        patch_labels[(patch_labels == 0) & np.asarray(outside[inside])] = OUTSIDE
    some_image = np.asarray(image[(slice(None), *inside)])
    return Patch(image=np.stack([channel[take] for channel in some_image]).astype(np.float32), labels=patch_labels[take])


def read_labels(labels: Any, box: PatchBox, *, is_reflected: bool = False) -> np.ndarray:
    """The label map of :func:`read_patch` alone, int16, background beyond the volume."""
    if is_reflected:
        places = [reflected(start, size, n) for start, size, n in zip(box.start, box.size, labels.shape, strict=True)]
        inside = tuple(slice(int(place.min()), int(place.max()) + 1) for place in places)
        taken: np.ndarray = np.asarray(labels[inside]).astype(np.int16)[np.ix_(*(place - place.min() for place in places))]
        return taken
    inside = tuple(
        slice(min(max(0, start), n), min(max(0, start + size), n)) for start, size, n in zip(box.start, box.size, labels.shape, strict=True)
    )
    patch = np.zeros(box.size, np.int16)
    patch[tuple(slice(cut.start - start, cut.stop - start) for cut, start in zip(inside, box.start, strict=True))] = labels[inside]
    return patch


def read_patch(
    image: Any, labels: Any, box: PatchBox, *, outside: Any = None, mark_outside: bool = False, is_reflected: bool = False
) -> Patch:
    """The voxels of a box; beyond the volume the image is 0 and the label is background.

    With ``mark_outside`` the label is ``OUTSIDE`` beyond the volume, and where it is background and ``outside`` is true. With
    ``is_reflected`` the volume goes on beyond its borders as its mirror image (the overlap-tile strategy of U-Net).
    """
    if is_reflected:
        return _read_reflected(image, labels, box, outside, mark_outside)
    inside = tuple(
        slice(min(max(0, start), n), min(max(0, start + size), n)) for start, size, n in zip(box.start, box.size, labels.shape, strict=True)
    )
    some_image = np.asarray(image[(slice(None), *inside)])
    some_labels = np.array(labels[inside], np.int16, order="C")  # a copy: the volume may be held in memory
    if mark_outside and outside is not None:
        some_labels[(some_labels == 0) & np.asarray(outside[inside])] = OUTSIDE
    if some_labels.shape == box.size:
        patch_image, patch_labels = np.array(some_image, np.float32, order="C"), some_labels
    else:
        place = tuple(slice(cut.start - start, cut.stop - start) for cut, start in zip(inside, box.start, strict=True))
        patch_image = np.zeros((some_image.shape[0], *box.size), np.float32)
        patch_labels = np.full(box.size, OUTSIDE if mark_outside else 0, np.int16)
        patch_image[(slice(None), *place)] = some_image
        patch_labels[place] = some_labels
    return Patch(image=patch_image, labels=patch_labels)
