"""Segmentations as 3D Slicer writes them, for tests."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def write_seg_nrrd(
    path: Path,
    layers: Sequence[np.ndarray],
    segments: Sequence[Mapping[str, object]],
    *,
    affine: np.ndarray,
    start: Sequence[int] = (0, 0, 0),
) -> Path:
    """Write layers (x, y, z) whose first voxel is ``start`` of the image's grid; a segment has ``Name``, ``LabelValue``, ``Layer``."""
    to_lps = np.diag([-1.0, -1.0, 1.0])
    directions, origin = to_lps @ affine[:3, :3], to_lps @ (affine @ [*start, 1])[:3]
    vectors = " ".join("(" + ",".join(f"{value:.17g}" for value in directions[:, axis]) + ")" for axis in range(3))
    shape = layers[0].shape
    is_single = len(layers) == 1
    lines = [
        "NRRD0004",
        "type: unsigned char",
        f"dimension: {3 if is_single else 4}",
        "space: left-posterior-superior",
        f"sizes: {'' if is_single else f'{len(layers)} '}{' '.join(map(str, shape))}",
        f"space directions: {'' if is_single else 'none '}{vectors}",
        f"kinds: {'' if is_single else 'list '}domain domain domain",
        "encoding: gzip",
        f"space origin: ({','.join(f'{value:.17g}' for value in origin)})",
        *(f"Segment{number}_{key}:={value}" for number, segment in enumerate(segments) for key, value in segment.items()),
    ]
    voxels = np.stack(layers).astype(np.uint8).tobytes(order="F")
    path.write_bytes("\n".join([*lines, "", ""]).encode() + gzip.compress(voxels, mtime=0))
    return path
