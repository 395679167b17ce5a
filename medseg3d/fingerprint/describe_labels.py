"""Sizes, places and components of the labels of one case."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medseg3d.data.cropping import nonzero_box
from medseg3d.fingerprint.intensities import CHUNK
from medseg3d.fingerprint.records import LabelStatistics
from medseg3d.labels import unique_values


def describe_labels(
    labels: np.ndarray, spacing: Sequence[float], *, background: int = 0, values: Sequence[int] | None = None
) -> dict[int, LabelStatistics]:
    """Statistics per foreground value of an integer label map (S, A, R); ``spacing`` in mm, ``values`` where they are known."""
    import cc3d

    values = [value for value in (unique_values(labels) if values is None else values) if value != background]
    if not values:
        return {}
    box = nonzero_box((labels != background)[np.newaxis])
    dense = _dense(labels[box], values)
    components, count = cc3d.connected_components(dense, connectivity=26, return_N=True)
    described = cc3d.statistics(components, no_slice_conversion=True)
    sizes, boxes = described["voxel_counts"].astype(np.int64), described["bounding_boxes"]
    owners = _owners(components, dense, count)
    # of indices per label: whole numbers, so that rounding takes back what the division by the size lost
    sums = [np.bincount(owners, np.rint(described["centroids"][:, a] * sizes)) for a in range(3)]
    voxel_mm3 = math.prod(spacing)
    thicknesses = _thicknesses(dense, spacing, len(values), [axis for axis in range(3) if labels.shape[axis] > 1])
    result = {}
    by_owner = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[by_owner], np.arange(1, len(values) + 2))
    for index, value in enumerate(values, start=1):
        own = by_owner[starts[index - 1] : starts[index]]
        own_sizes, own_boxes = sizes[own], boxes[own]
        voxels, largest = int(own_sizes.sum()), int(own_sizes.max())
        center = [(float(sums[a][index]) / voxels + box[a].start + 0.5) / labels.shape[a] for a in range(3)]
        first, last = own_boxes[:, 0::2].min(0), own_boxes[:, 1::2].max(0)
        of_largest = own_boxes[own_sizes == largest].astype(np.int64)
        extents_mm = (of_largest[:, 1::2] - of_largest[:, 0::2] + 1) * np.asarray(spacing)
        result[value] = LabelStatistics(
            voxels=voxels,
            volume_mm3=voxels * voxel_mm3,
            components=own_sizes.size,
            largest_mm3=largest * voxel_mm3,
            smallest_mm3=int(own_sizes.min()) * voxel_mm3,
            touches_border=any(int(first[a]) + box[a].start == 0 or int(last[a]) + box[a].start == labels.shape[a] - 1 for a in range(3)),
            center=(center[0], center[1], center[2]),
            elongation=float(np.linalg.norm(extents_mm, axis=1).max()) / math.cbrt(largest * voxel_mm3),
            thickness_mm=thicknesses[index - 1],
        )
    return result


def _owners(components: np.ndarray, dense: np.ndarray, count: int) -> np.ndarray:
    """The label of each of ``count`` components; entry 0 is the background's."""
    owners = np.zeros(count + 1, dense.dtype)
    step = max(1, CHUNK // dense[0].size)
    for start in range(0, len(dense), step):  # in slabs, as numpy copies indices to 64 bits
        owners[components[start : start + step]] = dense[start : start + step]  # all voxels of a component agree
    return owners


def _thicknesses(dense: np.ndarray, spacing: Sequence[float], count: int, axes: Sequence[int]) -> list[float | None]:
    """Per label the mean length in mm of its rows of voxels, along the axis where it is smallest; None for a volume of one voxel."""
    if not axes:
        return [None] * count
    begins = np.zeros((3, count + 1), np.int64)
    voxels = np.zeros(count + 1, np.int64)
    step = max(1, CHUNK // dense[0].size)
    for start in range(0, len(dense), step):
        slab = dense[start : start + step]
        voxels += np.bincount(slab.ravel(), minlength=count + 1)
        for axis in axes:
            rows = np.moveaxis(slab, axis, 0)
            before = dense[start - 1] if axis == 0 and start > 0 else np.zeros_like(rows[0])
            for first, second in ((before[np.newaxis], rows[:1]), (rows[:-1], rows[1:])):
                begins[axis] += np.bincount(second[first != second], minlength=count + 1)
    lengths = [voxels[1:] / begins[axis][1:] * spacing[axis] for axis in axes]
    return [float(length) for length in np.min(lengths, axis=0)]


def _dense(labels: np.ndarray, values: list[int]) -> np.ndarray:
    """Values → 1, 2, … in their order, everything else → 0, C-contiguous in the smallest unsigned type."""
    dtype = np.min_scalar_type(len(values))
    low, high = values[0], values[-1]
    if low == 1 and high == len(values) and labels.min() >= 0:
        return np.ascontiguousarray(labels, dtype)
    if high - low > 1_000_000:  # a table would be larger than the volume
        places = np.searchsorted(values, labels)
        hit = np.asarray(values)[np.minimum(places, len(values) - 1)] == labels
        return np.where(hit, places + 1, 0).astype(dtype)
    table = np.zeros(high - low + 3, dtype)
    table[np.asarray(values) - low + 1] = np.arange(1, len(values) + 1)
    return table[np.clip(labels.astype(np.int64) - low + 1, 0, high - low + 2)]
