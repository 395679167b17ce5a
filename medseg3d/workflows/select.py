"""Select: the best configuration or pair of configurations by cross-validation, then the postprocessing that helps it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from medseg3d.dataset import open_dataset
from medseg3d.errors import InputError
from medseg3d.evaluation.metrics import Evaluation, read_evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.fingerprint import Fingerprint
from medseg3d.model import load_models
from medseg3d.plan import Plan
from medseg3d.postprocessing import ValidatedCase, choose_postprocessing
from medseg3d.reading import read_label_maps
from medseg3d.records import read_record, write_record
from medseg3d.selection import Candidate, Selection, pairs_of
from medseg3d.selection import select as choose
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.evaluate import work_tolerance_mm
from medseg3d.workflows.train import predict_and_measure, read_split, validate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Measured:
    """A candidate's folds and their measures."""

    names: tuple[str, ...]
    folds: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]


def select(root: Path, work: Path | None = None, *, device: str = "auto", on: Listener = silent) -> Selection:
    """Choose among all configurations with validated folds, and all pairs of them; written as ``selection.json``.

    Works with whatever folds are finished. Raises :class:`InputError` where no fold is.
    """
    folder = work_folder(root, work)
    plan = folder.read_plan()
    measured = [m for name in plan.configurations if (m := _single(root, work, folder, name, device, on)) is not None]
    if not measured:
        raise InputError(f"{folder.root}: no fold with validation is finished. Run medseg3d train --fold 0 first.")
    folds_of = {m.names[0]: m.folds for m in measured}
    for pair in pairs_of(list(folds_of)):
        common = tuple(fold for fold in folds_of[pair[0]] if fold in folds_of[pair[1]])
        if common:
            measured.append(_pair(root, folder, pair, common, device, on))
    candidates = [
        Candidate(
            configurations=m.names,
            folds=dict.fromkeys(m.names, m.folds),
            dice={case: dice for evaluation in m.evaluations for case, dice in evaluation.dice_per_case().items()},
        )
        for m in measured
    ]
    selection = choose(candidates, recommended=plan.recommended)
    best = next(m for m in measured if m.names == selection.configurations)
    chosen = choose_postprocessing(_validated(root, folder, plan, best), plan.labels, max_bytes_per_case=_largest_case_bytes(folder))
    selection = replace(selection, postprocessing=chosen)
    write_record(folder.selection, selection, "selection")
    return selection


BYTES_PER_VOXEL = 20
"""Prediction and reference as indices (up to 8 bytes each while they are encoded), a mask and its objects."""


def _largest_case_bytes(folder: WorkFolder) -> int:
    """What postprocessing takes for the largest case of the dataset."""
    if not folder.fingerprint.exists():
        return 0
    cases = read_record(folder.fingerprint, Fingerprint, "fingerprint").cases
    return BYTES_PER_VOXEL * max((math.prod(case.shape) for case in cases), default=0)


def _single(root: Path, work: Path | None, folder: WorkFolder, name: str, device: str, on: Listener) -> _Measured | None:
    folds = tuple(fold for fold in folder.finished_folds(name) if fold.isdigit() and read_split(folder, fold).validation)
    if not folds:
        return None
    evaluations = tuple(validate(root, work, configuration=name, fold=fold, device=device, keep_finished=True, on=on) for fold in folds)
    return _Measured((name,), folds, evaluations)


def _pair(root: Path, folder: WorkFolder, names: tuple[str, str], folds: tuple[str, ...], device: str, on: Listener) -> _Measured:
    evaluations = []
    for fold in folds:
        target = folder.validation("+".join(names), fold)
        newest = max(folder.weights(name, fold).stat().st_mtime for name in names)
        metrics = target / "metrics.json"
        if metrics.exists() and metrics.stat().st_mtime >= newest:
            evaluations.append(read_evaluation(metrics))
            continue
        on(Event(stage="select", message=f"Measuring the pair {' + '.join(names)}, fold {fold}"))
        model = load_models(folder, names, folds=[fold], device=device)
        validation = read_split(folder, fold).validation
        evaluations.append(predict_and_measure(root, model, validation, target, tolerance_mm=work_tolerance_mm(folder), on=on))
    return _Measured(names, folds, tuple(evaluations))


def _validated(root: Path, folder: WorkFolder, plan: Plan, best: _Measured) -> Iterator[ValidatedCase]:
    """The validation cases of a candidate; each loads its predicted and reference indices when it is asked to."""
    cases = {case.name: case for case in open_dataset(root, channels=plan.channels).training}
    for fold in best.folds:
        target = folder.validation("+".join(best.names), fold)
        for name in read_split(folder, fold).validation:
            label = cases[name].label
            if label is not None:
                yield ValidatedCase(name=name, load=partial(_load, plan, name, target / f"{name}.nii.gz", label))


def _load(plan: Plan, name: str, predicted: Path, label: Path) -> tuple[np.ndarray, np.ndarray]:
    """Both as label indices in canonical axes; the label may be stored with other axes than the image."""
    prediction, reference, _ = read_label_maps(predicted, label, name)
    return plan.labels.encode(prediction, str(predicted)), plan.labels.encode(reference, str(label))
