"""What ``dataset.json`` says of channels and labels, in the forms that nnU-Net and the Decathlon have had."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg3d.data.label_rules import is_ignore_label, name_findings
from medseg3d.data.side_names import left_right_pairs
from medseg3d.errors import (
    UnsupportedError,
)
from medseg3d.labels import Labels
from medseg3d.wording import listed


def channel_names(declared: dict[str, Any], findings: list[str]) -> tuple[str, ...]:
    """``channel_names`` or, in older files, ``modality``: {"0": "CT"} or a list."""
    found = declared.get("channel_names", declared.get("modality"))
    if isinstance(found, str):
        found = [found]
    if isinstance(found, dict):
        try:
            found = {int(key): name for key, name in found.items()}
        except (TypeError, ValueError):
            found = {}
        found = [found[c] for c in sorted(found)] if sorted(found) == list(range(len(found))) else []
    if not isinstance(found, list) or not found:
        findings.append('dataset.json: channel_names must name the channels from 0 on, for instance {"0": "CT"}')
        return ()
    return tuple(str(name) for name in found)


def declared_labels(root: Path, declared: dict[str, Any], findings: list[str]) -> Labels | None:
    """``labels``: {"background": 0, "liver": 1}, or the other way round in older files."""
    found = declared.get("labels")
    if not isinstance(found, dict) or not found:
        findings.append('dataset.json: labels must name the label values, for instance {"background": 0, "liver": 1}')
        return None
    is_turned = all(_is_integer(key) for key in found) and not all(_is_integer(value) for value in found.values())
    pairs = [(str(value), key) if is_turned else (str(key), value) for key, value in found.items()]
    for name, value in pairs:
        if isinstance(value, list):
            raise UnsupportedError(
                f"{root / 'dataset.json'}: label {name!r} is a region ({value}); regions are not supported yet. "
                "List plain labels, one value each."
            )
        if _is_integer(value) and is_ignore_label(name, int(value)):
            raise UnsupportedError(
                f"{root / 'dataset.json'}: an ignore label ({name!r}, value {value}) is not supported yet; "
                "leave out the cases that have it, or label them completely."
            )
    wrong = [name for name, value in pairs if not _is_integer(value)]
    if wrong:
        findings.append(f"dataset.json: the values of these labels are not integers: {listed(wrong)}")
        return None
    named: dict[int, str] = {}
    for name, value in pairs:
        if int(value) in named:
            findings.append(f"dataset.json: labels {named[int(value)]!r} and {name!r} both have the value {int(value)}")
        named[int(value)] = name
    findings += [f"dataset.json: {finding}" for finding in name_findings(named)]
    if set(named) == {0}:
        findings.append("dataset.json: the background is the only label; list the structures too")
    return labels_from_values(named)


def labels_from_values(named: Mapping[int, str]) -> Labels:
    """Labels from value → name; the background is value 0, put first and added where it is missing."""
    values = (0, *sorted(set(named) - {0}))
    names = tuple(named.get(value, "background") if value == 0 else named[value] for value in values)
    return Labels(names=names, values=values, pairs=left_right_pairs(names))


def _is_integer(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        return re.fullmatch(r"-?\d+", value.strip()) is not None
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
