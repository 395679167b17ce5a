"""What kind of mistake a prediction made of a label: missed, extra, left for right, shifted, taken for another, only at the border …

Two label maps in canonical axes go in, one finding per label that is not good comes out. The kinds are tried in the order of
:data:`KINDS`; the first one that explains the mistake is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medseg3d.data.cropping import Box
from medseg3d.evaluation.label_masks import TwoMaps, two_maps
from medseg3d.evaluation.lesions import components
from medseg3d.labels import Labels

Kind = Literal[
    "missed", "extra", "left for right", "another label", "shifted", "border", "stray", "part missed", "too small", "too large", "mixed"
]
KINDS: dict[Kind, str] = {
    "missed": "the reference has it, the prediction nowhere",
    "extra": "the prediction has it, the reference nowhere",
    "left for right": "it lies where its partner of the other side is, or fits when it is mirrored",
    "shifted": "the shape is right, the place is not",
    "another label": "most of the missed part was predicted as another label",
    "border": "nearly all wrong voxels lie at the surface",
    "stray": "most of the wrong voxels are objects that touch no part of the reference",
    "part missed": "most of the wrong voxels are objects of the reference that were not found at all",
    "too small": "at least three quarters of the wrong voxels are missing ones",
    "too large": "at least three quarters of the wrong voxels are added ones",
    "mixed": "none of these",
}
"""By name what each means, in the order in which they are tried."""

GOOD_DICE = 0.95
"""Above it there is nothing to explain: two readers seldom agree better."""
TAKEN_SHARE = 0.5
"""Of the reference's voxels that another label must hold."""
GAIN = 0.5
"""Of what is missing to a Dice of 1: a shift or a mirror that wins back less does not explain the mistake."""
SLACK = 0.05
"""Of Dice: a mirror must explain the mistake about as well as a shift does."""
BORDER_SHARE = 0.9
"""Of the wrong voxels within the band along the reference's surface; a tenth elsewhere is noise."""
BORDER_VOXELS = 1.5
"""Half the width of that band along each axis; it is never below the tolerance of NSD."""
PIECE_SHARE = 0.5
ONE_SIDED = 0.75
DIRECTIONS = (("inferior", "superior"), ("posterior", "anterior"), ("left", "right"))
"""Of the canonical axes S, A, R, toward lower and higher voxels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong with a label of a case; ``detail`` says how much, in a few words."""

    label: str
    kind: Kind
    dice: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Masks:
    """One label in the box of both masks; ``spacing`` in mm."""

    index: int
    box: Box
    predicted: np.ndarray
    referenced: np.ndarray
    spacing: tuple[float, ...]

    @property
    def wrong(self) -> np.ndarray:
        return self.predicted ^ self.referenced


def failures_of_files(prediction: Path, reference: Path, case: str, labels: Labels, *, tolerance_mm: float) -> tuple[Failure, ...]:
    """:func:`failures_of` two files; raises :class:`InputError` where they cannot be read or lie on different grids."""
    from medseg3d.data.reading import read_label_maps

    predicted, referenced, spacing = read_label_maps(prediction, reference, case, soft=labels.values if labels.soft else (), labels=labels)
    return failures_of(predicted, referenced, labels, spacing=spacing, tolerance_mm=tolerance_mm, case=case)


def failures_of(
    prediction: np.ndarray, reference: np.ndarray, labels: Labels, *, spacing: Sequence[float], tolerance_mm: float, case: str = "case"
) -> tuple[Failure, ...]:
    """The labels of a case that are not good, worst first; both maps hold file values, axes (S, A, R), ``spacing`` in mm."""
    maps = two_maps(prediction, reference, labels, case)
    found = []
    for index, box in enumerate(maps.boxes()):
        if box is None:
            continue
        predicted, referenced = maps.masks(index, box)
        if not (predicted.any() or referenced.any()):
            continue
        masks = _Masks(index=index, box=box, predicted=predicted, referenced=referenced, spacing=tuple(map(float, spacing)))
        if _dice(predicted, referenced) < GOOD_DICE:
            found.append(_failure(masks, maps, labels, tolerance_mm))
    return tuple(sorted(found, key=lambda failure: failure.dice))


def _failure(masks: _Masks, maps: TwoMaps, labels: Labels, tolerance_mm: float) -> Failure:
    name, dice = labels.names[masks.index], _dice(masks.predicted, masks.referenced)
    volume = float(np.prod(masks.spacing)) / 1000

    def told(kind: Kind, detail: str = "") -> Failure:
        return Failure(label=name, kind=kind, dice=dice, detail=detail)

    if not masks.predicted.any():
        return told("missed", f"{np.count_nonzero(masks.referenced) * volume:.3g} ml")
    if not masks.referenced.any():
        return told("extra", f"{np.count_nonzero(masks.predicted) * volume:.3g} ml")
    if other := _swapped(masks, maps, labels):
        return told("left for right", other)
    if moved := _shift(masks, dice):
        return told("shifted", moved)
    if other := _taken_for(masks, maps, labels):
        return told("another label", other)
    if _is_border(masks, tolerance_mm):
        return told("border", f"{_share(masks.predicted & ~masks.referenced, masks.wrong):.0%} of the wrong voxels too many")
    stray = _share(_untouched(masks.predicted, masks.referenced), masks.wrong)
    if stray >= PIECE_SHARE:
        return told("stray", f"{np.count_nonzero(_untouched(masks.predicted, masks.referenced)) * volume:.3g} ml elsewhere")
    lost = _share(_untouched(masks.referenced, masks.predicted), masks.wrong)
    if lost >= PIECE_SHARE:
        return told("part missed", f"{np.count_nonzero(_untouched(masks.referenced, masks.predicted)) * volume:.3g} ml")
    missing = _share(masks.referenced & ~masks.predicted, masks.wrong)
    ratio = np.count_nonzero(masks.predicted) / np.count_nonzero(masks.referenced)
    kind: Kind = "too small" if missing >= ONE_SIDED else "too large" if missing <= 1 - ONE_SIDED else "mixed"
    return told(kind, f"{ratio:.0%} of the reference's volume")


def _swapped(masks: _Masks, maps: TwoMaps, labels: Labels) -> str:
    """Where the partner of the other side was predicted, or the mirrored prediction fits; empty otherwise."""
    for left, right in labels.pairs:
        if masks.index in (left, right):
            partner = right if masks.index == left else left
            taken = np.isin(maps.prediction[masks.box], maps.members[partner])
            if _share(taken & masks.referenced, masks.referenced) >= TAKEN_SHARE:
                return f"predicted as {labels.names[partner]}"
            return ""
    whole = (slice(None), slice(None), slice(None))
    predicted, referenced = maps.masks(masks.index, whole)
    columns = np.flatnonzero(referenced.any(axis=(0, 1)))
    if columns[0] < referenced.shape[2] / 2 <= columns[-1]:
        return ""  # what crosses the middle has no other side
    before, after = _dice(predicted, referenced), _dice(predicted[:, :, ::-1], referenced)
    is_better = after - before >= GAIN * (1 - before) and after >= _moved(masks)[0] - SLACK
    return f"Dice {after:.2f} when mirrored" if is_better else ""


def _taken_for(masks: _Masks, maps: TwoMaps, labels: Labels) -> str:
    """The label that most of the reference was predicted as; empty where there is none. Regions overlap and are not asked."""
    if labels.regions:
        return ""
    inside = maps.prediction[masks.box][masks.referenced & ~masks.predicted]
    if inside.size == 0:
        return ""
    counts = np.bincount(inside.ravel())
    counts[list(maps.members[0])] = 0
    place = int(np.argmax(counts))
    if counts[place] < TAKEN_SHARE * np.count_nonzero(masks.referenced):
        return ""
    others = [labels.names[index] for index, members in enumerate(maps.members) if index and place in members]
    return f"predicted as {others[0]}" if others else ""


def _shift(masks: _Masks, dice: float) -> str:
    """Where the prediction, moved onto the reference's center, fits much better: how far off it lies, and to where."""
    after, lengths = _moved(masks)
    if after - dice < GAIN * (1 - dice):
        return ""
    axis = int(np.argmax(np.abs(lengths)))
    return f"{np.linalg.norm(lengths):.3g} mm, mostly to {DIRECTIONS[axis][int(lengths[axis] > 0)]}"


def _moved(masks: _Masks) -> tuple[float, np.ndarray]:
    """The Dice when the two centers lie on each other, to a voxel, and the way in mm (S, A, R) from the reference to the prediction."""
    centers = [np.argwhere(mask).mean(axis=0) for mask in (masks.predicted, masks.referenced)]
    steps = [int(step) for step in np.rint(centers[0] - centers[1])]
    pad = [(abs(step), abs(step)) for step in steps]
    predicted, referenced = np.pad(masks.predicted, pad), np.pad(masks.referenced, pad)
    moved = np.roll(predicted, [-step for step in steps], axis=(0, 1, 2))  # the padding takes what comes around
    return _dice(moved, referenced), (centers[0] - centers[1]) * masks.spacing


def _is_border(masks: _Masks, tolerance_mm: float) -> bool:
    import edt

    # Distances in half widths of the band, which differ by axis: an error of one thick slice is one of the border as well.
    steps = tuple(float(length / max(tolerance_mm, BORDER_VOXELS * length)) for length in masks.spacing)
    outside = edt.edt(np.ascontiguousarray(~masks.referenced), anisotropy=steps, parallel=1)
    inside = edt.edt(np.ascontiguousarray(masks.referenced), anisotropy=steps, black_border=False, parallel=1)
    near = (outside <= 1) & (inside <= 1)
    return _share(near & masks.wrong, masks.wrong) >= BORDER_SHARE


def _untouched(of: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The objects of a mask that share no voxel with another."""
    numbers, count = components(of)
    touched = np.zeros(count + 1, bool)
    touched[np.unique(numbers[by])] = True
    touched[0] = True
    alone: np.ndarray = ~touched[numbers]
    return alone


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return int(np.count_nonzero(part)) / max(1, int(np.count_nonzero(whole)))


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    total = np.count_nonzero(first) + np.count_nonzero(second)
    return float(2 * np.count_nonzero(first & second) / total) if total else 1.0
