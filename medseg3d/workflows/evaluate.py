"""Evaluate label maps against references: read, compare, and write the metrics as JSON and CSV."""

from __future__ import annotations

import math
import statistics
from numbers import Real
from pathlib import Path

from medseg3d.errors import InputError
from medseg3d.evaluation.evaluate_case import default_tolerance_mm
from medseg3d.evaluation.evaluate_folders import evaluate_folders, match_files
from medseg3d.evaluation.metrics import Evaluation, write_evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.files import check_writable
from medseg3d.fingerprint.records import Fingerprint
from medseg3d.labels import Labels
from medseg3d.options import SeedOptions
from medseg3d.records import read_record
from medseg3d.wording import counted, listed
from medseg3d.work_folder import WorkFolder


def evaluate(
    predictions: Path | str,
    references: Path | str,
    *,
    output: Path | str | None = None,
    labels: Labels | None = None,
    tolerance_mm: float | None = None,
    num_workers: int | None = None,
    seed: int = 0,
    on: Listener = silent,
) -> Evaluation:
    """Evaluate two folders (or two files) and write ``output`` with a ``.csv`` beside it.

    Without ``output`` nothing is written for single files; for folders it is ``metrics.json`` in the folder of predictions. An
    ``output`` that does not end with .json or .csv is a folder, made where it is not there yet, and it is ``metrics.json`` in there.
    Nothing is written where no case could be evaluated.
    Cases that failed are in the result's ``failures``, those without a prediction in ``missing_predictions``: neither enters
    a mean.
    """
    SeedOptions(seed=seed)  # refuses what the command line refuses
    if tolerance_mm is not None and not (isinstance(tolerance_mm, Real) and 0 <= tolerance_mm < math.inf):
        raise InputError(f"tolerance_mm is {tolerance_mm}, expected a number of at least 0.")
    predictions, references = Path(predictions), Path(references)
    if output is None and predictions.is_dir():
        output = predictions
    if output is not None:
        output = Path(output)
        output = output if output.suffix.lower() in (".json", ".csv") and not output.is_dir() else output / "metrics.json"
        match_files(predictions, references)  # raises for folders that do not belong together, before a folder is made
        check_writable(output.parent)
    evaluation = evaluate_folders(
        predictions, references, labels=labels, tolerance_mm=tolerance_mm, num_workers=num_workers, seed=seed, on=on
    )
    if output is not None and evaluation.cases:
        path, table = write_evaluation(evaluation, output)
        on(Event(stage="evaluate", message=f"Written: {path} and {table.name}"))
    if evaluation.extra_predictions:
        extra = evaluation.extra_predictions
        message = f"{counted(len(extra), 'prediction')} without a reference: {listed(extra)}"
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
