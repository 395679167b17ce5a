"""How an image differs from those that a model was trained on: sentences for people, none where it looks alike.

In: an image and the plan with the profile of its training images (:mod:`medseg3d.image_profile`). Out: *doubts*. Few false alarms matter
more than finding everything: sizes may differ by factors, and of channels that are normalized by their own mean and standard
deviation the scale may be any.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medseg3d.data.reading import RawCase
from medseg3d.fingerprint.inferred_names import CT_MINIMUM
from medseg3d.fingerprint.intensities import sampled_quantiles
from medseg3d.fingerprint.records import ChannelFingerprint, Fingerprint
from medseg3d.geometry import orientation_code
from medseg3d.image_profile import SHARES, ChannelProfile, ImageProfile, Range
from medseg3d.images.modalities import MODALITIES, modality_of
from medseg3d.plan import Normalization, Plan
from medseg3d.wording import listed

SPACING_FACTOR, EXTENT_FACTOR = 3.0, 4.0
"""A grid is unlike the training images beyond these factors of their range: a crop or a whole body is not, another organ's scan is."""
PLANNED_SPACING_FACTOR, PLANNED_EXTENT_FACTOR = 6.0, 10.0
"""The same where only the plan's own spacing and median shape are known."""
UNIT_FACTORS = {1e-6: "a millionth of", 1e-3: "a thousandth of", 1e3: "a thousand times", 1e6: "a million times"}
"""Meters and micrometers that are taken for millimeters or the other way round."""
UNIT_TOLERANCE = 2.5
NO_AIR = -200.0
"""Hounsfield units: without any voxel below, a CT shows neither air, nor lung, nor the outside of the body."""
MANY_ORIENTATIONS = 6
"""Training files that were stored in so many ways say nothing about one more."""
OUTLIER, OUTLIER_OF_RESCALED = 200.0, 20.0
"""Spreads of an image (from its 0.5 to its 99.5 percent quantile) that a voxel may lie from the median; the second one where the extremes
are what the image is scaled by."""
OUTLIER_FACTOR = 5.0
"""Times the largest of the training images, which may have bright spots."""
MAX_OUTLIER = 1e3
"""A training image with a damaged voxel does not excuse others."""
CROSSWISE_MISFIT, CROSSWISE_FIT = 1.0, 0.25
"""Widths by which swapped channels lie outside of the range of their own training images, and inside of each other's."""
MIN_WIDTH = 0.25
"""A range over few cases is taken to be as wide as this share of the channel's spread."""
MAX_CHANNELS_TO_PERMUTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelLook:
    """One channel of one image; ``quantiles`` empty where they were not measured."""

    minimum: float
    maximum: float
    is_integer: bool
    quantiles: tuple[float, ...]

    @property
    def outlier(self) -> float:
        """The largest distance of a voxel from the median, in spreads; 0 where most voxels have one value."""
        if not self.quantiles or self.quantiles[-1] <= self.quantiles[0]:
            return 0.0
        median, spread = self.quantiles[len(SHARES) // 2], self.quantiles[-1] - self.quantiles[0]
        return max(self.maximum - median, median - self.minimum) / spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """An image: ``spacing`` and ``extent`` in mm, sorted; the code of its orientation; its modality where the file tells it."""

    spacing: tuple[float, ...]
    extent: tuple[float, ...]
    orientation: str
    channels: tuple[ChannelLook, ...]
    modality: str | None = None
    is_dicom: bool = False


def doubts_about(look: Look, plan: Plan) -> tuple[str, ...]:
    """What is unlike the model's training images, a clause each that follows "the image"; of an older plan only what the plan says."""
    profile = plan.images
    found = [*_modality(look, plan)]
    found += [*_grid(look, profile)] if profile is not None else [*_planned_grid(look, plan)]
    channels = zip(look.channels, _normalizations(plan), plan.channels, strict=False)
    for index, (channel, normalization, name) in enumerate(channels):
        known = profile.channels[index] if profile is not None and index < len(profile.channels) else None
        where = "" if len(look.channels) == 1 else f", in channel {index} ({name})"
        found += [clause + where for clause in _intensities(channel, normalization, known, is_mr=modality_of(name) == "MR")]
    if profile is not None:
        found += [*_swapped(look.channels, profile.channels, plan.channels)]
    return tuple(found)


CHECK = "Check its label map."
REFUSED = "Refused, as --strict asks."
"""What follows a doubt in words."""


def in_words(name: str, doubts: Sequence[str]) -> str:
    """One line about a case."""
    text = "; ".join(doubts)
    return f"{name}: this image {text}{'' if text.endswith('?') else '.'}"


def look_of(raw: RawCase) -> Look:
    """A case that was read."""
    edges = raw.spacing
    return Look(
        spacing=tuple(sorted(edges)),
        extent=tuple(sorted(n * edge for n, edge in zip(raw.image.shape[1:], edges, strict=True))),
        orientation=orientation_code(raw.header.geometry.matrix),
        channels=tuple(_look_of_channel(channel) for channel in raw.image),
        modality=raw.header.modality,
        is_dicom=raw.header.format == "dicom",
    )


def _look_of_channel(volume: np.ndarray) -> ChannelLook:
    sample = volume[tuple(slice(None, None, max(1, length // 16)) for length in volume.shape)]
    return ChannelLook(
        minimum=float(volume.min()),
        maximum=float(volume.max()),
        is_integer=bool((sample == np.rint(sample)).all()),
        quantiles=sampled_quantiles(volume, SHARES),
    )


# --- the profile


def profile_of(fingerprint: Fingerprint) -> ImageProfile:
    """The profile of the images of a dataset."""
    looks = [
        Look(
            spacing=tuple(sorted(case.spacing)),
            extent=tuple(sorted(n * edge for n, edge in zip(case.shape, case.spacing, strict=True))),
            orientation=case.orientation,
            channels=tuple(_look_of_fingerprint(channel) for channel in case.channels),
        )
        for case in fingerprint.cases
    ]
    foregrounds = [(each.percentile_00_5, each.median, each.percentile_99_5) for each in fingerprint.intensities]
    return profile_of_looks(looks, foregrounds)


def _look_of_fingerprint(channel: ChannelFingerprint) -> ChannelLook:
    return ChannelLook(minimum=channel.minimum, maximum=channel.maximum, is_integer=channel.is_integer, quantiles=channel.quantiles or ())


def profile_of_looks(looks: Sequence[Look], foregrounds: Sequence[tuple[float, float, float]]) -> ImageProfile:
    """The profile of at least one image; ``foregrounds`` of each channel."""

    def axes(of: Callable[[Look], tuple[float, ...]]) -> tuple[Range, Range, Range]:
        first, second, third = (_range([of(look)[axis] for look in looks]) for axis in range(3))
        return (first, second, third)

    return ImageProfile(
        num_cases=len(looks),
        spacing=axes(lambda look: look.spacing),
        extent=axes(lambda look: look.extent),
        orientations=dict(sorted(Counter(look.orientation for look in looks).items())),
        channels=tuple(
            _channel_profile([look.channels[index] for look in looks], foreground) for index, foreground in enumerate(foregrounds)
        ),
    )


def _channel_profile(channels: Sequence[ChannelLook], foreground: tuple[float, float, float]) -> ChannelProfile:
    measured = [channel.quantiles for channel in channels if channel.quantiles]
    return ChannelProfile(
        quantiles=tuple(_range(values) for values in zip(*measured, strict=True)),
        minimum=_range([channel.minimum for channel in channels]),
        maximum=_range([channel.maximum for channel in channels]),
        outlier=min(MAX_OUTLIER, max(channel.outlier for channel in channels)),
        integer_share=sum(channel.is_integer for channel in channels) / len(channels),
        foreground=foreground,
    )


def _range(values: Sequence[float]) -> Range:
    return Range(low=float(min(values)), median=float(np.median(values)), high=float(max(values)))


# --- modality


def _modality(look: Look, plan: Plan) -> Iterator[str]:
    expected = {modality_of(name) for name in plan.channels}
    if look.modality in MODALITIES and None not in expected and look.modality not in expected:
        yield f"is {look.modality} by its DICOM header, and the model takes {listed(list(plan.channels))}"


# --- the grid


def _grid(look: Look, profile: ImageProfile) -> Iterator[str]:
    yield from _sizes(look, profile.spacing, profile.extent, SPACING_FACTOR, EXTENT_FACTOR, "training images")
    seen = profile.orientations
    if look.orientation in seen or len(seen) >= MANY_ORIENTATIONS:
        return
    # a scanner writes the sides; NIfTI files that were converted from the same scans have them in another direction
    if not (look.is_dicom and _without_signs(look.orientation) in map(_without_signs, seen)):
        yield (
            f"is stored as {look.orientation}, and the training images as {listed(list(seen))}: where its header is wrong, sides and ends "
            "are mixed up"
        )


def _without_signs(code: str) -> str:
    """The order of the axes of an orientation.

    >>> _without_signs("LPS")
    'RAS'
    """
    return code.translate(str.maketrans("LPI", "RAS"))


def _planned_grid(look: Look, plan: Plan) -> Iterator[str]:
    """By the spacing and the median shape that the finest volume configuration was planned with."""
    volumes = [each for each in plan.configurations.values() if each.dimensions == 3]
    if not volumes:
        return
    finest = min(volumes, key=lambda each: math.prod(each.spacing))
    extent = sorted(n * edge for n, edge in zip(finest.median_shape, finest.spacing, strict=True))
    exactly = [Range(low=value, median=value, high=value) for value in (*sorted(finest.spacing), *extent)]
    yield from _sizes(look, exactly[:3], exactly[3:], PLANNED_SPACING_FACTOR, PLANNED_EXTENT_FACTOR, "plan")


def _sizes(
    look: Look, spacing: Sequence[Range], extent: Sequence[Range], spacing_factor: float, extent_factor: float, whose: str
) -> Iterator[str]:
    """Spacing first: where it is wrong, the extent is wrong by the same."""
    off = _factor(look.spacing, spacing, spacing_factor)
    found, expected = _mm(look.spacing), _mm_range(spacing)
    if off is not None:
        unit = next((text for factor, text in UNIT_FACTORS.items() if 1 / UNIT_TOLERANCE < off / factor < UNIT_TOLERANCE), None)
        is_all = all(
            unit is not None and 1 / spacing_factor < value / (known.median * off) < spacing_factor
            for value, known in zip(look.spacing, spacing, strict=True)
        )
        advice = f", {unit} that: is the unit in its header right?" if is_all else ""
        yield f"has voxels of {found}, the {whose} {expected}{advice}"
        return
    if _factor(look.extent, extent, extent_factor) is not None:
        yield f"shows {_mm(look.extent)}, the {whose} {_mm_range(extent)}"


def _factor(values: Sequence[float], ranges: Sequence[Range], allowed: float) -> float | None:
    """The median ratio to the training images where one axis lies outside of the range by more than what is allowed."""
    is_off = any(
        value * allowed < known.low or value > known.high * allowed for value, known in zip(values, ranges, strict=True) if known.low > 0
    )
    return float(np.median([value / known.median for value, known in zip(values, ranges, strict=True)])) if is_off else None


def _mm(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values) + " mm"


def _mm_range(ranges: Sequence[Range]) -> str:
    return " x ".join(_span(known.low, known.high) for known in ranges) + " mm"


def _span(low: float, high: float) -> str:
    texts = f"{low:.3g}", f"{high:.3g}"
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


# --- intensities


def _normalizations(plan: Plan) -> tuple[Normalization, ...]:
    return next(iter(plan.configurations.values())).normalization


def _intensities(channel: ChannelLook, normalization: Normalization, known: ChannelProfile | None, *, is_mr: bool) -> Iterator[str]:
    if channel.minimum == channel.maximum:
        yield f"has the same value everywhere ({channel.minimum:g})"
        return
    allowed = max(
        OUTLIER_OF_RESCALED if normalization.scheme == "rescale_0_1" else OUTLIER, OUTLIER_FACTOR * known.outlier if known else 0.0
    )
    if channel.outlier > allowed:
        extreme = max(channel.minimum, channel.maximum, key=abs)
        yield (
            f"holds a voxel of {extreme:.3g} where nearly all others lie from {channel.quantiles[0]:.4g} to {channel.quantiles[-1]:.4g}: "
            "repair it, as it changes how the image is normalized"
        )
        return
    if normalization.scheme == "ct":
        yield from _hounsfield(channel, normalization, known)
    elif normalization.scheme in ("none", "rgb_0_1") and known is not None:
        yield from _absolute(channel, known)
    elif _is_like_ct(channel) and (known.minimum.low > CT_MINIMUM if known else is_mr):
        yield f"looks like CT (whole numbers down to {channel.minimum:g}), and the training images do not"


def _is_like_ct(channel: ChannelLook) -> bool:
    return channel.is_integer and channel.minimum <= CT_MINIMUM


def _hounsfield(channel: ChannelLook, normalization: Normalization, known: ChannelProfile | None) -> Iterator[str]:
    if channel.minimum > NO_AIR and (known is None or known.minimum.high <= CT_MINIMUM):
        yield (
            f"has no value below {channel.minimum:.4g}, so these are no Hounsfield units (air is -1000), which the model takes: was the "
            "rescale intercept lost, or is it no CT?"
        )
        return
    lower, upper = normalization.lower, normalization.upper
    if channel.quantiles and lower is not None and upper is not None:
        inside = [
            low <= upper and high >= lower for low, high in itertools.pairwise((channel.minimum, *channel.quantiles, channel.maximum))
        ]
        if not any(inside[1:-1]):
            yield f"has hardly a voxel from {lower:.4g} to {upper:.4g}, where the labelled voxels of the training images lie"
            return
    if known is not None:
        yield from _absolute(channel, known, of=SHARES[-2:])  # how much air there is, is a matter of the field of view


def _absolute(channel: ChannelLook, known: ChannelProfile, of: Sequence[float] = SHARES) -> Iterator[str]:
    """Values whose scale matters lie outside of those of the training images, by more than their whole range."""
    if not known.quantiles or not channel.quantiles:
        return
    for share, value, seen in zip(SHARES, channel.quantiles, known.quantiles, strict=True):
        if share in of and _excess(value, seen, _spread(known)) > 1:
            yield (
                f"has {100 * share:g} % of its voxels below {value:.4g}; in the training images that share lies below "
                f"{_span(seen.low, seen.high)}"
            )
            return


def _spread(known: ChannelProfile) -> float:
    return known.quantiles[-1].median - known.quantiles[0].median


def _excess(value: float, seen: Range, spread: float) -> float:
    """How far a value lies outside of a range, in widths of it (at least a share of the channel's spread)."""
    width = max(seen.high - seen.low, MIN_WIDTH * spread, 1e-30)
    return max(seen.low - value, value - seen.high, 0.0) / width


# --- channels in another order


def _swapped(looks: Sequence[ChannelLook], known: Sequence[ChannelProfile], names: Sequence[str]) -> Iterator[str]:
    """Another order of the channels fits the training images, the given one does not."""
    if not 1 < len(looks) == len(known) <= MAX_CHANNELS_TO_PERMUTE:
        return
    if not all(look.quantiles for look in looks) or not all(each.quantiles for each in known):
        return
    misfit = [[_misfit(look, each) for each in known] for look in looks]
    if sum(misfit[index][index] > CROSSWISE_MISFIT for index in range(len(looks))) < 2:
        return
    orders = itertools.permutations(range(len(looks)))
    best = min(orders, key=lambda order: max(misfit[index][place] for index, place in enumerate(order)))
    if max(misfit[index][place] for index, place in enumerate(best)) <= CROSSWISE_FIT:
        moved = [f"channel {index} fits {names[place]}" for index, place in enumerate(best) if index != place]
        yield f"seems to have its channels in another order: by its grey values {', '.join(moved)}"


def _misfit(look: ChannelLook, known: ChannelProfile) -> float:
    return max(_excess(value, seen, _spread(known)) for value, seen in zip(look.quantiles, known.quantiles, strict=True))
