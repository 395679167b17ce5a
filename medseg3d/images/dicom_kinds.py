"""Slices of different kinds in one series: magnitude and phase, several echoes, an original and what was computed from it."""

from __future__ import annotations

from collections.abc import Sequence

from medseg3d.images.dicom_file import DicomFile

SIGNALS = {
    **dict.fromkeys(("M", "MAG", "MAGNITUDE"), "magnitude"),
    **dict.fromkeys(("P", "PHASE"), "phase"),
    **dict.fromkeys(("R", "REAL"), "real"),
    **dict.fromkeys(("I", "IMAGINARY"), "imaginary"),
    **dict.fromkeys(("W", "WATER"), "water"),
    **dict.fromkeys(("F", "FAT"), "fat"),
    **dict.fromkeys(("IP", "IN_PHASE", "INPHASE"), "in phase"),
    **dict.fromkeys(("OP", "OUT_PHASE", "OPP_PHASE", "OUTPHASE"), "opposed phase"),
    **{name: name for name in ("ADC", "FA", "TRACEW", "VELOCITY", "MIP", "MINIP", "AVERAGE", "SUBTRACTION")},
}
"""What values of an image type say of the signal; the first part of ``P_FFE`` or ``PHASE MAP`` counts too."""
EXACT = ("ComplexImageComponent", "SeriesNumber")
"""Tags in which the slices of one volume are equal, where they say it."""
CLOSE = {"EchoTime": 1.1, "InversionTime": 1.5, "FlipAngle": 1.2, "DiffusionBValue": 1.1}
"""The largest ratio of neighboring values in one volume: scanners write what they measured, and echoes lie farther apart; the inversion
time of late enhancement follows the contrast agent from slice to slice."""


def kinds_of(files: Sequence[DicomFile]) -> dict[str, list[str]]:
    """The tags that tell several kinds among files, with the kind of each file; empty for files that do not say theirs."""
    found = {"ImageType": _image_types(files), **{tag: [file.text(tag) for file in files] for tag in EXACT}}
    found |= {tag: _classes([file.text(tag) for file in files], ratio) for tag, ratio in CLOSE.items()}
    return {tag: kinds for tag, kinds in found.items() if len({*kinds} - {""}) > 1}


def _image_types(files: Sequence[DicomFile]) -> list[str]:
    """What of the image types tells a kind: its first and third value, and names of signals among those behind.

    The second tells who made the image; others are steps of a vendor's reconstruction.
    """
    found = []
    for file in files:
        values = [value.strip() for value in file.text("ImageType").upper().split("\\")]
        first, flavor = values[0], values[2] if len(values) > 2 else ""
        signals = [name for name in map(_signal, values[3:]) if name]
        found.append("\\".join(dict.fromkeys(part for part in (first, _signal(flavor) or flavor, *signals) if part)))
    return found


def _signal(value: str) -> str:
    """
    >>> _signal("P_FFE"), _signal("PHASE MAP"), _signal("NORM")
    ('phase', 'phase', '')
    """
    return SIGNALS.get(value) or SIGNALS.get(value.replace("_", " ").partition(" ")[0], "")


def _classes(texts: Sequence[str], max_ratio: float) -> list[str]:
    """Each number as the lowest of those that lie close to each other; what is no number says nothing."""
    values = sorted({value for text in texts if (value := _number(text)) is not None})
    lowest: dict[float, float] = {}
    for before, value in zip([None, *values], values, strict=False):
        lowest[value] = lowest[before] if before is not None and value <= max_ratio * before else value
    return ["" if (value := _number(text)) is None else f"{lowest[value]:g}" for text in texts]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None
