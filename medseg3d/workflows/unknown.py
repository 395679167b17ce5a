"""What a dataset does not say of itself and only a person knows: a plan and its fingerprint go in, questions come out.

Each question holds what the files tell, so that a person recognizes what is meant, and what is taken where nobody answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from medseg3d.data.grouping import find_groups
from medseg3d.data.side_names import says_nothing
from medseg3d.fingerprint.records import CaseFingerprint, Fingerprint
from medseg3d.options import RunOptions
from medseg3d.plan import Plan
from medseg3d.wording import counted
from medseg3d.workflows.choose_folds import likeness_of
from medseg3d.workflows.plan_dataset import NAMED_CHANNELS

OFF_CENTER = 0.08
"""Of the width of the image: a structure whose center lies further from the middle has a side that a person can name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelQuestion:
    """The modality of a channel: what its grey values are, and the name that is taken for it."""

    number: int
    seen: str
    taken: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelQuestion:
    """The name of a label value: where it occurs, how large and on which side."""

    value: int
    seen: str
    taken: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupQuestion:
    """Which cases are of one patient: what the names of the ``cases`` say; ``is_found`` where each patient is kept in one fold already."""

    seen: str
    is_found: bool
    cases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """All questions about a dataset."""

    channels: tuple[ChannelQuestion, ...] = ()
    labels: tuple[LabelQuestion, ...] = ()
    groups: GroupQuestion | None = None

    @property
    def is_any(self) -> bool:
        """There is something to ask."""
        return bool(self.channels or self.labels or self.groups)


def unknown_of(plan: Plan, fingerprint: Fingerprint, options: RunOptions) -> Unknown:
    """The questions that neither the dataset nor the options answer. Groups are only asked for with others, or where they are doubtful."""
    channels: tuple[ChannelQuestion, ...] = ()
    labels: tuple[LabelQuestion, ...] = ()
    if plan.modality_reason != NAMED_CHANNELS and options.channels is None:
        channels = tuple(_channel(number, name, fingerprint) for number, name in enumerate(plan.channels))
    if not plan.labels.regions and not plan.labels.soft:
        known = {*plan.given_names, *(options.label_names or {})}
        pairs = list(zip(plan.labels.values, plan.labels.names, strict=True))[1:]
        labels = tuple(_label(value, name, fingerprint) for value, name in pairs if value not in known and says_nothing(name))
    groups = None
    if options.groups is None and options.group_pattern is None and not options.no_groups:
        found = find_groups([case.name for case in fingerprint.cases], likeness_of(fingerprint))
        if found.is_doubtful or channels or labels:
            groups = GroupQuestion(
                seen=found.note.partition("; ")[0], is_found=bool(found.group_of), cases=tuple(case.name for case in fingerprint.cases)
            )
    return Unknown(channels=channels, labels=labels, groups=groups)


def _channel(number: int, taken: str, fingerprint: Fingerprint) -> ChannelQuestion:
    parts = [case.channels[number] for case in fingerprint.cases]
    low, high = median(part.minimum for part in parts), median(part.maximum for part in parts)
    kind = "whole numbers" if 2 * sum(part.is_integer for part in parts) > len(parts) else "fractions"
    return ChannelQuestion(number=number, seen=f"grey values {low:.4g} to {high:.4g}, {kind}", taken=taken)


def _label(value: int, taken: str, fingerprint: Fingerprint) -> LabelQuestion:
    holders = [case for case in fingerprint.cases if value in case.labels]
    if not holders:
        return LabelQuestion(value=value, seen="in no case", taken=taken)
    volume = median(case.labels[value].volume_mm3 for case in holders) / 1000
    where = f"in {len(holders)} of {counted(len(fingerprint.cases), 'case')}"
    side = _side(value, holders)
    return LabelQuestion(value=value, seen=f"{where}, median {volume:.3g} ml{side}", taken=taken)


def _side(value: int, holders: list[CaseFingerprint]) -> str:
    """Where on the axis from left to right it lies in most cases."""
    shifts = []
    for case in holders:
        width = case.shape[2] * case.spacing[2]
        middle = 0.0 if case.middle is None else float(case.world_position(case.middle)[2])
        shifts.append((float(case.world_position(case.labels[value].center)[2]) - middle) / width)
    for name, number in (("right", sum(shift > OFF_CENTER for shift in shifts)), ("left", sum(shift < -OFF_CENTER for shift in shifts))):
        if 4 * number >= 3 * len(shifts):
            return f", on the {name}"
    return ""
