"""Tiny datasets whose label maps are not one complete map of classes: regions, an ignore label, structures that some cases lack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from tests.tiny_planner import tiny_planner

SHELL, CORE, IGNORE = 1, 2, 3


def make_balls(root: Path, *, num_cases: int = 4, num_test: int = 1, change: Callable[[str, np.ndarray], np.ndarray] | None = None) -> Path:
    """Bright balls of 20x18x12 voxels with a core in a shell, in noise; ``change`` makes another label map of a case's."""
    rng = np.random.default_rng(1)
    for number in range(num_cases + num_test):
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in (20, 18, 12)), indexing="ij")).astype(float)
        center = rng.uniform(7, 11, 3) * [1, 1, 0.6]
        distance = np.sqrt(((grid - center[:, None, None, None]) ** 2).sum(0))
        labels = np.where(distance < 3, CORE, np.where(distance < 6, SHELL, 0)).astype(np.uint8)
        image = (labels * 60 + rng.normal(100, 10, labels.shape)).astype(np.int16)
        name, side = f"ball_{number}", "Ts" if number >= num_cases else "Tr"
        for folder, file, array in (
            ("images", f"{name}_0000", image),
            ("labels", name, labels if change is None else change(name, labels)),
        ):
            place = root / f"{folder}{side}"
            place.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 1.5, 1.0])), place / f"{file}.nii.gz")
    (root / "tiny.toml").write_text(tiny_planner(epochs=1, iterations=2), encoding="utf-8")
    return describe(root, {"background": 0, "shell": SHELL, "core": CORE})


def describe(root: Path, labels: dict[str, int | list[int]], **more: object) -> Path:
    """Write ``dataset.json``."""
    declared = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz", **more}
    (root / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    return root


def regions_with_ignore(root: Path) -> Path:
    """Whole and core as overlapping regions; every second slice is not annotated."""

    def hide(_: str, labels: np.ndarray) -> np.ndarray:
        hidden = labels.copy()
        hidden[..., ::2] = IGNORE
        return hidden

    make_balls(root, change=hide)
    return describe(root, {"background": 0, "whole": [SHELL, CORE], "core": CORE, "ignore": IGNORE}, regions_class_order=[SHELL, CORE])


def soft(root: Path, *, in_one_file: bool = True) -> Path:
    """Probabilities with a soft rim: a 4D file without the background, or a file per label."""
    from scipy.ndimage import gaussian_filter

    make_balls(root)
    for file in sorted(root.glob("labelsT?/*.nii.gz")):
        image = nibabel.load(file)
        labels = np.asarray(image.dataobj)
        chances = [gaussian_filter((labels == value).astype(np.float32), 1) for value in (SHELL, CORE)]
        if in_one_file:
            nibabel.save(nibabel.Nifti1Image(np.stack(chances, -1), image.affine), file)
            continue
        file.unlink()
        for value, chance in zip((SHELL, CORE), chances, strict=True):
            nibabel.save(nibabel.Nifti1Image(chance, image.affine), file.with_name(file.name.replace(".nii.gz", f"_{value:04d}.nii.gz")))
    return describe(root, {"background": 0, "shell": SHELL, "core": CORE}, soft_labels=True)


def half_annotated(root: Path) -> Path:
    """Half of the cases are annotated for the shell only; their cores are background in the files."""

    def erase(name: str, labels: np.ndarray) -> np.ndarray:
        return labels if name in ("ball_0", "ball_2", "ball_4") else np.where(labels == CORE, 0, labels)

    make_balls(root, change=erase)
    (root / "annotated.csv").write_text("case,labels\nball_1,shell\nball_3,shell\n", encoding="utf-8")
    return root
