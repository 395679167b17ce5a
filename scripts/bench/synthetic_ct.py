"""Make CT volumes of a usual hospital size out of smooth noise: something to resample and compress, not anatomy.

In: a folder and a seed. Out: a dataset in nnU-Net's layout, int16 HU from -1024, stored left-posterior-superior as CT usually is.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

SHAPE = (512, 512, 200)
SPACING_MM = (0.8, 0.8, 1.5)
NUM_LABELS = 8
AIR_HU, TISSUE_HU, NOISE_HU = -1000.0, 40.0, 12.0


def make_ct_dataset(folder: Path, *, num_cases: int = 3, shape: tuple[int, int, int] = SHAPE, seed: int = 1) -> Path:
    """Write ``num_cases`` volumes with ``NUM_LABELS`` organs each, unless the folder is complete already."""
    names = [f"ct_{number:03d}" for number in range(num_cases)]
    if (folder / "dataset.json").exists():
        return folder
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    (folder / "labelsTr").mkdir(exist_ok=True)
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    for index, name in enumerate(names):
        image, labels = ct_volume(np.random.default_rng([seed, index]), shape)
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / "imagesTr" / f"{name}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, affine), folder / "labelsTr" / f"{name}.nii.gz")
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{f"organ_{label}": label for label in range(1, NUM_LABELS + 1)}},
        "numTraining": num_cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return folder


def ct_volume(generator: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A body with wavy organs: int16 HU and uint8 labels, both of ``shape``."""
    wave = smooth_noise(generator, shape)
    axes = np.ogrid[tuple(slice(-1.0, 1.0, complex(0, size)) for size in shape)]
    x, y, z = (axis.astype(np.float32) for axis in axes)
    body = (x / 0.85) ** 2 + (y / 0.6) ** 2 < 1 + 0.1 * wave
    image = np.where(body, np.float32(TISSUE_HU) + 60 * wave, np.float32(AIR_HU))
    labels = np.zeros(shape, dtype=np.uint8)
    for label in range(1, NUM_LABELS + 1):
        center = generator.uniform((-0.5, -0.35, -0.8), (0.5, 0.35, 0.8))
        radius = generator.uniform((0.06, 0.06, 0.1), (0.25, 0.2, 0.5))
        distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip((x, y, z), center, radius, strict=True))
        organ = (distance < 1 + 0.5 * wave) & body
        labels[organ] = label
        image[organ] += generator.uniform(-120, 250)
    image += NOISE_HU * generator.standard_normal(shape, dtype=np.float32)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16), labels


def smooth_noise(generator: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Noise of unit standard deviation with a wavelength of some centimeters, float32."""
    coarse = ndimage.gaussian_filter(generator.standard_normal([size // 12 + 4 for size in shape]), 1.5)
    coarse = (coarse / coarse.std()).astype(np.float32)
    zoomed = ndimage.zoom(coarse, [size / edge for size, edge in zip(shape, coarse.shape, strict=True)], order=1)
    return zoomed
