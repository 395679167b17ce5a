"""A folder with one DICOM series: its slices in the order of their positions, each with its own slope and intercept."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.images.dicom_file import DicomFile, looks_like_dicom
from medseg3d.images.dicom_grid import order_slices
from medseg3d.images.dicom_pixels import JPEG, PixelFormat, pixel_format, stored_slices
from medseg3d.images.dicom_series import Series, describe_left_out, find_series
from medseg3d.images.dicom_tags import NUMBERS
from medseg3d.images.dicom_volumes import TELLING, separate_volumes
from medseg3d.images.header import REFUSED_ENDINGS, Image, ImageHeader, ending_of, volume_of
from medseg3d.images.opening import check_memory
from medseg3d.images.readers import READERS
from medseg3d.wording import counted

logger = logging.getLogger(__name__)

_TEXTS, _ARRAYS = ".json .jsonl .txt .csv .tsv .pdf .xml .html .md .log .py .toml .yaml", ".npy .npz .b2nd .h5 .pt .pth .safetensors"
_OTHER_ENDINGS = {*REFUSED_ENDINGS, *_TEXTS.split(), *_ARRAYS.split(), ".zip", ".gz", ".tar", ".jpeg"}
"""Files that are not opened to see whether they are DICOM; those without an ending are."""
_LEFT_OUT = ("DICOMDIR", "__MACOSX", "THUMBS.DB", "DESKTOP.INI")
INTEGER_TYPES = (np.int16, np.uint16, np.int32, np.int64)
"""Of values with an intercept: the first that holds them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Volume:
    """Slices in order, how each is stored, and slope and intercept of each."""

    slices: list[DicomFile]
    formats: list[PixelFormat]
    scale: list[tuple[float, float]]
    header: ImageHeader
    warnings: tuple[str, ...]


def holds_series(folder: Path) -> bool:
    """Whether DICOM files lie in a folder, or in a folder below."""
    return folder.is_dir() and any(True for _ in dicom_files(folder))


def dicom_files(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """All files in a folder and below that are DICOM by their name or their beginning, damaged ones among them; sorted.

    ``on_error`` hears of folders that cannot be looked into; without it they are an error.
    """
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=on_error or _raise):
        here = Path(place)
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link back, or to a folder that another link leads to
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not _is_left_out(name))
        for name in sorted(names):
            path = here / name
            if not _is_left_out(name) and _is_dicom(path):
                yield path


def read_header(path: Path, files: Sequence[Path] = ()) -> ImageHeader:
    """See :func:`medseg3d.images.read_header`; ``path`` is a folder, or one file of a single slice; ``files`` those that count in it."""
    return _open(path, files).header


def read_image(path: Path, files: Sequence[Path] = (), *, volume: int | None = None) -> Image:
    """See :func:`medseg3d.images.read_image`; slope and intercept of each slice are applied.

    Values are integers where all slopes are 1 and all intercepts whole numbers, else float32.
    """
    found = _open(path, files)
    try:
        volume_of(1, volume)
    except ValueError as error:
        raise ImageReadError(f"{path}: {error}.") from None
    shape, kind = found.header.geometry.shape, np.dtype(_value_type(found))
    check_memory(path, found.header.num_voxels * kind.itemsize, shape)
    array = np.empty(shape[::-1], kind)
    for index, values in enumerate(stored_slices(found.slices, found.formats)):
        slope, intercept = found.scale[index]
        if array.dtype.kind != "f":
            array[index] = values
            array[index] += array.dtype.type(intercept)
        else:
            with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused where cases are read
                array[index] = values * slope + intercept  # in float64
    if found.slices[0].text("Modality") == "CT" and array.min() >= 0:
        logger.warning("%s: marked as CT, but no value is below 0: these are no Hounsfield units.", path)
    for note in found.warnings:
        logger.warning("%s: %s.", path, note)
    return Image(array=array.transpose(2, 1, 0), header=found.header)


def series_slices(path: Path, files: Sequence[Path] = ()) -> tuple[tuple[DicomFile, ...], ImageHeader]:
    """The headers of the slices, slice k of the image by :func:`read_image` is the k-th, and the header of the image."""
    found = _open(path, files)
    return tuple(found.slices), found.header


def several_series(path: Path, series: Sequence[Series]) -> ImageReadError:
    """The error of a place that holds more than one, with what each is."""
    found = []
    for each in series:
        folder = each.first.path.parent
        name = str(folder.relative_to(path)) if folder != path and folder.is_relative_to(path) else ""
        described = each.first.text("SeriesDescription")[:64] or "without a description"
        found.append(f"{name or described} ({counted(len(each.files), 'file')}, first {each.first.path.name})")
    listed = "; ".join(found)
    return ImageReadError(f"{path}: {len(series)} series found: {listed}. Name the folder of one series; each needs a folder of its own.")


def _open(path: Path, files: Sequence[Path]) -> _Volume:
    """The slices of the one series in a folder in the order of their positions, and its header."""
    paths = list(dict.fromkeys(files)) or ([path] if path.is_file() else list(dicom_files(path)))
    if not paths:
        raise ImageReadError(f"{path}: a folder without DICOM files; expected one series of slices.")
    found = find_series(paths)
    if found.damaged:
        raise ImageReadError(found.damaged[0][1])
    lines = describe_left_out(found.left_out, path if path.is_dir() else path.parent)
    if not found.series:
        raise _nothing_left(path, found.left_out)
    if len(found.series) > 1:
        raise several_series(path, found.series)
    series = found.series[0]
    volumes = separate_volumes(series.files)
    if len(volumes) > 1:
        names = [volume.part for volume in volumes]
        tags = ", ".join(f"{tag} {NUMBERS[tag]}" for tag, name in TELLING.items() if any(name in part for part in names))
        counts = " and ".join(str(count) for count in dict.fromkeys(len(volume.files) for volume in volumes))
        raise ImageReadError(
            f"{path}: {len(volumes)} volumes of {counts} slices in one series, over time or of several contrasts; told "
            f"apart by {tags}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}. Split it into one folder each."
        )
    return _volume_of(path, series, lines)


def _nothing_left(path: Path, left_out: Sequence[tuple[Path, str]]) -> ImageReadError:
    first, reason = left_out[0]
    if len(left_out) == 1 and first == path:
        return ImageReadError(f"{path}: {reason} is not supported as label or image. Convert it to NIfTI (.nii.gz).")
    lines = "; ".join(describe_left_out(left_out, path)[:5])
    return ImageReadError(f"{path}: no series of slices among {counted(len(left_out), 'DICOM file')}: {lines}.")


def _volume_of(path: Path, series: Series, lines: Sequence[str]) -> _Volume:
    formats = {file.path: pixel_format(file) for file in series.files}
    slices, geometry, oddities = order_slices(path, series.files)
    _check_scales(path, slices)
    scale = [_scale_of(file) for file in slices]
    warnings = [*oddities, *series.notes, *_pixel_notes(slices)]
    stored = formats[slices[0].path]
    is_scaled = any(pair != (1.0, 0.0) for pair in scale)
    header = ImageHeader(
        geometry=geometry,
        stored_shape=geometry.shape,
        format="dicom",
        num_volumes=1,
        dtype=f"{stored.allocated}-bit {'signed' if stored.is_signed else 'unsigned'} integer",
        is_scaled=is_scaled,
        modality=slices[0].text("Modality") or None,
        notes=(*warnings, *lines),
    )
    ordered = [formats[file.path] for file in slices]
    return _Volume(slices=slices, formats=ordered, scale=scale, header=header, warnings=tuple(warnings))


def _check_scales(path: Path, slices: Sequence[DicomFile]) -> None:
    """Raise :class:`ImageReadError` where some slices say how their values are scaled, and others say nothing."""
    for place, (tag, default) in enumerate({"RescaleSlope": 1.0, "RescaleIntercept": 0.0}.items()):
        silent = [file for file in slices if not file.text(tag) or (tag == "RescaleSlope" and not file.numbers(tag, 1)[0])]
        scaled = [file for file in slices if file not in silent and _scale_of(file)[place] != default]
        if silent and scaled:
            value = _scale_of(scaled[0])[place]
            raise ImageReadError(
                f"{path}: {silent[0].path.name} has no {tag} {NUMBERS[tag]}, and {scaled[0].path.name} has {value:g}: its values "
                "would be on another scale than the others'. Copy or export the slice again."
            )


def _scale_of(file: DicomFile) -> tuple[float, float]:
    """Slope and intercept of a slice, 1 and 0 where there are none."""
    slope = float(file.numbers("RescaleSlope", 1)[0]) if file.text("RescaleSlope") else 1.0
    intercept = float(file.numbers("RescaleIntercept", 1)[0]) if file.text("RescaleIntercept") else 0.0
    return slope or 1.0, intercept  # 0 says nothing of the values; other readers take 1 as well


def _pixel_notes(slices: Sequence[DicomFile]) -> list[str]:
    notes = []
    if slices[0].text("PhotometricInterpretation") == "MONOCHROME1":
        notes.append("MONOCHROME1: shown with dark and bright exchanged; the values are taken as they are, not inverted")
    if any(file.text("ModalityLUTSequence") for file in slices):
        notes.append(f"a table of values (Modality LUT {NUMBERS['ModalityLUTSequence']}) is not applied")
    scales = {_scale_of(file) for file in slices}
    if slices[0].text("Modality") == "CT" and len(scales) > 1:
        notes.append("CT whose slices have different slopes or intercepts; each is scaled by its own")
    claimed = slices[0].integer("NumberOfSlices", 0)
    if claimed > len(slices):
        notes.append(f"{len(slices)} slices, and each says that there are {claimed}; the others are missing at an end")
    return notes


def _value_type(found: _Volume) -> type[np.generic]:
    """The type that holds all values of a volume."""
    if any(slope != 1 or not intercept.is_integer() or abs(intercept) > 2**31 for slope, intercept in found.scale):
        return np.float32
    if all(intercept == 0 for _, intercept in found.scale) and len({stored.dtype for stored in found.formats}) == 1:
        return found.formats[0].dtype.type
    low, high = 0.0, 0.0
    for file, stored, (_, intercept) in zip(found.slices, found.formats, found.scale, strict=True):
        # a compressed picture may hold more bits than the header says
        least, most = (replace(stored, bits=stored.allocated) if file.syntax in JPEG else stored).range
        low, high = min(low, least + intercept), max(high, most + intercept)
    return next(kind for kind in INTEGER_TYPES if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)


def _is_dicom(path: Path) -> bool:
    ending = ending_of(path)
    if ending.endswith(".dcm"):
        return path.is_file()
    try:
        return ending not in _OTHER_ENDINGS and ending not in READERS and looks_like_dicom(path)
    except PermissionError:
        return True  # reading says what is wrong


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name.upper() in _LEFT_OUT


def _raise(error: OSError) -> None:
    raise error
