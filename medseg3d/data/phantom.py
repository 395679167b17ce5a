"""A synthetic dataset to try everything on: nested organs, a left and a right nodule and small lesions in noisy MRI-like volumes.

In: a folder and a seed. Out: an nnU-Net folder (``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesTs``, ``labelsTs``). A case
depends on the seed and its own number only. What makes real data awkward is in it: anisotropic and varying spacing, partial
volume, a bias field, noise, another grey scale in each scan, mixed and oblique orientations, small and rare lesions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg3d.files import write_text
from medseg3d.geometry import Orientation, from_canonical
from medseg3d.images import write_image

LABELS = {"background": 0, "organ_outer": 1, "organ_inner": 2, "lesion": 3, "left_nodule": 4, "right_nodule": 5}
ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "RAS", "LPI", "ASR", "RPS")
"""Orientations of the files, taken in turn; slices are axial in all of them."""
OBLIQUE_SHARE = 0.4
"""Share of the scans whose grid is turned against the body."""
MAX_TILT_DEGREES = 10.0
SUPERSAMPLING = (3, 2, 2)
"""Points per voxel along (S, A, R) that are averaged into partial volume."""

BODY, OUTER, INNER, LESION, LEFT, RIGHT = 1, 2, 3, 4, 5, 6
"""Tissues, later ones over earlier ones; the labels are one less, the body has none."""
TISSUE_VALUES = (20.0, 300.0, 520.0, 820.0, 680.0, 180.0, 180.0)
"""Mean signal of air and of each tissue; lesions differ least from what surrounds them."""
NOISE = 40.0
"""Standard deviation of the noise in both parts of the complex signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomCase:
    """One volume: ``image`` int16 and ``labels`` uint8, both in file axes (x, y, z), and the affine to RAS+ mm."""

    image: np.ndarray
    labels: np.ndarray
    affine: np.ndarray


def make_phantom_dataset(root: Path, *, num_training: int = 24, num_test: int = 6, seed: int = 0) -> Path:
    """Write the dataset into the folder ``root`` (made if missing) and return it; files of the same names are replaced."""
    for number in range(num_training + num_test):
        part = "Tr" if number < num_training else "Ts"
        case = make_case(number, seed=seed)
        for path, array in (
            (root / f"images{part}" / f"phantom_{number:03d}_0000.nii.gz", case.image),
            (root / f"labels{part}" / f"phantom_{number:03d}.nii.gz", case.labels),
        ):
            write_image(path, array, case.affine)
    description = {
        "name": "Phantom",
        "description": "Synthetic nested organs, nodules and lesions.",
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": num_training,
        "file_ending": ".nii.gz",
    }
    write_text(root / "dataset.json", json.dumps(description, indent=2) + "\n")
    return root


def make_case(number: int, *, seed: int) -> PhantomCase:
    """One case: draw a grid, paint the anatomy on finer points, average to voxels, scan, and turn to the file's orientation."""
    rng = np.random.default_rng([seed, number])
    shape = (int(rng.integers(22, 27)), int(rng.integers(60, 69)), int(rng.integers(60, 69)))
    in_plane = float(rng.uniform(0.9, 1.1))
    spacing = (float(rng.uniform(2.0, 3.0)), in_plane, in_plane)
    rotation = _tilt(rng) if rng.random() < OBLIQUE_SHARE else np.eye(3)

    tissue = _paint(rng, _points(shape, spacing, rotation, SUPERSAMPLING))
    shares = [_average(tissue == t, SUPERSAMPLING) for t in range(len(TISSUE_VALUES))]
    # air and body are both background: only together do they compete with an organ for a voxel
    by_label = [shares[0] + shares[BODY], *shares[OUTER:]]
    labels = np.argmax(by_label, axis=0).astype(np.uint8)
    image = _scan(rng, shares)

    code = ORIENTATIONS[number % len(ORIENTATIONS)]
    orientation = orientation_from_code(code)
    affine = _canonical_affine(shape, spacing, rotation) @ _file_to_canonical(shape, orientation)
    return PhantomCase(
        image=np.ascontiguousarray(from_canonical(image, orientation)),
        labels=np.ascontiguousarray(from_canonical(labels, orientation)),
        affine=affine,
    )


# --- the grid


def _tilt(rng: np.random.Generator) -> np.ndarray:
    """A rotation by small angles about all three axes, acting on (R, A, S)."""
    rotation = np.eye(3)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        angle = np.deg2rad(rng.uniform(-MAX_TILT_DEGREES, MAX_TILT_DEGREES))
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    return rotation


def _points(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], rotation: np.ndarray, factors: tuple[int, int, int]
) -> np.ndarray:
    """World positions (S, A, R) in mm, shape (3, S, A, R), of ``factors`` points per voxel; the middle of the volume is 0."""
    steps = [s / f for s, f in zip(spacing, factors, strict=True)]
    axes = [(np.arange(n * f) - (n * f - 1) / 2) * step for n, f, step in zip(shape, factors, steps, strict=True)]
    grid = np.stack(np.meshgrid(*(a.astype(np.float32) for a in axes), indexing="ij"))
    return np.einsum("ij,j...->i...", rotation[::-1, ::-1].astype(np.float32), grid)


def _canonical_affine(shape: tuple[int, int, int], spacing: tuple[float, float, float], rotation: np.ndarray) -> np.ndarray:
    """Voxel (R, A, S) → RAS+ mm, the middle of the volume at 0."""
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.asarray(spacing[::-1])
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape[::-1]) - 1) / 2)
    return affine


def orientation_from_code(code: str) -> Orientation:
    """The orientation that three letters name, file axes (x, y, z).

    >>> orientation_from_code("LAS")
    ((0, -1), (1, 1), (2, 1))
    """
    return tuple(("LPI".index(c), -1) if c in "LPI" else ("RAS".index(c), 1) for c in code)


def _file_to_canonical(shape: tuple[int, int, int], orientation: Orientation) -> np.ndarray:
    """4x4: voxel of the file (x, y, z) → voxel (R, A, S) of the canonical grid of ``shape`` (S, A, R)."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, (ras, flip) in enumerate(orientation):
        matrix[ras, axis] = flip
        matrix[ras, 3] = 0 if flip > 0 else shape[2 - ras] - 1
    return matrix


# --- the anatomy


def _paint(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """The tissue at each point (3, S, A, R), uint8. The body is not symmetric: the inner organ lies to the left and in front."""
    points = points + _smooth_field(rng, points.shape[1:], channels=3, amplitude=2.0)
    tissue = np.zeros(points.shape[1:], np.uint8)
    center = rng.normal(0, 1.5, 3)
    shapes: tuple[tuple[int, tuple[float, float, float], tuple[float, float, float]], ...] = (
        (BODY, (0, 0, 0), (34, 28, 29)),
        (OUTER, (0, 1, 0), (23, 20, 22)),
        (INNER, (1, 5, -5), (13, 9, 10)),
        (LEFT, (3, -8, -13), (9.5, 6.2, 5.6)),
        (RIGHT, (-2, -8, 13), (9.5, 6.2, 5.6)),
    )
    for value, offset, radii in shapes:
        size = rng.uniform(0.88, 1.12) * np.asarray(radii) * rng.uniform(0.94, 1.06, 3)
        _fill(tissue, points, center + offset + rng.normal(0, 0.8, 3), size, value)
    for position, size in _lesions(rng, tissue, points):
        _fill(tissue, points, position, size, LESION, only=OUTER)
    return tissue


def _lesions(rng: np.random.Generator, tissue: np.ndarray, points: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Two to five centers inside the outer organ and about 3 mm from its edge, with radii of 4 to 7 mm."""
    organ = tissue == OUTER
    inside = organ.copy()
    for axis, distance in enumerate((4, 6, 6)):
        inside &= np.roll(organ, distance, axis) & np.roll(organ, -distance, axis)
    candidates = np.flatnonzero(inside)
    for _ in range(rng.integers(2, 6)):
        position = points.reshape(3, -1)[:, rng.choice(candidates)]
        yield position, rng.uniform(4.0, 7.0) * rng.uniform(0.85, 1.15, 3)


def _fill(tissue: np.ndarray, points: np.ndarray, center: np.ndarray, radii: np.ndarray, value: int, only: int | None = None) -> None:
    """Paint an ellipsoid in place, over everything or only over one tissue."""
    distance = np.zeros(tissue.shape, np.float32)
    for axis in range(3):
        distance += ((points[axis] - np.float32(center[axis])) / np.float32(radii[axis])) ** 2
    inside = distance < 1
    if only is not None:
        inside &= tissue == only
    tissue[inside] = value


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], *, channels: int, amplitude: float) -> np.ndarray:
    """Random fields (channels, *shape) of the given standard deviation: a few control points, interpolated by smooth weights."""
    field = rng.normal(0, amplitude, (channels, 4, 5, 5)).astype(np.float32)
    for axis, length in enumerate(shape, start=1):
        field = np.moveaxis(np.tensordot(_smooth_weights(field.shape[axis], length), field, (1, axis)), 0, axis)
    return field


def _smooth_weights(num_controls: int, length: int) -> np.ndarray:
    """(length, controls): Gaussian weights around evenly spaced control points, each row with unit variance."""
    positions = np.linspace(0, num_controls - 1, length)[:, np.newaxis]
    weights = np.exp(-0.5 * ((positions - np.arange(num_controls)) / 0.7) ** 2)
    return (weights / np.sqrt((weights**2).sum(1, keepdims=True))).astype(np.float32)


# --- the scanner


def _average(values: np.ndarray, factors: tuple[int, int, int]) -> np.ndarray:
    """Mean over blocks of ``factors`` points, float32."""
    s, a, r = (n // f for n, f in zip(values.shape, factors, strict=True))
    blocks = values.reshape(s, factors[0], a, factors[1], r, factors[2])
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def _scan(rng: np.random.Generator, shares: list[np.ndarray]) -> np.ndarray:
    """Signal of the tissues in each voxel, bias field, texture, Rician noise, an arbitrary scale; int16."""
    shape = shares[0].shape
    values = np.asarray(TISSUE_VALUES) * rng.normal(1, 0.04, len(TISSUE_VALUES))
    values[RIGHT] = values[LEFT]  # the side must be told by the place, not by the grey value
    signal = np.sum([share * np.float32(value) for share, value in zip(shares, values, strict=True)], axis=0)
    signal *= np.exp(_smooth_field(rng, shape, channels=1, amplitude=0.12)[0])
    signal *= 1 + _smooth_texture(rng, shape)
    real, imaginary = (rng.normal(0, NOISE, shape).astype(np.float32) for _ in range(2))
    signal = np.hypot(signal + real, imaginary) * np.float32(rng.uniform(0.6, 1.6))
    return np.rint(np.clip(signal, 0, np.iinfo(np.int16).max)).astype(np.int16)


def _smooth_texture(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Correlated fluctuations of a few percent: white noise averaged over neighbors."""
    texture: np.ndarray = rng.normal(0, 0.08, shape).astype(np.float32)
    for axis in range(3):
        texture = (texture + np.roll(texture, 1, axis) + np.roll(texture, -1, axis)) / 3
    return texture
