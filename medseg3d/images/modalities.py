"""From the name of a channel to DICOM's modality."""

from __future__ import annotations

import re

MODALITIES = {
    "CT": r"(cb|ce|nc)?ct|hu",
    "MR": r"cine|.*mri?|t1.*|t2.*|flair|dwi|adc|pd|dce|swi|lge|bssfp|dixon",
    "PT": r"pet|pt|suv|fdg",
    "US": r"us|ultrasound",
}
"""DICOM's modalities, and what the words of a channel's name may be that mean them."""


def modality_of(channel: str) -> str | None:
    """The modality, None where the name does not tell.

    >>> modality_of("T1w post contrast"), modality_of("CT"), modality_of("channel_0")
    ('MR', 'CT', None)
    """
    words = re.split(r"[^a-z0-9]+", channel.lower())
    found = [modality for modality, pattern in MODALITIES.items() if any(re.fullmatch(pattern, word) for word in words)]
    return found[0] if len(found) == 1 else None
