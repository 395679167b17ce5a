"""Which folds a dataset gets: those that are there already, the user's own, or new ones that keep the cases of a patient together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medseg3d.data.dataset import Dataset, Split
from medseg3d.data.grouping import Grouping, Likeness, find_groups
from medseg3d.events import Event, Listener, silent
from medseg3d.fingerprint.records import Fingerprint
from medseg3d.training.folds import (
    Splits,
    check_groups,
    divided_patients,
    fit_splits,
    groups_from_csv,
    groups_from_pattern,
    make_splits,
    read_folds,
)
from medseg3d.wording import counted, listed


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChoice:
    """What the user says of groups: a regular expression on the names, a table, or that there are none. At most one of them.

    ``members`` asks for so many networks on the cases of the first fold, in the place of folds.
    """

    pattern: str | None = None
    table: Path | None = None
    is_off: bool = False
    members: int | None = None

    @property
    def is_made(self) -> bool:
        """The user says something, so that folds are made anew."""
        return self.pattern is not None or self.table is not None or self.is_off


def count_folds(dataset: Dataset, splits: Path) -> int:
    """Those that are there, the user's own, or as many as would be made."""
    if splits.exists():
        return len(read_folds(splits).folds)
    if dataset.declared_splits is not None:
        return len(dataset.declared_splits)
    return len(make_splits([case.name for case in dataset.training], labels_present={}, group_of={})[0])


def choose_folds(dataset: Dataset, fingerprint: Fingerprint, splits: Path, choice: GroupChoice) -> tuple[Splits, tuple[str, ...]]:
    """The folds in ``splits``, those that came with the dataset, or new ones, in this order; and warnings.

    Where networks with other seeds are asked for, or were before, all of them get the first of these folds.
    """
    folds, warnings = _cross_validation(dataset, fingerprint, splits, choice)
    members = choice.members or folds.members
    return (replace(folds, folds=folds.folds[:1] * members, members=members), warnings) if members else (folds, warnings)


def _cross_validation(dataset: Dataset, fingerprint: Fingerprint, splits: Path, choice: GroupChoice) -> tuple[Splits, tuple[str, ...]]:
    names = tuple(case.name for case in fingerprint.cases)
    found = Grouping(group_of={}) if choice.is_made else find_groups(names, likeness_of(fingerprint))
    renewed: tuple[str, ...] = ()
    if splits.exists() and not choice.is_made:
        before = read_folds(splits)
        if before.folds == dataset.declared_splits and not before.members:
            return _declared(dataset, found, before.patients)
        kept = kept_folds(before, dataset, names, found)
        if kept is not None:
            if dataset.declared_splits is not None and not before.members:
                differs = f"{splits} has other folds than the dataset's own file, and is used; delete it to take those."
                kept = (kept[0], (*kept[1], differs))
            return kept
        renewed = ("The cases changed so much that the folds were made anew; train all of them again with --restart.",)
    if dataset.declared_splits is not None and not choice.is_made:
        folds, warnings = _declared(dataset, found)
        return folds, (*renewed, *warnings)
    grouping, group_of = _groups(names, choice, found)
    present = {case.name: frozenset(case.labels) for case in fingerprint.cases}
    made, warnings = make_splits(names, labels_present=present, group_of=group_of)
    return Splits(folds=made, grouping=grouping, patients=dict(group_of)), (*renewed, *filter(None, [found.note]), *warnings)


def _groups(names: tuple[str, ...], choice: GroupChoice, found: Grouping) -> tuple[Literal["found", "given", "off"], Mapping[str, str]]:
    if choice.pattern is not None:
        return "given", groups_from_pattern(names, choice.pattern)
    if choice.table is not None:
        group_of = groups_from_csv(choice.table)
        check_groups(group_of, names, str(choice.table))
        return "given", group_of
    return ("off" if choice.is_off else "found"), found.group_of


def likeness_of(fingerprint: Fingerprint) -> Likeness:
    """What tells copies and the images of one patient among the cases; see :mod:`medseg3d.data.grouping`."""
    intensities = {}
    for case in fingerprint.cases:
        known = [channel.foreground for channel in case.channels if channel.foreground is not None]
        if len(known) == len(case.channels):
            numbers = [(f.median, f.percentile_00_5, f.percentile_99_5, f.mean, f.std) for f in known]
            intensities[case.name] = tuple(float(value) for value in np.log(np.maximum(np.abs(np.ravel(numbers)), 1e-6)))
    return Likeness(contents={case.name: case.content for case in fingerprint.cases}, intensities=intensities)


def kept_folds(
    before: Splits, dataset: Dataset, names: tuple[str, ...], found: Grouping, *, avoid: Collection[int] = ()
) -> tuple[Splits, tuple[str, ...]] | None:
    """The folds of an earlier plan for the cases of now, which the folds ``avoid`` train on where they can; None where they must be made
    anew."""
    measured = [name for name in names if name not in before.left_out]
    grown = _first_grown(before, measured, found.group_of) if before.members else before.folds
    fitted = fit_splits(
        grown,
        measured=measured,
        all_names=[*(case.name for case in dataset.training), *(failure.case for failure in dataset.failures)],
        group_of=found.group_of if before.grouping in ("", "found") else None,
        avoid=avoid,
    )
    if fitted is None:
        return None
    splits, warnings = fitted
    if before.members and grown != before.folds[:1]:
        warnings = (*warnings, "New cases are trained on by all members: train them again with medseg3d train --fold K --restart.")
    patients = before.patients if before.grouping in ("given", "off") else _patients(splits, before.patients, found)
    splits = splits[:1] * before.members if before.members else splits  # all members share it
    folds = Splits(folds=splits, grouping=before.grouping, left_out=before.left_out, patients=patients, members=before.members)
    divided = divided_patients(folds, names, group_of=found.group_of)
    return folds, (*warnings, *filter(None, [divided]))


def _first_grown(before: Splits, measured: Sequence[str], group_of: Mapping[str, str]) -> tuple[Split, ...]:
    """The fold that all members share, with new cases to train on; one of a patient who is validated is validated as well."""
    first = before.folds[0]
    validated = {group_of[name] for name in first.validation if name in group_of}
    new = [name for name in measured if name not in {*first.train, *first.validation}]
    held = [name for name in new if group_of.get(name) in validated]
    train = (*first.train, *(name for name in new if name not in held))
    return (Split(train=train, validation=(*first.validation, *held)),)


def _patients(splits: Sequence[Split], before: Mapping[str, str], found: Grouping) -> dict[str, str]:
    """Of the cases in the folds, also of those that cannot be read now."""
    placed = {name for split in splits for name in (*split.train, *split.validation)}
    return {name: patient for name, patient in sorted({**before, **found.group_of}.items()) if name in placed}


def _declared(dataset: Dataset, found: Grouping, before: Mapping[str, str] | None = None) -> tuple[Splits, tuple[str, ...]]:
    """The user's own folds, with what there is to say of them."""
    splits = dataset.declared_splits or ()
    placed = {name for split in splits for name in (*split.train, *split.validation)}
    left_out = tuple(case.name for case in dataset.training if case.name not in placed)
    folds = Splits(folds=splits, grouping="declared", left_out=left_out, patients=_patients(splits, before or {}, found))
    warnings = []
    if left_out:
        where = "in no fold of the dataset's own file, neither trained on nor validated"
        warnings.append(f"{counted(len(left_out), 'case')} {where}: {listed(left_out, most=5)}.")
    divided = divided_patients(folds, [case.name for case in dataset.training], group_of=found.group_of)
    return folds, (*warnings, *filter(None, [divided]))


def tell_divided(splits: Path, on: Listener = silent) -> str:
    """Say that folds in use train and validate on images of one patient, by the names of the cases; returns the sentence, empty if none."""
    folds = read_folds(splits)
    names = sorted({name for fold in folds.folds for name in (*fold.train, *fold.validation)})
    message = divided_patients(folds, names)
    if message:
        on(Event(stage="train", message=message))
    return message
