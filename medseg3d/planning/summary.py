"""What planning needs to know of a dataset: our fingerprint or nnU-Net's goes in, one small record comes out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medseg3d.axes import CANONICAL, Triple, triple
from medseg3d.errors import InputError
from medseg3d.fingerprint.intensities import IntensityStatistics
from medseg3d.frame import CANONICAL_FRAME, Frame, dissenters
from medseg3d.label_codes import LabelCodes
from medseg3d.labels import Labels
from medseg3d.planning.loss_rules import LossFacts
from medseg3d.records import to_plain
from medseg3d.wording import listed

if TYPE_CHECKING:
    from medseg3d.fingerprint.records import CaseFingerprint, Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class FocusFacts:
    """How small a part of a case the foreground is, medians over the cases that have some.

    ``box_share`` is that of the foreground's box in the volume, ``box_mm`` the edges of the box along the axes of the cases.
    """

    foreground_share: float
    box_share: float
    box_mm: Triple


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """One entry per case in ``spacings`` (mm) and ``cropped_shapes`` (voxels), axes (S, A, R), or (z, y, x) where ``as_stored``.

    ``num_cases`` is the number of training cases, of which a foreign fingerprint may list fewer. ``intensities`` are those of the
    foreground over all cases, one per channel, empty where unknown. ``num_label_entries`` counts everything in the list of
    labels, an ignore label too: nnU-Net counts so when it predicts memory. ``class_shares`` are the mean over cases of each
    class's share of the voxels, background first, with the sum 1, and 0 for a label that no case has. Both they and
    ``loss_facts`` are None where the labels were not measured, as in nnU-Net's fingerprint. ``frame`` are the axes (S, A, R) in space;
    ``dissenting`` are the places of cases whose thick slices lie along another axis than those of the others. ``left_right_doubt`` says
    why mirroring from left to right may not be safe, and is empty where it is.
    """

    dataset: str
    num_cases: int
    spacings: tuple[Triple, ...]
    cropped_shapes: tuple[tuple[int, int, int], ...]
    median_relative_size: float
    intensities: tuple[IntensityStatistics, ...]
    channel_names: tuple[str, ...]
    labels: Labels
    num_label_entries: int
    orientation: Literal["canonical", "as_stored"]
    digest: str
    modality_reason: str = ""
    notes: tuple[str, ...] = ()
    loss_facts: LossFacts | None = None
    class_shares: tuple[float, ...] | None = None
    frame: Frame = CANONICAL_FRAME
    dissenting: tuple[int, ...] = ()
    left_right_doubt: str = ""
    focus: FocusFacts | None = None
    """None where the box of the foreground was not measured."""

    @property
    def axis_names(self) -> tuple[str, str, str]:
        """Of the cases: S, A, R, or those of the stored array."""
        return CANONICAL if self.orientation == "canonical" else ("z", "y", "x")


def summarize(
    fingerprint: Fingerprint, labels: Labels, *, modality_reason: str = "", left_right_doubt: str = "", num_cases: int | None = None
) -> DatasetSummary:
    """Our own fingerprint, in the axes of its frame. Raises :class:`InputError` where it has no cases."""
    cases = tuple(fingerprint.cases)
    if not cases:
        raise InputError(f"{fingerprint.dataset}: the fingerprint has no cases, so there is nothing to plan from.")
    identity = [sorted((case.name, case.digest) for case in cases), list(fingerprint.channel_names), list(labels.values)]
    if not LabelCodes(labels).are_indices:
        identity.append(to_plain(labels))
    placed = [(place, case.grid) for place, case in enumerate(cases) if case.grid is not None]
    dissenting = tuple(placed[k][0] for k in dissenters(fingerprint.frame, [grid for _, grid in placed]))
    return DatasetSummary(
        dataset=fingerprint.dataset,
        num_cases=num_cases or len(cases),
        spacings=tuple(triple(case.spacing) for case in cases),
        cropped_shapes=tuple((int(c.cropped_shape[0]), int(c.cropped_shape[1]), int(c.cropped_shape[2])) for c in cases),
        median_relative_size=float(np.median([case.relative_size for case in cases])),
        intensities=tuple(fingerprint.intensities),
        channel_names=tuple(fingerprint.channel_names),
        labels=labels,
        num_label_entries=labels.num_classes + (labels.ignore is not None),
        orientation="canonical",
        digest=summary_digest(identity),
        modality_reason=modality_reason or "The channels are named by the dataset.",
        loss_facts=None if labels.ignore is not None else _loss_facts(cases, labels),  # parts of structures say nothing of their shape
        class_shares=_class_shares(cases, labels),
        frame=fingerprint.frame,
        dissenting=dissenting,
        notes=tuple(_axis_notes(fingerprint, [cases[place].name for place in dissenting])),
        left_right_doubt=left_right_doubt,
        focus=_focus(cases, labels),
    )


def _focus(cases: Sequence[CaseFingerprint], labels: Labels) -> FocusFacts | None:
    found = [(case, case.foreground_edges) for case in cases if case.foreground_edges is not None]
    if len(found) < sum(bool(case.labels) for case in cases) or not found:
        return None  # an older version measured some of the cases
    return FocusFacts(
        foreground_share=float(np.median([_foreground_share(case, labels) for case, _ in found])),
        box_share=float(np.median([math.prod(edges) / math.prod(case.cropped_shape) for case, edges in found])),
        box_mm=triple(np.median([np.multiply(edges, case.spacing) for case, edges in found], 0)),
    )


def _axis_notes(fingerprint: Fingerprint, dissenting: Sequence[str]) -> Iterator[str]:
    if not fingerprint.frame.is_canonical:
        yield (
            f"The images are cut obliquely (in the mean {fingerprint.frame.obliqueness:.0f} degrees from the anatomical axes), so "
            "the axes of all cases were assigned together: thick slices lie along one axis, and S, A and R are names only."
        )
    if dissenting:
        yield (
            f"The slices of {listed(dissenting)} run along another axis than those of the other cases (as sagittal among axial stacks). "
            "They keep their place in the anatomy, and a network learns little from them: leave them out, or train them as a dataset of "
            "their own."
        )


def _loss_facts(cases: Sequence[CaseFingerprint], labels: Labels) -> LossFacts | None:
    """What the choice of a loss depends on; None where no case has a label.

    A label that no case has is left out: no loss could teach it. Volumes and elongations are medians over the cases that have the
    label.
    """
    entries = [[volume for case in cases if (volume := _volume_mm3(case, labels, index))] for index in labels.foreground]
    present = [of_label for of_label in entries if of_label]
    if not present:
        return None
    volumes = [float(np.median(of_label)) for of_label in present]
    return LossFacts(
        foreground_share=float(np.median([_foreground_share(case, labels) for case in cases])),
        label_volume_ratio=max(volumes) / min(volumes),
        absent_share=1 - min(map(len, present)) / len(cases),
        elongation=max(_shapes(cases, labels, "elongation"), default=None),
        thickness_mm=min(_shapes(cases, labels, "thickness_mm"), default=None),
        components=max((_pieces(cases, value) for value in labels.annotated_values[1:]), default=0.0),
    )


def _pieces(cases: Sequence[CaseFingerprint], value: int) -> float:
    """The components of a label, median over the cases that have it; 0 where most of it is one piece and the rest may be specks."""
    entries = [case.labels[value] for case in cases if value in case.labels]
    if not entries or np.median([entry.largest_mm3 / entry.volume_mm3 for entry in entries]) > 0.5:
        return 0.0
    return float(np.median([entry.components for entry in entries]))


def _volume_mm3(case: CaseFingerprint, labels: Labels, index: int) -> float:
    """Of a label, or of all parts of a region."""
    return sum(case.labels[value].volume_mm3 for value in labels.members(index) if value in case.labels)


def _foreground_share(case: CaseFingerprint, labels: Labels) -> float:
    return _share(case, labels.annotated_values[1:]) if labels.regions else sum(_shares(case, labels))


def _shapes(cases: Sequence[CaseFingerprint], labels: Labels, what: Literal["elongation", "thickness_mm"]) -> Iterator[float]:
    """A number of the shape of each label, median over cases, without labels of which no case tells it.

    Single slices do not count: one voxel thick, a disk is as long as a tube.
    """
    whole = [case for case in cases if min(case.shape) > 1]
    for value in labels.annotated_values[1:]:
        known = [getattr(case.labels[value], what) for case in whole if value in case.labels]
        known = [number for number in known if number is not None]
        if known:
            yield float(np.median(known))


def _class_shares(cases: Sequence[CaseFingerprint], labels: Labels) -> tuple[float, ...] | None:
    """The mean over cases of each class's share of the voxels, background first; None where no case has a label."""
    shares = np.mean([_shares(case, labels) for case in cases], axis=0)
    if labels.regions:  # they overlap: the background is what no part of them fills
        background = 1 - sum(float(np.mean([_share(case, (value,)) for case in cases])) for value in labels.annotated_values[1:])
        return (max(0.0, background), *map(float, shares)) if shares.any() else None
    return (max(0.0, float(1 - shares.sum())), *map(float, shares)) if shares.any() else None


def _shares(case: CaseFingerprint, labels: Labels) -> list[float]:
    """The share of each foreground label in the voxels of the cropped case, in the order of the labels."""
    return [_share(case, labels.members(index)) for index in labels.foreground]


def _share(case: CaseFingerprint, values: Sequence[int]) -> float:
    labelled = sum(label.voxels for label in case.labels.values())
    total = max(math.prod(case.cropped_shape), labelled)  # labels may lie outside the crop box, where the image is zero
    return sum(case.labels[value].voxels for value in values if value in case.labels) / total


def summary_digest(identity: object) -> str:
    """What tells summaries apart."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
