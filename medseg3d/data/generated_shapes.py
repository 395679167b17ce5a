"""Generated shapes to learn from before any image is seen: bodies of several kinds in random contrast, blurred, biased and noisy.

In: a folder and a seed. Out: an nnU-Net folder. A case depends on the seed and its own number only. No image of anyone goes into it, and
what a label looks like is drawn anew in every case (as SynthSeg does with anatomies: Billot et al. 2023), so that a network learns borders,
textures and forms instead of grey values.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from medseg3d.files import write_text
from medseg3d.images import write_image

NUM_OF_A_KIND = (1, 4)
"""Bodies of each kind in a case, the second number excluded."""
BACKGROUND_PARTS = 4
"""Regions of the background, each of its own grey value: tissue around an organ is not uniform."""
BLUR, NOISE, BIAS = (0.3, 1.2), (0.02, 0.2), 0.4
"""Voxels of the blur; noise and bias field as shares of the grey values' range."""


def make_shapes_dataset(root: Path, *, num_cases: int = 60, edge: int = 48, seed: int = 0) -> Path:
    """Write training cases of ``edge``³ voxels into the folder ``root`` and return it; files of the same names are replaced."""
    for number in range(num_cases):
        image, labels = make_shapes(number, edge=edge, seed=seed)
        write_image(root / "imagesTr" / f"shapes_{number:04d}_0000.nii.gz", image, np.eye(4))
        write_image(root / "labelsTr" / f"shapes_{number:04d}.nii.gz", labels, np.eye(4))
    description = {
        "name": "GeneratedShapes",
        "channel_names": {"0": "generated"},
        "labels": {"background": 0, **{name: value for value, name in enumerate(KINDS, start=1)}},
        "numTraining": num_cases,
        "file_ending": ".nii.gz",
    }
    write_text(root / "dataset.json", json.dumps(description, indent=2) + "\n")
    return root


def make_shapes(number: int, *, edge: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image, float32 with values from about 0 to 1, and its label map, uint8, both ``(edge, edge, edge)``; bodies may hide others."""
    rng = np.random.default_rng([seed, number])
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, edge),) * 3, indexing="ij"), -1)
    labels = np.zeros((edge,) * 3, np.uint8)
    image = _background(rng, edge)
    bodies = [value for value in range(1, len(KINDS) + 1) for _ in range(int(rng.integers(*NUM_OF_A_KIND)))]
    for value in rng.permutation(bodies):
        turned = (places - rng.uniform(-0.7, 0.7, 3)) @ _rotation(rng)
        inside = tuple(KINDS.values())[value - 1](rng, turned)
        labels[inside] = value
        image[inside] = rng.uniform(0, 1) + rng.uniform(0, 0.1) * gaussian_filter(rng.normal(size=labels.shape), 1.0)[inside]
    image = gaussian_filter(image, rng.uniform(*BLUR))
    field = gaussian_filter(rng.normal(size=labels.shape), edge / 4)
    image *= 1 + BIAS * rng.uniform(-1, 1) * field / max(float(np.abs(field).max()), 1e-6)
    image += rng.uniform(*NOISE) * rng.normal(size=labels.shape)
    return image.astype(np.float32), labels


def _background(rng: np.random.Generator, edge: int) -> np.ndarray:
    fields = np.stack([gaussian_filter(rng.normal(size=(edge,) * 3), edge / 8) for _ in range(BACKGROUND_PARTS)])
    values: np.ndarray = rng.uniform(0, 1, BACKGROUND_PARTS)[fields.argmax(0)]
    return values


def _rotation(rng: np.random.Generator) -> np.ndarray:
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return turn


def _ellipsoid(rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
    return ((places / rng.uniform(0.12, 0.5, 3)) ** 2).sum(-1) < 1


def _box(rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
    return (np.abs(places) / rng.uniform(0.1, 0.4, 3)).max(-1) < 1


def _tube(rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
    """About a line that swings."""
    along, swing, length = places[..., 0], rng.uniform(0, 0.25), rng.uniform(0.4, 1.2)
    across = places[..., 1:] - swing * np.stack([np.sin(4 * along), np.cos(4 * along)], -1)
    return (np.linalg.norm(across, axis=-1) < rng.uniform(0.06, 0.15)) & (np.abs(along) < length)


def _shell(rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
    """The wall of an ellipsoid: what is in it is of another label, or background."""
    distance = np.sqrt(((places / rng.uniform(0.25, 0.5, 3)) ** 2).sum(-1))
    return (distance < 1) & (distance > rng.uniform(0.6, 0.8))


def _blob(rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
    """An ellipsoid whose surface is rough, as tumors are."""
    rough = gaussian_filter(rng.normal(size=places.shape[:3]), places.shape[0] / 16)
    return ((places / rng.uniform(0.2, 0.45, 3)) ** 2).sum(-1) < 1 + 0.5 * rough / max(float(rough.std()), 1e-6)


KINDS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "ellipsoid": _ellipsoid,
    "box": _box,
    "tube": _tube,
    "shell": _shell,
    "blob": _blob,
}
"""By label, in the order of the values from 1 on: whether places, centered and turned, lie in a body of this kind."""
