"""Time the evaluation of a CT: 512×512×300 voxels, ten organs of an adult's torso, a prediction with errors. 20 s are allowed.

Prints seconds per stage and the peak memory. ``python scripts/bench/evaluation.py [--threads 2] [--files]``; ``--files`` also
writes both label maps as ``.nii.gz`` and measures them from disk.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from medseg3d.evaluation.evaluate_case import evaluate_case, label_boxes
from medseg3d.evaluation.lesions import count_lesions
from medseg3d.evaluation.surfaces import surface, surface_distances
from medseg3d.labels import Labels

T = TypeVar("T")
SHAPE = (300, 512, 512)
SPACING = (1.5, 0.8, 0.8)
ORGANS = {  # center and half axes in mm: (S, A, R), about those of an adult
    "lung left": ((330, 200, 110), (110, 85, 60)),
    "lung right": ((330, 200, 300), (110, 85, 60)),
    "liver": ((170, 200, 290), (75, 80, 95)),
    "spleen": ((180, 270, 100), (50, 35, 25)),
    "kidney left": ((110, 280, 130), (50, 25, 25)),
    "kidney right": ((100, 290, 260), (50, 25, 25)),
    "heart": ((300, 150, 200), (50, 50, 55)),
    "aorta": ((220, 250, 205), (200, 12, 12)),
    "bladder": ((30, 180, 205), (25, 30, 35)),
    "stomach": ((190, 150, 150), (45, 40, 50)),
}


def main() -> None:
    """Make the two label maps, time the whole and its stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--files", action="store_true")
    options = parser.parse_args()
    labels = Labels(names=("background", *ORGANS), values=tuple(range(len(ORGANS) + 1)))
    reference, prediction = torso(0.0), torso(2.0)
    prediction[5, 5, 5] = 4  # a stray voxel far away: the box of the spleen becomes large
    print(f"{SHAPE} voxels, {len(ORGANS)} organs, {np.count_nonzero(reference) / reference.size:.0%} foreground")
    for threads in sorted({1, options.threads}):
        case = timed(
            f"evaluate_case, {threads} threads",
            lambda threads=threads: evaluate_case(prediction, reference, spacing=SPACING, labels=labels, num_threads=threads),
        )
    print(f"mean Dice {case.foreground_dice:.4f}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    timed("  encode both", lambda: (labels.encode(prediction, "p"), labels.encode(reference, "r")))
    boxes = timed("  boxes", lambda: label_boxes(prediction, reference, labels.num_classes))
    crops = [(prediction[box] == index, reference[box] == index) for index, box in enumerate(boxes) if box]
    timed("  surfaces", lambda: [(surface(p), surface(r)) for p, r in crops])
    timed("  surfaces and distances", lambda: [surface_distances(p, r, spacing=SPACING) for p, r in crops])
    timed("  lesions", lambda: [count_lesions(p, r) for p, r in crops])
    if options.files:
        from_files(prediction, reference, labels)


def from_files(prediction: np.ndarray, reference: np.ndarray, labels: Labels) -> None:
    """The same from two .nii.gz files, as the command line does it."""
    from medseg3d.evaluation.evaluate_folders import evaluate_folders
    from medseg3d.images import write_image

    affine = np.diag([*SPACING[::-1], 1.0])
    with tempfile.TemporaryDirectory() as folder:
        for role, values in (("p", prediction), ("r", reference)):
            write_image(Path(folder) / role / "ct.nii.gz", values.T, affine)
        timed("evaluate_folders, files", lambda: evaluate_folders(Path(folder) / "p", Path(folder) / "r", labels=labels))


def torso(shift_mm: float) -> np.ndarray:
    """Ellipsoids with a wavy surface; ``shift_mm`` moves and waves them: a plausible prediction."""
    values = np.zeros(SHAPE, np.uint8)
    for number, (center, half_axes) in enumerate(ORGANS.values(), 1):
        box = tuple(
            slice(max(0, int((c - 1.2 * h) / s)), min(n, int((c + 1.2 * h) / s) + 1))
            for c, h, s, n in zip(center, half_axes, SPACING, SHAPE, strict=True)
        )
        at = np.meshgrid(*(np.arange(b.start, b.stop, dtype=np.float32) * s for b, s in zip(box, SPACING, strict=True)), indexing="ij")
        radius = sum(((x - c - shift_mm / 2) / h) ** 2 for x, c, h in zip(at, center, half_axes, strict=True))
        waves = 1 + 0.05 * np.sin(at[0] / 9) * np.sin(at[1] / 7 + shift_mm) * np.sin(at[2] / 8)
        values[box][radius < waves] = number
    return values


def timed(name: str, work: Callable[[], T]) -> T:
    """Run, and print the seconds that passed and the CPU seconds (less, where other programs took the cores)."""
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    print(f"{name:<32}{time.perf_counter() - start:8.2f} s {time.process_time() - cpu:8.2f} s of the CPU")
    return result


if __name__ == "__main__":
    main()
