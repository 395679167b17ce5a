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
CLOSE = {"EchoTime": 1.1, "DiffusionBValue": 1.1}
"""The largest ratio of neighboring values in one volume: scanners write what they measured, and echoes lie farther apart."""
WEAK_CLOSE = {"InversionTime": 1.5, "FlipAngle": 1.2}
"""Of slices that were measured one after the other, too: they tell kinds only where these take turns. The inversion time of late
enhancement follows the contrast agent from slice to slice."""
UNKNOWN_AT_0 = ("EchoTime", "InversionTime")
"""0 is what is written where there is none."""


def kinds_of(files: Sequence[DicomFile]) -> dict[str, list[str]]:
    """The tags that tell several kinds among files, with the kind of each file; empty for files that do not say theirs.

    Signals, echoes and b-values: of these no volume has two, wherever its slices lie.
    """
    found = {"ImageType": _signals(files), "ComplexImageComponent": [file.text("ComplexImageComponent") for file in files]}
    return _telling(found | {tag: _classes(files, tag, ratio) for tag, ratio in CLOSE.items()})


def weak_kinds_of(files: Sequence[DicomFile]) -> dict[str, list[str]]:
    """As :func:`kinds_of`, by what may differ within a volume, from one part of it to the next or in single slices."""
    found = {"ImageType": _flavors(files), "SeriesNumber": [file.text("SeriesNumber").lstrip("0") for file in files]}
    return _telling(found | {tag: _classes(files, tag, ratio) for tag, ratio in WEAK_CLOSE.items()})


def _telling(found: dict[str, list[str]]) -> dict[str, list[str]]:
    return {tag: kinds for tag, kinds in found.items() if len({*kinds} - {""}) > 1}


def _image_type(file: DicomFile) -> list[str]:
    return [value.strip() for value in file.text("ImageType").upper().split("\\")]


def _signals(files: Sequence[DicomFile]) -> list[str]:
    """What the image types say of the signal, from the third value on."""
    return ["\\".join(dict.fromkeys(filter(None, map(_signal, _image_type(file)[2:])))) for file in files]


def _flavors(files: Sequence[DicomFile]) -> list[str]:
    """The first and the third value of the image types, where they have both: the second tells who made the image."""
    return ["\\".join((values[0], values[2])) if len(values) > 2 else "" for values in map(_image_type, files)]


def _signal(value: str) -> str:
    """
    >>> _signal("P_FFE"), _signal("PHASE MAP"), _signal("NORM")
    ('phase', 'phase', '')
    """
    return SIGNALS.get(value) or SIGNALS.get(value.replace("_", " ").partition(" ")[0], "")


def _classes(files: Sequence[DicomFile], tag: str, max_ratio: float) -> list[str]:
    """Each number as the lowest of those that lie close to each other; what is no number says nothing."""
    found = [_number(file.text(tag)) for file in files]
    known = [None if value == 0 and tag in UNKNOWN_AT_0 else value for value in found]
    values = sorted({value for value in known if value is not None})
    lowest: dict[float, float] = {}
    for before, value in zip([None, *values], values, strict=False):
        lowest[value] = lowest[before] if before is not None and value <= max_ratio * before else value
    return ["" if value is None else f"{lowest[value]:g}" for value in known]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None
