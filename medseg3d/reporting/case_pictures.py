"""The cases of a report that are worth a look: a picture of each, and slices for the viewer, from its image and its two label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg3d.errors import InputError, MedsegError
from medseg3d.plan import Plan

if TYPE_CHECKING:
    from medseg3d.data.dataset import Case
    from medseg3d.data.reading import RawCase
    from medseg3d.evaluation.failure_kinds import Failure
    from medseg3d.reporting.unsure import Unsure

MAX_CHANNELS = 4
"""Embedded of an image; of more, the first ones."""
MAX_PIXELS = 8e6
"""Of all slices of a page: about 6 MB of it, so that it can still be mailed."""
MAX_MISTAKES, MAX_LABELS = 15, 4
"""Cases of which the kinds of failure are told, as many as the first table has; and labels of each, the worst."""
NUM_LEVELS, NUM_LEVELS_CT = 256, 1024
"""Grays that a screen shows; CT keeps steps of 4 HU over its whole range, so that every window has enough of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCase:
    """A case with its mean Dice, the Dice of its labels, and the folder of its predicted label map."""

    case: str
    mean: float
    folder: Path
    dice: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A case seen: PNG bytes, the role it plays (worst, median, best), its score, and the scene of the viewer where there is one."""

    case: str
    role: str
    png: bytes
    dice: float | None = None
    scene: Mapping[str, Any] | None = None


def picture_cases(
    rows: Sequence[ScoredCase], cases: Mapping[str, Case], plan: Plan, troubles: list[str], unsure: Unsure
) -> tuple[Picture, ...]:
    """Pictures of the worst, median and best of ``rows``, which come worst first; what cannot be drawn is told in ``troubles``."""

    def look(case: Case, folder: Path) -> np.ndarray | None:
        try:
            return unsure(case, folder)
        except MedsegError as error:
            troubles.append(f"Where the networks were unsure of {case.name} cannot be shown: {error}")
            return None

    roles = picture_roles(len(rows))
    pictures = []
    for place, role in roles:
        row = rows[place]
        try:
            pictures.append(picture_case(row, cases, plan, look, role=role, max_pixels=MAX_PIXELS / len(roles)))
        except MedsegError as error:
            troubles.append(f"No picture of {row.case}: {error}")
    return tuple(pictures)


def mistakes_of(
    rows: Sequence[ScoredCase], cases: Mapping[str, Case], plan: Plan, troubles: list[str], *, tolerance_mm: float | None
) -> dict[str, tuple[Failure, ...]]:
    """What went wrong in the :data:`MAX_MISTAKES` worst of ``rows``, by case; cases without a mistake worth a word are left out."""
    from medseg3d.evaluation.evaluate_case import TOLERANCE_MM
    from medseg3d.evaluation.failure_kinds import failures_of_files

    found = {}
    for row in rows[:MAX_MISTAKES]:
        case = cases.get(row.case)
        if case is None or case.label is None:
            continue
        path = row.folder / f"{row.case}.nii.gz"
        try:
            failures = failures_of_files(path, case.label, row.case, plan.labels, tolerance_mm=tolerance_mm or TOLERANCE_MM)
        except MedsegError as error:
            troubles.append(f"What went wrong in {row.case} cannot be told: {error}")
            continue
        named = [failure for failure in failures if case.annotated is None or failure.label in case.annotated]
        if named:
            found[row.case] = tuple(named[:MAX_LABELS])
    return found


def picture_roles(num_cases: int) -> list[tuple[int, str]]:
    """Places in the list of cases, worst first, that are worth a picture, and what they are called.

    >>> picture_roles(1)
    [(0, 'the only case')]
    >>> picture_roles(9)
    [(0, 'worst'), (1, 'second worst'), (2, 'third worst'), (4, 'median'), (8, 'best')]
    """
    if num_cases <= 1:
        return [(0, "the only case")] if num_cases else []
    roles: dict[int, str] = {0: "worst", num_cases - 1: "best"}
    if num_cases >= 3:
        roles.setdefault(num_cases // 2, "median")
    for place, name, least in ((1, "second worst", 5), (2, "third worst", 8)):
        if num_cases >= least:
            roles.setdefault(place, name)
    return sorted(roles.items())


def picture_case(row: ScoredCase, cases: Mapping[str, Case], plan: Plan, unsure: Unsure, *, role: str, max_pixels: float) -> Picture:
    """The picture and the scene of a case; raises :class:`InputError` where its image or its prediction is missing."""
    from medseg3d.data.reading import read_case
    from medseg3d.geometry import to_canonical
    from medseg3d.images import read_image
    from medseg3d.labels import as_integers
    from medseg3d.reporting.figures import case_figure

    if row.case not in cases:
        raise InputError(f"the dataset has no case of this name any more; its label map lies in {row.folder}.")
    raw = read_case(cases[row.case])
    path = row.folder / f"{row.case}.nii.gz"
    prediction = as_integers(to_canonical(read_image(path).array, raw.orientation), str(path))
    names = dict(zip(plan.labels.values[1:], plan.labels.names[1:], strict=True))
    png = case_figure(
        raw.image[0],
        _reference(raw, plan),
        prediction,
        spacing=raw.spacing,
        labels=names,
    )
    found = unsure(cases[row.case], row.folder)
    uncertainty = to_canonical(found, raw.orientation) if found is not None and found.shape == raw.header.geometry.shape else None
    scene = _scene(raw, prediction, uncertainty, plan, row, role, max_pixels)
    return Picture(case=row.case, role=role, png=png, dice=row.mean, scene=scene)


def _reference(raw: RawCase, plan: Plan, *, with_ignored: bool = False) -> np.ndarray | None:
    from medseg3d.label_codes import as_predicted

    return None if raw.labels is None else as_predicted(replace(plan.labels, ignore=None) if with_ignored else plan.labels, raw.labels)


def _scene(
    raw: RawCase, prediction: np.ndarray, uncertainty: np.ndarray | None, plan: Plan, row: ScoredCase, role: str, max_pixels: float
) -> dict[str, Any]:
    from medseg3d.reporting.chosen_slices import embed_case
    from medseg3d.reporting.scene import Volumes, caption_of, label_indices, quantize

    are_ct = are_channels_ct(plan)
    channels = [
        quantize(raw.image[place], name=name, is_ct=is_ct, num_levels=NUM_LEVELS_CT if is_ct else NUM_LEVELS)
        for place, (name, is_ct) in enumerate(zip(plan.channels[:MAX_CHANNELS], are_ct, strict=False))
    ]
    reference = _reference(raw, plan, with_ignored=True)
    volumes = Volumes(
        channels=tuple(numbers for numbers, _ in channels),
        reference=None if reference is None else label_indices(reference, plan.labels),
        prediction=label_indices(prediction, plan.labels),
        uncertainty=uncertainty,
    )
    return embed_case(
        row.case,
        volumes,
        levels=[levels for _, levels in channels],
        labels=plan.labels.names[1:],
        spacing=raw.spacing,
        max_pixels=max_pixels,
        title=f"{role}: {row.case}, Dice {row.mean:.3f}",
        caption=caption_of(row.dice),
    )


def are_channels_ct(plan: Plan) -> tuple[bool, ...]:
    """By channel whether its values are Hounsfield units, as the plan normalizes them."""
    return tuple(each.scheme == "ct" for each in plan.configurations[plan.recommended].normalization)
