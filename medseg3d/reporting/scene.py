"""What the viewer shows of a case: volumes in canonical axes go in, a description (JSON) and the packed layers of slices come out.

Rows and columns of a slice stand as on a radiologist's screen: the patient's right on the left, anterior or superior on top. The same
layout serves a page that embeds chosen slices and a server that sends any slice; ``viewer/slices.js`` unpacks it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg3d.labels import Labels
from medseg3d.reporting.figures import COLORS
from medseg3d.wording import counted

MAX_LABELS_OF_A_BYTE = 254
"""The background and voxels that nobody has annotated take a value each."""
CT_WINDOWS = (
    ("soft tissue", 40, 400),
    ("lung", -600, 1500),
    ("bone", 400, 1800),
    ("brain", 40, 80),
    ("liver", 60, 160),
    ("mediastinum", 50, 350),
    ("vessels", 300, 600),
)
"""Name, center and width in Hounsfield units, as radiology departments set them."""
CT_RANGE = (-1024.0, 3071.0)
"""Of 12-bit scanners; metal beyond it looks like metal."""
AXES_OF_PLANE = ((1, 2), (0, 2), (0, 1))
"""The canonical axes of rows and columns of a slice, by the axis it is normal to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A named range of values that is spread over all grays."""

    name: str
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """How the whole numbers of a stored channel become values: ``value = number * step + offset``; the first window is shown first."""

    name: str
    step: float
    offset: float
    unit: str
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """Slices normal to ``axis`` at the voxel ``indices``: every ``stride``-th voxel of ``box`` (canonical axes) along rows and columns."""

    axis: int
    indices: tuple[int, ...]
    box: tuple[slice, slice, slice]
    stride: int = 1

    @property
    def row_axis(self) -> int:
        """The canonical axis along the rows' order."""
        return AXES_OF_PLANE[self.axis][0]

    @property
    def column_axis(self) -> int:
        """The canonical axis along the columns' order."""
        return AXES_OF_PLANE[self.axis][1]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; what does not fill a stride is left out."""
        rows, columns = (self.box[axis].stop - self.box[axis].start for axis in (self.row_axis, self.column_axis))
        return max(1, rows // self.stride), max(1, columns // self.stride)

    def describe(self, spacing: Sequence[float]) -> dict[str, Any]:
        """For the viewer, with the voxels of the first row and column and the size of a pixel in mm."""
        rows, columns = self.shape
        middle = (self.stride - 1) // 2
        return {
            "axis": self.axis,
            "indices": list(self.indices),
            "rows": rows,
            "columns": columns,
            "stride": self.stride,
            "row_axis": self.row_axis,
            "column_axis": self.column_axis,
            "row_from": self.box[self.row_axis].start + (rows - 1) * self.stride + middle,
            "column_from": self.box[self.column_axis].start + (columns - 1) * self.stride + middle,
            "row_mm": spacing[self.row_axis] * self.stride,
            "column_mm": spacing[self.column_axis] * self.stride,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """The arrays of a case, (S, A, R), in memory or mapped: channels as whole numbers (uint16), label maps as indices in the order of the
    scene's labels from 1 (0: background; one more than there are labels: not annotated), uncertainty from 0 to 255."""

    channels: tuple[np.ndarray, ...]
    reference: np.ndarray | None = None
    prediction: np.ndarray | None = None
    uncertainty: np.ndarray | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers over the image that are there."""
        return tuple(name for name in ("reference", "prediction", "uncertainty") if getattr(self, name) is not None)


def describe_scene(
    case: str,
    *,
    levels: Sequence[Levels],
    labels: Sequence[str],
    layers: Sequence[str],
    planes: Sequence[Plane],
    shape: Sequence[int],
    spacing: Sequence[float],
    position: Sequence[int],
    title: str = "",
    caption: str = "",
    has_directions: bool = True,
) -> dict[str, Any]:
    """The description of a case for the viewer; ``shape``, ``spacing`` (mm) and ``position`` (voxels) are (S, A, R)."""
    return {
        "case": case,
        "title": title or case,
        "caption": caption,
        "has_directions": has_directions,
        "shape": list(map(int, shape)),
        "spacing": list(map(float, spacing)),
        "position": list(map(int, position)),
        "channels": [
            {
                "name": each.name,
                "step": each.step,
                "offset": each.offset,
                "unit": each.unit,
                "windows": [{"name": window.name, "low": window.low, "high": window.high} for window in each.windows],
            }
            for each in levels
        ],
        "labels": [{"name": name, "color": color_of(place)} for place, name in enumerate(labels)],
        "label_bytes": label_dtype(len(labels)).itemsize,
        "ignored": len(labels) + 1,
        "layers": list(layers),
        "planes": [plane.describe(spacing) for plane in planes],
    }


def pack_slices(volumes: Volumes, plane: Plane) -> bytes:
    """The layers of a plane's slices, one after the other, as ``viewer/slices.js`` reads them: channels as differences along each row,
    low bytes before high bytes, which packs twice as well as the numbers."""
    parts: list[bytes] = []
    for channel in volumes.channels:
        numbers = np.stack([_mean_pixels(channel, plane, index) for index in plane.indices])
        numbers[:, :, 1:] -= numbers[:, :, :-1].copy()
        parts += [(numbers & 255).astype(np.uint8).tobytes(), (numbers >> 8).astype(np.uint8).tobytes()]
    for name in volumes.layers:
        pixels = np.stack([middle_pixels(getattr(volumes, name), plane, index) for index in plane.indices])
        parts.append((pixels & 255).astype(np.uint8).tobytes())
        if pixels.dtype.itemsize == 2:
            parts.append((pixels >> 8).astype(np.uint8).tobytes())
    return b"".join(parts)


def middle_pixels(array: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """A slice in screen order; of each square of ``stride`` voxels the middle one."""
    rows, columns = plane.shape
    middle = (plane.stride - 1) // 2
    picked: np.ndarray = _cut(array, plane, index)[middle :: plane.stride, middle :: plane.stride][:rows, :columns]
    return np.ascontiguousarray(picked[::-1, ::-1])


def _mean_pixels(array: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    rows, columns = plane.shape
    cut = _cut(array, plane, index)
    if plane.stride > 1:
        whole = cut[: rows * plane.stride, : columns * plane.stride]
        if whole.shape == (rows * plane.stride, columns * plane.stride):
            squares = whole.reshape(rows, plane.stride, columns, plane.stride)
            return np.ascontiguousarray(np.rint(squares.mean(axis=(1, 3)))[::-1, ::-1]).astype(np.uint16)
    return middle_pixels(array, plane, index).astype(np.uint16)


def _cut(array: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    where: list[Any] = list(plane.box)
    where[plane.axis] = index
    return np.asarray(array[tuple(where)])


def quantize(channel: np.ndarray, *, name: str, is_ct: bool, num_levels: int) -> tuple[np.ndarray, Levels]:
    """A channel of values → whole numbers (uint16) and what they mean; windows are CT's or made of the image's own quantiles."""
    sample = channel[tuple(slice(None, None, max(1, n // 64)) for n in channel.shape)]
    low, high = (float(edge) for edge in np.quantile(sample, (0.005, 0.995)))
    least, most = (float(sample.min()), float(sample.max()))
    if is_ct:
        least, most = max(float(channel.min()), CT_RANGE[0]), min(float(channel.max()), CT_RANGE[1])
    step = max((most - least) / (num_levels - 1), 1e-6 * max(1.0, abs(most)))
    if is_ct:
        step = max(1.0, math.ceil(step))
    numbers = np.empty(channel.shape, np.uint16)
    for place, plane in enumerate(channel):  # slice by slice: an image may be as large as memory
        numbers[place] = np.rint((np.clip(plane, least, most) - least) / step)
    own = Window(name="whole image", low=low, high=max(high, low + step))
    presets = tuple(Window(name=each, low=center - width / 2, high=center + width / 2) for each, center, width in CT_WINDOWS)
    bright = Window(name="bright parts", low=low + 0.4 * (own.high - low), high=own.high)
    dark = Window(name="dark parts", low=low, high=low + 0.5 * (own.high - low))
    windows = (*presets, own) if is_ct else (own, dark, bright)
    return numbers, Levels(name=name, step=step, offset=least, unit="HU" if is_ct else "", windows=windows)


def label_indices(label_map: np.ndarray, labels: Labels | None, *, values: Sequence[int] = ()) -> np.ndarray:
    """File values, as predicted, → indices for the viewer; values that are none of the labels' become "not annotated".

    Without ``labels`` the foreground ``values`` are the labels.
    """
    foreground = labels.values[1:] if labels else tuple(values)
    background = labels.values[0] if labels else 0
    order = np.argsort(foreground)
    ordered = np.asarray(foreground)[order]
    places = np.clip(np.searchsorted(ordered, label_map), 0, max(len(ordered) - 1, 0))
    dtype = label_dtype(len(foreground))
    if not len(ordered):
        return np.zeros(label_map.shape, dtype)
    found = np.where(ordered[places] == label_map, order[places] + 1, len(foreground) + 1)
    indices: np.ndarray = np.where(label_map == background, 0, found).astype(dtype)
    return indices


def label_dtype(num_labels: int) -> np.dtype[Any]:
    """The type of label indices in a scene."""
    return np.dtype(np.uint8 if num_labels <= MAX_LABELS_OF_A_BYTE else np.uint16)


def color_of(place: int) -> str:
    """The color of a label by its place: those of the pictures first, then hues by the golden angle, which stay apart.

    >>> color_of(0), color_of(10)
    ('#e8590c', '#a667e4')
    """
    if place < len(COLORS):
        return COLORS[place]
    from colorsys import hls_to_rgb

    red, green, blue = hls_to_rgb((place * 0.61803398875 + 0.57) % 1.0, 0.65 if place % 2 == 0 else 0.55, 0.7)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def uncertainty_of(probabilities: np.ndarray, *, are_regions: bool = False) -> np.ndarray:
    """Probabilities (output, …) → 0 (sure) to 255 (as unsure as can be), uint8: how far the most probable class is from certain.

    ``1 - max p`` over its largest value, ``1 - 1 / K`` for K classes. Regions overlap: each is unsure at one half, and the most unsure one
    counts.
    """
    values = np.asarray(probabilities, np.float32)
    classes = values.shape[0]
    if are_regions or classes == 1:
        share = (1 - np.abs(2 * values - 1)).max(axis=0)
    else:
        share = (1 - values.max(axis=0)) / (1 - 1 / classes)
    unsure: np.ndarray = np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)
    return unsure


def caption_of(scores: Mapping[str, float | None]) -> str:
    """A sentence below the viewer: labels with their Dice."""
    defined = {name: value for name, value in scores.items() if value is not None}
    if not defined or len(defined) > 8:
        return f"{counted(len(scores), 'label')}" if scores else ""
    return "Dice: " + ", ".join(f"{name} {value:.3f}" for name, value in defined.items())
