"""How images are normalized, resampled and mirrored: channels and labels of a dataset go in, decisions come out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

from medseg3d.axes import AxisOrder
from medseg3d.errors import PlanError
from medseg3d.label_codes import LabelCodes
from medseg3d.plan import Normalization, Resampling
from medseg3d.planning.planner import NormalizationRule, Planner
from medseg3d.planning.reasons import Decided, Explanation
from medseg3d.planning.summary import DatasetSummary
from medseg3d.records import to_plain

LEFT_RIGHT_COSINE = 0.4
"""An axis that runs further than this from left to right (24 degrees off an axis that does not) exchanges the sides when it is mirrored.
Of an array as it is stored the x axis, at the place of R, is taken as left-right."""

Scheme = Literal["ct", "zscore", "rescale_0_1", "rgb_0_1", "none"]
SCHEME_OF_CHANNEL: dict[str, Scheme] = {
    "ct": "ct",
    "nonorm": "none",
    "none": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_0_1",
    "rescale_0_1": "rescale_0_1",
    "rgb_to_0_1": "rgb_0_1",
    "rgb_0_1": "rgb_0_1",
}
"""Names of channels, without case, that choose a normalization; every other name stands for a z-score per image."""


def normalizations(summary: DatasetSummary, rule: NormalizationRule) -> Decided[tuple[Normalization, ...]]:
    """One per channel, chosen by its name; raises :class:`PlanError` where a CT channel lacks its statistics."""
    found = tuple(_normalization(summary, channel, rule) for channel in range(len(summary.channel_names)))
    reasons = (
        Explanation(
            quantity=f"normalization of {name}",
            value=_normalization_words(normalization),
            rule=(
                "By the channel's name: CT, nonorm, zscore, rescale_to_0_1 or rgb_to_0_1 choose themselves, every other name a "
                "z-score per image. A z-score leaves out the zeros around the body where cropping kept less than "
                f"{rule.mask_below_relative_size:.0%} of the median image."
            ),
            inputs=(
                f"Channel name {name!r}; cropping kept {summary.median_relative_size:.0%} of the median image. {summary.modality_reason}"
            ).strip(),
            changes_it="Another name of the channel (--channels), or normalization.mask_below_relative_size of the planner.",
        )
        for name, normalization in zip(summary.channel_names, found, strict=True)
    )
    return Decided(found, tuple(reasons))


def _normalization(summary: DatasetSummary, channel: int, rule: NormalizationRule) -> Normalization:
    name = summary.channel_names[channel]
    scheme = SCHEME_OF_CHANNEL.get(name.casefold(), "zscore")
    if scheme != "ct":
        is_cropped_much = summary.median_relative_size < rule.mask_below_relative_size
        return Normalization(scheme=scheme, use_mask=is_cropped_much and scheme == "zscore")
    if channel >= len(summary.intensities):
        raise PlanError(
            f"Channel {channel} is named {name!r}, and CT is normalized by the intensities of the labelled regions, which "
            "the fingerprint does not give. Make the fingerprint again from the images."
        )
    statistics = summary.intensities[channel]
    return Normalization(
        scheme="ct", mean=statistics.mean, std=statistics.std, lower=statistics.percentile_00_5, upper=statistics.percentile_99_5
    )


def _normalization_words(normalization: Normalization) -> str:
    if normalization.scheme == "ct":
        return (
            f"clipped to {normalization.lower:g} to {normalization.upper:g}, minus {normalization.mean:g}, divided by "
            f"{normalization.std:g} (percentiles 0.5 and 99.5, mean and standard deviation of the labelled regions of all cases)"
        )
    return {
        "zscore": "z-score per image" + (", inside the non-zero region only" if normalization.use_mask else ""),
        "rescale_0_1": "each image rescaled to 0 to 1",
        "rgb_0_1": "divided by 255",
        "none": "none",
    }[normalization.scheme]


def resampling(rule: Resampling) -> Decided[Resampling]:
    """The planner's, as it is."""
    reason = Explanation(
        quantity="resampling",
        value=f"splines of order {rule.image_order} for images, {rule.label_order} for labels, {rule.logits_order} for predictions",
        rule=(
            f"Where one axis is more than {rule.separate_threshold:g} times as coarse as the finest, it is resampled by itself (separate-z "
            f"resampling), with orders {rule.image_coarse_order}, {rule.label_coarse_order} and {rule.logits_coarse_order}: between thick "
            "slices a spline gives tissue that is not there."
        ),
        inputs="The spacing of each case and the target spacing.",
        changes_it="resampling.* of the planner.",
    )
    return Decided(rule, (reason,))


def left_right_labels(summary: DatasetSummary) -> Decided[bool]:
    """Whether labels come in left and right pairs."""
    labels = summary.labels
    reason = Explanation(
        quantity="left and right labels",
        value=", ".join(f"{labels.names[a]} / {labels.names[b]}" for a, b in labels.pairs)
        or ("in doubt" if summary.left_right_doubt else "none"),
        rule=(
            "Labels whose names differ only in left and right form a pair that a left-right flip would exchange. Labels without names are "
            "in doubt where they lie mirrored and are alike, or where one lies on one side in nearly all cases."
        ),
        inputs=f"{len(labels.names)} labels. {summary.left_right_doubt}".strip(),
        changes_it="Other names of the labels (dataset.json, --labels, labels.csv).",
    )
    return Decided(bool(labels.pairs), (reason,))


def is_left_right_mirrored(summary: DatasetSummary, planner: Planner) -> bool:
    """Not with pairs of left and right labels, and with most planners not where there could be some."""
    is_doubtful = planner.mirroring.left_right == "where_safe" and bool(summary.left_right_doubt)
    return not summary.labels.pairs and not is_doubtful


def mirror_axes(axes: Sequence[int], summary: DatasetSummary, planner: Planner) -> Decided[tuple[int, ...]]:
    """Places in ``axes``, those of the patch, without those that run from left to right where mirroring along them is not safe."""
    exchanges_sides = [cosine > LEFT_RIGHT_COSINE for cosine in summary.frame.left_right]
    is_safe = is_left_right_mirrored(summary, planner)
    places = tuple(place for place, axis in enumerate(axes) if is_safe or not exchanges_sides[axis])
    doubt = "there could be some" if summary.left_right_doubt else "no doubt"
    reason = Explanation(
        quantity="mirror axes",
        value=" ".join(summary.axis_names[axes[place]] for place in places) or "none",
        rule=(
            "Images are mirrored along all axes in training and prediction, but never from left to right where labels come in left "
            "and right pairs, nor, with mirroring.left_right of the planner at where_safe, where they could."
        ),
        inputs=f"{len(summary.labels.pairs)} pairs of left and right labels; {doubt}.",
        changes_it="Other names of the labels, or mirroring.left_right of the planner.",
    )
    return Decided(places, (reason,))


def data_name(
    spacing: Sequence[float],
    normalization: Sequence[Normalization],
    order: AxisOrder,
    summary: DatasetSummary,
    resampled: Resampling,
) -> str:
    """The same name for the same preprocessing: whatever changes the stored voxels or label indices is in the digest."""
    identity: list[object] = [
        [float(s) for s in spacing],
        [to_plain(n) for n in normalization],
        to_plain(resampled),
        summary.orientation,
        list(order),
        list(summary.labels.values) if LabelCodes(summary.labels).are_indices else to_plain(summary.labels),
        *([] if summary.frame.is_canonical else [to_plain(summary.frame)]),
    ]
    return f"{len(spacing)}d-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]}"
