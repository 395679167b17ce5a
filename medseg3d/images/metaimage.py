"""MetaImage files (``.mha``, ``.mhd``): a path in, a checked header out. Fields as in MetaIO's documentation, read as ITK reads them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.images.header import homogeneous
from medseg3d.images.opening import check_is_file, refuse_known, what_it_is
from medseg3d.images.text_header import (
    LPS_TO_RAS,
    MAX_FILES,
    TextHeader,
    Voxels,
    damaged,
    files_beside,
    header_lines,
    integers,
    numbered_files,
    numbers,
)

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4",
    "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
"""MET_LONG has 4 bytes on every system."""
_SYNONYMS = {"Origin": "Offset", "Position": "Offset", "Rotation": "TransformMatrix", "Orientation": "TransformMatrix"}
_MAX_CHANNELS = 1 << 16


def read_header(path: Path) -> TextHeader:
    """Parse and check the header; raises :class:`ImageReadError`."""
    fields = _fields(path)
    for name in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if name not in fields:
            raise ImageReadError(f"{path}: the MetaImage header has no {name}. Convert the image anew.")
    if fields.get("ObjectType", "Image").lower() != "image":
        raise ImageReadError(f"{path}: a MetaIO object of type {fields['ObjectType'][:40]!r}, not an image.")
    (dimension,) = integers(path, "NDims", fields["NDims"], least=-(1 << 31), most=1 << 31, count=1)
    if not 2 <= dimension <= 4:
        raise ImageReadError(f"{path}: NDims is {dimension}; a case needs one 3D file per channel.")
    sizes = integers(path, "DimSize", fields["DimSize"], least=1, most=1 << 40, count=dimension)
    channels = fields.get("ElementNumberOfChannels", "1")
    (channel_count,) = integers(path, "ElementNumberOfChannels", channels, least=1, most=_MAX_CHANNELS, count=1)
    if dimension == 4 and channel_count > 1:
        raise ImageReadError(f"{path}: 4D image with {channel_count} values per voxel; a case needs one 3D file per channel.")
    affine = _affine(path, fields, dimension)
    volume_axis = 0 if channel_count > 1 else 3 if dimension == 4 else None
    kind = fields["ElementType"].removesuffix("_ARRAY")
    return TextHeader(
        voxels=_voxels(path, fields, (channel_count, *sizes) if channel_count > 1 else sizes),
        volume_axis=volume_axis,
        affine=affine,
        is_color=channel_count in (3, 4) and kind == "MET_UCHAR",
    )


def _fields(path: Path) -> dict[str, str]:
    """The fields up to ``ElementDataFile``, which ends the header; the names of a list follow it."""
    check_is_file(path)
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        refuse_known(path, stream.read(200), "a MetaImage file")
        stream.seek(0)
        lines = header_lines(path, stream)
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            match = re.fullmatch(r"\s*([^=:\s][^=:]{0,199}?)\s*[=:]\s*(.*?)\s*", line)
            if match is None:
                if number == 0 or not fields:
                    raise what_it_is(path, line[:200].encode(), "a MetaImage file")
                raise damaged(path, "a line", line, "expected a name, = and a value")
            name = _SYNONYMS.get(match[1], match[1])
            fields.setdefault(name, match[2])
            if name == "ElementDataFile":
                if match[2].upper().startswith("LIST"):
                    fields["files"] = "\n".join(found for rest in lines if (found := rest.strip()))
                break
    return fields


def _affine(path: Path, fields: dict[str, str], dimension: int) -> np.ndarray:
    """To RAS+ mm. A row of the matrix is the direction of an axis; of four axes the first three count."""
    n = min(dimension, 3)
    matrix = np.eye(dimension)
    if "TransformMatrix" in fields:
        matrix = numbers(path, "TransformMatrix", fields["TransformMatrix"], dimension**2).reshape(dimension, dimension)
    spacing = fields.get("ElementSpacing", fields.get("ElementSize"))
    edges, columns, origin = np.ones(3), np.eye(3), np.zeros(3)
    if spacing is not None:
        edges[:n] = numbers(path, "ElementSpacing", spacing, dimension)[:n]
    if (edges <= 0).any():
        raise damaged(path, "ElementSpacing", spacing or "", "every axis needs a number above 0")
    if "Offset" in fields:
        origin[:n] = numbers(path, "Offset", fields["Offset"], dimension)[:n]
    columns[:n, :n] = matrix[:n, :n].T
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are refused where the grid is checked
        return homogeneous(LPS_TO_RAS @ columns * edges, LPS_TO_RAS @ origin)


def _voxels(path: Path, fields: dict[str, str], sizes: tuple[int, ...]) -> Voxels:
    kind = TYPES.get(fields["ElementType"].removesuffix("_ARRAY"))
    if kind is None:
        raise damaged(path, "ElementType", fields["ElementType"], f"expected one of {', '.join(TYPES)}")
    is_big = _is_true(fields.get("ElementByteOrderMSB", fields.get("BinaryDataByteOrderMSB", "False")))
    is_packed = _is_true(fields.get("CompressedData", "False"))
    is_binary = _is_true(fields.get("BinaryData", "True"))
    if is_packed and not is_binary:
        raise damaged(path, "BinaryData", "False", "expected True where the voxels are compressed")
    (skip,) = integers(path, "HeaderSize", fields.get("HeaderSize", "0"), least=-1, most=1 << 40, count=1)
    files, is_attached = _files(path, fields, sizes)
    if skip == -1 and (is_packed or not is_binary):
        raise damaged(path, "HeaderSize", "-1", "expected 0 or more where the voxels are compressed")
    return Voxels(
        sizes=sizes,
        dtype=np.dtype(kind).newbyteorder(">" if is_big else "<"),
        encoding="zlib" if is_packed else "raw" if is_binary else "text",
        files=files,
        is_attached=is_attached,
        skip=0 if is_attached and skip > 0 else skip,
    )


def _files(path: Path, fields: dict[str, str], sizes: tuple[int, ...]) -> tuple[tuple[Path, ...], bool]:
    text = fields["ElementDataFile"]
    if text.upper() == "LOCAL":
        return (path,), True
    if text.upper().startswith("LIST"):
        names = fields.get("files", "").split("\n")[: sizes[-1]]
        if not names[0] or len(names) > MAX_FILES:
            raise damaged(path, "ElementDataFile", text, "expected the names of files in the lines below")
        return files_beside(path, names), False
    if "%" in text and len(text.split()) >= 3:
        pattern, *rest = text.split()
        first, last, step = (*integers(path, "ElementDataFile", " ".join(rest[:3]), least=0, most=1 << 31), 1)[:3]
        return files_beside(path, numbered_files(path, pattern, first, last, step)), False
    return files_beside(path, [text]), False


def _is_true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")
