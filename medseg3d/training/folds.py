"""From the cases to the folds of a cross-validation: names in, training and validation names out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from medseg3d.data.dataset import Split
from medseg3d.data.grouping import divided_message, find_groups
from medseg3d.data.splits import read_splits
from medseg3d.errors import DatasetError, InputError
from medseg3d.parsing import read_table
from medseg3d.ranges import Counted
from medseg3d.records import Checked, read_record, write_record
from medseg3d.wording import counted, listed

__all__ = [
    "DEFAULT_SEED",
    "Split",
    "Splits",
    "check_groups",
    "fit_splits",
    "groups_from_csv",
    "groups_from_pattern",
    "make_splits",
    "read_folds",
    "read_splits",
    "write_splits",
]

DEFAULT_SEED = 12345


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits(Checked):
    """The contents of ``splits.json``.

    ``grouping`` says how cases were kept together: by what their names and images tell (``found``), as the user said (``given``), not at
    all because the user said so (``off``), or by the user's own folds (``declared``); it is empty in an older file. ``left_out`` are the
    cases that the user's own folds leave out. ``patients`` says which cases were kept together, and is empty in an older file.
    ``members`` is 0 where the folds are those of a cross-validation; otherwise so many folds are the same, for networks with other seeds.
    """

    folds: tuple[Split, ...]
    grouping: Literal["", "found", "given", "off", "declared"] = ""
    left_out: tuple[str, ...] = ()
    patients: dict[str, str] = field(default_factory=dict)
    members: Counted = 0
    came_later: ClassVar[tuple[str, ...]] = ("patients", "members")


def make_splits(
    case_names: Sequence[str],
    *,
    labels_present: Mapping[str, frozenset[int]],
    group_of: Mapping[str, str],
    num_folds: int = 5,
    seed: int = DEFAULT_SEED,
) -> tuple[tuple[Split, ...], tuple[str, ...]]:
    """Folds and warnings; every case is validated in exactly one fold.

    At most ``num_folds``, fewer where there are fewer groups. ``group_of`` names the group (the patient) of a case; a case that
    it lacks is a group of its own; groups are never divided. ``labels_present`` (label values per case) spreads the classes over
    the folds: groups with the rarest classes are placed first, each where its classes are scarcest. The same names and seed give
    the same folds, whatever the order of the names. A single case is trained and validated on, with a warning.
    """
    names = sorted(set(case_names))
    if not names:
        raise InputError("No cases to make folds of.")
    members: dict[str, list[str]] = {}
    for name in names:
        # A case without a group must not fall into a group that happens to have its name.
        members.setdefault(f"group {group_of[name]}" if name in group_of else f"case {name}", []).append(name)
    if len(members) == 1:
        reason = "There is only one case" if len(names) == 1 else f"All {len(names)} cases belong to one group"
        warning = f"{reason}: training and validation use the same images, so the measured quality says nothing of others."
        return (Split(train=tuple(names), validation=tuple(names)),), (warning,)
    count = max(2, min(num_folds, len(members)))
    validation = _spread(members, labels_present, count, seed)
    splits = tuple(
        Split(train=tuple(n for n in names if n not in held_out), validation=tuple(n for n in names if n in held_out))
        for held_out in validation
    )
    return splits, _warnings(splits, names, labels_present)


def fit_splits(
    splits: Sequence[Split],
    *,
    measured: Sequence[str],
    all_names: Sequence[str],
    group_of: Mapping[str, str] | None = None,
    avoid: Collection[int] = (),
) -> tuple[tuple[Split, ...], tuple[str, ...]] | None:
    """Older folds for the cases that are there now, with warnings; None where they must be made anew.

    Cases that the dataset no longer has (``all_names``) are dropped; one that merely cannot be read keeps its place. A newly
    ``measured`` case is validated in the fold with the fewest validation cases and trained in the others; one of a patient
    (``group_of``) whose other cases are there already, where these are validated. In the folds ``avoid``
    it is validated only where all are named. Folds that train and
    validate on the same cases, or that lose all cases of one side, are made anew. Raises :class:`DatasetError` where a fold
    trains on some of its validation cases.
    """
    leaking = [
        f"fold {k} has {', '.join(sorted(both)[:5])} in both train and validation"
        for k, split in enumerate(splits)
        if (both := set(split.train) & set(split.validation)) and set(split.train) != set(split.validation)
    ]
    if leaking:
        raise DatasetError("splits.json: the folds cannot be used. Correct the file, or delete it to have folds made.", leaking)
    known = set(all_names)
    placed = {name for split in splits for name in (*split.train, *split.validation)}
    gone, new = sorted(placed - known), sorted(set(measured) - placed)
    if not gone and not new:
        return tuple(splits), ()
    train = [[name for name in split.train if name in known] for split in splits]
    validation = [[name for name in split.validation if name in known] for split in splits]
    if any(set(t) & set(v) for t, v in zip(train, validation, strict=True)):
        return None
    validated = {name for names in validation for name in names} | set(new)
    for name in new:
        siblings = {other for other in validated if group_of and name in group_of and group_of.get(other) == group_of[name]}
        fold = min(range(len(splits)), key=lambda k: (not siblings & set(validation[k]), k in avoid, len(validation[k])))
        for k in range(len(splits)):
            (validation if k == fold else train)[k].append(name)
    if not all(train) or not all(validation):
        return None
    warnings = []
    if gone:
        warnings.append(f"{counted(len(gone), 'case')} no longer in the dataset, taken out of the folds: {listed(gone, most=5)}.")
    if new:
        warnings.append(
            f"{counted(len(new), 'new case')} put into the folds ({listed(new, most=5)}). Where several cases belong to one patient, give "
            "--groups or --group-pattern, which makes all folds anew."
        )
    warnings.append("Folds that were trained before hold other cases now: train them again with medseg3d train --fold K --restart.")
    fitted = tuple(Split(train=tuple(t), validation=tuple(v)) for t, v in zip(train, validation, strict=True))
    return fitted, tuple(warnings)


def groups_from_pattern(names: Sequence[str], pattern: str) -> dict[str, str]:
    """The group of each case: the first capture group of the regular expression in its name, or the whole match without one.

    Raises :class:`InputError` for a broken expression and for names that it does not match.

    >>> groups_from_pattern(["p01_ED", "p01_ES", "p02_ED"], "^(p[0-9]+)_")
    {'p01_ED': 'p01', 'p01_ES': 'p01', 'p02_ED': 'p02'}
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"The group pattern {pattern!r} is not a regular expression: {error}.") from None
    found = {name: expression.search(name) for name in names}
    groups = {name: (match[1] if expression.groups else match[0]) for name, match in found.items() if match}
    without = sorted(name for name in names if groups.get(name) is None)
    if without:
        listed = ", ".join(without[:20]) + (f" and {len(without) - 20} more" if len(without) > 20 else "")
        raise InputError(f"The group pattern {pattern!r} does not match {len(without)} of {len(names)} case names: {listed}.")
    return groups


def groups_from_csv(path: Path) -> dict[str, str]:
    """The group of each case from a table with the columns ``case`` and ``group``; commas or semicolons between them.

    Raises :class:`InputError` where the file or a column is missing, or a case has two groups.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; expected a table with the columns case and group.")
    rows = read_table(path)
    columns = [column.strip().lower() for column in rows[0]] if rows else []
    if "case" not in columns or "group" not in columns:
        raise InputError(f"{path}: the columns are {', '.join(columns) or 'missing'}; expected case and group in the first line.")
    case_column, group_column = columns.index("case"), columns.index("group")
    groups: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(case_column, group_column) or not row[case_column].strip() or not row[group_column].strip():
            raise InputError(f"{path}, line {number}: expected a case and its group, found {row}.")
        case, group = row[case_column].strip(), row[group_column].strip()
        if groups.setdefault(case, group) != group:
            raise InputError(f"{path}, line {number}: {case} has two groups, {groups[case]} and {group}.")
    return groups


def divided_patients(folds: Splits, names: Sequence[str], *, group_of: Mapping[str, str] | None = None) -> str:
    """A sentence where folds train and validate on images of what looks like one patient; empty where the user has said how they belong
    together. ``group_of`` is found by the names alone where it is not given."""
    if folds.grouping in ("given", "off"):
        return ""
    groups = find_groups(names).group_of if group_of is None else group_of
    message = divided_message(groups, [(fold.train, fold.validation) for fold in folds.folds], source="splits.json")
    return (
        message
        and f"{message} Delete the file to have folds made by patient; if they are none, medseg3d plan --no-groups says so for good."
    )


def write_splits(path: Path, splits: Sequence[Split]) -> Path:
    """Write folds as ``splits.json``; :func:`read_splits` reads them back."""
    return write_record(path, Splits(folds=tuple(splits)), "splits")


def read_folds(path: Path) -> Splits:
    """What :func:`write_splits` wrote; raises :class:`InputError` saying what to do about a damaged file."""
    try:
        return read_record(path, Splits, "splits")
    except InputError as error:
        raise InputError(
            f"{str(error).removesuffix('.')}. Bring the file back from a copy, or delete it and run medseg3d plan: the same cases get the "
            "same folds, unless the file was changed by hand or cases came later."
        ) from error


def check_groups(group_of: Mapping[str, str], case_names: Sequence[str], source: str) -> None:
    """Raise :class:`DatasetError` where a table of groups lacks cases of the dataset; others in it do no harm."""
    missing = sorted(set(case_names) - set(group_of))
    if missing:
        raise DatasetError(f"{source}: cases without a group. Add them to the table.", missing)


def _spread(members: Mapping[str, Sequence[str]], labels_present: Mapping[str, frozenset[int]], count: int, seed: int) -> list[set[str]]:
    """Greedy: the group with the rarest class first, into the fold that lacks its classes and cases most."""
    generator = np.random.default_rng(seed)
    order = [sorted(members)[i] for i in generator.permutation(len(members))]
    presence: dict[str, dict[int, int]] = {}
    for group in order:
        counts: dict[int, int] = {}
        for name in members[group]:
            for label in labels_present.get(name, frozenset()):
                counts[label] = counts.get(label, 0) + 1
        presence[group] = counts
    totals: dict[int, int] = {}
    for counts in presence.values():
        for label, number in counts.items():
            totals[label] = totals.get(label, 0) + number

    def rarity(group: str) -> tuple[int, int]:
        return (min((totals[label] for label in presence[group]), default=1 << 60), -len(members[group]))

    folds: list[set[str]] = [set() for _ in range(count)]
    held: list[dict[int, int]] = [{} for _ in range(count)]
    goal = sum(len(names) for names in members.values()) / count
    waiting = sorted(order, key=rarity)  # stable: ties stay in their random order
    for place, group in enumerate(waiting):
        empty = [k for k in range(count) if not folds[k]]
        choices = empty if len(empty) >= len(waiting) - place else range(count)

        def cost(k: int, group: str = group) -> tuple[bool, float, int, int]:
            scarce = sum(number * held[k].get(label, 0) / totals[label] for label, number in presence[group].items())
            return (len(folds[k]) + len(members[group]) > np.ceil(goal) and bool(folds[k]), scarce, len(folds[k]), k)

        best = min(choices, key=cost)
        folds[best].update(members[group])
        for label, number in presence[group].items():
            held[best][label] = held[best].get(label, 0) + number
    return folds


def _warnings(splits: Sequence[Split], names: Sequence[str], labels_present: Mapping[str, frozenset[int]]) -> tuple[str, ...]:
    """A sentence per fold and side that lacks labels; where all of them lack the same one, a single sentence about that label."""
    labels = sorted({label for name in names for label in labels_present.get(name, frozenset())})
    lacking: list[tuple[int, str, list[int]]] = []
    for k, split in enumerate(splits):
        for side, cases in (("training", split.train), ("validation", split.validation)):
            there = {label for name in cases for label in labels_present.get(name, frozenset())}
            missing = [label for label in labels if label not in there]
            if missing:
                lacking.append((k, side, missing))
    if len({label for _, _, missing in lacking for label in missing}) == 1:
        label = lacking[0][2][0]
        owners = [name for name in names if label in labels_present.get(name, frozenset())]
        sides = [
            f"no {side} case of {'fold' if len(folds) == 1 else 'folds'} {', '.join(folds)} has it"
            for side in ("training", "validation")
            if (folds := [str(k) for k, its_side, _ in lacking if its_side == side])
        ]
        return (f"The label value {label} is only in {listed(owners)}: {'; '.join(sides)}.",)
    return tuple(
        f"Fold {k}: no {side} case has the label value{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}."
        for k, side, missing in lacking
    )
