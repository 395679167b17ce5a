"""What planning needs to know of a dataset: our fingerprint or nnU-Net's goes in, one small record comes out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medseg3d.axes import CANONICAL
from medseg3d.data.label_rules import name_findings
from medseg3d.data.side_names import left_right_pairs, says_nothing
from medseg3d.errors import InputError, UnsupportedError
from medseg3d.fingerprint.intensities import IntensityStatistics
from medseg3d.frame import CANONICAL_FRAME, Frame, dissenters
from medseg3d.labels import Labels
from medseg3d.planning.loss_rules import LossFacts
from medseg3d.records import read_json
from medseg3d.wording import listed

if TYPE_CHECKING:
    from medseg3d.fingerprint.records import CaseFingerprint, Fingerprint

Triple = tuple[float, float, float]


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
    placed = [(place, case.grid) for place, case in enumerate(cases) if case.grid is not None]
    dissenting = tuple(placed[k][0] for k in dissenters(fingerprint.frame, [grid for _, grid in placed]))
    return DatasetSummary(
        dataset=fingerprint.dataset,
        num_cases=num_cases or len(cases),
        spacings=tuple(_triple(case.spacing) for case in cases),
        cropped_shapes=tuple((int(c.cropped_shape[0]), int(c.cropped_shape[1]), int(c.cropped_shape[2])) for c in cases),
        median_relative_size=float(np.median([case.relative_size for case in cases])),
        intensities=tuple(fingerprint.intensities),
        channel_names=tuple(fingerprint.channel_names),
        labels=labels,
        num_label_entries=labels.num_classes,
        orientation="canonical",
        digest=_digest(identity),
        modality_reason=modality_reason or "The channels are named by the dataset.",
        loss_facts=_loss_facts(cases, labels),
        class_shares=_class_shares(cases, labels),
        frame=fingerprint.frame,
        dissenting=dissenting,
        notes=tuple(_axis_notes(fingerprint, [cases[place].name for place in dissenting])),
        left_right_doubt=left_right_doubt,
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
    entries = [[case.labels[value] for case in cases if value in case.labels] for value in labels.values[1:]]
    present = [of_label for of_label in entries if of_label]
    if not present:
        return None
    volumes = [float(np.median([entry.volume_mm3 for entry in of_label])) for of_label in present]
    return LossFacts(
        foreground_share=float(np.median([sum(_shares(case, labels)) for case in cases])),
        label_volume_ratio=max(volumes) / min(volumes),
        absent_share=1 - min(map(len, present)) / len(cases),
        elongation=max(filter(None, (_median_elongation(cases, value) for value in labels.values[1:])), default=None),
    )


def _median_elongation(cases: Sequence[CaseFingerprint], value: int) -> float | None:
    """None where no case tells it. Single slices do not count: one voxel thick, a disk is as long as a tube."""
    entries = [case.labels[value] for case in cases if value in case.labels and min(case.shape) > 1]
    known = [entry.elongation for entry in entries if entry.elongation is not None]
    return float(np.median(known)) if known else None


def _class_shares(cases: Sequence[CaseFingerprint], labels: Labels) -> tuple[float, ...] | None:
    """The mean over cases of each class's share of the voxels, background first; None where no case has a label."""
    shares = np.mean([_shares(case, labels) for case in cases], axis=0)
    return (max(0.0, float(1 - shares.sum())), *map(float, shares)) if shares.any() else None


def _shares(case: CaseFingerprint, labels: Labels) -> list[float]:
    """The share of each foreground label in the voxels of the cropped case, in the order of the labels."""
    voxels = [case.labels[value].voxels if value in case.labels else 0 for value in labels.values[1:]]
    total = max(math.prod(case.cropped_shape), sum(voxels))  # labels may lie outside the crop box, where the image is zero
    return [count / total for count in voxels]


def read_nnunet_fingerprint(path: Path) -> DatasetSummary:
    """nnU-Net's ``dataset_fingerprint.json`` (or the folder that holds it), with the ``dataset.json`` beside it; axes (z, y, x).

    Raises :class:`InputError` where a file or a key is missing or wrong, :class:`UnsupportedError` for labels that are regions.
    """
    if path.is_dir():
        path = path / "dataset_fingerprint.json"
    fingerprint, description_path = read_json(path), path.with_name("dataset.json")
    description = read_json(description_path)
    spacings = tuple(_triple(_three(entry, path, "spacings")) for entry in _get(fingerprint, "spacings", path, list))
    shapes = tuple(
        (int(z), int(y), int(x))
        for z, y, x in (_three(entry, path, "shapes_after_crop") for entry in _get(fingerprint, "shapes_after_crop", path, list))
    )
    if not spacings or len(spacings) != len(shapes):
        raise InputError(
            f"{path}: {len(spacings)} spacings and {len(shapes)} shapes_after_crop; there must be one of each per case, and at least one."
        )
    if min(min(s) for s in spacings) <= 0 or min(min(n) for n in shapes) < 1:
        raise InputError(f"{path}: every spacing must be above 0 mm and every shape at least 1 voxel along each axis.")
    channels = _channel_names(description, description_path)
    labels, num_label_entries, notes = _labels(_get(description, "labels", description_path, dict), description_path)
    return DatasetSummary(
        dataset=str(description.get("name") or path.resolve().parent.name),
        num_cases=int(_get(description, "numTraining", description_path, int)),
        spacings=spacings,
        cropped_shapes=shapes,
        median_relative_size=float(_get(fingerprint, "median_relative_size_after_cropping", path, (int, float))),
        intensities=_intensities(fingerprint.get("foreground_intensity_properties_per_channel") or {}, len(channels), path),
        channel_names=channels,
        labels=labels,
        num_label_entries=num_label_entries,
        orientation="as_stored",
        digest=_digest([fingerprint, description.get("labels"), channels]),
        modality_reason=f"The channels are named in {description_path.name}.",
        left_right_doubt=_doubt_without_places(labels),
        notes=notes,
    )


def _doubt_without_places(labels: Labels) -> str:
    """Labels whose names say nothing could be left and right of the same, as far as nnU-Net's fingerprint tells."""
    nameless = [name for name in labels.names[1:] if says_nothing(name)]
    if labels.pairs or len(nameless) < 2:
        return ""
    return (
        f"Images are not mirrored from left to right: {listed(nameless, most=3)} could be left and right of the same, and the fingerprint "
        "does not tell where they lie. Say in dataset.json what they are."
    )


def _channel_names(description: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = description.get("channel_names") or description.get("modality")
    if not isinstance(names, dict) or not names:
        raise InputError(f'{path}: "channel_names" must give each channel a name, for instance {{"0": "CT"}}.')
    return tuple(str(name) for _, name in sorted(names.items(), key=lambda item: (len(item[0]), item[0])))


def _labels(entries: Mapping[str, Any], path: Path) -> tuple[Labels, int, tuple[str, ...]]:
    """Labels without an ignore label, the number of entries with it, and what there is to note."""
    if entries and all(str(key).lstrip("-").isdigit() and isinstance(value, str) for key, value in entries.items()):
        entries = {value: int(key) for key, value in entries.items()}  # the older direction, value → name
    values: dict[str, int] = {}
    notes: tuple[str, ...] = ()
    for name, value in entries.items():
        members = value if isinstance(value, list) else [value]
        if len(members) != 1:
            raise UnsupportedError(f"{path}: label {name!r} is a region of the values {members}; regions are not supported yet.")
        if not isinstance(members[0], int):
            raise InputError(f"{path}: label {name!r} has the value {members[0]!r}; a whole number was expected.")
        if name == "ignore":
            notes = ("The dataset has an ignore label, which cannot be trained with yet; the memory estimate counts it.",)
        else:
            values[name] = members[0]
    findings = name_findings({value: name for name, value in values.items()})
    if findings:
        raise InputError(f"{path}: {'; '.join(findings)}.")
    if 0 not in values.values():
        raise InputError(f'{path}: no label has the value 0; the background must be listed, for instance "background": 0.')
    ordered = sorted(values.items(), key=lambda item: item[1])
    background = [item for item in ordered if item[1] == 0]
    ordered = background + [item for item in ordered if item[1] != 0]
    names = tuple(name for name, _ in ordered)
    labels = Labels(names=names, values=tuple(value for _, value in ordered), pairs=left_right_pairs(names))
    return labels, len(entries), notes


def _intensities(per_channel: Mapping[str, Any], num_channels: int, path: Path) -> tuple[IntensityStatistics, ...]:
    if not per_channel:
        return ()
    try:
        rows = [per_channel[str(channel)] for channel in range(num_channels)]
        return tuple(
            IntensityStatistics(
                mean=float(row["mean"]),
                std=float(row["std"]),
                median=float(row["median"]),
                minimum=float(row["min"]),
                maximum=float(row["max"]),
                percentile_00_5=float(row["percentile_00_5"]),
                percentile_99_5=float(row["percentile_99_5"]),
                count=0,
            )
            for row in rows
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: foreground_intensity_properties_per_channel lacks {error} for one of the {num_channels} channels of dataset.json."
        ) from error


def _get(document: Any, key: str, path: Path, kind: type | tuple[type, ...]) -> Any:
    value = document.get(key) if isinstance(document, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f'{path}: "{key}" is missing or not what nnU-Net writes there (found {value!r:.60}).')
    return value


def _three(entry: Any, path: Path, key: str) -> tuple[float, float, float]:
    try:
        first, second, third = (float(value) for value in entry)
    except (TypeError, ValueError):
        raise InputError(f'{path}: an entry of "{key}" is {entry!r:.60}; three numbers (z, y, x) were expected.') from None
    return first, second, third


def _triple(values: Any) -> Triple:
    return (float(values[0]), float(values[1]), float(values[2]))


def _digest(identity: object) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
