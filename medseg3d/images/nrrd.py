"""NRRD files (``.nrrd``, ``.nhdr``, 3D Slicer's ``.seg.nrrd``): a path in, a checked header out.

Fields as in the format's definition (teem.sourceforge.net/nrrd/format.html); of the axes, at most one that is not of space.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.images.header import ending_of, homogeneous
from medseg3d.images.opening import check_is_file, what_it_is
from medseg3d.images.text_header import (
    LPS_TO_RAS,
    MAX_AXES,
    MAX_FILES,
    Encoding,
    TextHeader,
    Voxels,
    damaged,
    files_beside,
    header_lines,
    integers,
    numbered_files,
    numbers,
)

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
TYPES = {name: code for code, names in _TYPES.items() for name in names}
ENCODINGS: dict[str, Encoding] = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2", "txt": "text", "text": "text", "ascii": "text",
    "hex": "hex",
}  # fmt: skip
_FLIPS = {"right": ("left", -1.0), "anterior": ("posterior", -1.0), "inferior": ("superior", -1.0)}
SPACES = {"ras": "right-anterior-superior", "las": "left-anterior-superior", "lps": "left-posterior-superior"}
UNITS_TO_MM = {
    "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3, "microns": 1e-3,
    "micrometer": 1e-3, "micrometers": 1e-3, "nm": 1e-6, "nanometer": 1e-6, "nanometers": 1e-6, "cm": 10.0, "centimeter": 10.0,
    "centimeters": 10.0, "m": 1000.0, "meter": 1000.0, "meters": 1000.0,
}  # fmt: skip
"""What is written into ``space units``; anything else counts as mm."""
SPATIAL_KINDS = ("domain", "space", "???", "none", "")
COLOR_KINDS = ("rgb-color", "rgba-color", "3-color", "4-color", "hsv-color", "xyz-color")
COMPLEX_KINDS = ("complex",)
_MAX_KEYS = 10_000


def read_header(path: Path) -> TextHeader:
    """Parse and check the header; raises :class:`ImageReadError`, also for a segmentation with several layers."""
    parsed, pairs = read_layers(path)
    _refuse_layers(path, pairs, parsed.voxels.sizes, parsed.volume_axis)
    return parsed


def read_layers(path: Path) -> tuple[TextHeader, dict[str, str]]:
    """Parse and check the header of any file, and its key/value pairs."""
    fields, pairs = _fields(path)
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise ImageReadError(f"{path}: the NRRD header has no {name}. Convert the image anew.")
    (dimension,) = integers(path, "dimension", fields["dimension"], least=1, most=16, count=1)
    if not 2 <= dimension <= MAX_AXES:
        raise ImageReadError(f"{path}: {dimension}D image; a case needs one 3D file per channel.")
    sizes = integers(path, "sizes", fields["sizes"], least=1, most=1 << 40, count=dimension)
    kinds = _words(path, fields, "kinds", dimension)
    directions = _directions(path, fields, dimension)
    volume_axis = _volume_axis(path, kinds, directions, sizes)
    affine, notes = _affine(path, fields, directions, [axis for axis in range(dimension) if axis != volume_axis])
    kind = kinds[volume_axis].lower() if volume_axis is not None else ""
    is_small_color = volume_axis is not None and sizes[volume_axis] in (3, 4) and fields["type"].lower() in _TYPES["u1"]
    if kind in COMPLEX_KINDS:
        raise ImageReadError(f"{path}: voxels are complex numbers; write the magnitude, or two channels.")
    return TextHeader(
        voxels=_voxels(path, fields, sizes),
        volume_axis=volume_axis,
        affine=affine,
        is_color=kind in COLOR_KINDS or (is_small_color and kind not in ("time", "list")),
        notes=notes,
    ), pairs


def _fields(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The fields (names in lower case, the first of each) and the key/value pairs."""
    check_is_file(path)
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    with path.open("rb") as stream:
        lines = header_lines(path, stream)
        magic = next(lines, "")
        if not re.fullmatch(r"NRRD000[1-6]", magic):
            raise what_it_is(path, magic[:200].encode(), "a NRRD file")
        for line in lines:
            if not line:
                break
            if line.startswith("#"):
                continue
            if ":=" in line and not re.match(r"[A-Za-z ]+: ", line):
                key, _, value = line.partition(":=")
                pairs.setdefault(key[:1000], value)
            elif ":" in line:
                name, _, text = line.partition(":")
                name = re.sub(r"\s+", " ", name.strip().lower())
                text = text.strip()
                if name in ("data file", "datafile") and text.upper().startswith("LIST"):
                    text = "\n".join([text, *lines])  # the names take up the rest of the header
                fields.setdefault(name.replace("datafile", "data file"), text)
            else:
                raise damaged(path, "a line", line, "expected a field and its value")
            if len(pairs) > _MAX_KEYS:
                raise ImageReadError(f"{path}: more than {_MAX_KEYS} keys in the header. Convert the image anew.")
    return fields, pairs


def _words(path: Path, fields: dict[str, str], name: str, count: int) -> list[str]:
    """One word per axis, in quotes or not; empty ones where the field is missing."""
    if name not in fields:
        return [""] * count
    words = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', fields[name])]
    if len(words) != count:
        raise damaged(path, name, fields[name], f"expected {count} words")
    return words


def _directions(path: Path, fields: dict[str, str], dimension: int) -> list[np.ndarray | None]:
    """A vector per axis, None for those that are not of space; from ``spacings`` where no space is declared."""
    text = fields.get("space directions")
    if text is None:
        steps = numbers(path, "spacings", fields.get("spacings", " ".join(["1"] * dimension)), dimension)
        spatial = [axis for axis, step in enumerate(steps) if np.isfinite(step)][:3]
        return [np.eye(3)[spatial.index(axis)] * steps[axis] if axis in spatial else None for axis in range(dimension)]
    parts = re.findall(r"none|\([^()]*\)", text)
    if len(parts) != dimension or re.sub(r"none|\([^()]*\)|\s", "", text):
        raise damaged(path, "space directions", text, f"expected {dimension} vectors or none")
    return [None if part == "none" else _vector(path, "space directions", part) for part in parts]


def _vector(path: Path, field: str, text: str) -> np.ndarray:
    count = text.count(",") + 1
    if count not in (2, 3) or not (text.startswith("(") and text.endswith(")")):
        raise damaged(path, field, text, "expected a vector such as (1,0,0)")
    values = np.zeros(3)
    values[:count] = numbers(path, field, text[1:-1].replace(",", " "), count)
    return values


def _volume_axis(path: Path, kinds: list[str], directions: list[np.ndarray | None], sizes: tuple[int, ...]) -> int | None:
    """The axis that is not of space: by its kind, else the one without a direction, else the fourth."""
    others = [axis for axis, kind in enumerate(kinds) if kind.lower() not in SPATIAL_KINDS]
    if not others:
        others = [axis for axis, direction in enumerate(directions) if direction is None]
    if not others and len(sizes) > 3:
        others = list(range(3, len(sizes)))
    if len(others) > 1 or not 2 <= len(sizes) - len(others) <= 3:
        raise ImageReadError(
            f"{path}: {len(sizes)}D image with {len(others)} axes that are not of space; a case needs one 3D file per channel."
        )
    return others[0] if others else None


def _refuse_layers(path: Path, pairs: dict[str, str], sizes: tuple[int, ...], volume_axis: int | None) -> None:
    """3D Slicer keeps segments that overlap in layers, each a volume: no label map has one value per voxel then."""
    is_segmentation = ending_of(path) == ".seg.nrrd" or any(key.startswith("Segment0_") for key in pairs)
    if is_segmentation and volume_axis is not None and sizes[volume_axis] > 1:
        raise ImageReadError(
            f"{path}: a segmentation of 3D Slicer with {sizes[volume_axis]} layers, as its segments overlap; a label map has one value "
            "per voxel. In Slicer, collapse the layers (Segmentations, Binary labelmap layers), or export a label map."
        )


def _affine(path: Path, fields: dict[str, str], directions: list[np.ndarray | None], axes: list[int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """To RAS+ mm; axes of space without a direction continue those that have one."""
    columns = np.eye(3)
    for place, axis in enumerate(axes):
        direction = directions[axis]
        if direction is None:
            raise damaged(path, "space directions", fields.get("space directions", "missing"), "expected a vector for each axis of space")
        columns[:, place] = direction
    if len(axes) == 2:  # a single slice, as thick as its pixels are far apart by default
        with np.errstate(over="ignore", invalid="ignore"):
            across = np.cross(columns[:, 0], columns[:, 1])
            columns[:, 2] = across / (np.linalg.norm(across) or 1.0)
    origin = _vector(path, "space origin", fields["space origin"].strip()) if "space origin" in fields else np.zeros(3)
    factor, notes = _unit(path, fields)
    to_ras = LPS_TO_RAS * _space_signs(fields.get("space", ""))
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are refused where the grid is checked
        return homogeneous(factor * to_ras @ columns, factor * to_ras @ origin), notes


def _space_signs(space: str) -> np.ndarray:
    """What turns the declared space into LPS, axis by axis; a space that is not anatomical counts as LPS, as ITK reads it."""
    name = space.strip().lower().replace('"', "")
    base = name.removesuffix("-time")
    base = SPACES.get(base.removesuffix("t") if len(base) == 4 else base, base)
    return np.array([_FLIPS[word][1] if word in _FLIPS else 1.0 for word in [*base.split("-"), "", "", ""][:3]])


def _unit(path: Path, fields: dict[str, str]) -> tuple[float, tuple[str, ...]]:
    """The factor from the unit of space to mm, and a note where it is not 1."""
    text = fields.get("space units", "")
    words = {(quoted or plain).strip().lower() for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', text)}
    found = {UNITS_TO_MM[word]: word for word in words if word in UNITS_TO_MM}
    if len(found) > 1:
        raise damaged(path, "space units", text, "expected one unit for all axes")
    if not found or 1.0 in found:
        return 1.0, ()
    ((factor, word),) = found.items()
    return factor, (f"spacing is given in {word} and was converted to mm",)


def _voxels(path: Path, fields: dict[str, str], sizes: tuple[int, ...]) -> Voxels:
    kind = TYPES.get(fields["type"].strip().lower())
    if kind is None:
        raise damaged(path, "type", fields["type"], "expected a number type such as short or float")
    encoding = ENCODINGS.get(fields["encoding"].strip().lower())
    if encoding is None:
        raise damaged(path, "encoding", fields["encoding"], f"expected one of {', '.join(ENCODINGS)}")
    endian = fields.get("endian", "little").strip().lower()
    if endian not in ("little", "big"):
        raise damaged(path, "endian", endian, "expected little or big")
    (skip,) = integers(path, "byte skip", fields.get("byte skip", fields.get("byteskip", "0")), least=-1, most=1 << 40, count=1)
    (lines,) = integers(path, "line skip", fields.get("line skip", fields.get("lineskip", "0")), least=0, most=1 << 20, count=1)
    if skip == -1 and encoding != "raw":
        raise damaged(path, "byte skip", "-1", "expected 0 or more where the voxels are compressed")
    files, is_attached = _files(path, fields)
    return Voxels(
        sizes=sizes,
        dtype=np.dtype(kind).newbyteorder("<" if endian == "little" else ">"),
        encoding=encoding,
        files=files,
        is_attached=is_attached,
        skip=skip,
        skip_lines=lines,
    )


def _files(path: Path, fields: dict[str, str]) -> tuple[tuple[Path, ...], bool]:
    text = fields.get("data file")
    if text is None:
        return (path,), True
    if text.upper().startswith("LIST"):
        names = [line.strip() for line in text.split("\n")[1:] if line.strip()]
        if not 1 <= len(names) <= MAX_FILES:
            raise damaged(path, "data file", text, "expected the names of files")
        return files_beside(path, names), False
    if "%" in text and len(text.split()) >= 4:
        pattern, *rest = text.split()
        first, last, step = integers(path, "data file", " ".join(rest[:3]), least=-(1 << 31), most=1 << 31, count=3)
        return files_beside(path, numbered_files(path, pattern, first, last, step)), False
    return files_beside(path, [text]), False
