"""Our resampling against skimage's (the image part of nnU-Net) on one volume: medians of the seconds, their ratio, the largest difference.

python scripts/bench/resampling.py [REPEATS]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from skimage.transform import resize

from medseg3d.plan import Resampling
from medseg3d.preprocessing.resampling import resample_image, resample_labels

OLD, NEW = (80, 192, 192), (133, 280, 280)
SPACING = (1.0, 1.0, 1.0)
NUM_LABELS = 8


def phantom(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and ellipsoids as labels 1 … 7."""
    labels = np.zeros(OLD, np.uint8)
    grid = np.ogrid[tuple(slice(n) for n in OLD)]
    for label in range(1, NUM_LABELS):
        center, radius = generator.uniform(0.25, 0.75, 3) * OLD, generator.uniform(0.08, 0.25) * np.array(OLD)
        labels[sum(((g - c) / r) ** 2 for g, c, r in zip(grid, center, radius, strict=True)) < 1] = label
    return generator.normal(size=OLD).astype(np.float32), labels


def plain_labels(labels: np.ndarray) -> np.ndarray:
    """An indicator per label, resized, and the running arg-max; ties go to the lowest label, in ours to the nearest, so they differ."""
    best, winner = np.full(NEW, -1.0), np.zeros(NEW, labels.dtype)
    for label in np.unique(labels):
        score = resize((labels == label).astype(float), NEW, 1, mode="edge", anti_aliasing=False)
        winner[score > best] = label
        np.maximum(best, score, out=best)
    return winner


def seconds(work: Callable[[], np.ndarray], repeats: int) -> tuple[np.ndarray, float]:
    """The result and the median time; the first run warms caches and does not count."""
    result, times = work(), []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return result, statistics.median(times)


def main(repeats: int) -> None:
    """Print one line for the image and one for the label map."""
    image, labels = phantom(np.random.default_rng(0))
    rule = Resampling()
    plain_image = lambda: resize(image.astype(float), NEW, 3, mode="edge", anti_aliasing=False)  # noqa: E731
    our_image = lambda: resample_image(image[None], NEW, spacing=SPACING, new_spacing=SPACING, resampling=rule)[0]  # noqa: E731
    our_labels = lambda: resample_labels(labels, NEW, spacing=SPACING, new_spacing=SPACING, resampling=rule)  # noqa: E731
    for name, ours, theirs in (("image, order 3", our_image, plain_image), ("8 labels", our_labels, lambda: plain_labels(labels))):
        mine, our_time = seconds(ours, repeats)
        plain, plain_time = seconds(theirs, repeats)
        difference = np.abs(mine.astype(float) - plain).max() if name.startswith("image") else int((mine != plain).sum())
        print(f"{name}: ours {our_time:.3f} s, skimage {plain_time:.3f} s, ratio {plain_time / our_time:.1f}, difference {difference:.2g}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
