"""The labels of a dataset: names, values in the files, indices inside, and the pairs that a left-right flip exchanges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from medseg3d.errors import LabelValueError
from medseg3d.records import Checked


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels(Checked):
    """Names and file values, in the order of the indices that networks use; index 0 is the background.

    ``values[i]`` is what the label files hold for index ``i`` (any integers, gaps allowed); ``pairs`` are pairs of indices
    (left, right). A network of overlapping ``regions`` gives a logit for each of them and none for the background: region ``i`` is the
    union of the file values ``regions[i]``; where its logit is above 0 the voxel gets index ``i + 1``, later regions over
    earlier ones (region class order).

    ``ignore`` is the file value of voxels that nobody has annotated; networks have no output for it. ``unannotated`` lists the sets of
    indices that some cases were not annotated for: there the background may hide them. What is stored of a case are codes of all that
    (:mod:`medseg3d.label_codes`). ``soft``: label files hold the probabilities of the labels, which training learns as they are.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    regions: tuple[tuple[int, ...], ...] = ()
    ignore: int | None = None
    unannotated: tuple[tuple[int, ...], ...] = ()
    soft: bool = False
    came_later: ClassVar[tuple[str, ...]] = ("ignore", "unannotated", "soft")

    @property
    def annotated_values(self) -> tuple[int, ...]:
        """What annotated voxels of label files hold: the values of the classes, or those of all members of regions, background first."""
        if not self.regions:
            return self.values
        return (0, *sorted({value for members in self.regions for value in members} - {0}))

    @property
    def file_values(self) -> tuple[int, ...]:
        """All that label files may hold, the ignore label too."""
        return (*self.annotated_values, *(() if self.ignore is None else (self.ignore,)))

    def members(self, index: int) -> tuple[int, ...]:
        """The file values that make up a class or a region by its index."""
        return self.regions[index - 1] if self.regions and index else (self.values[index],)

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
        return places_of(label_map, self.values, source, dtype=self.index_dtype)

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


def places_of(label_map: np.ndarray, values: tuple[int, ...], source: str, *, dtype: np.dtype) -> np.ndarray:
    """File values (integers, also stored as float) → their places in a list; raises :class:`LabelValueError` for others."""
    integers = as_integers(label_map, source)
    found = unique_values(integers, source)
    unknown = sorted(set(found) - set(values))
    if unknown:
        raise LabelValueError(
            f"{source}: label values {listed_values(unknown)} are not in the list {listed_values(sorted(values))}. "
            "Correct the file, or add the labels to dataset.json and plan again."
        )
    if values == tuple(range(len(values))):
        return integers.astype(dtype)
    low, high = min(found), max(found)
    if high - low > MAX_TABLE:
        return _sparse_places(integers, values, dtype)
    table = np.zeros(high - low + 1, dtype)
    for index, value in enumerate(values):
        if low <= value <= high:
            table[value - low] = index
    indices = np.empty(integers.shape, dtype)
    for part, target in zip(integers, indices, strict=True):  # NumPy turns an index into eight bytes: slice by slice
        target[...] = table[part - low] if low else table[part]
    return indices


def _sparse_places(integers: np.ndarray, values: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Values that lie too far apart for a table are looked up in their sorted list; all of them are known to be in it."""
    order = np.argsort(np.asarray(values, np.int64))
    known, index = np.asarray(values, np.int64)[order], order.astype(dtype)
    indices = np.empty(integers.shape, dtype)
    for part, target in zip(integers, indices, strict=True):
        target[...] = index[np.searchsorted(known, part.astype(np.int64, copy=False))]
    return indices


def as_integers(label_map: np.ndarray, source: str) -> np.ndarray:
    """Label values as an integer array; floats are accepted where every voxel is a whole number.

    Raises :class:`LabelValueError` otherwise, naming ``source`` and the first offending value.
    """
    if label_map.dtype == np.uint64:
        if label_map.size and int(label_map.max()) > np.iinfo(np.int64).max:
            raise LabelValueError(f"{source}: the label value {label_map.max()} is too large; expected at most 2^63 - 1.")
        return label_map.astype(np.int64)
    if label_map.dtype.kind in "iu":
        return label_map
    if label_map.dtype.kind == "b":
        return label_map.astype(np.uint8)
    with np.errstate(invalid="ignore"):
        integers = label_map.astype(float_label_dtype(label_map))
    wrong = integers != label_map
    if wrong.any():
        raise LabelValueError(f"{source}: a label map must hold whole numbers, found {label_map[wrong][0]:g}. Is this an image?")
    return integers


MAX_TABLE = 1_000_000
"""Values that span more are looked up instead of being indexed by a table."""
MAX_LABEL_VALUES = 4096
"""Different values in one label map; the finest brain atlases have 1,300. More are voxels of an image, or numbers of single objects."""


def float_label_dtype(values: np.ndarray) -> np.dtype:
    """The integer type for label values that are stored as float: 32 bits, 64 where they are larger."""
    largest = max(float(values.max()), -float(values.min())) if values.size else 0.0
    return np.dtype(np.int64 if np.iinfo(np.int32).max < largest < 2.0**53 else np.int32)


def listed_values(values: Sequence[int]) -> str:
    """Values as they stand in a message, the first ten of them.

    >>> listed_values(range(1000))
    '[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 990 more]'
    """
    more = f", and {len(values) - 10} more" if len(values) > 10 else ""
    return f"[{', '.join(str(value) for value in values[:10])}{more}]"


def value_counts(integers: np.ndarray, source: str = "label map") -> dict[int, int]:
    """How many voxels each value of an integer array has, without the 0; raises as :func:`unique_values`."""
    counts: dict[int, int] = {}
    for part in _blocks(integers):
        values, numbers = np.unique(part, return_counts=True)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + number
        _refuse_many(len(counts), source)
    return {value: counts[value] for value in sorted(counts) if value}


def unique_values(integers: np.ndarray, source: str = "label map") -> list[int]:
    """The sorted values of an integer array; small ranges are ticked off in a table, which is many times faster than sorting.

    Raises :class:`LabelValueError` where there are more than any list of labels has: no label map, and memory without bounds.
    """
    if integers.size == 0:
        return []
    low, high = int(integers.min()), int(integers.max())
    found: set[int] = set()
    if high - low > MAX_TABLE:
        for part in _blocks(integers):
            values = np.unique(part)
            _refuse_many(len(values), source)
            found.update(values.tolist())
            _refuse_many(len(found), source)
        return sorted(found)
    seen = np.zeros(high - low + 1, bool)
    for part in _blocks(integers):  # numpy turns an index into int64: by blocks, so that it never costs eight bytes per voxel
        seen[part.astype(np.int64) - low if low else part] = True
    places = np.flatnonzero(seen)
    _refuse_many(len(places), source)
    return [int(v) + low for v in places]


def _blocks(integers: np.ndarray) -> Iterator[np.ndarray]:
    flat = integers.ravel(order="K")
    for start in range(0, flat.size, 1 << 20):
        yield flat[start : start + (1 << 20)]


def _refuse_many(number: int, source: str) -> None:
    if number > MAX_LABEL_VALUES:
        raise LabelValueError(
            f"{source}: more than {MAX_LABEL_VALUES} different values, so no label map: an image, or objects that are numbered one by "
            "one. Expected one value for each kind of structure."
        )
