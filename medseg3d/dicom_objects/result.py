"""What becomes a DICOM object: a label map in the slices' own order, with its labels, its series and the model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medseg3d.dicom_objects.codes import NO_CODES, CodeTable, Structure
from medseg3d.dicom_objects.made_by import MadeBy
from medseg3d.dicom_objects.source import SourceSeries, uid_of
from medseg3d.errors import GeometryMismatchError
from medseg3d.labels import Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One label or region: its ``index`` in the labels, its value in label maps, and what it is."""

    index: int
    value: int
    name: str
    structure: Structure


@dataclass(frozen=True, kw_only=True)  # no slots: what is computed once is kept
class Result:
    """``values`` (x, y, z) are file values on the grid of ``source``; ``probabilities`` (output, x, y, z) where they are wanted."""

    values: np.ndarray
    labels: Labels
    source: SourceSeries
    made_by: MadeBy
    codes: CodeTable = NO_CODES
    probabilities: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.values.shape != self.source.geometry.shape:
            raise GeometryMismatchError(
                f"{self.source.first.path.parent}: the label map has {self.values.shape} voxels, the series {self.source.geometry.shape}."
            )

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All that the model knows, in the order of its labels; also what this image does not show."""
        labels = self.labels
        return tuple(
            Segment(index=index, value=labels.values[index], name=labels.names[index], structure=self.codes.structure(labels.names[index]))
            for index in labels.foreground
        )

    def mask(self, segment: Segment) -> np.ndarray:
        """Where a label is, or a region with all of its members; (x, y, z)."""
        members = self.labels.members(segment.index)
        return self.values == members[0] if len(members) == 1 else np.isin(self.values, members)

    def masks(self) -> Iterator[tuple[Segment, np.ndarray]]:
        """Each segment with its mask, one after the other."""
        for segment in self.segments:
            yield segment, self.mask(segment)

    @property
    def is_overlapping(self) -> bool:
        """Regions lie within each other."""
        return bool(self.labels.regions)

    @cached_property
    def content(self) -> str:
        """A digest of all that is said, without the time at which it is."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (
            *(file.text("SOPInstanceUID") for file in self.source.slices),
            repr(self.made_by),
            *(repr(segment) for segment in self.segments),
            repr(self.labels.regions),
        ):
            digest.update(part.encode() + b"\0")
        digest.update(np.ascontiguousarray(self.values.T).tobytes())
        return digest.hexdigest()

    def uid(self, kind: str) -> str:
        """A UID of this result: the same where the same is said again."""
        return uid_of(kind, self.content)
