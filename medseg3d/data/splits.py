"""The user's own folds: ``splits.json`` or nnU-Net's ``splits_final.json`` in, checked splits out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from medseg3d.data.case_files import composed
from medseg3d.data.dataset import Split
from medseg3d.errors import (
    DatasetError,
)
from medseg3d.records import from_plain, read_json
from medseg3d.wording import listed


def read_splits(path: Path, case_names: Sequence[str], failed: Collection[str] = ()) -> tuple[Split, ...]:
    """Folds from ``splits.json`` (ours) or nnU-Net's ``splits_final.json`` (a list of ``train`` and ``val``).

    Cases in no fold are left out on purpose; those that ``failed`` keep their places, until their files are there again. Raises
    :class:`DatasetError` with all findings: unknown names, cases on both sides of a fold or twice in a list.
    """
    document = read_json(path)
    folds = document.get("folds", document.get("splits", document.get("records"))) if isinstance(document, dict) else document
    if not isinstance(folds, list) or not folds or not all(isinstance(fold, dict) for fold in folds):
        raise DatasetError(f'{path}: expected a list of folds, each {{"train": [...], "val": [...]}}.')
    splits = tuple(
        _as_files_are_named(
            from_plain(
                {"train": fold.get("train", []), "validation": fold.get("validation", fold.get("val", []))},
                Split,
                f"{path}: fold {k}",
            ),
        )
        for k, fold in enumerate(folds)
    )
    known = {*case_names, *failed}
    findings = []
    for k, split in enumerate(splits):
        unknown = sorted({*split.train, *split.validation} - known)
        if unknown:
            findings.append(f"fold {k} names cases that the dataset does not have: {listed(unknown)}")
        both = sorted(set(split.train) & set(split.validation))
        if both and set(split.train) != set(split.validation):  # one patient alone is trained and validated on itself
            findings.append(f"fold {k} has cases in both train and validation: {listed(both)}")
        for side, listed_cases in (("train", split.train), ("val", split.validation)):
            twice = sorted(name for name, number in Counter(listed_cases).items() if number > 1)
            if twice:
                findings.append(f"fold {k} lists cases twice in {side}: {listed(twice)}")
        if not split.train or not split.validation:
            findings.append(f"fold {k} has no {'training' if not split.train else 'validation'} case")
    if findings:
        raise DatasetError(f"{path}: the folds do not fit the dataset. Correct the file; without it, folds are made.", findings)
    return splits


def _as_files_are_named(split: Split) -> Split:
    """The fold with its names in Unicode's NFC."""
    return Split(train=tuple(map(composed, split.train)), validation=tuple(map(composed, split.validation)))


def declared_splits(root: Path, names: Sequence[str], failed: Sequence[str]) -> tuple[Split, ...] | None:
    for file in (root / "splits.json", root / "splits_final.json"):
        if file.is_file():
            return read_splits(file, names, failed)
    return None
