"""Left and right: which labels are mirror images of each other, and whether images may be mirrored from left to right.

In: where the labels of each case lie (a fingerprint, or what doctor measured) and what they are called. Out: pairs of label indices
that mirroring must exchange, a doubt where mirroring is not known to be safe, and warnings for people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np

from medseg3d.data.side_names import left_right_pairs, may_be_twins, names_a_side, names_one_of_two, says_nothing
from medseg3d.labels import Labels
from medseg3d.wording import counted, listed


class Placed(Protocol):
    """A label in one case: its center as a fraction of the volume along (S, A, R), and its volume."""

    @property
    def center(self) -> tuple[float, float, float]: ...
    @property
    def volume_mm3(self) -> float: ...


class PlacedCase(Protocol):
    """A case with its labels by value; ``middle`` is where the middle of the body lies, a fraction along (S, A, R), None if unknown."""

    @property
    def name(self) -> str: ...
    @property
    def middle(self) -> tuple[float, float, float] | None: ...
    @property
    def labels(self) -> Mapping[int, Placed]: ...
    def world_position(self, center: Sequence[float]) -> np.ndarray:
        """A center in mm from the middle of the volume, along the anatomical axes (S, A, R)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Center:
    """A :class:`Placed` label."""

    center: tuple[float, float, float]
    volume_mm3: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """A :class:`PlacedCase` of which only this is known."""

    name: str
    axes_mm: tuple[tuple[float, float, float], ...]
    """The edges of the volume along its axes (S, A, R), each as a vector (S, A, R) in mm."""
    middle: tuple[float, float, float] | None
    labels: dict[int, Center]

    @property
    def extent_mm3(self) -> float:
        """The volume of the image."""
        return abs(float(np.linalg.det(np.asarray(self.axes_mm))))

    def world_position(self, center: Sequence[float]) -> np.ndarray:
        """A center in mm from the middle of the volume, along the anatomical axes (S, A, R)."""
        place: np.ndarray = (np.asarray(center) - 0.5) @ np.asarray(self.axes_mm)
        return place


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """What is known of left and right. ``pairs`` are label indices (left, right); ``doubt`` says in a sentence why mirroring from left
    to right is not known to be safe, and what to do; it is empty where it is safe, and where a pair forbids it anyway."""

    pairs: tuple[tuple[int, int], ...] = ()
    doubt: str = ""
    warnings: tuple[str, ...] = ()


def by_region(cases: Sequence[PlacedCase], labels: Labels) -> Sequence[PlacedCase]:
    """The cases with each region as a label of its own, under its value in predictions; the cases themselves without regions."""
    return [RegionCase(case=case, all_labels=labels) for case in cases] if labels.regions else cases


@dataclass(frozen=True, kw_only=True)
class RegionCase:
    """A :class:`PlacedCase` whose labels are regions: the center is that of the parts, by their volumes."""

    case: PlacedCase
    all_labels: Labels

    @property
    def name(self) -> str:
        """Of the case."""
        return self.case.name

    @property
    def middle(self) -> tuple[float, float, float] | None:
        """Of the case's body."""
        return self.case.middle

    @property
    def labels(self) -> Mapping[int, Placed]:
        """By the value of the region in predictions."""
        found: dict[int, Placed] = {}
        for index in self.all_labels.foreground:
            parts = [self.case.labels[value] for value in self.all_labels.members(index) if value in self.case.labels]
            if parts:
                volume = sum(part.volume_mm3 for part in parts)
                s, a, r = (sum(part.center[axis] * part.volume_mm3 for part in parts) / volume for axis in range(3))
                found[self.all_labels.values[index]] = Center(center=(s, a, r), volume_mm3=volume)
        return found

    def world_position(self, center: Sequence[float]) -> np.ndarray:
        """As the case's."""
        return self.case.world_position(center)


Both = list[tuple[PlacedCase, Placed, Placed]]
"""The cases that hold both labels of a pair, with what is known of either."""

MIRROR_RATIO = 0.35
"""A pair lies mirrored where its centers differ along S and A by less than this share of what they differ along R, in mm.
Kidneys, adrenal glands, lungs, ribs and halves of the brain stay below 0.3; the ventricles of a heart, which lies askew, come to
0.5, and they are no mirror images of each other."""
VOLUME_RATIO = 2.5
"""A pair may differ by this factor in volume, as the median over cases; a diseased kidney is still a kidney."""
AGREEMENT = 0.9
"""Share of the cases in which the left one must lie on the same side."""


def sides(cases: Sequence[PlacedCase], labels: Labels) -> Sides:
    """The pairs of label indices (left, right) that mirroring must not mix, what is left in doubt, and warnings.

    Pairs are those by name whose positions do not contradict: their centers lie mirrored and their volumes are alike, or no
    case holds both. A left one that lies on the right is worth a warning, but is a pair all the same. Labels whose names say nothing
    are in doubt where they could be a pair, or one of a pair of which the other has no label.
    """
    named = labels.pairs or left_right_pairs(labels.names)
    pairs: list[tuple[int, int]] = []
    warnings: list[str] = []
    contradicted: list[str] = []
    always_swapped: list[str] = []
    for left, right in named:
        both = _cases_with(cases, labels, left, right)
        title = f"{labels.names[left]} / {labels.names[right]}"
        if both and not _is_mirrored(both):
            warnings.append(
                f"{title}: a pair by name, but in the images the two do not lie mirrored or differ in size; "
                "they are treated like any two labels."
            )
            if len(both) < CASES_TO_DECIDE:
                contradicted.append(title)
            continue
        pairs.append((left, right))
        swapped = [case.name for case, one, other in both if case.world_position(one.center)[2] > case.world_position(other.center)[2]]
        if swapped and len(swapped) >= AGREEMENT * len(both):
            always_swapped.append(title)
        elif swapped:
            warnings.append(
                f"{title}: in {len(swapped)} of {len(both)} cases the left one lies on the right side by the header "
                f"({listed(swapped, most=5)}), in the others on the left. Check the orientation of these files."
            )
    if always_swapped:
        warnings.append(
            f"What is named left lies on the right side by the headers: {listed(always_swapped, most=5)}. "
            "Either the names or the headers are swapped; training does not suffer."
        )
    rest = [index for index in labels.foreground if index not in {i for pair in named for i in pair}]
    doubt = "" if pairs else _doubt(cases, labels, rest, contradicted)
    return Sides(pairs=tuple(pairs), doubt=doubt, warnings=tuple(warnings))


def _cases_with(cases: Sequence[PlacedCase], labels: Labels, first: int, second: int) -> Both:
    one, other = labels.values[first], labels.values[second]
    return [(case, case.labels[one], case.labels[other]) for case in cases if one in case.labels and other in case.labels]


def _is_mirrored(both: Both) -> bool:
    """Medians over cases, so that one odd case does not decide."""
    s, a, r = np.median(np.abs([_offset_mm(*entry) for entry in both]), axis=0)
    return bool(max(s, a) < MIRROR_RATIO * r and _volume_ratio(both) < VOLUME_RATIO)


def _offset_mm(case: PlacedCase, first: Placed, second: Placed) -> np.ndarray:
    """How far the second center lies from the first along the anatomical axes (S, A, R)."""
    offset: np.ndarray = case.world_position(second.center) - case.world_position(first.center)
    return offset


def _volume_ratio(both: Both) -> float:
    """The median over cases, at least 1."""
    return math.exp(abs(float(np.median([math.log(first.volume_mm3 / second.volume_mm3) for _, first, second in both]))))


# --- where names do not say


CASES_TO_DECIDE = 5
"""From as many cases on a position counts against a name; fewer may be an accident."""
OPEN_MIRROR_RATIO, OPEN_VOLUME_RATIO, OPEN_SEPARATION, OPEN_AGREEMENT = 0.45, 3.0, 0.3, 0.75
"""What could be a pair: medians of the offsets along S and A against R, of the volumes, and of the distance along R against the two
radii, and the share of cases with the same order along R. Of 50 real pairs none has a ratio above 0.28 or 2.1 or a separation
below 0.5. A pair that is called none costs sides; the other way round a little accuracy and a message."""
ONE_SIDED_RADIUS, ONE_SIDED_SHARE = 0.4, 0.03
"""A label is on one side where its center is this share of its radius, and of the image, away from the body's middle. Halves of a
brain have 0.47; the left atrium and ventricle stay below 0.35."""
ONE_SIDED_AGREEMENT = 0.85
"""Share of the cases in which it must be on the same side: by chance that happens to one of 20 labels at most, from five cases on."""


def _doubt(cases: Sequence[PlacedCase], labels: Labels, rest: Sequence[int], contradicted: Sequence[str]) -> str:
    """Why mirroring from left to right may not be safe, in a sentence or two; empty where nothing speaks against it."""
    twins = _possible_pairs(cases, labels, rest)
    lone = [index for index in rest if not any(index in pair for pair in twins) and _is_lone_half(cases, labels, index)]
    reasons = [f"{title} are a pair by name, and {counted(len(cases), 'case')} cannot tell that they are none" for title in contradicted]
    if twins:
        titles = listed([f"{labels.names[left]} / {labels.names[right]}" for left, right in twins], most=3)
        reasons.append(f"{titles} could be left and right of the same, as they lie on opposite sides and are alike")
    if lone:
        names = listed([labels.names[index] for index in lone], most=5)
        reasons.append(f"{names} {'lies' if len(lone) == 1 else 'lie'} on one side and may have an unlabelled twin on the other")
    if not reasons:
        return ""
    return f"Images are not mirrored from left to right: {'; '.join(reasons)}. {_advice(labels, twins, lone)}"


def _advice(labels: Labels, twins: Sequence[tuple[int, int]], lone: Sequence[int]) -> str:
    if twins:
        left, right = (labels.values[index] for index in twins[0])
        example = f"{left}=left_kidney,{right}=right_kidney"
    elif lone:
        example = f"{labels.values[lone[0]]}=spleen or {labels.values[lone[0]]}=left_kidney"
    else:
        return "Call them otherwise if they are no left and right of the same."
    return (
        f"Say what the labels are, for instance --labels {example}, or in labels.csv beside the images (value,name): names with a side "
        "keep it so, names without one say that mirroring is safe."
    )


def _possible_pairs(cases: Sequence[PlacedCase], labels: Labels, rest: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs (left, right) of labels whose names leave it open and whose places are those of a pair; each label once, the best first."""
    found = []
    for one, other in combinations(rest, 2):
        both = _cases_with(cases, labels, one, other) if may_be_twins(labels.names[one], labels.names[other]) else []
        if both and (ratio := _pair_ratio(both)) is not None:
            is_turned = float(np.median([_offset_mm(*entry)[2] for entry in both])) < 0
            found.append((ratio, (other, one) if is_turned else (one, other)))
    taken: set[int] = set()
    best = []
    for _, pair in sorted(found):
        if not taken & set(pair):
            taken |= set(pair)
            best.append(pair)
    return best


def _pair_ratio(both: Both) -> float | None:
    """How far from mirrored two labels lie, 0 for exactly so; None where they are no pair."""
    offsets = np.array([_offset_mm(*entry) for entry in both])
    s, a, r = np.abs(np.median(offsets, axis=0))
    to_the_right = float(np.mean(offsets[:, 2] > 0))
    radii = float(np.median([_radius_mm(first) + _radius_mm(second) for _, first, second in both]))
    middle = abs(float(np.median([(_beside_middle_mm(case, one) + _beside_middle_mm(case, other)) / 2 for case, one, other in both])))
    is_open = (
        r > OPEN_SEPARATION * radii
        and max(s, a) < OPEN_MIRROR_RATIO * r
        and middle < r / 2
        and _volume_ratio(both) < OPEN_VOLUME_RATIO
        and max(to_the_right, 1 - to_the_right) >= OPEN_AGREEMENT
    )
    return float((max(s, a) + middle) / r) if is_open else None


def _is_lone_half(cases: Sequence[PlacedCase], labels: Labels, index: int) -> bool:
    """Whether a label could be one of two, of which the other has no label: it is on one side, and its name does not speak against it.

    A name without a side speaks against it, except that of a paired organ.
    """
    name, value = labels.names[index], labels.values[index]
    offsets = [(_beside_middle_mm(case, label), case, label) for case in cases if (label := case.labels.get(value)) is not None]
    is_asked = says_nothing(name) or names_a_side(name) or (names_one_of_two(name) and len(offsets) >= CASES_TO_DECIDE)
    if not offsets or not is_asked:
        return False
    sides = [math.copysign(1, offset) * (abs(offset) > _clear_mm(case, label)) for offset, case, label in offsets]
    return max(sides.count(1.0), sides.count(-1.0)) >= ONE_SIDED_AGREEMENT * len(sides)


def _clear_mm(case: PlacedCase, label: Placed) -> float:
    corners = [case.world_position(np.eye(3)[axis]) - case.world_position((0, 0, 0)) for axis in range(3)]
    width = float(np.abs(corners)[:, 2].sum())
    return max(ONE_SIDED_RADIUS * _radius_mm(label), ONE_SIDED_SHARE * width)


def _radius_mm(label: Placed) -> float:
    """Of a ball of the label's volume."""
    return float((label.volume_mm3 * 0.75 / math.pi) ** (1 / 3))


def _beside_middle_mm(case: PlacedCase, label: Placed) -> float:
    """How far the label's center lies to the right of the body's middle; that of the image where the body's is not known."""
    middle = case.middle if case.middle is not None else (0.5, 0.5, 0.5)
    return float(case.world_position(label.center)[2] - case.world_position(middle)[2])


# --- where labels lie, without a fingerprint


LONGEST_SAMPLE = 96
"""Voxels along an axis that are looked at: centers are compared in centimeters."""


def whereabouts(
    name: str, labels: np.ndarray, axes_mm: tuple[tuple[float, float, float], ...], *, middle: tuple[float, float, float] | None
) -> Whereabouts:
    """Where the labels of a map (S, A, R) lie, from a sample of its voxels; ``axes_mm`` are the edges of the volume."""
    steps = [-(-length // LONGEST_SAMPLE) for length in labels.shape]
    sample = labels[:: steps[0], :: steps[1], :: steps[2]]
    places = np.nonzero(sample)
    values, owners, counts = np.unique(sample[places], return_inverse=True, return_counts=True)
    centers = np.zeros((len(values), 3))
    for axis, (step, length) in enumerate(zip(steps, labels.shape, strict=True)):
        centers[:, axis] = (np.bincount(owners, places[axis], len(values)) / counts * step + 0.5) / length
    voxel_mm3 = abs(float(np.linalg.det(np.asarray(axes_mm)))) / math.prod(labels.shape) * math.prod(steps)
    found = {
        int(value): Center(center=(float(s), float(a), float(r)), volume_mm3=float(count * voxel_mm3))
        for value, count, (s, a, r) in zip(values, counts, centers, strict=True)
    }
    return Whereabouts(name=name, axes_mm=axes_mm, middle=middle, labels=found)
