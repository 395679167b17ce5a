"""Resample logits to the original grid: slabs of logits on the network's grid go in, label indices or probabilities come out.

The logits are resampled linearly (a coarse axis by the nearest slice) and arg-maxed tile by tile as they come: neither the logits
of the volume nor the classes at full size ever exist.
Linear interpolation is a convex combination of the voxels around: in a tile a class whose largest logit lies below another class's
smallest cannot win anywhere, and is not interpolated there. That is exact, and in most tiles one or two classes are left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg3d.axes import to_network_order
from medseg3d.errors import PlanError
from medseg3d.execution import available_cores, single_threaded_blas
from medseg3d.preprocessing.preprocess_case import Restoration
from medseg3d.preprocessing.resampling import AxisMap, axis_map, coarse_axis

TILE = (16, 32, 32)
"""Output voxels per tile: few classes meet in it, and its logits of a class (64 KiB) stay in the cache; smaller ones cost more calls."""
BLOCK_BYTES = 256 << 20
"""Blocks of probabilities, which hold all classes, have as many rows as fit."""

Slab = Any
"""A NumPy array or a torch tensor (any float type, any device) of logits ``(K, rows, n1, n2)`` in network order."""


def restore_label_maps(
    slabs: Iterable[Slab],
    num_outputs: int,
    restoration: Restoration,
    *,
    num_maps: int = 1,
    is_regions: bool = False,
    num_threads: int | None = None,
) -> list[np.ndarray]:
    """The arg-max of the resampled logits on the raw grid: indices ``(S, A, R)``, uint8 or uint16; background outside of the crop.

    ``slabs`` are consecutive along axis 0 and make up ``(num_maps * num_outputs, *resampled_shape)``: a label map of every ``num_outputs``
    logits. Each slab is done with before the next one is asked for. Of equal logits the lowest index wins. ``is_regions``: logits are of
    overlapping regions, in region class order where they are above 0, region ``i`` with index ``i + 1``.
    """
    single = _region_tile if is_regions else _label_tile

    def work(part: np.ndarray, cuts: Sequence[_Cut], out: np.ndarray) -> None:
        for number, labels in enumerate(out):
            single(part[number * num_outputs : (number + 1) * num_outputs], cuts, labels)

    canvases = [LabelCanvas(restoration, num_outputs if is_regions else num_outputs - 1) for _ in range(num_maps)]
    dtype = canvases[0].indices.dtype
    for rows, block in _restored(slabs, num_maps * num_outputs, restoration, work, (num_maps,), dtype, TILE[0], num_threads):
        for canvas, labels in zip(canvases, block, strict=True):
            canvas.crop[rows] = labels
    return [canvas.indices for canvas in canvases]


def restored_probabilities(
    slabs: Iterable[Slab], num_outputs: int, restoration: Restoration, *, is_regions: bool = False, num_threads: int | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """The softmax (of regions the sigmoid) of the resampled logits, block by block: rows of the crop, ``(K + 1, rows, n1, n2)`` float32.

    The last channel holds the index of the label, as :func:`restore_label_maps` gives it. All in network order; ``slabs`` as there. Each
    block is a new array.
    """
    _, middle, last = restoration.cropped_shape
    rows = max(1, min(TILE[0], BLOCK_BYTES // (4 * num_outputs * middle * last)))
    work = _sigmoid_tile if is_regions else _softmax_tile
    return _restored(slabs, num_outputs, restoration, work, (num_outputs + 1,), np.dtype(np.float32), rows, num_threads)


def on_whole(
    blocks: Iterable[tuple[slice, np.ndarray]], part: Restoration, whole: Restoration, num_outputs: int, *, is_regions: bool
) -> Iterator[tuple[slice, np.ndarray]]:
    """The blocks of :func:`restored_probabilities` of a smaller box as blocks of a larger one that it lies in: background around them."""
    first, *sides = [(low - outer, high - outer) for (low, high), (outer, _) in zip(part.box, whole.box, strict=True)]
    if part.box == whole.box:
        yield from blocks
        return

    def background(start: int, stop: int) -> tuple[slice, np.ndarray]:
        block = np.zeros((num_outputs + 1, stop - start, *whole.cropped_shape[1:]), np.float32)
        if not is_regions:
            block[0] = 1
        return slice(start, stop), block

    for start in range(0, first[0], TILE[0]):
        yield background(start, min(start + TILE[0], first[0]))
    for rows, values in blocks:
        place, block = background(first[0] + rows.start, first[0] + rows.stop)
        block[:, :, slice(*sides[0]), slice(*sides[1])] = values
        yield place, block
    for start in range(first[1], whole.cropped_shape[0], TILE[0]):
        yield background(start, min(start + TILE[0], whole.cropped_shape[0]))


class LabelCanvas:
    """A label map of background on the raw grid, ``indices`` (S, A, R), and a view of it, ``crop``, as the logits' rows lie in it."""

    def __init__(self, restoration: Restoration, largest: int) -> None:
        self.indices: np.ndarray = np.zeros(restoration.original_shape, np.min_scalar_type(max(1, largest)))
        self.crop = on_crop(self.indices, restoration)


def on_crop(array: np.ndarray, restoration: Restoration) -> np.ndarray:
    """A view of ``(..., S, A, R)`` on the raw grid: the crop in network order."""
    first, second, third = (slice(start, stop) for start, stop in restoration.box)
    return to_network_order(array, restoration.axis_order)[..., first, second, third]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """One map per axis; a coarse axis ``apart`` has the identity there, and ``along`` repeats or drops whole slices afterwards."""

    maps: tuple[AxisMap, AxisMap, AxisMap]
    apart: int
    along: AxisMap | None

    def placed(self, rows: slice, block: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Where a block ``(..., rows, n1, n2)`` comes to lie: rows of the crop, and the block with slices repeated along a coarse axis."""
        if self.along is None:
            yield rows, block
        elif self.apart == 0:
            first, last = np.searchsorted(self.along.nearest, (rows.start, rows.stop))
            if first < last:
                yield slice(int(first), int(last)), np.take(block, self.along.nearest[first:last] - rows.start, -3)
        else:
            yield rows, np.take(block, self.along.nearest, self.apart - 3)


def _grid(restoration: Restoration) -> _Grid:
    rule = restoration.resampling
    if rule.logits_order not in (0, 1) or rule.logits_coarse_order not in (0, 1):
        raise PlanError(
            f"Logits are resampled with spline order 0 or 1; the plan says {rule.logits_order} and {rule.logits_coarse_order}. "
            "Correct logits_order and logits_coarse_order in the planner's file."
        )
    shape, new_shape = restoration.resampled_shape, restoration.cropped_shape
    apart = coarse_axis(restoration.resampled_spacing, restoration.spacing, rule.separate_threshold)
    maps = [axis_map(n, m, rule.logits_order) for n, m in zip(shape, new_shape, strict=True)]
    along = None
    if apart is not None:
        maps[apart] = axis_map(shape[apart], new_shape[apart], rule.logits_coarse_order)
        # arg-max and softmax act on each voxel by itself, so whole slices may be repeated after them; fewer slices are chosen before
        if rule.logits_coarse_order == 0 and new_shape[apart] > shape[apart]:
            along, maps[apart] = maps[apart], axis_map(shape[apart], shape[apart], 0)
    return _Grid(maps=(maps[0], maps[1], maps[2]), apart=apart or 0, along=along)


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


def _restored(
    slabs: Iterable[Slab],
    num_outputs: int,
    restoration: Restoration,
    work: _TileWork,
    lead: tuple[int, ...],
    dtype: np.dtype,
    tile_rows: int,
    num_threads: int | None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of the crop and what ``work`` makes of them, ``(*lead, rows, n1, n2)``, as soon as their logits have come."""
    grid = _grid(restoration)
    firsts, middles, lasts = (_cuts(mapping, edge) for mapping, edge in zip(grid.maps, (tile_rows, *TILE[1:]), strict=True))
    shape = (*lead, 0, grid.maps[1].new_size, grid.maps[2].new_size)
    rows = _Rows(num_outputs)
    todo = deque(firsts)

    def strip(first: _Cut, middle: _Cut, out: np.ndarray) -> None:
        part = rows.strip(first.support, middle.support)
        for last in lasts:
            work(part[..., last.support], (first, middle, last), out[..., middle.rows, last.rows])

    with ThreadPoolExecutor(num_threads or available_cores(), thread_name_prefix="restore") as pool:
        for slab in slabs:
            rows.append(slab)
            while todo and todo[0].support.stop <= rows.stop:
                first = todo.popleft()
                block = np.empty((*lead, first.rows.stop - first.rows.start, *shape[-2:]), dtype)
                with single_threaded_blas():  # products this small only lose by threads of their own
                    for _ in pool.map(lambda middle, first=first, block=block: strip(first, middle, block), middles):
                        pass
                yield from grid.placed(first.rows, block)
            rows.drop_before(todo[0].support.start if todo else rows.stop)
    if todo:
        raise ValueError(
            f"{len(todo)} of {len(firsts)} blocks are missing: the slabs end at row {rows.stop} of {restoration.resampled_shape[0]}"
        )


class _Rows:
    """The rows of logits that are still needed: those of the slab at hand, and a copy of some before it."""

    def __init__(self, num_outputs: int) -> None:
        self.num_outputs = num_outputs
        self.stop = 0
        self._pieces: list[tuple[int, np.ndarray]] = []

    def append(self, slab: Slab) -> None:
        """The next rows."""
        array = _on_host(slab)
        if len(array) != self.num_outputs:
            raise ValueError(f"a slab of {len(array)} logits per voxel, expected {self.num_outputs}")
        self._pieces.append((self.stop, array))
        self.stop += array.shape[1]

    def strip(self, rows: slice, columns: slice) -> np.ndarray:
        """``(K, rows, columns, n2)`` float32, a new array."""
        array = np.empty((self.num_outputs, rows.stop - rows.start, columns.stop - columns.start, self._pieces[0][1].shape[3]), np.float32)
        for start, piece in self._pieces:
            low, high = max(rows.start, start), min(rows.stop, start + piece.shape[1])
            if low < high:
                array[:, low - rows.start : high - rows.start] = piece[:, low - start : high - start, columns]
        return array

    def drop_before(self, row: int) -> None:
        """Keep a copy of the rows from ``row`` on: the slab itself may change now."""
        kept = [piece[:, max(0, row - start) :] for start, piece in self._pieces if start + piece.shape[1] > row]
        self._pieces = [(row, np.concatenate(kept, 1))] if kept else []


def _on_host(slab: Slab) -> np.ndarray:
    if isinstance(slab, np.ndarray):
        return slab
    import torch

    tensor = slab.detach().to("cpu")  # half precision crosses the bus and is widened here
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


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


def _region_tile(part: np.ndarray, cuts: Sequence[_Cut], out: np.ndarray) -> None:
    out[...] = 0
    for number, region in enumerate(part, start=1):
        if region.max() > 0:  # interpolation never exceeds the largest voxel around
            np.copyto(out, out.dtype.type(number), where=_interpolate(region, cuts) > 0)


def _softmax_tile(part: np.ndarray, cuts: Sequence[_Cut], out: np.ndarray) -> None:
    values = np.stack([_interpolate(channel, cuts) for channel in part])
    out[-1] = values.argmax(0)
    values -= values.max(0)
    np.exp(values, out=values)
    np.divide(values, values.sum(0), out=out[:-1])


def _sigmoid_tile(part: np.ndarray, cuts: Sequence[_Cut], out: np.ndarray) -> None:
    out[-1] = 0
    for number, channel in enumerate(part):
        values = _interpolate(channel, cuts)
        small = np.exp(-np.abs(values))  # never of a large positive number
        out[number] = np.where(values >= 0, 1, small) / (1 + small)
        np.copyto(out[-1], number + 1, where=values > 0)


def _interpolate(part: np.ndarray, cuts: Sequence[_Cut]) -> np.ndarray:
    """One class on the voxels of a tile, a new float32 array: three small matrix products."""
    first, middle, last = (cut.matrix for cut in cuts)
    values = part if last is None else np.matmul(part, last.T)
    values = values if middle is None else np.matmul(middle, values)
    if first is not None:
        values = np.matmul(first, values.reshape(len(values), -1)).reshape(len(first), *values.shape[1:])
    return values.copy() if values is part else values
