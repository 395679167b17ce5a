"""Grey values of any number of voxels as a histogram that merges exactly, and the statistics that planning takes from it.

In: float32 values, case by case. Out: :class:`Histogram` and :class:`IntensityStatistics` of a case, and of a dataset by
merging its cases', without reading a voxel again.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensityStatistics:
    """Grey values of ``count`` voxels. All but the three quantiles are exact; for those see :class:`Histogram`."""

    mean: float
    std: float
    median: float
    minimum: float
    maximum: float
    percentile_00_5: float
    percentile_99_5: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """A sparse histogram of float32 values that merges exactly: keys of bins and their counts.

    A key is the sign and the upper bits of a float32 (see :func:`keys_of`), so bins are ``2**-11`` of the value wide on any
    scale, and integers up to 4096 have a bin of their own. ``bins`` is the text form: the differences of the sorted keys, then
    the counts, as little-endian 64-bit integers, transposed to byte planes (the high ones are zeros), zlib, base64.
    """

    bins: str

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted keys and their counts, both int64."""
        planes = np.frombuffer(zlib.decompress(base64.b64decode(self.bins)), np.uint8)
        numbers = np.ascontiguousarray(planes.reshape(8, -1).T).view("<i8").ravel().astype(np.int64)
        half = numbers.size // 2
        return np.cumsum(numbers[:half]), numbers[half:]


MANTISSA_BITS = 11
"""Bits of the mantissa that tell bins apart: bins are 2^-11 of the value wide, and integers up to 4096 are exact."""
BINS_PER_STD = 8
"""log2 of the bins per standard deviation of a case. Values near zero need no relative precision: bins are never narrower than
std / 2^(8+1), so that a case of float values takes kilobytes, and integers stay exact while std is below 512 (CT: 100 to 500)."""
DROPPED_BITS = 23 - MANTISSA_BITS
CHUNK = 1 << 20
"""Voxels that are converted to 64 bits at a time."""


SAMPLES_PER_AXIS = 24
"""A regular sample of at least 24³ voxels tells the quantiles of an image, in milliseconds."""


def sampled_quantiles(volume: np.ndarray, shares: Sequence[float]) -> tuple[float, ...]:
    """Quantiles of a regular sample of a volume's voxels, from the lowest to the highest share; finite values only."""
    step = tuple(slice(None, None, max(1, length // SAMPLES_PER_AXIS)) for length in volume.shape)
    ordered = np.sort(volume[step], axis=None)
    return tuple(float(ordered[min(int(share * ordered.size), ordered.size - 1)]) for share in shares)


def describe_values(values: np.ndarray) -> tuple[Histogram, IntensityStatistics | None]:
    """Histogram and statistics of float32 ``values`` (any number, one axis); no statistics for no values.

    A quantile is too near to zero by at most ``2**-11`` of its value or std / 2^8 of the case it lies in, whichever is larger.
    """
    values = np.ascontiguousarray(values, np.float32).ravel()
    if values.size == 0:
        return _pack(np.empty(0, np.int64), np.empty(0, np.int64)), None
    mean = float(values.mean(dtype=np.float64))
    squares = 0.0
    for start in range(0, values.size, CHUNK):
        difference = values[start : start + CHUNK].astype(np.float64) - mean
        squares += float(difference @ difference)
    minimum, maximum = float(values.min()), float(values.max())
    std = math.sqrt(squares / values.size)
    keys, counts = _count(keys_of(values, std))
    statistics = _statistics(keys, counts, mean=mean, std=std, minimum=minimum, maximum=maximum)
    return _pack(keys, counts), statistics


def keys_of(values: np.ndarray, std: float) -> np.ndarray:
    """The int32 bin of each float32 value; keys grow with the values.

    Values are cut towards zero to a multiple of the power of two below ``std / 2**8``; then the bits of a float32 are
    read as sign and magnitude (as integers these grow with the value) and the lower mantissa bits are dropped.
    """
    if std > 0:
        # the power of two is kept where float32 can multiply by it without overflow or loss
        exponent = min(max(math.frexp(std)[1] - 1 - BINS_PER_STD, -100), 100)
        width = np.float32(2.0**exponent)
        values = np.trunc(values / width) * width
    bits = np.ascontiguousarray(values, np.float32).view(np.int32)
    magnitude = (bits & 0x7FFFFFFF) >> DROPPED_BITS
    return np.where(bits < 0, -magnitude, magnitude)


def values_of(keys: np.ndarray) -> np.ndarray:
    """The float64 value of each bin: its edge nearest to zero, so that integers come back exactly."""
    magnitude = (np.abs(keys).astype(np.int32) << DROPPED_BITS).view(np.float32).astype(np.float64)
    return np.where(keys < 0, -magnitude, magnitude)


def merge_intensities(parts: Sequence[tuple[Histogram, IntensityStatistics | None]]) -> IntensityStatistics | None:
    """Statistics of all values together; None where there are no values at all.

    Mean and std merge by Chan, Golub & LeVeque's formula; the histograms add up exactly.
    """
    counted = [(histogram, statistics) for histogram, statistics in parts if statistics is not None]
    if not counted:
        return None
    statistics = [part for _, part in counted]
    total = sum(part.count for part in statistics)
    mean = math.fsum(part.mean * part.count for part in statistics) / total
    squares = math.fsum(part.count * (part.std**2 + (part.mean - mean) ** 2) for part in statistics)
    arrays = [histogram.arrays() for histogram, _ in counted]
    keys, places = np.unique(np.concatenate([a[0] for a in arrays]), return_inverse=True)
    counts = np.zeros(keys.size, np.int64)
    np.add.at(counts, places, np.concatenate([a[1] for a in arrays]))
    return _statistics(
        keys,
        counts,
        mean=mean,
        std=math.sqrt(squares / total),
        minimum=min(part.minimum for part in statistics),
        maximum=max(part.maximum for part in statistics),
    )


def _statistics(keys: np.ndarray, counts: np.ndarray, *, mean: float, std: float, minimum: float, maximum: float) -> IntensityStatistics:
    low, median, high = (min(max(q, minimum), maximum) for q in quantiles(keys, counts, (0.005, 0.5, 0.995)))
    return IntensityStatistics(
        mean=mean,
        std=std,
        median=median,
        minimum=minimum,
        maximum=maximum,
        percentile_00_5=low,
        percentile_99_5=high,
        count=int(counts.sum()),
    )


def quantiles(keys: np.ndarray, counts: np.ndarray, shares: Sequence[float]) -> tuple[float, ...]:
    """Quantiles of a histogram with numpy's linear interpolation between the two neighboring voxels."""
    ends = np.cumsum(counts)
    values = values_of(keys)
    result = []
    for share in shares:
        position = share * (int(ends[-1]) - 1)
        below, above = (values[np.searchsorted(ends, rank, side="right")] for rank in (math.floor(position), math.ceil(position)))
        result.append(float(below + (above - below) * (position - math.floor(position))))
    return tuple(result)


def _count(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted distinct keys and how often each occurs; counting beats sorting unless the keys are few and far apart."""
    low, high = int(keys.min()), int(keys.max())
    if high - low > 16 * keys.size:
        found, counts = np.unique(keys, return_counts=True)
        return found.astype(np.int64), counts.astype(np.int64)
    dense = np.bincount(keys - low)
    found = np.flatnonzero(dense)
    return found + low, dense[found]


def _pack(keys: np.ndarray, counts: np.ndarray) -> Histogram:
    numbers = np.concatenate([np.diff(keys, prepend=0), counts]).astype("<i8")
    planes = np.ascontiguousarray(numbers.view(np.uint8).reshape(-1, 8).T)
    return Histogram(bins=base64.b64encode(zlib.compress(planes.tobytes(), 1)).decode("ascii"))
