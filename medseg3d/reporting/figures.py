"""Draw PNG pictures: the progress of a training, and slices of a case with the contours of reference and prediction.

In: records of ``history.jsonl``; arrays in canonical axes (S, A, R) with their spacing in mm. Out: PNG files or PNG bytes.
matplotlib's ``Figure`` is used without pyplot, so nothing here is shared between threads and no display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from medseg3d.errors import InputError
from medseg3d.files import replacing

COLORS = ("#e8590c", "#1c7ed6", "#2f9e44", "#d6336c", "#7048e8", "#0c8599", "#c99700", "#e64980", "#5c7cfa", "#74b816")
"""One color per label, in turn: far apart in hue, and readable both on white paper and on a gray image."""

MAX_NAMED_LABELS = 10
"""More labels than colors cannot be told apart in a legend; the others are drawn thin and gray."""


def progress_figure(history: Sequence[Mapping[str, Any]], path: Path, *, title: str = "") -> Path:
    """Draw losses, pseudo-Dice, learning rate and time over the epochs; write the PNG atomically.

    ``history`` holds one record per epoch: ``epoch``, ``train_loss``, ``validation_loss``, ``pseudo_dice`` (label name → Dice or
    None), ``pseudo_dice_smoothed``, ``learning_rate``, ``seconds``, ``waiting_share`` (0 to 1). Missing values leave gaps.
    Raises :class:`InputError` for an empty history and :class:`StorageError` where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not history:
        raise InputError(f"{path}: there is no epoch to draw yet.")
    figure = Figure(figsize=(10, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    epochs = _column(history, "epoch")
    _draw_losses(axes[0][0], epochs, history)
    _draw_pseudo_dice(axes[0][1], epochs, history)
    _draw_learning_rate(axes[1][0], epochs, history)
    _draw_seconds(axes[1][1], epochs, history)
    for axis in axes.flat:
        axis.grid(visible=True, color="#dee2e6", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    if title:
        figure.suptitle(_plain(title, 90), fontsize=13)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    return path


def _draw_losses(axis: Any, epochs: np.ndarray, history: Sequence[Mapping[str, Any]]) -> None:
    train, validation = _column(history, "train_loss"), _column(history, "validation_loss")
    axis.plot(epochs, train, color="#1c7ed6", label="training", **_style(epochs))
    axis.plot(epochs, validation, color="#e8590c", label="validation", **_style(epochs))
    axis.set_title("Loss")
    axis.legend(frameon=False, fontsize=9)


def _draw_pseudo_dice(axis: Any, epochs: np.ndarray, history: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for record in history for name in (record.get("pseudo_dice") or {})))
    per_label = {name: np.array([_number((record.get("pseudo_dice") or {}).get(name)) for record in history], np.float64) for name in names}
    is_crowded = len(names) > MAX_NAMED_LABELS
    for number, (name, values) in enumerate(per_label.items()):
        color = "#adb5bd" if is_crowded else COLORS[number % len(COLORS)]
        style = {**_style(epochs), "linewidth": 1.0}
        axis.plot(epochs, values, color=color, alpha=0.75, label=None if is_crowded else _plain(name), **style)
    smoothed = _column(history, "pseudo_dice_smoothed")
    axis.plot(epochs, smoothed, color="#212529", label="mean, smoothed", **_style(epochs))
    if np.isfinite(smoothed).any():
        best = int(np.nanargmax(smoothed))
        text = f"best {smoothed[best]:.3f}, epoch {epochs[best]:g}"
        axis.plot(epochs[best], smoothed[best], "*", color="#212529", markersize=11, label=text)
    axis.set_ylim(0, 1)
    axis.set_title(f"Pseudo-Dice of validation patches{f' ({len(names)} labels)' if is_crowded else ''}")
    axis.legend(frameon=False, fontsize=8, ncols=2 if len(names) > 4 else 1, loc="lower right")


def _draw_learning_rate(axis: Any, epochs: np.ndarray, history: Sequence[Mapping[str, Any]]) -> None:
    axis.plot(epochs, _column(history, "learning_rate"), color="#2f9e44", **_style(epochs))
    axis.set_title("Learning rate")
    axis.set_ylim(bottom=0)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _draw_seconds(axis: Any, epochs: np.ndarray, history: Sequence[Mapping[str, Any]]) -> None:
    seconds = _column(history, "seconds")
    waiting = seconds * _column(history, "waiting_share")
    axis.fill_between(epochs, 0, seconds, color="#1c7ed6", alpha=0.25, linewidth=0, label="computing")
    axis.fill_between(epochs, 0, waiting, color="#e8590c", alpha=0.6, linewidth=0, label="waiting for data")
    axis.plot(epochs, seconds, color="#1c7ed6", **_style(epochs))
    axis.set_ylim(bottom=0)
    axis.set_title("Seconds per epoch")
    axis.legend(frameon=False, fontsize=9, loc="lower right")


def _style(epochs: np.ndarray) -> dict[str, Any]:
    """Few epochs are dots and lines: a single epoch would be invisible as a line."""
    return {"linewidth": 1.6, "marker": "o" if len(epochs) <= 20 else None, "markersize": 3}


def _column(history: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([_number(record.get(key)) for record in history], np.float64)


def _number(value: object) -> float:
    """A plain finite number, NaN for anything else (matplotlib leaves a gap)."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _plain(text: str, length: int = 28) -> str:
    """A name as matplotlib shows it literally: no mathematics between dollar signs, no leading underscore (hidden in legends)."""
    short = text if len(text) <= length else text[: length - 1] + "…"
    return (" " if short.startswith("_") else "") + short.replace("$", r"\$")


# ---------------------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One slice to draw: the canonical axis it is normal to, its index, and the box around it (three slices, S, A, R)."""

    axis: int
    index: int
    box: tuple[slice, slice, slice]


VIEW_NAMES = ("axial", "coronal", "sagittal")
MARGIN = 0.35
"""Image shown around the labels, as a share of their extent on each side; less hides the anatomy, more makes labels small."""

MIN_SHARE = 0.4
"""At least this share of the image's extent is shown along each axis, so that a tiny lesion is still seen in its organ."""

MAX_ELONGATION = 2.4
"""A view longer than this (width to height in mm, either way) is left out: beside it the others would be too small to judge."""


def case_figure(
    image: np.ndarray,
    reference: np.ndarray | None,
    prediction: np.ndarray | None,
    *,
    spacing: Sequence[float],
    labels: Mapping[int, str],
    has_directions: bool = True,
) -> bytes:
    """PNG bytes of the most telling slices of a case in up to three orthogonal views, true to scale.

    ``image``, ``reference``, ``prediction`` are (S, A, R), ``spacing`` in mm in the same order; ``labels`` maps the values of the
    label maps to names, without background. The reference is dashed white, the prediction has one color per label. Axial and
    coronal views are seen as radiologists do, the patient's right on the left side; ``has_directions=False`` leaves out the
    letters. Raises :class:`InputError` where the shapes differ.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for what, array in (("reference", reference), ("prediction", prediction)):
        if array is not None and array.shape != image.shape:
            raise InputError(f"The {what} has shape {array.shape}, the image {image.shape}; they must lie on one grid.")
    label_maps = [array for array in (reference, prediction) if array is not None]
    views = choose_views(image.shape, label_maps, spacing=spacing, values=tuple(labels))
    sizes = [_size_mm(view, spacing) for view in views]
    widths = [width / height for width, height in sizes]
    height_in = min(4.2 if len(views) > 1 else 5.6, 11.0 / sum(widths))
    width_in = max(height_in * sum(widths), 4.0)
    columns = max(1, int(width_in / 1.5))
    colors = {value: COLORS[number % len(COLORS)] for number, value in enumerate(labels)}
    visible = [value for value in labels if any(_shows(value, view, label_maps) for view in views)]
    handles, names = _legend(visible, labels, colors, has_reference=reference is not None)
    footer_in = 0.14 + 0.22 * math.ceil(len(names) / columns)
    figure = Figure(figsize=(width_in, height_in + footer_in), facecolor="#0b0d10")
    FigureCanvasAgg(figure)
    bottom = footer_in / (height_in + footer_in)
    left = (1 - height_in * sum(widths) / width_in) / 2
    for view, width in zip(views, widths, strict=True):
        share = width * height_in / width_in
        axis = figure.add_axes((left + 0.003, bottom, share - 0.006, 1 - bottom))
        left += share
        _draw_view(axis, view, image, reference, prediction, spacing=spacing, colors=colors)
        _annotate(axis, view, has_directions=has_directions)
    style = {"frameon": False, "labelcolor": "#dee2e6", "fontsize": 8.5, "handlelength": 1.8, "borderaxespad": 0.2}
    if names:
        figure.legend(handles, names, loc="lower center", ncols=min(columns, len(names)), **style)
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110, facecolor=figure.get_facecolor(), bbox_inches="tight", pad_inches=0.03)
    return out.getvalue()


def _legend(
    visible: Sequence[int], labels: Mapping[int, str], colors: Mapping[int, str], *, has_reference: bool
) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colors[value], linewidth=2.2) for value in visible]
    names = [_plain(labels[value], 22) for value in visible]
    if len(visible) > MAX_NAMED_LABELS:  # colors repeat by then, so that names beside them would mislead
        handles, names = [Line2D([], [], color="none")], [f"{len(visible)} labels, colors repeat"]
    if has_reference:
        handles.append(Line2D([], [], color="white", linewidth=1.3, linestyle=(0, (4, 2))))
        names.append("reference")
    return handles, names


def _shows(value: int, view: View, label_maps: Sequence[np.ndarray]) -> bool:
    return any(bool((_cut(label_map, view) == value).any()) for label_map in label_maps)


def choose_views(
    shape: Sequence[int], label_maps: Sequence[np.ndarray], *, spacing: Sequence[float], values: Sequence[int]
) -> tuple[View, ...]:
    """The slices that show most: per axis the one with the largest sum, over labels, of the share of the label that it cuts.

    Shares, not voxels, so that small labels count as much as large ones. Without any label the middle slices are taken.
    Views of fewer than four voxels along a side, or longer than :data:`MAX_ELONGATION`, are left out, but one always stays.
    """
    profiles = [np.zeros(n) for n in shape]
    occupied = np.zeros(tuple(shape), bool)
    for label_map in label_maps:
        for value in values:
            mask = label_map == value
            count = np.count_nonzero(mask)
            if count:
                occupied |= mask
                for axis in range(3):
                    profiles[axis] += mask.sum(axis=tuple(a for a in range(3) if a != axis)) / count
    box = _box(occupied)
    indices = [int(np.argmax(p)) if p.any() else n // 2 for p, n in zip(profiles, shape, strict=True)]
    views = [View(axis=axis, index=indices[axis], box=box) for axis in range(3)]

    def ratio(view: View) -> float:
        width, height = _size_mm(view, spacing)
        return max(width / height, height / width)

    def cells(view: View) -> int:
        return min(shape[axis] for axis in range(3) if axis != view.axis)

    good = [view for view in views if ratio(view) <= MAX_ELONGATION and cells(view) >= 4]
    return tuple(good) or (min(views, key=lambda view: (cells(view) < 4, ratio(view))),)


def _box(occupied: np.ndarray) -> tuple[slice, slice, slice]:
    slices = []
    for axis, n in enumerate(occupied.shape):
        inside = np.flatnonzero(occupied.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, n)
        extent = min(n, max(math.ceil((high - low) * (1 + 2 * MARGIN)), math.ceil(n * MIN_SHARE)))
        start = min(max(0, (low + high - extent) // 2), n - extent)
        slices.append(slice(start, start + extent))
    return (slices[0], slices[1], slices[2])


def _plane_axes(view: View) -> tuple[int, int]:
    """The canonical axes of (rows, columns) of a view."""
    return ((1, 2), (0, 2), (0, 1))[view.axis]


def _size_mm(view: View, spacing: Sequence[float]) -> tuple[float, float]:
    rows, columns = _plane_axes(view)
    return (
        (view.box[columns].stop - view.box[columns].start) * spacing[columns],
        (view.box[rows].stop - view.box[rows].start) * spacing[rows],
    )


def _cut(array: np.ndarray, view: View) -> np.ndarray:
    rows, columns = _plane_axes(view)
    index: list[Any] = [0, 0, 0]
    index[view.axis] = view.index
    index[rows], index[columns] = view.box[rows], view.box[columns]
    # Rows grow upward (S or A); columns are flipped: R and A then stand on the left, as on a radiologist's screen.
    return np.asarray(array[tuple(index)])[:, ::-1]


def _draw_view(
    axis: Any,
    view: View,
    image: np.ndarray,
    reference: np.ndarray | None,
    prediction: np.ndarray | None,
    *,
    spacing: Sequence[float],
    colors: Mapping[int, str],
) -> None:
    from matplotlib.patheffects import withStroke

    width, height = _size_mm(view, spacing)
    plane = _cut(image, view).astype(np.float32)
    low, high = np.percentile(plane, (0.5, 99.5))
    smooth = "bilinear" if min(plane.shape) > 1 else "nearest"
    gray = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6), "interpolation": smooth}
    axis.imshow(plane, origin="lower", extent=(0, width, 0, height), **gray)
    layers = ((prediction, None, 1.6), (reference, "white", 1.0))
    for label_map, fixed, line_width in layers:
        if label_map is None:
            continue
        cut = _cut(label_map, view)
        # Cell centers, with one empty cell around, so that a label at the rim of the box is closed as well.
        rows = (np.arange(-1, cut.shape[0] + 1) + 0.5) * (height / cut.shape[0])
        columns = (np.arange(-1, cut.shape[1] + 1) + 0.5) * (width / cut.shape[1])
        for value, color in colors.items():
            mask = cut == value
            if not mask.any():
                continue
            contours = axis.contour(
                columns,
                rows,
                np.pad(mask, 1).astype(np.float32),
                levels=[0.5],
                colors=[fixed or color],
                linewidths=line_width,
                linestyles=[(0, (4, 2))] if fixed else "solid",
            )
            # A dark rim keeps white visible on bright organs, and colors on gray ones.
            contours.set_path_effects([withStroke(linewidth=line_width + 1.4, foreground="#0b0d10", alpha=0.55)])
    axis.set_xlim(0, width)
    axis.set_ylim(0, height)
    axis.set_axis_off()


def _annotate(axis: Any, view: View, *, has_directions: bool) -> None:
    letters = ("R", "R", "A")[view.axis]
    box = {"facecolor": "#0b0d10", "alpha": 0.55, "edgecolor": "none", "pad": 1.5}
    text = {"transform": axis.transAxes, "color": "#dee2e6", "fontsize": 8, "bbox": box}
    name = VIEW_NAMES[view.axis] if has_directions else f"axis {view.axis}"
    axis.text(0.02, 0.97, f"{name}, slice {view.index}", va="top", **text)
    if has_directions:
        axis.text(0.02, 0.5, letters, va="center", **text)
