"""What one case looks like: its voxels in memory in, a :class:`~medseg3d.fingerprint.records.CaseFingerprint` out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from medseg3d.data.content import SAMPLES_PER_AXIS, body_middle, content_of
from medseg3d.data.cropping import nonzero_box
from medseg3d.data.label_rules import refuse_image
from medseg3d.fingerprint.describe_labels import describe_labels
from medseg3d.fingerprint.intensities import describe_values, sampled_quantiles
from medseg3d.fingerprint.records import CaseFingerprint, ChannelFingerprint, LabelStatistics
from medseg3d.frame import grid_of
from medseg3d.geometry import code_of, orientation_of
from medseg3d.image_profile import SHARES
from medseg3d.labels import unique_values

if TYPE_CHECKING:
    from medseg3d.data.dataset import Case
    from medseg3d.data.reading import RawCase


def describe_case(raw: RawCase, digest: str, *, background: int = 0, ignore: int | None = None) -> CaseFingerprint:
    """Describe one case; foreground is what has another label value than ``background``, inside the crop box as in nnU-Net.

    Voxels of the value ``ignore`` belong to nothing that is described. Raises :class:`LabelValueError` for a label map that looks like an
    image.
    """
    box = nonzero_box(raw.image)
    shape = raw.image.shape[1:]
    crop = tuple((s.start, s.stop) for s in box)
    known = raw.labels if raw.labels is None or ignore is None else np.where(raw.labels == ignore, background, raw.labels)
    inside = None if known is None else known[box] != background
    channels = tuple(_describe_channel(channel, channel[box], inside) for channel in raw.image)
    labels: dict[int, LabelStatistics] = {}
    if known is not None:
        values = unique_values(known)
        refuse_image(known, raw.name, num_values=len(values))
        labels = describe_labels(known, raw.spacing, background=background, values=values)
    return CaseFingerprint(
        name=raw.name,
        digest=digest,
        shape=(shape[0], shape[1], shape[2]),
        spacing=(float(raw.spacing[0]), float(raw.spacing[1]), float(raw.spacing[2])),
        orientation=code_of(orientation_of(raw.header.geometry.matrix)),
        direction=grid_of(raw.header.geometry).direction,
        axes=raw.orientation,
        crop=(crop[0], crop[1], crop[2]),
        relative_size=math.prod(stop - start for start, stop in crop) / math.prod(shape),
        channels=channels,
        labels=labels,
        middle=body_middle(raw.image[0]),
        content=content_of(raw.image),
        foreground_edges=_edges(known != background) if known is not None and labels else None,
    )


def _edges(mask: np.ndarray) -> tuple[int, int, int]:
    first, second, third = (cut.stop - cut.start for cut in nonzero_box(mask[np.newaxis]))
    return first, second, third


def _describe_channel(whole: np.ndarray, cropped: np.ndarray, inside: np.ndarray | None) -> ChannelFingerprint:
    values = cropped[inside] if inside is not None else cropped[:0].ravel()
    histogram, foreground = describe_values(values)
    step = tuple(max(1, length // SAMPLES_PER_AXIS) for length in whole.shape)
    sample = whole[:: step[0], :: step[1], :: step[2]]
    return ChannelFingerprint(
        minimum=float(whole.min()),
        maximum=float(whole.max()),
        is_integer=bool((sample == np.rint(sample)).all()),
        foreground=foreground,
        histogram=histogram,
        quantiles=sampled_quantiles(whole, SHARES),
    )


SMALL_FILE = 1 << 18
"""Bytes. A file below is not opened to learn its size: that would cost more than the budget gains from it."""


def bytes_to_describe(case: Case) -> int:
    """The memory that :func:`describe_case` takes at its peak, from the headers."""
    first = case.channels[0].path
    has_voxels = first.is_file() and first.suffix.lower() not in (".mhd", ".nhdr")
    if has_voxels and first.stat().st_size < SMALL_FILE:
        return 64 * SMALL_FILE
    from medseg3d.errors import InputError
    from medseg3d.images import read_header

    try:
        voxels = math.prod(read_header(first, files=case.channels[0].files).geometry.shape)
    except InputError:
        return 64 * SMALL_FILE  # reading the case will say what is wrong
    # float32 channels, one of them twice while it is decoded (up to float64), labels, components, masks and foreground values
    return voxels * (4 * len(case.channels) + 24)
