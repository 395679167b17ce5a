"""The labels of a dataset: names, values in the files, indices inside, and the pairs that a left-right flip exchanges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medseg3d.errors import LabelValueError


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Names and file values, in the order of the indices that networks use; index 0 is the background.

    ``values[i]`` is what the label files hold for index ``i`` (any integers, gaps allowed); ``pairs`` are pairs of indices
    (left, right). A network of overlapping ``regions`` gives a logit for each of them and none for the background: region ``i`` is the
    union of the file values ``regions[i]``; where its logit is above 0 the voxel is painted with index ``i + 1``, later regions over
    earlier ones.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    regions: tuple[tuple[int, ...], ...] = ()

    @property
    def num_classes(self) -> int:
        """Background counts."""
        return len(self.values)

    @property
    def num_outputs(self) -> int:
        """Logits of a voxel: one per class, or one per region."""
        return len(self.regions) or len(self.values)

    @property
    def foreground(self) -> tuple[int, ...]:
        """The indices without the background."""
        return tuple(range(1, len(self.values)))

    @property
    def index_dtype(self) -> np.dtype:
        """The smallest unsigned type that holds the indices."""
        return np.min_scalar_type(max(1, len(self.values) - 1))

    @property
    def value_dtype(self) -> np.dtype:
        """The smallest type that NIfTI knows and that holds the file values."""
        low, high = min(self.values), max(self.values)
        for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.int64):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return np.dtype(dtype)
        raise LabelValueError(f"Label values from {low} to {high} do not fit 64 bits.")

    def encode(self, label_map: np.ndarray, source: str) -> np.ndarray:
        """File values (integers, also stored as float) → indices; ``source`` names the file in the error.

        Raises :class:`LabelValueError` for values that are not in the list.
        """
        integers = as_integers(label_map, source)
        found = unique_values(integers)
        unknown = sorted(set(found) - set(self.values))
        if unknown:
            raise LabelValueError(
                f"{source}: label values {unknown} are not in the list {sorted(self.values)}. "
                "Correct the file, or add the labels to dataset.json and plan again."
            )
        if self.values == tuple(range(self.num_classes)):
            return integers.astype(self.index_dtype)
        low, high = min(found), max(found)
        table = np.zeros(high - low + 1, self.index_dtype)
        for index, value in enumerate(self.values):
            if low <= value <= high:
                table[value - low] = index
        indices = np.empty(integers.shape, self.index_dtype)
        for values, target in zip(integers, indices, strict=True):  # NumPy turns an index into eight bytes: slice by slice
            target[...] = table[values - low] if low else table[values]
        return indices

    def decode(self, indices: np.ndarray) -> np.ndarray:
        """Indices → file values in the smallest NIfTI type; the indices themselves where they are the values."""
        dtype = self.value_dtype
        if self.values == tuple(range(self.num_classes)):
            return indices.astype(dtype, copy=False)
        table = np.asarray(self.values, dtype)
        values = np.empty(indices.shape, dtype)
        for part, target in zip(indices, values, strict=True):
            target[...] = table[part]
        return values


def as_integers(label_map: np.ndarray, source: str) -> np.ndarray:
    """Label values as an integer array; floats are accepted where every voxel is a whole number.

    Raises :class:`LabelValueError` otherwise, naming ``source`` and the first offending value.
    """
    if label_map.dtype.kind in "iu":
        return label_map
    if label_map.dtype.kind == "b":
        return label_map.astype(np.uint8)
    with np.errstate(invalid="ignore"):
        integers = label_map.astype(np.int32)
    wrong = integers != label_map
    if wrong.any():
        raise LabelValueError(f"{source}: a label map must hold whole numbers, found {label_map[wrong][0]:g}. Is this an image?")
    return integers


def value_counts(integers: np.ndarray) -> dict[int, int]:
    """How many voxels each value of an integer array has, without the 0."""
    return {value: int(np.count_nonzero(integers == value)) for value in unique_values(integers) if value}


def unique_values(integers: np.ndarray) -> list[int]:
    """The sorted values of an integer array; small ranges are ticked off in a table, which is many times faster than sorting."""
    if integers.size == 0:
        return []
    low, high = int(integers.min()), int(integers.max())
    if high - low > 1_000_000:
        return [int(v) for v in np.unique(integers)]
    flat = integers.ravel(order="K")
    seen = np.zeros(high - low + 1, bool)
    block = 1 << 20  # numpy turns an index into int64: by blocks, so that it never costs eight bytes per voxel
    for start in range(0, flat.size, block):
        part = flat[start : start + block]
        seen[part.astype(np.int64) - low if low else part] = True
    return [int(v) + low for v in np.flatnonzero(seen)]
