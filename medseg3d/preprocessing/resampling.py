"""Resample volumes onto another grid: an image, a label map or logits go in with the new shape, the same on the new grid comes out.

Interpolation from one regular grid to another is separable: one small matrix per axis. The matrices follow ``skimage.transform.resize``
(``mode="edge"``, ``anti_aliasing=False``), which nnU-Net 2.8.1 uses: voxel centers at ``(i + 0.5) * old / new - 0.5``, cubic B-splines
with prefilter on a signal that is continued by 12 copies of its border value, and a result that is clipped to the range of its input.
Separate-z resampling: along an axis much coarser than the others, first every slice in its plane, then along the axis.
Arrays are ``(channel, n0, n1, n2)``, all in the same order of axes as the spacings.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from medseg3d.errors import PlanError
from medseg3d.plan import Resampling

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

SPLINE_PADDING = 12
"""Border copies before the spline prefilter, as ``scipy.ndimage`` adds for ``mode="nearest"``; the result depends on it near borders."""

NEGLIGIBLE_WEIGHT = 1e-9
"""Smaller weights are dropped: far below float32 rounding, and a cubic row then has about 32 entries, however long the axis is."""

BLOCK_ROWS = 48
"""Output rows per matrix product: wide enough for fast products, narrow enough that few zeros of the band are multiplied."""

SMALL_BYTES = 2**16
"""What is there besides volumes: rows, and Python's own objects."""

UNIFORM_SLAB_VOXELS = 1 << 22
"""Output voxels of a label map that are worked on at once; bounds the temporary arrays."""


def resample_image(
    array: np.ndarray,
    new_shape: Sequence[int],
    *,
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    resampling: Resampling,
    device: str | None = None,
) -> np.ndarray:
    """Resample ``(channel, n0, n1, n2)`` to ``(channel, *new_shape)``, float32; the array itself comes back where the shape is the same.

    Spline orders ``resampling.image_order`` and, along a coarse axis (separate-z), ``image_coarse_order``. With a ``device`` of torch it is
    done there, channel by channel, the same but for rounding; a channel that its memory does not hold is resampled here.
    Raises :class:`PlanError` for an order other than 0, 1 or 3.
    """
    array = np.ascontiguousarray(array, np.float32)
    new_shape = _three(new_shape)
    if array.shape[1:] == new_shape:
        return array
    apart = coarse_axis(spacing, new_spacing, resampling.separate_threshold)

    def resampled(channel: np.ndarray) -> np.ndarray:
        there = None if device is None else _resample_there(channel, new_shape, spacing, new_spacing, resampling, device)
        if there is not None:
            return there
        return _resample_volume(channel, new_shape, apart, resampling.image_order, resampling.image_coarse_order)

    if len(array) == 1:  # no second copy of the volume
        return np.ascontiguousarray(resampled(array[0]), np.float32)[None]
    result = np.empty((len(array), *new_shape), np.float32)
    for channel, out in zip(array, result, strict=True):
        out[...] = resampled(channel)
    return result


def resampling_bytes(shape: Sequence[int], new_shape: Sequence[int]) -> int:
    """The most that :func:`resample_image` takes beside an array ``(channel, n0, n1, n2)`` of this shape.

    A channel is resampled axis by axis, those that shrink first: what one axis leaves and what the next one makes of it are there at once,
    and a copy for the axes that stay. Of several channels the result is there besides.
    """
    if tuple(shape[1:]) == tuple(new_shape):
        return 0
    old, new = math.prod(shape[1:]), math.prod(new_shape)
    factors = sorted((m / n for n, m in zip(shape[1:], new_shape, strict=True) if m != n), reverse=True)
    in_turn = [f for f in factors if f < 1] + [f for f in factors if f > 1]
    _, *sizes = itertools.accumulate(in_turn, lambda size, factor: size * factor, initial=float(old))
    most = max(before + after for before, after in itertools.pairwise([0.0, *sizes]))  # the image itself is the caller's
    return SMALL_BYTES + math.ceil(4 * (most + min(old, new) + (shape[0] * new if shape[0] > 1 else 0)))


def _resample_there(
    channel: np.ndarray,
    new_shape: tuple[int, int, int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    resampling: Resampling,
    device: str,
) -> np.ndarray | None:
    """One channel on a torch device; None where its memory does not suffice."""
    import torch

    from medseg3d.devices import RESAMPLING_ON_GPU, is_out_of_memory

    try:
        with RESAMPLING_ON_GPU:
            resampled = resample_tensor(
                torch.from_numpy(channel).to(device)[None],
                new_shape,
                spacing=spacing,
                new_spacing=new_spacing,
                order=resampling.image_order,
                coarse_order=resampling.image_coarse_order,
                separate_threshold=resampling.separate_threshold,
            )
            return resampled[0].cpu().numpy()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("A volume of %s voxels does not fit the memory of %s; resampling it on the CPU.", channel.shape, device)
        return None


def _resample_volume(volume: np.ndarray, new_shape: tuple[int, int, int], apart: int | None, order: int, coarse_order: int) -> np.ndarray:
    if apart is None:
        result = _apply_all(volume, [axis_map(n, m, order) for n, m in zip(volume.shape, new_shape, strict=True)])
        return np.clip(result, volume.min(), volume.max(), out=result)
    in_plane = tuple(axis for axis in range(3) if axis != apart)
    along = axis_map(volume.shape[apart], new_shape[apart], coarse_order)
    if coarse_order == 0 and along.new_size < along.size:
        volume, along = along.apply(volume, apart), axis_map(along.new_size, along.new_size, 0)
    maps = [axis_map(n, n if axis == apart else m, order) for axis, (n, m) in enumerate(zip(volume.shape, new_shape, strict=True))]
    result = _apply_all(volume, maps)
    if not all(maps[axis].is_identity for axis in in_plane):
        low, high = (bound(volume, axis=in_plane, keepdims=True) for bound in (np.min, np.max))
        np.clip(result, low, high, out=result)
    return along.apply(result, apart)


def resample_tensor(
    tensor: torch.Tensor,
    new_shape: Sequence[int],
    *,
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    order: int,
    coarse_order: int,
    separate_threshold: float = 3.0,
) -> torch.Tensor:
    """:func:`resample_image` with the same matrices for a tensor ``(channel, n0, n1, n2)`` on any device; float32."""
    import torch

    tensor = tensor.float()
    new_shape = _three(new_shape)
    shape = _three(tensor.shape[1:])
    if shape == new_shape:
        return tensor

    def apply(values: torch.Tensor, mapping: AxisMap, axis: int) -> torch.Tensor:
        if mapping.is_identity:
            return values
        if mapping.order == 0:
            return values.index_select(axis + 1, torch.as_tensor(mapping.nearest.copy(), device=values.device))
        matrix = torch.as_tensor(mapping.matrix.astype(np.float32), device=values.device)
        return torch.movedim(torch.movedim(values, axis + 1, -1) @ matrix.T, -1, axis + 1)

    def bounds(values: torch.Tensor, axes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        return values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)

    apart = coarse_axis(spacing, new_spacing, separate_threshold)
    maps = [axis_map(n, m, coarse_order if axis == apart else order) for axis, (n, m) in enumerate(zip(shape, new_shape, strict=True))]
    in_plane = [axis for axis in best_order(maps) if axis != apart]
    low, high = bounds(tensor, tuple(axis + 1 for axis in in_plane))
    result = tensor
    for axis in in_plane:
        result = apply(result, maps[axis], axis)
    result = result.clamp(low, high)
    return result if apart is None else apply(result, maps[apart], apart)


def resample_labels(
    labels: np.ndarray,
    new_shape: Sequence[int],
    *,
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    resampling: Resampling,
) -> np.ndarray:
    """Resample a label map ``(n0, n1, n2)`` of integers, same type out: each label's indicator linearly, the largest wins.

    Exactly tied labels: the nearest voxel's label if it is among them, else the lowest (batchgenerators 0.25.5
    ``resize_segmentation``). The scores are summed in float64 in scipy's order, so that ties are the same ties. Raises
    :class:`PlanError` for a ``label_order`` other than 0 or 1, or a ``label_coarse_order`` other than 0.
    """
    new_shape = _three(new_shape)
    if labels.shape == new_shape:
        return labels
    if resampling.label_order not in (0, 1) or resampling.label_coarse_order != 0:
        raise PlanError(
            f"Label maps are resampled with order 0 or 1, along a coarse axis with order 0; the plan says {resampling.label_order} and "
            f"{resampling.label_coarse_order}. Correct label_order and label_coarse_order in the planner's file."
        )
    apart = coarse_axis(spacing, new_spacing, resampling.separate_threshold)
    along = None if apart is None else axis_map(labels.shape[apart], new_shape[apart], 0)
    if along is not None and apart is not None and along.new_size < along.size:
        labels, along = along.apply(labels, apart), None
    maps = [axis_map(n, n if axis == apart else m, 1) for axis, (n, m) in enumerate(zip(labels.shape, new_shape, strict=True))]
    if resampling.label_order == 0:
        result = labels[np.ix_(*(mapping.nearest for mapping in maps))]
    else:
        result = _vote(labels, maps)
    return result if along is None or apart is None else along.apply(result, apart)


def _vote(labels: np.ndarray, maps: Sequence[AxisMap]) -> np.ndarray:
    """Linear interpolation of all indicators and their arg-max, computed only where the eight voxels around differ."""
    mixed = _cells_with_different_labels(labels, [not mapping.is_identity for mapping in maps])
    result = np.empty(tuple(mapping.new_size for mapping in maps), labels.dtype)
    rows = max(1, UNIFORM_SLAB_VOXELS // max(1, result[0].size))
    for start in range(0, len(result), rows):
        slab = slice(start, start + rows)
        result[slab] = labels[np.ix_(maps[0].nearest[slab], maps[1].nearest, maps[2].nearest)]
        where = np.nonzero(mixed[np.ix_(maps[0].lower[slab], maps[1].lower, maps[2].lower)])
        for part in range(0, len(where[0]), UNIFORM_SLAB_VOXELS // 8):
            places = [w[part : part + UNIFORM_SLAB_VOXELS // 8] for w in where]
            result[slab][tuple(places)] = _winners(labels, maps, [places[0] + start, places[1], places[2]])
    return result


def _cells_with_different_labels(labels: np.ndarray, interpolated: Sequence[bool]) -> np.ndarray:
    """Where the two voxels along every interpolated axis that begin at a voxel (2, 4 or 8 of them) do not all hold its label."""
    mixed = np.zeros(labels.shape, bool)
    for axis in range(3):
        if not interpolated[axis]:
            continue
        before = (slice(None),) * axis + (slice(None, -1),)
        after = (slice(None),) * axis + (slice(1, None),)
        # what a neighbor's cell has found counts here as well: then the third axis sees all edges of the eight voxels
        mixed[before] |= mixed[after]
        mixed[before] |= labels[before] != labels[after]
    return mixed


def _winners(labels: np.ndarray, maps: Sequence[AxisMap], places: Sequence[np.ndarray]) -> np.ndarray:
    """The label with the largest interpolated indicator at each of the output voxels ``places`` (three index arrays)."""
    corners = [mapping.lower[place] for mapping, place in zip(maps, places, strict=True)]
    uppers = [mapping.upper[place] for mapping, place in zip(maps, places, strict=True)]
    upper_weights = [mapping.upper_weight[place] for mapping, place in zip(maps, places, strict=True)]
    taps: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    # the order of the corners, the product from axis 0 on and the sum from the first corner on are scipy's, to the last bit
    axes = [axis for axis in range(3) if not maps[axis].is_identity]
    for corner in itertools.product((0, 1), repeat=len(axes)):
        index = list(corners)
        weight: np.ndarray = np.ones(len(places[0]))
        for axis, is_upper in zip(axes, corner, strict=True):
            index[axis] = uppers[axis] if is_upper else corners[axis]
            weight *= upper_weights[axis] if is_upper else 1.0 - upper_weights[axis]
        taps.append(labels[tuple(index)])
        weights.append(weight)
    nearest: np.ndarray = labels[tuple(mapping.nearest[place] for mapping, place in zip(maps, places, strict=True))]
    best: np.ndarray = np.zeros(len(nearest))
    winner: np.ndarray = nearest.copy()
    nearest_score = _score(nearest, taps, weights)
    for number, candidate in enumerate(taps):
        if number and np.array_equal(candidate, taps[number - 1]):
            continue
        score = _score(candidate, taps, weights)
        better = (score > best) | ((score == best) & (candidate < winner))
        np.copyto(winner, candidate, where=better)
        np.maximum(best, score, out=best)
    np.copyto(winner, nearest, where=nearest_score == best)
    return winner


def _score(label: np.ndarray, taps: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> np.ndarray:
    score: np.ndarray = np.zeros(len(label))
    for tap, weight in zip(taps, weights, strict=True):
        score += weight * (tap == label)
    return score


def coarse_axis(spacing: Sequence[float], new_spacing: Sequence[float], threshold: float) -> int | None:
    """The axis of separate-z resampling, or None (nnU-Net 2.8.1 ``determine_do_sep_z_and_axis``).

    The old spacing decides if its largest entry is more than ``threshold`` times its smallest, else the new spacing; two equally coarse
    axes give None, also where the new spacing would have named one.

    >>> coarse_axis((5.0, 1.0, 1.0), (1.0, 1.0, 1.0), 3.0), coarse_axis((5.0, 5.0, 1.0), (5.0, 1.0, 1.0), 3.0)
    (0, None)
    """
    for candidate in (spacing, new_spacing):
        if max(candidate) / min(candidate) > threshold:
            coarsest = [axis for axis, value in enumerate(candidate) if value == max(candidate)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AxisMap:
    """How values along one axis of ``size`` voxels become ``new_size`` values, by a spline of ``order`` 0, 1 or 3.

    ``matrix``: float64 ``(new_size, size)``. ``blocks``: the same as (output rows, input rows, float32 matrix) without the zeros far
    from the band. ``nearest``, ``lower``, ``upper``: source indices per output voxel; ``upper_weight``: the linear weight of ``upper``.
    """

    size: int
    new_size: int
    order: int
    matrix: np.ndarray
    blocks: tuple[tuple[slice, slice, np.ndarray], ...]
    nearest: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    upper_weight: np.ndarray

    @property
    def is_identity(self) -> bool:
        """Equal sizes: the grids are the same."""
        return self.size == self.new_size

    @property
    def cost(self) -> float:
        """Multiplications per output value."""
        if self.is_identity or self.order == 0:
            return 0.0 if self.is_identity else 1.0
        return sum(block.size for _, _, block in self.blocks) / self.new_size

    def apply(self, array: np.ndarray, axis: int) -> np.ndarray:
        """Apply to one axis of a C-contiguous array; float32 unless order is 0 or the grids are the same."""
        if self.is_identity:
            return array
        if self.order == 0:
            return np.take(array, self.nearest, axis)
        shape = array.shape
        result = np.empty((*shape[:axis], self.new_size, *shape[axis + 1 :]), np.float32)
        trail = int(np.prod(shape[axis + 1 :]))
        if trail == 1:
            lines, new_lines = array.reshape(-1, self.size), result.reshape(-1, self.new_size)
            for rows, columns, block in self.blocks:
                np.matmul(lines[:, columns], block.T, out=new_lines[:, rows])
        else:
            planes, new_planes = array.reshape(-1, self.size, trail), result.reshape(-1, self.new_size, trail)
            for rows, columns, block in self.blocks:
                np.matmul(block, planes[:, columns], out=new_planes[:, rows])
        return result


@lru_cache(maxsize=256)
def axis_map(size: int, new_size: int, order: int) -> AxisMap:
    """The map from ``size`` to ``new_size`` voxels over the same length; raises :class:`PlanError` for an order other than 0, 1, 3."""
    if order not in (0, 1, 3):
        raise PlanError(f"Resampling with spline order {order} is not offered; the planner's file may say 0, 1 or 3.")
    places = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    knots = np.floor(places)
    # beyond the border both voxels are the border voxel, with weights that sum to 1: as scipy does it, to the last bit
    lower, upper = (np.clip(k, 0, size - 1).astype(np.intp) for k in (knots, knots + 1))
    upper_weight = 1.0 - (1.0 - (places - knots))
    nearest = np.clip(np.floor(places + 0.5), 0, size - 1).astype(np.intp)
    rows = np.arange(new_size)
    matrix: np.ndarray = np.zeros((new_size, size), np.float64)
    if size == new_size:
        np.fill_diagonal(matrix, 1.0)
    elif order == 0:
        matrix[rows, nearest] = 1.0
    elif order == 1:
        matrix[rows, lower] = 1.0 - upper_weight
        matrix[rows, upper] += upper_weight
    else:
        matrix = _cubic_matrix(size, places)
    blocks = []
    for start in range(0, new_size, BLOCK_ROWS):
        block = matrix[start : start + BLOCK_ROWS]
        columns = np.flatnonzero(np.abs(block).max(0) > NEGLIGIBLE_WEIGHT)
        support = slice(int(columns[0]), int(columns[-1]) + 1)
        blocks.append((slice(start, start + len(block)), support, np.ascontiguousarray(block[:, support], np.float32)))
    for values in (matrix, lower, upper, upper_weight, nearest):
        values.flags.writeable = False
    return AxisMap(
        size=size, new_size=new_size, order=order, matrix=matrix, blocks=tuple(blocks),
        nearest=nearest, lower=lower, upper=upper, upper_weight=upper_weight,
    )  # fmt: skip


def _cubic_matrix(size: int, places: np.ndarray) -> np.ndarray:
    """Prefilter and cubic B-spline in one matrix; positions beyond the border see the spline of the padded signal, as in scipy."""
    from scipy.ndimage import spline_filter1d

    padded = np.pad(np.eye(size), ((SPLINE_PADDING, SPLINE_PADDING), (0, 0)), mode="edge")
    coefficients = spline_filter1d(padded, 3, axis=0, mode="nearest")
    knot = np.floor(places).astype(np.intp)
    t = (places - knot)[:, None]
    weights = ((1 - t) ** 3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (4 - 6 * (1 - t) ** 2 + 3 * (1 - t) ** 3) / 6, t**3 / 6)
    matrix: np.ndarray = sum(w * coefficients[knot + SPLINE_PADDING - 1 + k] for k, w in enumerate(weights))
    return matrix


def best_order(maps: Sequence[AxisMap]) -> tuple[int, ...]:
    """The order of the axes with the fewest multiplications: axes that shrink come first, those that grow last."""

    def work(order: tuple[int, ...]) -> float:
        shape = [mapping.size for mapping in maps]
        total = 0.0
        for axis in order:
            shape[axis] = maps[axis].new_size
            total += float(np.prod(shape)) * maps[axis].cost
        return total

    return min(itertools.permutations(range(len(maps))), key=work)


def _apply_all(volume: np.ndarray, maps: Sequence[AxisMap]) -> np.ndarray:
    result = volume
    for axis in best_order(maps):
        result = maps[axis].apply(result, axis)
    return result.copy() if result is volume else result


def _three(shape: Sequence[int]) -> tuple[int, int, int]:
    return (int(shape[0]), int(shape[1]), int(shape[2]))
