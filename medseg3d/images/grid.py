"""Whether the numbers that place voxels in space can be meant: an affine in, what is odd about it out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg3d.errors import ImageReadError

ORTHONORMAL_TOLERANCE = 1e-3
"""Largest cosine between two voxel axes that still counts as rounding."""
MIN_SPACING_MM, MAX_SPACING_MM = 1e-9, 1e6
"""Electron microscopy has 4e-6 mm; nothing that is scanned has voxels of a kilometer, whatever the unit."""
MAX_ORIGIN_MM = 1e9
"""Farther from the origin float32 cannot place a voxel."""


def check_affine(path: Path, affine: np.ndarray, source: str) -> tuple[str, ...]:
    """Refuse an affine (voxel → mm) that is no grid, naming its ``source`` in the header; returns notes on what is only odd.

    Raises :class:`ImageReadError` for numbers that are not finite, axes without extent, and two axes that point the same way.
    """
    if not np.isfinite(affine).all():
        count = int((~np.isfinite(affine)).sum())
        raise ImageReadError(
            f"{path}: {source} holds NaN or infinite numbers ({count} of 12), so the grid is unknown. Write the right numbers into the "
            "header, or convert the image anew."
        )
    with np.errstate(over="ignore"):
        spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))
    if not ((spacing >= MIN_SPACING_MM) & (spacing <= MAX_SPACING_MM)).all():
        raise ImageReadError(
            f"{path}: {source} gives a spacing of {in_mm(spacing)}; every axis needs a number above 0 that is a size in mm (at most "
            f"{MAX_SPACING_MM:g}). Set the spacing in the header."
        )
    if np.abs(affine[:3, 3]).max() > MAX_ORIGIN_MM:
        raise ImageReadError(f"{path}: {source} places the first voxel {np.abs(affine[:3, 3]).max():.3g} mm away. Repair the origin.")
    direction = affine[:3, :3] / spacing
    if abs(np.linalg.det(direction)) < 0.1:
        raise ImageReadError(f"{path}: two axes of the grid point the same way; {source} is damaged. Repair the directions.")
    cosine = float(np.abs(direction.T @ direction - np.eye(3)).max())
    if cosine > ORTHONORMAL_TOLERANCE:
        angle = float(np.degrees(np.arccos(min(1.0, cosine))))
        return (f"the axes are not at right angles ({angle:.1f} degrees between two of them): the grid is sheared",)
    return ()


def in_mm(spacing: np.ndarray) -> str:
    """Three numbers as they stand in a message."""
    return " x ".join(f"{s:g}" for s in spacing) + " mm"
