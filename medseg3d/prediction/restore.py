"""Bring logits back to the grid of the raw case: logits on the network's grid go in, label indices or probabilities ``(S, A, R)`` come out.

The logits are resampled linearly (a coarse axis apart, by the nearest slice) and arg-maxed tile by tile, so that the classes never exist at
full size. Linear interpolation is a convex combination of the voxels around: in a tile a class whose largest logit lies below another
class's smallest cannot win anywhere, and is not interpolated there. That is exact, and in most tiles one or two classes are left.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg3d.axes import from_network_order
from medseg3d.errors import PlanError
from medseg3d.execution import available_cores, single_threaded_libraries
from medseg3d.preprocessing.preprocess_case import Restoration
from medseg3d.preprocessing.resampling import AxisMap, axis_map, coarse_axis

if TYPE_CHECKING:
    import torch

TILE = (16, 32, 32)
"""Output voxels per tile: few classes meet in it, and its logits of a class (64 KiB) stay in the cache; smaller ones cost more calls."""


def restore_labels(logits: np.ndarray | torch.Tensor, restoration: Restoration, *, num_threads: int | None = None) -> np.ndarray:
    """The arg-max of the resampled logits on the raw grid: indices ``(S, A, R)``, uint8 or uint16; background outside of the crop.

    ``logits``: ``(class, *resampled_shape)`` in network order, any float type, on any device. Of equal logits the lowest index wins.
    """
    source = _Source(logits)
    dtype = np.min_scalar_type(max(1, source.num_classes - 1))
    whole = np.zeros(restoration.permuted_shape, dtype)
    crop = whole[tuple(slice(start, stop) for start, stop in restoration.box)]
    grid = _grid(source.shape, restoration)
    if grid.along is None:
        _run(_label_tile, source, grid, crop, num_threads)
    else:
        winners = np.zeros(tuple(mapping.new_size for mapping in grid.maps), dtype)
        _run(_label_tile, source, grid, winners, num_threads)
        crop[...] = np.take(winners, grid.along.nearest, grid.apart)
    return np.ascontiguousarray(from_network_order(whole, restoration.axis_order))


def restore_probabilities(logits: np.ndarray | torch.Tensor, restoration: Restoration, *, num_threads: int | None = None) -> np.ndarray:
    """The softmax of the resampled logits on the raw grid: ``(class, S, A, R)`` float16; outside of the crop all is background."""
    source = _Source(logits)
    whole = np.zeros((source.num_classes, *restoration.permuted_shape), np.float16)
    whole[0] = 1
    crop = whole[(slice(None), *(slice(start, stop) for start, stop in restoration.box))]
    grid = _grid(source.shape, restoration)
    if grid.along is None:
        _run(_probability_tile, source, grid, crop, num_threads)
    else:
        slices = np.empty((source.num_classes, *(mapping.new_size for mapping in grid.maps)), np.float16)
        _run(_probability_tile, source, grid, slices, num_threads)
        for probability, out in zip(slices, crop, strict=True):
            out[...] = np.take(probability, grid.along.nearest, grid.apart)
    return np.ascontiguousarray(from_network_order(whole, restoration.axis_order))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """One map per axis; a coarse axis ``apart`` has the identity there, and ``along`` repeats or drops whole slices afterwards."""

    maps: tuple[AxisMap, AxisMap, AxisMap]
    apart: int
    along: AxisMap | None


def _grid(shape: Sequence[int], restoration: Restoration) -> _Grid:
    rule = restoration.resampling
    if rule.logits_order not in (0, 1) or rule.logits_coarse_order not in (0, 1):
        raise PlanError(
            f"Logits are restored with spline order 0 or 1; the plan says {rule.logits_order} and {rule.logits_coarse_order}. "
            "Correct logits_order and logits_coarse_order in the planner's file."
        )
    new_shape = restoration.cropped_shape
    apart = coarse_axis(restoration.resampled_spacing, restoration.spacing, rule.separate_threshold)
    maps = [axis_map(n, m, rule.logits_order) for n, m in zip(shape, new_shape, strict=True)]
    along = None
    if apart is not None:
        maps[apart] = axis_map(shape[apart], new_shape[apart], rule.logits_coarse_order)
        # arg-max and softmax act on each voxel by itself, so whole slices may be repeated after them; fewer slices are chosen before
        if rule.logits_coarse_order == 0 and new_shape[apart] > shape[apart]:
            along, maps[apart] = maps[apart], axis_map(shape[apart], shape[apart], 0)
    return _Grid(maps=(maps[0], maps[1], maps[2]), apart=apart or 0, along=along)


class _Source:
    """Logits as float32 bands of slices along axis 0, whatever they are and wherever they lie."""

    def __init__(self, logits: Any) -> None:
        self.is_tensor = not isinstance(logits, np.ndarray)
        self.logits = logits.detach() if self.is_tensor else logits
        self.num_classes = int(logits.shape[0])
        self.shape = tuple(int(n) for n in logits.shape[1:])

    def band(self, start: int, stop: int) -> np.ndarray:
        """``(class, stop - start, n1, n2)`` float32, contiguous."""
        part = self.logits[:, start:stop]
        if self.is_tensor:
            import torch

            # half precision crosses the bus and is widened here
            part = part.to("cpu").to(torch.float32).contiguous().numpy()
        return np.ascontiguousarray(part, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Cut:
    """An edge of a tile: output ``rows``, the source voxels ``support`` that they are made of, and the matrix between (None: the same)."""

    rows: slice
    support: slice
    matrix: np.ndarray | None


def _cuts(mapping: AxisMap, edge: int) -> list[_Cut]:
    cuts = []
    for start in range(0, mapping.new_size, edge):
        rows = slice(start, min(start + edge, mapping.new_size))
        if mapping.is_identity:
            cuts.append(_Cut(rows=rows, support=rows, matrix=None))
            continue
        used = np.flatnonzero(mapping.matrix[rows].any(0))
        support = slice(int(used[0]), int(used[-1]) + 1)
        cuts.append(_Cut(rows=rows, support=support, matrix=np.ascontiguousarray(mapping.matrix[rows, support], np.float32)))
    return cuts


_TileWork = Callable[[np.ndarray, Sequence[_Cut], np.ndarray], None]


def _run(work: _TileWork, source: _Source, grid: _Grid, out: np.ndarray, num_threads: int | None) -> None:
    """Visit all tiles, a row of them along axis 0 at a time: only the slices that the row needs are widened to float32."""
    firsts, middles, lasts = (_cuts(mapping, edge) for mapping, edge in zip(grid.maps, TILE, strict=True))

    def row(first: _Cut) -> None:
        band = source.band(first.support.start, first.support.stop)
        for middle, last in itertools.product(middles, lasts):
            cuts = (first, middle, last)
            work(band[:, :, middle.support, last.support], cuts, out[..., first.rows, middle.rows, last.rows])

    workers = min(num_threads or available_cores(), len(firsts))
    # products this small only lose by threads of their own
    with single_threaded_libraries(), ThreadPoolExecutor(workers, thread_name_prefix="restore") as pool:
        for _ in pool.map(row, firsts):
            pass


def _label_tile(part: np.ndarray, cuts: Sequence[_Cut], out: np.ndarray) -> None:
    classes = _possible_winners(part)
    winner = np.full(out.shape, classes[0], out.dtype)
    if len(classes) > 1:
        best = _interpolate(part[classes[0]], cuts)
        better = np.empty(out.shape, bool)
        for number in classes[1:]:
            values = _interpolate(part[number], cuts)
            np.greater(values, best, out=better)
            np.copyto(winner, out.dtype.type(number), where=better)
            np.maximum(best, values, out=best)
    out[...] = winner


def _possible_winners(part: np.ndarray) -> list[int]:
    """The classes whose largest logit is not below the largest of all smallest logits: the others are beaten everywhere."""
    flat = part.reshape(len(part), -1)
    largest = flat.max(1)
    # the class with the largest logit is the best guess for the highest floor, and spares most others the second pass
    floor = flat[int(largest.argmax())].min()
    classes = np.flatnonzero(largest >= floor)
    if len(classes) > 1:
        classes = classes[largest[classes] >= max(flat[number].min() for number in classes)]
    return [int(number) for number in classes]


def _probability_tile(part: np.ndarray, cuts: Sequence[_Cut], out: np.ndarray) -> None:
    values = np.stack([_interpolate(channel, cuts) for channel in part])
    values -= values.max(0)
    np.exp(values, out=values)
    values /= values.sum(0)
    out[...] = values


def _interpolate(part: np.ndarray, cuts: Sequence[_Cut]) -> np.ndarray:
    """One class on the voxels of a tile, a new float32 array: three small matrix products."""
    first, middle, last = (cut.matrix for cut in cuts)
    values = part if last is None else np.matmul(part, last.T)
    values = values if middle is None else np.matmul(middle, values)
    if first is not None:
        values = np.matmul(first, values.reshape(len(values), -1)).reshape(len(first), *values.shape[1:])
    return values.copy() if values is part else values
