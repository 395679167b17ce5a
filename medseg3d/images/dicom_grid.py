"""From the headers of a series to its grid: slices are ordered by their positions; refused where that is no regular grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.geometry import Geometry, geometry_of
from medseg3d.images.dicom_file import DicomFile
from medseg3d.images.dicom_kinds import kinds_of
from medseg3d.images.dicom_tags import NUMBERS
from medseg3d.images.header import homogeneous
from medseg3d.images.itk import LPS_TO_RAS

MAX_TILT_DEGREES = 1.0
"""A smaller angle between the row of slices and their normal is kept in the affine as it is; a larger one is a tilted gantry."""
MAX_POSITION_ERROR = 0.1
"""How far a slice may lie from its place on the regular grid: in pixels within the slice, in slice distances across it."""
SAME_PLACE_MM = 1e-3
DIRECTION_TOLERANCE = 0.05
"""How far the two directions of a slice may be from unit length and right angles: they are written with few digits at times."""
ALIKE = ("Modality", "FrameOfReferenceUID", "PhotometricInterpretation", "PixelRepresentation", "BitsAllocated", "RescaleType", "Units")
"""What all slices of one volume share, where they say it."""


def order_slices(path: Path, slices: Sequence[DicomFile]) -> tuple[list[DicomFile], Geometry, tuple[str, ...]]:
    """The slices from one end to the other, their grid, and oddities that are no error; ``path`` names the series.

    Raises :class:`ImageReadError` where the slices differ in what they must share, are turned or shifted against each other, lie at
    one position, or are missing.
    """
    _check_alike(path, slices)
    rows, columns = _directions(slices[0])
    spacing = slices[0].numbers("PixelSpacing", 2)
    normal = np.cross(rows, columns)
    between_rows, between_columns = spacing
    if not (spacing > 0).all():
        raise ImageReadError(f"{path}: spacing {between_columns:g} x {between_rows:g} mm; every axis needs a number above 0.")
    shape = (slices[0].integer("Columns", 0), slices[0].integer("Rows", 0), len(slices))
    in_plane = np.stack([rows * between_columns, columns * between_rows], axis=1)
    _check_planes(path, slices, in_plane, shape[:2])
    slices = sorted(slices, key=lambda s: (float(s.numbers("ImagePositionPatient", 3) @ normal), s.path.name))
    positions = np.array([s.numbers("ImagePositionPatient", 3) for s in slices])
    step = _step(path, slices, positions, in_plane, normal)
    notes = []
    if len(slices) > 1 and (spacing == 1).all() and np.allclose(step, normal) and not positions[0][:2].any():
        notes.append("spacing 1 and origin 0: the geometry looks like a placeholder")
    linear = np.column_stack([in_plane, step])
    return slices, geometry_of(shape, homogeneous(LPS_TO_RAS @ linear, LPS_TO_RAS @ positions[0])), tuple(notes)


def _directions(file: DicomFile) -> tuple[np.ndarray, np.ndarray]:
    """The directions in which the columns and the rows of a slice follow each other, of unit length."""
    found = file.numbers("ImageOrientationPatient", 6)
    rows, columns = found[:3], found[3:]
    lengths = float(np.linalg.norm(rows)), float(np.linalg.norm(columns))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(rows @ columns))) > DIRECTION_TOLERANCE:
        raise ImageReadError(
            f"{file.path}: the DICOM tag {NUMBERS['ImageOrientationPatient']} (ImageOrientationPatient) holds no two directions at right "
            f"angles ({file.text('ImageOrientationPatient')[:80]}); the grid is unknown."
        )
    return rows / lengths[0], columns / lengths[1]


def _check_alike(path: Path, slices: Sequence[DicomFile]) -> None:
    """One size for all slices, and one of each of what they share."""
    sizes = {(s.integer("Columns", 0), s.integer("Rows", 0)) for s in slices}
    if len(sizes) > 1:
        found = ", ".join(f"{columns} x {rows}" for columns, rows in sorted(sizes))
        raise ImageReadError(f"{path}: the slices have different sizes: {found}.")
    shared = {**{tag: [each.text(tag) for each in slices] for tag in ALIKE}, **kinds_of(slices)}
    for tag, values in shared.items():
        first: dict[str, DicomFile] = {}
        for each, value in zip(slices, values, strict=True):
            if value:
                first.setdefault(value, each)
        if len(first) == len(slices) > 2 and tag == "FrameOfReferenceUID":
            continue  # one of its own for each slice: what some programs that take names away leave
        if len(first) > 1:
            found = ", ".join(f"{value[:64]} ({each.name})" for value, each in list(first.items())[:3])
            raise ImageReadError(f"{path}: the slices differ in {tag} {NUMBERS[tag]}: {found}. Give each kind a folder of its own.")


def _check_planes(path: Path, slices: Sequence[DicomFile], in_plane: np.ndarray, size: tuple[int, ...]) -> None:
    """The far corner of every slice lies, from its first pixel, where that of the first slice does."""
    pixel = np.sqrt((in_plane**2).sum(0))
    for each in slices[1:]:
        spacing = each.numbers("PixelSpacing", 2)
        if (spacing[::-1] != pixel).any() and (np.abs(spacing[::-1] / pixel - 1) * size > MAX_POSITION_ERROR).any():
            found = " x ".join(f"{v:g}" for v in spacing[::-1])
            raise ImageReadError(
                f"{path}: the slices have different pixel spacings: {each.name} {found} mm, {slices[0].name} "
                f"{pixel[0]:g} x {pixel[1]:g} mm; not a regular grid."
            )
        turned = np.stack(_directions(each), axis=1) - in_plane / pixel
        shift = float(np.sqrt((turned**2).sum(0)) @ size)
        if shift > MAX_POSITION_ERROR:
            raise ImageReadError(
                f"{path}: the slices are turned against each other ({each.name} against {slices[0].name}: the far corner is "
                f"{shift:.2g} pixels off); not a regular grid."
            )


def _step(path: Path, slices: Sequence[DicomFile], positions: np.ndarray, in_plane: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The vector from a slice to the next, from the positions; raises :class:`ImageReadError` where there is no regular one."""
    if len(positions) == 1:
        try:
            thickness = float(slices[0].text("SliceThickness"))
        except ValueError:
            return normal
        return normal * thickness if 0 < thickness < np.inf else normal
    along = positions @ normal
    gaps = np.diff(along)
    if gaps.min() < SAME_PLACE_MM:
        first = int(gaps.argmin())
        raise ImageReadError(
            f"{path}: {_num_crowded(gaps)} slices lie at the same positions as others (such as {slices[first].name} and "
            f"{slices[first + 1].name}), and no tag tells volumes apart. Split a series over time or of several contrasts into one "
            "folder each; of slices that were exported twice, delete one."
        )
    _check_shifts(path, slices, positions, along, in_plane)
    step: np.ndarray = (positions[-1] - positions[0]) / (len(positions) - 1)
    tilt = float(np.degrees(np.arccos(min(1.0, abs(float(step @ normal)) / float(np.linalg.norm(step))))))
    distance = float(np.mean(gaps))
    problems = []
    if tilt > MAX_TILT_DEGREES:
        problems.append(f"tilted gantry ({tilt:.1f} degrees)")
    if np.abs(along - (along[0] + distance * np.arange(len(along)))).max() > MAX_POSITION_ERROR * distance:
        widest = int(gaps.argmax())
        between = f"the widest between {slices[widest].name} and {slices[widest + 1].name}"
        problems.append(f"uneven slice distance ({gaps.min():.2f} to {gaps.max():.2f} mm), {between}")
    if problems:
        raise ImageReadError(
            f"{path}: {' and '.join(problems)}: not a regular grid. Resample it to a regular grid first (dcm2niix corrects a "
            "tilt), or add the missing slices."
        )
    return step


def _check_shifts(path: Path, slices: Sequence[DicomFile], positions: np.ndarray, along: np.ndarray, in_plane: np.ndarray) -> None:
    """Every slice lies where the others predict it, within 0.1 pixel.

    The prediction is the line through the positions whose slope is the median over pairs half the stack apart, so that the slice that is
    shifted is named, whichever it is, and the rounding of positions does not add up over hundreds of slices.
    """
    in_pixels = positions @ (in_plane / (in_plane**2).sum(0))
    half = len(along) // 2
    slope = np.median((in_pixels[half:] - in_pixels[:-half]) / (along[half:] - along[:-half])[:, None], axis=0)
    straight = in_pixels - along[:, None] * slope
    shifts = straight - np.median(straight, axis=0)
    worst = int(np.abs(shifts).max(1).argmax())
    if np.abs(shifts[worst]).max() > MAX_POSITION_ERROR:
        count = int((np.abs(shifts).max(1) > MAX_POSITION_ERROR).sum())
        x, y = shifts[worst]
        raise ImageReadError(
            f"{path}: {count} of {len(slices)} slices are shifted in the plane, {slices[worst].name} by {x:.2f} x {y:.2f} pixels; not "
            f"a regular grid. Resample it to a regular grid first, or correct ImagePositionPatient {NUMBERS['ImagePositionPatient']}."
        )


def _num_crowded(gaps: np.ndarray) -> int:
    """Slices with another at their place, from the distances between neighbors."""
    is_same = np.concatenate([[False], gaps < SAME_PLACE_MM, [False]])
    return int((is_same[1:] | is_same[:-1]).sum())
