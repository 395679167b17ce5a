"""The outlines of a mask in one slice: pixels in, closed polygons out that enclose the centers of exactly these pixels.

A polygon goes halfway between pixels that are in and neighbors that are not. A hole is joined to the outline around it by a channel
without width, as DICOM's closed planar contours ask for (PS3.3, C.8.8.6.3): readers that know no holes see one there as well.
"""

from __future__ import annotations

import numpy as np

Polygon = np.ndarray
"""Corners (column, row) of a closed polygon, each once; (0, 0) is the center of the first pixel."""


def outlines(mask: np.ndarray) -> list[Polygon]:
    """The polygons of a mask (column, row), one for each of its parts; pixels that only touch at a corner belong to different parts."""
    from skimage.measure import find_contours

    columns, rows = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(columns):
        return []
    start = np.array([columns[0], rows[0]])
    part = np.pad(mask[columns[0] : columns[-1] + 1, rows[0] : rows[-1] + 1], 1).astype(np.float32)
    curves = [_without_middles(curve[:-1]) + start - 1 for curve in find_contours(part, 0.5, fully_connected="low")]
    areas = [_area(curve) for curve in curves]
    sign = np.sign(max(areas, key=abs))  # the largest encloses others, or nothing
    outer = [curve for curve, area in zip(curves, areas, strict=True) if area * sign > 0]
    holes = [curve for curve, area in zip(curves, areas, strict=True) if area * sign < 0]
    by_outer: dict[int, list[Polygon]] = {}
    for hole in holes:
        by_outer.setdefault(_around(hole[0], outer), []).append(hole)
    return [_with_holes(curve, by_outer.get(index, [])) for index, curve in enumerate(outer)]


def filled(polygons: list[Polygon], shape: tuple[int, int]) -> np.ndarray:
    """The pixels (column, row) whose centers lie in an odd number of polygons: the inverse of :func:`outlines`."""
    crossings = np.zeros((shape[0] + 1, shape[1]), np.int64)
    for polygon in polygons:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            low, high = (np.ceil(min(y0, y1)), np.ceil(max(y0, y1)))
            for row in range(max(0, int(low)), min(shape[1], int(high))):
                at = x0 + (row - y0) / (y1 - y0) * (x1 - x0)
                crossings[min(shape[0], max(0, int(np.ceil(at)))), row] += 1
    return np.cumsum(crossings, axis=0)[:-1] % 2 == 1


def _without_middles(curve: Polygon) -> Polygon:
    """Without corners on the straight line between their neighbors."""
    before, after = curve - np.roll(curve, 1, axis=0), np.roll(curve, -1, axis=0) - curve
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return curve[np.abs(turns) > 1e-9] if (np.abs(turns) > 1e-9).sum() > 2 else curve


def _area(curve: Polygon) -> float:
    """Twice the signed area: outlines and holes go round in opposite directions."""
    x, y = curve.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def _around(point: np.ndarray, outer: list[Polygon]) -> int:
    """Which outline a hole lies in: the smallest that encloses one of its corners."""
    enclosing = [index for index, curve in enumerate(outer) if _encloses(curve, point)]
    return min(enclosing, key=lambda index: abs(_area(outer[index])))


def _encloses(curve: Polygon, point: np.ndarray) -> bool:
    first, second = curve, np.roll(curve, -1, axis=0)
    is_crossed = (first[:, 1] > point[1]) != (second[:, 1] > point[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        at = first[:, 0] + (point[1] - first[:, 1]) / (second[:, 1] - first[:, 1]) * (second[:, 0] - first[:, 0])
    return bool((is_crossed & (at > point[0])).sum() % 2)


def _with_holes(outline: Polygon, holes: list[Polygon]) -> Polygon:
    """One polygon that goes into each hole and back the same way, the nearest hole first."""
    waiting = list(holes)
    while waiting:
        ways = [_shortest_way(outline, hole) for hole in waiting]
        nearest = min(range(len(waiting)), key=lambda index: ways[index][0])
        _, here, there = ways[nearest]
        hole = waiting.pop(nearest)
        inside = np.concatenate([hole[there:], hole[: there + 1]])
        outline = np.concatenate([outline[: here + 1], inside, outline[here:]])
    return outline


def _shortest_way(outline: Polygon, hole: Polygon) -> tuple[float, int, int]:
    """Its squared length, and the corners that it joins."""
    distances = ((outline[:, None] - hole[None]) ** 2).sum(-1)
    here, there = np.unravel_index(int(distances.argmin()), distances.shape)
    return float(distances[here, there]), int(here), int(there)
