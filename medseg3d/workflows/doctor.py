"""``medseg3d doctor``: a dataset folder in, all that is wrong with it out; repairs what can be repaired without guessing."""

from __future__ import annotations

import logging
from pathlib import Path

from medseg3d.data.case_comparison import compare_cases
from medseg3d.data.checks import CheckedCase, DoctorReport, Finding, check_case, check_cases
from medseg3d.data.dataset import Dataset
from medseg3d.data.grouping import find_groups
from medseg3d.data.open_dataset import find_dataset, open_dataset
from medseg3d.data.repairs import repair_label
from medseg3d.errors import DatasetError, InputError
from medseg3d.events import Event, Listener, silent
from medseg3d.training.folds import Splits, divided_patients, read_folds
from medseg3d.work_folder import DEFAULT_NAME, WorkFolder

logger = logging.getLogger(__name__)


def doctor(
    root: Path,
    *,
    fix: bool,
    num_workers: int | None = None,
    max_bytes: int | None = None,
    on: Listener = silent,
) -> DoctorReport:
    """Check all cases of a dataset; with ``fix``, repair labels that lie beside their image, and keep the originals.

    A folder that is no dataset at all raises :class:`DatasetError`.
    """
    dataset, missing = find_dataset(root)
    findings = [Finding(case=None, kind="dataset", severity="error", message=message) for message in missing]
    for failure in (*dataset.failures, *dataset.test_failures):
        findings.append(Finding(case=failure.case, kind="files", severity="error", message=failure.reason))
    if not missing:
        findings.extend(_splits_findings(root, dataset))
    total = len(dataset.training) + len(dataset.test)
    checked: dict[str, list[CheckedCase]] = {"training": [], "test": []}
    on(Event(stage="doctor", total=total))
    for part, group in (("training", dataset.training), ("test", dataset.test)):
        for result in check_cases(group, dataset.labels, num_workers=num_workers, max_bytes=max_bytes):
            checked[part].append(result)
            on(Event(stage="doctor", done=len(checked["training"]) + len(checked["test"]), total=total))
    findings.extend(compare_cases(dataset, checked["training"], checked["test"]))
    repaired: list[str] = []
    for part in ("training", "test"):
        for result in sorted(checked[part], key=lambda case: case.name):
            after = result
            if fix and any(finding.fix for finding in result.findings):
                after = _repaired(root, dataset, result, part, repaired)
            findings.extend(after.findings)
    return DoctorReport(
        dataset=dataset.name,
        num_training=len(dataset.training),
        num_test=len(dataset.test),
        findings=tuple(sorted(findings, key=lambda finding: (finding.case is not None, finding.case or ""))),
        repaired=tuple(repaired),
    )


def _splits_findings(root: Path, dataset: Dataset) -> list[Finding]:
    """What is wrong with the user's own folds, and which patients lie on both sides of them or of those of the work folder."""
    names = [case.name for case in dataset.training]
    found = find_groups(names)
    notes = (
        [Finding(case=None, kind="groups", severity="warning" if found.is_doubtful else "note", message=found.note)] if found.note else []
    )
    try:
        declared = open_dataset(root).declared_splits
        work = WorkFolder(root / DEFAULT_NAME)
        if work.splits.exists():
            folds = read_folds(work.splits)
        elif declared is not None:
            folds = Splits(folds=declared, grouping="declared")
        else:
            return notes
    except DatasetError as error:
        messages = error.findings or (str(error),)
        return [*notes, *(Finding(case=None, kind="splits", severity="error", message=message) for message in messages)]
    except InputError as error:
        return [*notes, Finding(case=None, kind="splits", severity="error", message=str(error))]
    divided = divided_patients(folds, names, group_of=found.group_of)
    return [Finding(case=None, kind="groups", severity="warning", message=divided)] if divided else notes


def _repaired(root: Path, dataset: Dataset, result: CheckedCase, part: str, repaired: list[str]) -> CheckedCase:
    case = next(c for c in (dataset.training if part == "training" else dataset.test) if c.name == result.name)
    try:
        message = repair_label(case, root=root)
    except InputError as error:
        logger.warning("%s", error)
        return result
    logger.info("%s", message)
    repaired.append(message)
    dataset_again, _ = find_dataset(root)  # a label in another format was replaced by a NIfTI file
    cases = dataset_again.training if part == "training" else dataset_again.test
    again = next((c for c in cases if c.name == result.name), case)
    return check_case(again, dataset.labels)
