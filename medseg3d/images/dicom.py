"""A folder with one DICOM series: slices ordered by their position, the grid taken from the positions, irregular ones refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.geometry import geometry_of
from medseg3d.images.header import FORMATS, Image, ImageHeader, ending_of, homogeneous, volume_of
from medseg3d.images.itk import LPS_TO_RAS, reason_of

logger = logging.getLogger(__name__)

MAX_TILT_DEGREES = 1.0
"""A smaller angle between the row of slices and their normal is kept in the affine as it is; a larger one is a tilted gantry."""
MAX_POSITION_ERROR = 0.1
"""How far a slice may lie from its place on the regular grid, as a share of the slice distance."""
SEGMENTATION_CLASSES = {"1.2.840.10008.5.1.4.1.1.66.4": "DICOM SEG", "1.2.840.10008.5.1.4.1.1.66.7": "DICOM label map SEG"}
"""SOP classes that hold segments instead of an image."""
_META_BYTES = 1024
"""The class of a DICOM file stands in its first few hundred bytes."""

_TAGS = {
    "modality": "0008|0060",
    "description": "0008|103e",
    "study": "0020|000d",
    "series": "0020|000e",
    "position": "0020|0032",
    "orientation": "0020|0037",
    "spacing": "0028|0030",
    "thickness": "0018|0050",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    path: Path
    tags: dict[str, str]
    size: tuple[int, ...]
    components: int
    dtype: str

    def numbers(self, tag: str, count: int) -> np.ndarray:
        """The numbers of a tag; raises :class:`ImageReadError` where it is missing or something else."""
        try:
            values = np.array([float(v) for v in self.tags[tag].split("\\")])
        except (KeyError, ValueError):
            values = np.empty(0)
        if len(values) != count or not np.isfinite(values).all():
            raise ImageReadError(f"{self.path}: the DICOM tag {_TAGS[tag]} ({tag}) is missing or damaged; the grid is unknown.")
        return values


def holds_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files itself, not in a folder below."""
    return folder.is_dir() and any(_is_dicom(path) for path in folder.iterdir())


def study_of(folder: Path) -> str | None:
    """The study that the first DICOM file of a folder belongs to."""
    files = _files_of(folder)
    return _read_slice(files[0]).tags.get("study") if files else None


def read_header(path: Path) -> ImageHeader:
    """See :func:`medseg3d.images.read_header`; ``path`` is a folder, or one file of a single slice."""
    return _ordered(path)[1]


def read_image(path: Path, *, volume: int | None = None) -> Image:
    """See :func:`medseg3d.images.read_image`; rescale slope and intercept are applied."""
    import SimpleITK as sitk

    slices, header = _ordered(path)
    try:
        volume_of(1, volume)
    except ValueError as error:
        raise ImageReadError(f"{path}: {error}.") from None
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(s.path) for s in slices])
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise ImageReadError(f"{path}: the voxels of the DICOM series cannot be decoded ({reason_of(error)}).") from None
    array = array.reshape(header.geometry.shape[::-1])
    if slices[0].tags.get("modality") == "CT" and array.min() >= 0:
        logger.warning("%s: marked as CT, but no value is below 0: these are no Hounsfield units.", path)
    for note in header.notes:
        logger.warning("%s: %s.", path, note)
    return Image(array=array.transpose(2, 1, 0), header=header)


def _is_dicom(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    kind = FORMATS.get(ending_of(path))
    if kind is not None:
        return kind == "dicom"
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_dicom(path) and path.name.upper() != "DICOMDIR")


def _ordered(path: Path) -> tuple[list[_Slice], ImageHeader]:
    """The slices of the one series in a folder in the order of their positions, and its header."""
    files = [path] if path.is_file() else _files_of(path)
    if not files:
        _refuse_tree(path)
    slices = [_read_slice(file) for file in files]
    by_series: dict[str, list[_Slice]] = {}
    for each in slices:
        by_series.setdefault(each.tags.get("series", ""), []).append(each)
    if len(by_series) > 1:
        found = [(s[0].tags.get("description", "without a description"), len(s), s[0].path.name) for s in by_series.values()]
        raise ImageReadError(_several(path, found))
    if {(s.size, s.dtype) for s in slices} != {(slices[0].size, slices[0].dtype)}:
        kinds = sorted({(s.size[:2], s.dtype) for s in slices})
        raise ImageReadError(f"{path}: the slices have different sizes or types: {kinds}.")
    if slices[0].components > 1:
        raise ImageReadError(f"{path}: color image ({slices[0].components} values per voxel); one value per voxel is needed.")
    if len(slices[0].size) > 2 and slices[0].size[2] > 1:
        raise ImageReadError(f"{path}: multi-frame DICOM is not supported; convert it to NIfTI, for instance with dcm2niix.")
    return _header_of(path, slices)


def _refuse_tree(path: Path) -> None:
    """No DICOM file lies in the folder itself: say what lies below."""
    below = [folder for folder in sorted(path.rglob("*")) if folder.is_dir() and holds_series(folder)]
    if below:
        found = [(str(folder.relative_to(path)), len(_files_of(folder)), "") for folder in below]
        raise ImageReadError(_several(path, found))
    raise ImageReadError(f"{path}: a folder without DICOM files; expected one series of slices.")


def _several(path: Path, found: Sequence[tuple[str, int, str]]) -> str:
    listed = "; ".join(f"{name} ({count} files{', first ' + first if first else ''})" for name, count, first in found)
    return f"{path}: {len(found)} series found: {listed}. Name the folder of one series; each needs a folder of its own."


def _read_slice(path: Path) -> _Slice:
    import SimpleITK as sitk

    with path.open("rb") as file:
        beginning = file.read(_META_BYTES)
    for uid, kind in SEGMENTATION_CLASSES.items():  # GDCM cannot open the newer one at all
        if uid.encode() in beginning:
            raise ImageReadError(f"{path}: {kind} is not supported as label or image. Convert it to a label map (.nii.gz).")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK would print to the terminal; what matters is checked here
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ImageReadError(f"{path}: not a DICOM image that can be read ({reason_of(error)}).") from None
    tags = {name: reader.GetMetaData(tag).strip().strip("\0") for name, tag in _TAGS.items() if reader.HasMetaDataKey(tag)}
    return _Slice(
        path=path,
        tags=tags,
        size=tuple(reader.GetSize()),
        components=reader.GetNumberOfComponents(),
        dtype=sitk.GetPixelIDValueAsString(reader.GetPixelID()),
    )


def _header_of(path: Path, slices: list[_Slice]) -> tuple[list[_Slice], ImageHeader]:
    first = slices[0].numbers("orientation", 6)
    for each in slices:
        if np.abs(each.numbers("orientation", 6) - first).max() > 1e-3:
            raise ImageReadError(f"{path}: the slices are turned against each other ({each.path.name}); not a regular grid.")
    rows, columns = first[:3], first[3:]
    normal = np.cross(rows, columns)
    slices = sorted(slices, key=lambda s: float(s.numbers("position", 3) @ normal))
    positions = np.array([s.numbers("position", 3) for s in slices])
    between_rows, between_columns = slices[0].numbers("spacing", 2)
    step = _step(path, positions, normal, slices[0].tags.get("thickness", ""))
    linear = np.stack([rows * between_columns, columns * between_rows, step], axis=1)
    if not (np.sqrt((linear**2).sum(0)) > 0).all():
        raise ImageReadError(f"{path}: spacing {between_columns:g} x {between_rows:g} mm; every axis needs a number above 0.")
    shape = (slices[0].size[0], slices[0].size[1], len(slices))
    notes = []
    if len(slices) > 1 and between_rows == between_columns == 1 and np.allclose(step, normal) and not positions[0][:2].any():
        notes.append("spacing 1 and origin 0: the geometry looks invented")
    header = ImageHeader(
        geometry=geometry_of(shape, homogeneous(LPS_TO_RAS @ linear, LPS_TO_RAS @ positions[0])),
        stored_shape=shape,
        format="dicom",
        num_volumes=1,
        dtype=slices[0].dtype,
        notes=tuple(notes),
    )
    return slices, header


def _step(path: Path, positions: np.ndarray, normal: np.ndarray, thickness: str) -> np.ndarray:
    """The vector from a slice to the next, from the positions; raises :class:`ImageReadError` where there is no regular one."""
    if len(positions) == 1:
        try:
            return normal * float(thickness)
        except ValueError:
            return normal
    step: np.ndarray = (positions[-1] - positions[0]) / (len(positions) - 1)
    along = positions @ normal
    gaps = np.diff(along)
    if gaps.min() < 1e-3:
        raise ImageReadError(
            f"{path}: {int((gaps < 1e-3).sum()) + 1} slices or more lie at the same position; a series over time or with several "
            "contrasts has to be split into one folder each."
        )
    tilt = float(np.degrees(np.arccos(min(1.0, abs(float(step @ normal)) / float(np.linalg.norm(step))))))
    distance = float(np.mean(gaps))
    uneven = np.abs(along - (along[0] + distance * np.arange(len(along)))).max() > MAX_POSITION_ERROR * distance
    problems = []
    if tilt > MAX_TILT_DEGREES:
        problems.append(f"tilted gantry ({tilt:.1f} degrees)")
    if uneven:
        problems.append(f"uneven slice distance ({gaps.min():.2f} to {gaps.max():.2f} mm)")
    if problems:
        raise ImageReadError(
            f"{path}: {' and '.join(problems)}: not a regular grid. Resample it to a regular grid first (dcm2niix corrects a "
            "tilt), or add the missing slices."
        )
    return step
