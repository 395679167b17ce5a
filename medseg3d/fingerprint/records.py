"""The records of a fingerprint. All lists over axes are canonical (S, A, R)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from medseg3d.errors import CaseFailure
from medseg3d.fingerprint.intensities import Histogram, IntensityStatistics
from medseg3d.frame import CANONICAL_FRAME, Direction, Frame, Grid
from medseg3d.geometry import Orientation
from medseg3d.image_profile import SHARES
from medseg3d.records import Checked


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFingerprint:
    """One channel of one case: the range of the whole image, and its foreground.

    ``is_integer`` says that a sample of the whole image holds whole numbers only. ``foreground`` is None for a case without
    labelled voxels. ``quantiles`` of the whole image are those of :data:`~medseg3d.image_profile.SHARES`; None in a file of an older
    version.
    """

    minimum: float
    maximum: float
    is_integer: bool
    foreground: IntensityStatistics | None
    histogram: Histogram
    quantiles: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.quantiles is not None and len(self.quantiles) != len(SHARES):
            raise ValueError(f"{len(self.quantiles)} quantiles; expected {len(SHARES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStatistics:
    """One label in one case. Components are 26-connected; ``center`` is a fraction of the volume along (S, A, R).

    ``elongation`` is the diagonal of the bounding box of the largest component over the cube root of its volume, both in mm (of
    several largest ones the longest counts): 1.7 for a cube, 2.1 for a ball, 8.0 to 8.5 by its direction for a tube of 20
    diameters. A component of one voxel has that of the voxel's own box. None in a file of an older version: such a case is not
    measured again, as its images did not change.

    ``thickness_mm`` is the mean length of the label's rows of voxels along the axis where it is smallest: two thirds of a ball's diameter,
    pi quarters of that of a tube along an axis, up to twice the thickness of a bent sheet. None in a file of an older version.
    """

    voxels: int
    volume_mm3: float
    components: int
    largest_mm3: float
    smallest_mm3: float
    touches_border: bool
    center: tuple[float, float, float]
    elongation: float | None = None
    thickness_mm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFingerprint:
    """One case. ``orientation`` is the code of the file, for instance ``LAS``.

    ``labels`` is keyed by the values in the file, without the background. ``crop`` is (start, stop) of the box of
    non-zero voxels along (S, A, R); ``relative_size`` its share of the volume. ``direction`` holds the unit vectors of the file's axes
    (x, y, z) in RAS+ world axes, ``axes`` says which axis of the lists each of them is; both are None in a file of an older version.
    ``middle`` is where the middle of the body lies, a fraction of the volume along (S, A, R), None in an older file.
    """

    name: str
    digest: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    crop: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    relative_size: float
    channels: tuple[ChannelFingerprint, ...]
    labels: dict[int, LabelStatistics]
    direction: tuple[Direction, Direction, Direction] | None = None
    axes: Orientation | None = None
    middle: tuple[float, float, float] | None = None
    content: str = ""
    """A digest of a sample of the image's voxels: the same for copies, whatever their labels; empty for an even image."""
    foreground_edges: tuple[int, int, int] | None = None
    """Edges in voxels of the box of all foreground; None without any, and in a file of an older version."""

    def __post_init__(self) -> None:
        axes = self.axes or ((0, 1), (1, 1), (2, 1))
        if sorted(ras for ras, _ in axes) != [0, 1, 2] or any(sign not in (-1, 1) for _, sign in axes):
            raise ValueError(f"axes {self.axes}; expected each of 0, 1 and 2 once, with 1 or -1")
        if min(self.shape) < 1 or not all(0 < edge < math.inf for edge in self.spacing):
            raise ValueError(f"shape {self.shape} at {self.spacing} mm; expected numbers above 0")

    @property
    def grid(self) -> Grid | None:
        """The grid of the file; None in a record of an older version."""
        if self.direction is None or self.axes is None:
            return None
        x, y, z = (2 - ras for ras, _ in self.axes)
        spacing, shape = self.spacing, self.shape
        return Grid(direction=self.direction, spacing=(spacing[x], spacing[y], spacing[z]), shape=(shape[x], shape[y], shape[z]))

    @property
    def axis_directions(self) -> np.ndarray:
        """3x3: the unit vectors of the axes (S, A, R) of the lists in RAS+ world axes, in rows."""
        rows = np.eye(3)[::-1].copy()
        if self.direction is not None and self.axes is not None:
            for vector, (ras, sign) in zip(self.direction, self.axes, strict=True):
                rows[2 - ras] = np.asarray(vector) * sign
        return rows

    def world_position(self, center: Sequence[float]) -> np.ndarray:
        """A center (fractions along S, A, R) in mm from the middle of the volume, along the anatomical axes (S, A, R)."""
        extent = np.multiply(self.shape, self.spacing)
        world: np.ndarray = ((np.asarray(center) - 0.5) * extent) @ self.axis_directions
        return world[::-1]

    @property
    def cropped_shape(self) -> tuple[int, int, int]:
        """The shape of the crop box, (S, A, R)."""
        (s0, s1), (a0, a1), (r0, r1) = self.crop
        return (s1 - s0, a1 - a0, r1 - r0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint(Checked):
    """A dataset: its cases by name, and per channel the intensities of all foreground voxels of all cases.

    ``failures`` are the cases that could not be read; they are tried again next time. ``background`` is the label value that is
    not foreground, ``ignore`` that of voxels that nobody has annotated, which belong to nothing. ``frame`` says which axes the lists of
    all cases follow.
    """

    dataset: str
    channel_names: tuple[str, ...]
    background: int
    cases: tuple[CaseFingerprint, ...]
    intensities: tuple[IntensityStatistics, ...]
    failures: tuple[CaseFailure, ...] = ()
    frame: Frame = CANONICAL_FRAME
    ignore: int | None = None
    came_later: ClassVar[tuple[str, ...]] = ("ignore",)

    @property
    def median_relative_size(self) -> float:
        """The median over cases of the share of the volume that is left after cropping."""
        return float(np.median([case.relative_size for case in self.cases]))

    @property
    def label_values(self) -> tuple[int, ...]:
        """Every foreground value that occurs in a label file, sorted."""
        return tuple(sorted({value for case in self.cases for value in case.labels}))

    @property
    def digest(self) -> str:
        """Changes when a case is added, removed, renamed or changed."""
        lines = [f"background {self.background}", *sorted(f"{case.name} {case.digest}" for case in self.cases)]
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
