"""Draw docs/images/viewer.png and viewer-phone.png: the viewer of a report, in a wide and in a narrow window.

In: nothing; a phantom is made, and its label maps are spoiled on purpose, so that there is something to see. Needs Chromium.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from medseg3d.evaluation.evaluate_folders import Pair, evaluate_pairs
from medseg3d.evaluation.metrics import write_evaluation
from medseg3d.labels import Labels
from medseg3d.reporting.report import write_page
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.demo import demo
from medseg3d.workflows.plan import plan
from tests.browser import Browser, browser

IMAGES = Path(__file__).parents[1] / "docs/images"
NUM_CASES = 6
READY = "document.querySelector('.viewer').viewer.panels.every((panel) => panel.slice)"


def main() -> None:
    """Make a report in a temporary folder and photograph it."""
    with tempfile.TemporaryDirectory() as folder:
        page = report(Path(folder) / "phantom")
        with browser(Path(folder) / "profile") as window:
            window.open(page.as_uri(), width=1180, height=600)
            window.wait(READY)
            window.run("document.querySelector('.viewer').scrollIntoView({ behavior: 'instant' })")
            window.run("document.querySelector('.viewer').viewer.set({ differences: true, crosshair: true })")
            photograph(window, IMAGES / "viewer.png")
            window.open(page.as_uri(), width=390, height=780, is_phone=True, is_dark=True)
            window.wait(READY)
            window.run("document.querySelector('.viewer').scrollIntoView({ behavior: 'instant' })")
            photograph(window, IMAGES / "viewer-phone.png")


def report(root: Path) -> Path:
    """The report of a phantom with made-up predictions."""
    demo(root, seed=0)
    planned = plan(root)
    labels, names = (
        planned.plan.labels,
        [path.name.removesuffix(".nii.gz") for path in sorted((root / "labelsTr").glob("*.nii.gz"))][:NUM_CASES],
    )
    work = WorkFolder(root / "medseg3d-work")
    validation = work.validation(planned.plan.recommended, "0")
    validation.mkdir(parents=True)
    for number, name in enumerate(names):
        stored = nibabel.load(root / f"labelsTr/{name}.nii.gz")
        spoiled = spoil(np.asarray(stored.dataobj).astype(np.uint8), number)
        nibabel.save(nibabel.Nifti1Image(spoiled, stored.affine), validation / f"{name}.nii.gz")
        save_probabilities(validation / f"{name}.npz", spoiled, labels)
    pairs = [Pair(case=name, prediction=validation / f"{name}.nii.gz", reference=root / f"labelsTr/{name}.nii.gz") for name in names]
    write_evaluation(evaluate_pairs(pairs, labels=labels), validation / "metrics.json")
    return write_page(root, work.root, work.report)


def spoil(label_map: np.ndarray, number: int) -> np.ndarray:
    """Moved by some voxels, with a rough border; every other one without its highest label."""
    moved = np.roll(label_map, 1 + number // 2, axis=0)
    rough = gaussian_filter(np.random.default_rng(number).normal(size=label_map.shape), 2)
    spoiled: np.ndarray = np.where(rough > np.quantile(rough, 0.9), np.roll(moved, 2, axis=1), moved)
    return np.where(spoiled == spoiled.max(), 0, spoiled).astype(np.uint8) if number % 2 else spoiled


def save_probabilities(path: Path, label_map: np.ndarray, labels: Labels) -> None:
    """Softened label maps, as a network would be unsure at their borders."""
    soft = np.stack([gaussian_filter((label_map == value).astype(np.float32), 0.8) for value in labels.values])
    np.savez_compressed(path, probabilities=(soft / soft.sum(axis=0)).astype(np.float16), values=np.array(labels.values))


def photograph(window: Browser, path: Path) -> None:
    """A picture with few colors, which is a third of the bytes."""
    window.run("new Promise((done) => setTimeout(done, 500))")
    window.screenshot(path)
    Image.open(path).convert("RGB").quantize(192).save(path, optimize=True)
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
