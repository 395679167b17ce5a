"""Names of label values that stand beside a dataset: ``--labels 2=left_kidney,3=right_kidney``, ``labels.csv`` or ``labels.json``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from medseg3d.data.label_rules import is_ignore_label, name_findings, repeated_keys
from medseg3d.data.side_names import left_right_pairs
from medseg3d.errors import DatasetError, InputError
from medseg3d.labels import Labels
from medseg3d.parsing import read_table, read_text
from medseg3d.records import read_json
from medseg3d.wording import listed

FILES = ("labels.csv", "labels.json")


def names_from_text(text: str) -> dict[int, str]:
    """What ``--labels`` says. Raises :class:`InputError` for anything but values and names.

    >>> names_from_text("2=left_kidney, 3=right kidney")
    {2: 'left_kidney', 3: 'right kidney'}
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    wrong = [value for value, sign, name in pairs if not (sign and re.fullmatch(r"\s*-?\d{1,18}\s*", value) and name.strip())]
    if wrong or not pairs:
        raise InputError(f"--labels {text}: expected label values with names, such as 2=left_kidney,3=right_kidney.")
    return _checked(((int(value), name.strip()) for value, _, name in pairs), "--labels")


def names_beside(root: Path) -> dict[int, str]:
    """The names in ``labels.csv`` (value,name) or ``labels.json`` of a dataset's folder; empty without such a file.

    Raises :class:`InputError` for a file that says something else, and where both are there.
    """
    there = [root / name for name in FILES if (root / name).is_file()]
    if len(there) > 1:
        raise InputError(f"{root}: names of labels in {there[0].name} and in {there[1].name}; keep one of the files.")
    if not there:
        return {}
    return names_in_file(there[0])


def names_in_file(path: Path) -> dict[int, str]:
    """The names in a file like ``labels.csv`` or ``labels.json``; raises :class:`InputError` for one that says something else."""
    return _from_json(path) if path.suffix == ".json" else _from_csv(path)


def with_names(labels: Labels, names: Mapping[int, str]) -> Labels:
    """The labels under the names that are given for their values; others keep theirs. Pairs of sides are found anew.

    Raises :class:`DatasetError` for a list that then contradicts itself, such as two labels of one name.
    """
    if not names:
        return labels
    ignored = sorted(value for value, name in names.items() if is_ignore_label(name, value, (*labels.file_values, *names)))
    if ignored and not labels.regions and labels.ignore is None:
        labels = ignoring(labels, ignored[0])
    named = {value: names.get(value, name) for value, name in zip(labels.values, labels.names, strict=True)}
    findings = name_findings(named)
    if findings:
        raise DatasetError("The names given for labels do not fit together:", findings)
    ordered = tuple(named[value] for value in labels.values)
    return replace(labels, names=ordered, pairs=left_right_pairs(ordered))


def other_meaning(declared: Labels | None, planned: Labels, given: Mapping[int, str]) -> str:
    """What ``dataset.json`` says of the labels today and a plan does not know; empty where both say the same.

    ``given`` are the names that were given when the plan was made.
    """
    if declared is None:
        return ""
    now, before = _in_words(with_names(declared, given)), _in_words(planned)
    if now == before:
        return ""
    new, old = (listed(sorted(one - other)) or "fewer" for one, other in ((now, before), (before, now)))
    return f"the labels are {new} now, and the plan knows {old}"


def _in_words(labels: Labels) -> set[str]:
    named = {f"{' and '.join(map(str, sorted(labels.members(index))))} {labels.names[index]}" for index in labels.foreground}
    return named if labels.ignore is None else {*named, f"{labels.ignore} ignore"}


def ignored_value(labels: Labels | None, names: Mapping[int, str]) -> int | None:
    """The value of voxels that nobody has annotated: the list's, or the one that a telling name is given for; None where there is none."""
    if labels is not None and labels.ignore is not None:
        return labels.ignore
    return next((value for value, name in sorted(names.items()) if is_ignore_label(name, value, names)), None)


def ignoring(labels: Labels, value: int) -> Labels:
    """The labels, one value of which is that of voxels that nobody has annotated."""
    kept = [place for place, other in enumerate(labels.values) if other != value]
    names = tuple(labels.names[place] for place in kept)
    return replace(labels, names=names, values=tuple(labels.values[place] for place in kept), pairs=left_right_pairs(names), ignore=value)


def _from_csv(path: Path) -> dict[int, str]:
    rows = read_table(path)
    if rows and [cell.lower() for cell in rows[0][:2]] == ["value", "name"]:
        rows = rows[1:]
    rows = [row for row in rows if any(row)]
    wrong = next((row for row in rows if len(row) < 2 or not re.fullmatch(r"-?\d{1,18}", row[0]) or not row[1]), None)
    if wrong is not None or not rows:
        raise InputError(f"{path}: expected the columns value and name, for instance 2,left_kidney; found {wrong or 'no rows'}.")
    return _checked(((int(row[0]), row[1]) for row in rows), str(path))


def _from_json(path: Path) -> dict[int, str]:
    """{"2": "left_kidney"}, or the other way round as in ``dataset.json``."""
    found = read_json(path)
    if twice := repeated_keys(read_text(path)):
        raise InputError(f"{path}: {twice[0]!r} stands twice, and only the last counts; keep one.")
    pairs = list(found.items()) if isinstance(found, dict) else []
    if pairs and not all(_is_value(key) for key, _ in pairs):
        pairs = [(value, key) for key, value in pairs]
    if not pairs or not all(_is_value(value) and isinstance(name, str) and name.strip() for value, name in pairs):
        raise InputError(f'{path}: expected an object of label values and names, for instance {{"2": "left_kidney"}}.')
    return _checked(((int(value), name.strip()) for value, name in pairs), str(path))


def _is_value(value: object) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"-?\d{1,18}", value) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def _checked(pairs: Iterable[tuple[int, str]], source: str) -> dict[int, str]:
    named: dict[int, str] = {}
    for value, name in pairs:
        if named.setdefault(value, name) != name:
            raise InputError(f"{source}: the label value {value} has two names, {named[value]!r} and {name!r}.")
    findings = name_findings(named)
    ignored = [f"{name!r} ({value})" for value, name in named.items() if is_ignore_label(name, value)]
    if len(ignored) > 1:
        findings.append(f"{listed(ignored)} are ignore labels, and there can be one; give them one value in the files")
    if findings:
        raise InputError(f"{source}: {'; '.join(findings)}.")
    return named
