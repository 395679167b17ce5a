"""Names for the labels and channels of a dataset that names none."""

from __future__ import annotations

import numpy as np

from medseg3d.fingerprint.records import Fingerprint
from medseg3d.labels import Labels


def infer_labels(fingerprint: Fingerprint) -> Labels:
    """Labels for a dataset that names none: ``label_<value>`` for every value that occurs."""
    values = fingerprint.label_values
    return Labels(names=("background", *(f"label_{value}" for value in values)), values=(fingerprint.background, *values))


CT_MINIMUM = -500.0
"""Hounsfield units: air is -1000, and no other modality stores whole numbers that far below zero."""


def infer_modality(fingerprint: Fingerprint) -> tuple[tuple[str, ...], str]:
    """Names for the channels of a dataset that names none, and the reason in one sentence per channel.

    A channel is ``CT`` where the median over cases of the image's minimum is at most -500 and the voxels are whole numbers in
    most cases; everything else is called ``MRI`` and is normalized by its own mean and standard deviation.
    """
    names, reasons = [], []
    for channel in range(len(fingerprint.intensities)):
        parts = [case.channels[channel] for case in fingerprint.cases]
        lowest = float(np.median([part.minimum for part in parts]))
        integer = sum(part.is_integer for part in parts)
        is_ct = lowest <= CT_MINIMUM and 2 * integer > len(parts)
        names.append("CT" if is_ct else "MRI")
        rule = "CT, because both hold" if is_ct else "MRI (z-score per image), because CT needs both"
        reasons.append(
            f"Channel {channel} is taken for {rule}: median of the images' minima at most {CT_MINIMUM:g} (it is {lowest:g}), and "
            f"whole numbers in most cases (in {integer} of {len(parts)}). Use --channels to say otherwise."
        )
    return tuple(names), " ".join(reasons)
