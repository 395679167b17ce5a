"""Which slices of a case a page embeds: around its labels only, most where prediction and reference differ, and no more than fit a mail.

A page that is handed on must not hold a patient's whole scan: what lies outside of the box around the labels is not in it. Voxels that
nobody annotated are no label: of a case without any label only a few slices of the middle are in it.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from medseg3d.reporting.figures import MARGIN, MIN_SHARE
from medseg3d.reporting.scene import AXES_OF_PLANE, Levels, Plane, Volumes, describe_scene, pack_slices

MAX_SIDE = 256
"""Pixels of a slice along its longer side; a laptop's screen gives a plane about 350."""
MAX_SLICES = 24
"""Of a plane and case: a scroll through an organ, not the scan."""
MIN_SLICES = 5
MIN_VOXELS = 4
"""A plane of fewer voxels along a side shows nothing; one plane is always shown."""


def embed_case(
    case: str,
    volumes: Volumes,
    *,
    levels: Sequence[Levels],
    labels: Sequence[str],
    spacing: Sequence[float],
    max_pixels: float,
    **about: Any,
) -> dict[str, Any]:
    """The scene of a case with its chosen slices packed inside; ``max_pixels`` bounds the pixels of all planes and channels together."""
    shape = volumes.channels[0].shape
    maps = [array for array in (volumes.reference, volumes.prediction) if array is not None]
    maps = [np.where(array <= len(labels), array, 0) for array in maps]  # above: not annotated
    planes = choose_planes(shape, maps, max_pixels=max_pixels / len(volumes.channels))
    position = telling_position(shape, maps)
    for plane in planes:
        nearest = min(plane.indices, key=lambda index: abs(index - position[plane.axis]))
        position[plane.axis] = nearest
    scene = describe_scene(
        case,
        levels=levels,
        labels=labels,
        layers=volumes.layers,
        planes=planes,
        shape=shape,
        spacing=spacing,
        position=position,
        **about,
    )
    for description, plane in zip(scene["planes"], planes, strict=True):
        description["data"] = base64.b64encode(zlib.compress(pack_slices(volumes, plane), 9)).decode("ascii")
    return scene


def choose_planes(shape: Sequence[int], maps: Sequence[np.ndarray], *, max_pixels: float) -> tuple[Plane, ...]:
    """Up to three planes of slices around the labels, spread over their extent, with those of most difference among them."""
    occupied = np.zeros(tuple(shape), bool)
    for label_map in maps:
        occupied |= label_map > 0
    box = label_box(occupied)
    importance = _importance(occupied, maps)
    sizes = [box[axis].stop - box[axis].start for axis in range(3)]
    axes = [axis for axis in range(3) if min(sizes[other] for other in AXES_OF_PLANE[axis]) >= MIN_VOXELS]
    axes = axes or [min(range(3), key=lambda axis: sizes[axis])]
    planes = []
    for axis in axes:
        stride = max(1, math.ceil(max(sizes[other] for other in AXES_OF_PLANE[axis]) / MAX_SIDE))
        whole = Plane(axis=axis, indices=(), box=box, stride=stride)
        room = int(max_pixels / len(axes) / math.prod(whole.shape))
        count = min(MAX_SLICES if occupied.any() else MIN_SLICES, max(MIN_SLICES, room), sizes[axis])
        planes.append(Plane(axis=axis, indices=_spread(importance[axis], box[axis], count), box=box, stride=stride))
    return tuple(planes)


def label_box(occupied: np.ndarray) -> tuple[slice, slice, slice]:
    """The box around the labels with a margin to see the anatomy by; the middle of the image where there are none."""
    sides = []
    for axis, n in enumerate(occupied.shape):
        inside = np.flatnonzero(occupied.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (n // 2, n // 2 + 1)
        extent = min(n, max(math.ceil((high - low) * (1 + 2 * MARGIN)), math.ceil(n * MIN_SHARE)))
        start = min(max(0, (low + high - extent) // 2), n - extent)
        sides.append(slice(start, start + extent))
    return (sides[0], sides[1], sides[2])


def telling_position(shape: Sequence[int], maps: Sequence[np.ndarray]) -> list[int]:
    """The voxel where the viewer opens: along each axis the slice of most difference, or of most labels, or the middle."""
    occupied = np.zeros(tuple(shape), bool)
    for label_map in maps:
        occupied |= label_map > 0
    profiles = _importance(occupied, maps)
    return [_peak(profile) for profile in profiles]


def _peak(profile: np.ndarray) -> int:
    """Where a profile is highest; of equal places the one nearest to the middle, which is where nothing stands out."""
    places = np.flatnonzero(profile == profile.max())
    return int(places[np.argmin(np.abs(places - len(profile) // 2))])


def _importance(occupied: np.ndarray, maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Per axis and slice the voxels that differ, which count most, and those of labels."""
    differing = maps[0] != maps[1] if len(maps) == 2 else np.zeros_like(occupied)
    profiles = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        weight = 10.0 if differing.any() else 0.0
        profiles.append(weight * differing.sum(axis=others) + occupied.sum(axis=others))
    return profiles


def _spread(importance: np.ndarray, side: slice, count: int) -> tuple[int, ...]:
    """Slices evenly over what is occupied and its neighbors, with the most important one put in the place of the nearest."""
    inside = np.flatnonzero(importance[side]) + side.start
    low, high = (int(inside[0]), int(inside[-1])) if inside.size else (side.start, side.stop - 1)
    low, high = max(side.start, low - 1), min(side.stop - 1, high + 1)
    chosen = sorted({round(float(place)) for place in np.linspace(low, high, min(count, high - low + 1))})
    best = _peak(importance) if importance.any() else (low + high) // 2
    nearest = min(range(len(chosen)), key=lambda place: abs(chosen[place] - best))
    chosen[nearest] = best
    return tuple(sorted(set(chosen)))
