"""What the images that a model was trained on look like, in a few numbers that travel with its plan."""

from __future__ import annotations

from dataclasses import dataclass

SHARES = (0.005, 0.05, 0.25, 0.5, 0.75, 0.95, 0.995)
"""The quantiles that are kept of each image, of a regular sample of its voxels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A number over all training cases."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelProfile:
    """One channel of the training images.

    ``quantiles`` are those of the whole image for :data:`SHARES`; empty where an earlier version measured the images.
    ``minimum`` and ``maximum`` are those of all voxels. ``outlier`` is the largest distance of a voxel from the image's median, in
    spreads (from the first to the last quantile). ``integer_share`` is the share of cases with whole numbers only. ``foreground`` are
    the 0.5, 50 and 99.5 percent quantiles of labelled voxels.
    """

    quantiles: tuple[Range, ...]
    minimum: Range
    maximum: Range
    outlier: float
    integer_share: float
    foreground: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProfile:
    """All channels, and the grids: ``spacing`` and ``extent`` in mm, each sorted from the smallest to the largest axis.

    ``orientations`` counts the codes of the files, such as ``LAS``.
    """

    num_cases: int
    spacing: tuple[Range, Range, Range]
    extent: tuple[Range, Range, Range]
    orientations: dict[str, int]
    channels: tuple[ChannelProfile, ...]
