"""The tags of a DICOM header that are read, and their values as text: bytes go in, Unicode comes out."""

from __future__ import annotations

import struct
import unicodedata

TAGS: dict[int, str] = {
    0x0008_0005: "SpecificCharacterSet",
    0x0008_0008: "ImageType",
    0x0008_0016: "SOPClassUID",
    0x0008_0018: "SOPInstanceUID",
    0x0008_0020: "StudyDate",
    0x0008_0022: "AcquisitionDate",
    0x0008_0030: "StudyTime",
    0x0008_0032: "AcquisitionTime",
    0x0008_0050: "AccessionNumber",
    0x0008_0060: "Modality",
    0x0008_0070: "Manufacturer",
    0x0008_0090: "ReferringPhysicianName",
    0x0008_1030: "StudyDescription",
    0x0008_103E: "SeriesDescription",
    0x0008_1090: "ManufacturerModelName",
    0x0008_9208: "ComplexImageComponent",
    0x0010_0010: "PatientName",
    0x0010_0020: "PatientID",
    0x0010_0021: "IssuerOfPatientID",
    0x0010_0030: "PatientBirthDate",
    0x0010_0040: "PatientSex",
    0x0010_1010: "PatientAge",
    0x0010_1020: "PatientSize",
    0x0010_1030: "PatientWeight",
    0x0012_0062: "PatientIdentityRemoved",
    0x0012_0063: "DeidentificationMethod",
    0x0018_0010: "ContrastBolusAgent",
    0x0018_0015: "BodyPartExamined",
    0x0018_0020: "ScanningSequence",
    0x0018_0050: "SliceThickness",
    0x0018_0060: "KVP",
    0x0018_0080: "RepetitionTime",
    0x0018_0081: "EchoTime",
    0x0018_0082: "InversionTime",
    0x0018_0087: "MagneticFieldStrength",
    0x0018_1030: "ProtocolName",
    0x0018_1060: "TriggerTime",
    0x0018_1151: "XRayTubeCurrent",
    0x0018_1210: "ConvolutionKernel",
    0x0018_1314: "FlipAngle",
    0x0018_9087: "DiffusionBValue",
    0x0020_000D: "StudyInstanceUID",
    0x0020_000E: "SeriesInstanceUID",
    0x0020_0010: "StudyID",
    0x0020_0011: "SeriesNumber",
    0x0020_0012: "AcquisitionNumber",
    0x0020_0013: "InstanceNumber",
    0x0020_0032: "ImagePositionPatient",
    0x0020_0037: "ImageOrientationPatient",
    0x0020_0052: "FrameOfReferenceUID",
    0x0020_0100: "TemporalPositionIdentifier",
    0x0020_1040: "PositionReferenceIndicator",
    0x0020_9056: "StackID",
    0x0028_0002: "SamplesPerPixel",
    0x0028_0004: "PhotometricInterpretation",
    0x0028_0008: "NumberOfFrames",
    0x0028_0010: "Rows",
    0x0028_0011: "Columns",
    0x0028_0030: "PixelSpacing",
    0x0028_0100: "BitsAllocated",
    0x0028_0101: "BitsStored",
    0x0028_0102: "HighBit",
    0x0028_0103: "PixelRepresentation",
    0x0028_1052: "RescaleIntercept",
    0x0028_1053: "RescaleSlope",
    0x0028_1054: "RescaleType",
    0x0028_3000: "ModalityLUTSequence",
    0x0054_0081: "NumberOfSlices",
    0x0054_1001: "Units",
}
"""All that is read of a header."""
NUMBERS = {name: f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag, name in TAGS.items()}
"""How DICOM writes a tag."""
MAX_VALUE_BYTES = 4096
"""Of a tag that is read; the longest, an image type, has a few hundred."""
PRESENT = "present"
"""In the place of a value that is not read, as that of a sequence."""

_BINARY = {
    **dict.fromkeys(
        ("SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfSlices"), "H"
    ),
    "DiffusionBValue": "d",
}
_CHARACTER_SETS = {
    "ISO_IR 101": "iso8859-2",
    "ISO_IR 109": "iso8859-3",
    "ISO_IR 110": "iso8859-4",
    "ISO_IR 144": "iso8859-5",
    "ISO_IR 127": "iso8859-6",
    "ISO_IR 126": "iso8859-7",
    "ISO_IR 138": "iso8859-8",
    "ISO_IR 148": "iso8859-9",
    "ISO_IR 166": "cp874",
    "ISO_IR 13": "shift_jis",
    "ISO_IR 87": "iso2022_jp_2",
    "ISO_IR 159": "iso2022_jp_2",
    "ISO_IR 149": "euc_kr",
    "ISO_IR 58": "gb2312",
    "ISO_IR 192": "utf-8",
    "GB18030": "gb18030",
    "GBK": "gbk",
}
_ESCAPES = (b"\x1b$)C", b"\x1b$)A", b"\x1b(B")
"""They say which set follows, in Korean and Chinese names; the codecs do not know them."""


def texts(values: dict[str, bytes], order: str) -> dict[str, str]:
    """Values as text, without padding; ``order`` is that of bytes, < or >. What cannot be a value of its tag stays as odd text.

    >>> texts({"Rows": bytes([0, 2]), "PatientID": b"A 1 "}, "<")
    {'Rows': '512', 'PatientID': 'A 1'}
    """
    codecs = _codecs(values.get("SpecificCharacterSet", b""))
    return {name: _text(name, value, order, codecs) for name, value in values.items()}


def _text(name: str, value: bytes, order: str, codecs: tuple[str, ...]) -> str:
    kind = _BINARY.get(name)
    if kind is not None:
        if len(value) != struct.calcsize(kind):
            return f"{len(value)} bytes" if value else ""
        return format(struct.unpack(order + kind, value)[0], "g" if kind == "d" else "d")
    for codec in codecs:
        try:
            text = value.decode(codec)
            break
        except UnicodeDecodeError:
            continue
    else:
        text = value.decode("latin-1")
    return unicodedata.normalize("NFC", text.strip(" \0\t\r\n"))


def _codecs(declared: bytes) -> tuple[str, ...]:
    """Those to try: the declared one, then what people write without declaring it."""
    names = [name.strip(" \0").replace("ISO 2022 IR", "ISO_IR") for name in declared.decode("latin-1").split("\\")]
    return (*(_CHARACTER_SETS[name] for name in names if name in _CHARACTER_SETS), *(("latin-1",) if "ISO_IR 100" in names else ("utf-8",)))
