"""A box of a stored case as if it were the case: what the fine network of a crop cascade is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from medseg3d.preprocessing.chunked_array import ChunkedArray
from medseg3d.preprocessing.preprocess_case import Restoration
from medseg3d.preprocessing.store import StoredCase, StoredRecord


class BoxedCase(StoredCase):
    """The part of a case inside ``box``, (start, stop) per axis of the stored grid; its voxels are counted from the box's corner."""

    def __init__(self, case: StoredCase, box: Sequence[tuple[int, int]]) -> None:
        super().__init__(case.folder, StoredRecord(name=case.name, digest=case.digest, restoration=case.restoration))
        self.box = tuple(box)
        self.image = ArrayBox(case.image, self.box)
        self.labels = None if case.labels is None else ArrayBox(case.labels, self.box)
        self.outside = None if case.outside is None else ArrayBox(case.outside, self.box)
        self.soft = None if case.soft is None else ArrayBox(case.soft, self.box)

    @cached_property
    def _sampled(self) -> dict[int, np.ndarray]:
        """Only what lies in the box."""
        low, high = np.asarray(self.box).T
        inside = {}
        for index, voxels in StoredCase(
            self.folder, StoredRecord(name=self.name, digest=self.digest, restoration=self.restoration)
        )._sampled.items():
            kept = voxels[((voxels >= low) & (voxels < high)).all(1)] - low.astype(voxels.dtype)
            if len(kept):
                inside[index] = kept
        return inside

    def load(self) -> BoxedCase:
        """With the arrays of the box decoded in memory."""
        loaded = BoxedCase(self, self.box)
        loaded.image = self.image[:]
        loaded.labels = None if self.labels is None else self.labels[:]
        loaded.outside = None if self.outside is None else self.outside[:]
        loaded.soft = None if self.soft is None else self.soft[:]
        return loaded


class ArrayBox(ChunkedArray):
    """A box of the last three axes of an array, sliced like an array."""

    def __init__(self, array: ChunkedArray | np.ndarray, box: Sequence[tuple[int, int]]) -> None:
        lead = len(array.shape) - 3
        self._array = array
        self._box = (*((0, n) for n in array.shape[:lead]), *box)
        self.shape = tuple(stop - start for start, stop in self._box)
        self.dtype = array.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read a region of the box."""
        keys = key if isinstance(key, tuple) else (key,)
        keys = (*keys, *(slice(None),) * (len(self.shape) - len(keys)))
        places = []
        for cut, (start, stop) in zip(keys, self._box, strict=True):
            first, last, _ = cut.indices(stop - start)
            places.append(slice(start + first, start + max(first, last)))
        return np.asarray(self._array[tuple(places)])


def stored_box(box: Sequence[tuple[int, int]], restoration: Restoration) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """A box of the permuted raw volume on the grid of the stored case, at least a voxel along each axis."""
    found = []
    scales = zip(box, restoration.box, restoration.resampled_shape, restoration.cropped_shape, strict=True)
    for (low, high), (first, _), new, old in scales:
        start = min(max(0, math.floor((low - first) * new / old)), new - 1)
        found.append((start, max(start + 1, min(new, math.ceil((high - first) * new / old)))))
    return found[0], found[1], found[2]
