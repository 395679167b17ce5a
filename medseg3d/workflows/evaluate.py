"""Measure label maps against references: read, compare, and write the metrics as JSON and CSV."""

from __future__ import annotations

import logging
import statistics
from pathlib import Path

from medseg3d.evaluation.evaluate_case import default_tolerance_mm
from medseg3d.evaluation.evaluate_folders import evaluate_folders
from medseg3d.evaluation.metrics import Evaluation, write_evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.fingerprint import Fingerprint
from medseg3d.labels import Labels
from medseg3d.records import read_record
from medseg3d.work_folder import WorkFolder

logger = logging.getLogger(__name__)


def evaluate(
    predictions: Path,
    references: Path,
    *,
    output: Path | None = None,
    labels: Labels | None = None,
    tolerance_mm: float | None = None,
    num_workers: int | None = None,
    seed: int = 0,
    on: Listener = silent,
) -> Evaluation:
    """Evaluate two folders (or two files) and write ``output`` with a ``.csv`` beside it.

    Without ``output`` nothing is written for single files; for folders it is ``metrics.json`` in the folder of predictions.
    Cases that failed are in the result's ``failures``, those without a prediction in ``missing_predictions``: neither enters
    a mean.
    """
    evaluation = evaluate_folders(
        predictions, references, labels=labels, tolerance_mm=tolerance_mm, num_workers=num_workers, seed=seed, on=on
    )
    if output is None and predictions.is_dir():
        output = predictions / "metrics.json"
    if output is not None:
        path, table = write_evaluation(evaluation, output)
        logger.info("Wrote %s and %s", path, table)
    if evaluation.missing_predictions:
        message = f"{len(evaluation.missing_predictions)} references have no prediction: {_listed(evaluation.missing_predictions)}"
        on(Event(stage="evaluate", message=message))
    if evaluation.extra_predictions:
        message = f"{len(evaluation.extra_predictions)} predictions have no reference: {_listed(evaluation.extra_predictions)}"
        on(Event(stage="evaluate", message=message))
    return evaluation


def work_tolerance_mm(folder: WorkFolder) -> float | None:
    """One tolerance of the surface Dice for all folds and the test set: the median of the training cases' own default.

    None where the work folder has no fingerprint, or none with a case.
    """
    if not folder.fingerprint.exists():
        return None
    cases = read_record(folder.fingerprint, Fingerprint, "fingerprint").cases
    return statistics.median(default_tolerance_mm(case.spacing, case.shape) for case in cases) if cases else None


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
