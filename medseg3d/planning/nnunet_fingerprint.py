"""nnU-Net's ``dataset_fingerprint.json`` and the ``dataset.json`` beside it go in, what planning needs to know of a dataset comes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len

from medseg3d.data.dataset_json import channel_names, declared_labels
from medseg3d.data.side_names import says_nothing
from medseg3d.errors import InputError
from medseg3d.fingerprint.intensities import IntensityStatistics
from medseg3d.labels import Labels
from medseg3d.planning.summary import DatasetSummary, summary_digest
from medseg3d.ranges import Counted, Dimension, Millimeters, NotNegative
from medseg3d.records import Checked, from_plain, read_json
from medseg3d.wording import listed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Intensities(Checked):
    """Of one channel, under nnU-Net's names."""

    mean: float
    std: float
    median: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fingerprint(Checked):
    """What we take from ``dataset_fingerprint.json``; axes (z, y, x)."""

    spacings: Annotated[tuple[tuple[Millimeters, Millimeters, Millimeters], ...], Len(1)]
    shapes_after_crop: tuple[tuple[Dimension, Dimension, Dimension], ...]
    median_relative_size_after_cropping: NotNegative
    foreground_intensity_properties_per_channel: dict[int, _Intensities] | None = None

    def problems(self) -> Iterator[str]:
        """One of each per case."""
        if len(self.spacings) != len(self.shapes_after_crop):
            yield f"{len(self.spacings)} spacings and {len(self.shapes_after_crop)} shapes_after_crop, expected one of each per case"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Description:
    """What we take from ``dataset.json``, beside channels and labels."""

    numTraining: Counted
    name: str | None = None


def read_nnunet_fingerprint(path: Path) -> DatasetSummary:
    """The file, or the folder that holds it; axes (z, y, x).

    Raises :class:`InputError` where a file or a key is missing or wrong.
    """
    if path.is_dir():
        path = path / "dataset_fingerprint.json"
    document, description_path = read_json(path), path.with_name("dataset.json")
    fingerprint = from_plain(document, _Fingerprint, str(path))
    declared = read_json(description_path)
    description = from_plain(declared, _Description, str(description_path))
    channels, labels, num_entries = _channels_and_labels(declared, description_path)
    return DatasetSummary(
        dataset=description.name or path.resolve().parent.name,
        num_cases=description.numTraining,
        spacings=fingerprint.spacings,
        cropped_shapes=fingerprint.shapes_after_crop,
        median_relative_size=fingerprint.median_relative_size_after_cropping,
        intensities=_intensities(fingerprint.foreground_intensity_properties_per_channel or {}, len(channels), path),
        channel_names=channels,
        labels=labels,
        num_label_entries=num_entries,
        orientation="as_stored",
        digest=summary_digest([document, declared.get("labels"), channels]),
        modality_reason=f"The channels are named in {description_path.name}.",
        left_right_doubt=_doubt_without_places(labels),
    )


def _channels_and_labels(declared: dict[str, Any], path: Path) -> tuple[tuple[str, ...], Labels, int]:
    """Channels, labels, and the number of entries in their list, the ignore label too: nnU-Net counts it when it predicts memory."""
    findings: list[str] = []
    channels = channel_names(declared, findings)
    entries = declared.get("labels")
    entries = entries if isinstance(entries, dict) else {}
    labels = declared_labels(declared, findings)
    if "0" not in {
        *map(str, entries),
        *(str(value[0] if isinstance(value, list) and len(value) == 1 else value) for value in entries.values()),
    }:
        findings.append('dataset.json: no label has the value 0; the background must be listed, for instance "background": 0')
    if findings or labels is None:
        raise InputError(f"{path}: {'; '.join(finding.removeprefix('dataset.json: ') for finding in findings)}.")
    return channels, labels, len(entries)


def _intensities(per_channel: dict[int, _Intensities], num_channels: int, path: Path) -> tuple[IntensityStatistics, ...]:
    """Of all channels, or of none."""
    if per_channel and not set(range(num_channels)) <= set(per_channel):
        raise InputError(
            f"{path}: foreground_intensity_properties_per_channel has {sorted(per_channel)}, expected the {num_channels} channels of "
            "dataset.json."
        )
    return tuple(
        IntensityStatistics(
            mean=row.mean,
            std=row.std,
            median=row.median,
            minimum=row.min,
            maximum=row.max,
            percentile_00_5=row.percentile_00_5,
            percentile_99_5=row.percentile_99_5,
            count=0,
        )
        for row in (per_channel[channel] for channel in range(num_channels) if per_channel)
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
