"""How unsure networks are of each voxel of a case: from probabilities that somebody had written, or of a prediction made for the report."""

from __future__ import annotations

import logging
import math
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg3d.errors import InputError
from medseg3d.files import remove_file
from medseg3d.geometry import from_canonical
from medseg3d.labels import Labels
from medseg3d.prediction.predict_case import PreparedCase
from medseg3d.prediction.probability_file import probability_array, probability_file, scratch_file
from medseg3d.reporting.scene import uncertainty_of
from medseg3d.work_folder import WorkFolder

if TYPE_CHECKING:
    from medseg3d.data.dataset import Case
    from medseg3d.models.model import Model

logger = logging.getLogger(__name__)

Unsure = Callable[["Case", Path], np.ndarray | None]
"""Of a case and the folder of its label map the uncertainty, 0 to 255, on the file's axes (x, y, z); None where it is not known."""
MAX_PROBABILITY_BYTES = 8 << 30
"""Of the file that probabilities need while uncertainty is made of them; for more classes and voxels there is none."""


def stored_uncertainty(labels: Labels) -> Unsure:
    """From ``CASE.npz`` beside the label map, as ``--probabilities`` writes it; raises :class:`InputError` for a damaged one."""

    def unsure(case: Case, folder: Path) -> np.ndarray | None:
        path = probability_file(folder / f"{case.name}.nii.gz")
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                if "values" not in file.files:
                    return None  # nnU-Net's order of axes
                return uncertainty_of(file["probabilities"], are_regions=bool(labels.regions))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: the probabilities cannot be read ({error}).") from error

    return unsure


def predicted_uncertainty(work: WorkFolder, test_configurations: tuple[str, ...], *, device: str = "auto") -> Unsure:
    """Of a prediction that is made now: validation cases by the network that did not see them, all others by all folds of
    ``test_configurations``. Raises :class:`InputError` where weights are missing."""
    models: dict[tuple[tuple[str, ...], str | None], Model] = {}

    def unsure(case: Case, folder: Path) -> np.ndarray | None:
        from medseg3d.models.loading import load_models

        is_test = folder == work.predictions
        names = test_configurations if is_test else tuple(folder.parent.parent.name.split("+"))
        fold = None if is_test else folder.parent.name.removeprefix("fold_")
        if (names, fold) not in models:
            models[names, fold] = load_models(work, names, folds=None if fold is None else [fold], device=device)
        return predict_uncertainty(models[names, fold], case)

    return unsure


def predict_uncertainty(model: Model, case: Case) -> np.ndarray | None:
    """The uncertainty of a case on the file's axes; None where its probabilities would take too much room."""
    networks = model.for_one_image()
    prepared = networks.prepare(networks.read(case), in_place=True)
    with tempfile.TemporaryDirectory() as folder, probabilities_in(Path(folder), prepared, networks.plan.labels) as chances:
        if chances is None:
            logger.warning("%s: its probabilities would take more than 8 GiB, so that no uncertainty is shown.", case.name)
            return None
        networks.segment(prepared, probabilities=chances)
        return from_canonical(slices_of_uncertainty(chances, networks.plan.labels), prepared.orientation).copy()


@contextmanager
def probabilities_in(folder: Path, prepared: PreparedCase, labels: Labels) -> Iterator[np.ndarray | None]:
    """An array for the probabilities of a case (output, S, A, R) in a file of ``folder``, removed at the end; None for too many."""
    if 2 * labels.num_outputs * math.prod(prepared.header.geometry.shape) > MAX_PROBABILITY_BYTES:
        yield None
        return
    target = folder / "case.nii.gz"
    try:
        with probability_array(target, prepared, labels, "medseg3d") as chances:
            yield chances
    finally:
        remove_file(scratch_file(target))


def slices_of_uncertainty(chances: np.ndarray, labels: Labels) -> np.ndarray:
    """Probabilities (output, S, A, R) → uncertainty (S, A, R), slice by slice: the file may be larger than memory."""
    kept = np.empty(np.shape(chances)[1:], np.uint8)
    for place in range(len(kept)):
        kept[place] = uncertainty_of(chances[:, place], are_regions=bool(labels.regions))
    return kept
