"""What ``dataset.json`` says of channels and labels, in the forms that nnU-Net and the Decathlon have had."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medseg3d.data.label_rules import is_ignore_label, name_findings
from medseg3d.data.side_names import left_right_pairs
from medseg3d.labels import Labels
from medseg3d.wording import counted, listed


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


def declared_labels(declared: dict[str, Any], findings: list[str]) -> Labels | None:
    """``labels``: {"background": 0, "liver": 1}, or the other way round in older files.

    As in nnU-Net a list of values is a region, from the first such list on all labels are, and ``regions_class_order`` says which value
    each of them gets in predictions. A label of a telling name (``ignore``) is that of voxels that nobody has annotated.
    """
    found = declared.get("labels")
    if not isinstance(found, dict) or not found:
        findings.append('dataset.json: labels must name the label values, for instance {"background": 0, "liver": 1}')
        return None
    is_turned = all(_is_integer(key) for key in found) and not all(_is_integer(value) for value in found.values())
    pairs = [(str(value), key) if is_turned else (str(key), value) for key, value in found.items()]
    wrong = [name for name, value in pairs if not (_is_integer(value) or _is_region(value))]
    if wrong:
        findings.append(f"dataset.json: the values of these labels are not integers: {listed(wrong)}; a region is a list of them")
        return None
    entries = [(name, tuple(dict.fromkeys(int(each) for each in (value if isinstance(value, list) else [value])))) for name, value in pairs]
    ignored = [(name, members[0]) for name, members in entries if len(members) == 1 and is_ignore_label(name, members[0], _values(entries))]
    if len(ignored) > 1:
        findings.append(
            f"dataset.json: {listed([name for name, _ in ignored])} are ignore labels, and there can be one; give them one value"
        )
    kept = [entry for entry in entries if entry[0] not in {name for name, _ in ignored}]
    ignore = ignored[0][1] if ignored else None
    is_region = any(len(members) > 1 for _, members in kept)
    labels = _regions(kept, declared, findings) if is_region else _classes(kept, findings)
    if ignore is not None and ignore in labels.annotated_values:
        findings.append(f"dataset.json: {ignored[0][0]!r} has the value {ignore}, which another label has too")
    is_soft = declared.get(SOFT) is True
    if is_soft and (labels.regions or ignore is not None):
        findings.append(f'dataset.json: "{SOFT}" goes with plain labels only, without regions and an ignore label')
    return replace(labels, ignore=ignore, soft=is_soft)


SOFT = "soft_labels"
"""The key that says that label files hold probabilities."""


def _classes(entries: Sequence[tuple[str, tuple[int, ...]]], findings: list[str]) -> Labels:
    named: dict[int, str] = {}
    for name, (value,) in entries:
        if value in named:
            findings.append(f"dataset.json: labels {named[value]!r} and {name!r} both have the value {value}")
        named[value] = name
    findings += [f"dataset.json: {finding}" for finding in name_findings(named)]
    if set(named) == {0}:
        findings.append("dataset.json: the background is the only label; list the structures too")
    return labels_from_values(named)


def _regions(entries: Sequence[tuple[str, tuple[int, ...]]], declared: Mapping[str, Any], findings: list[str]) -> Labels:
    """Regions in the order of the file, which is that of the class order, as in nnU-Net."""
    regions = [(name, members) for name, members in entries if set(members) != {0}]
    order = declared.get("regions_class_order")
    count = f"{counted(len(regions), 'region')} ({listed([name for name, _ in regions])})"
    if not isinstance(order, list) or not all(_is_integer(value) for value in order) or len(order) != len(regions):
        findings.append(
            f"dataset.json: regions_class_order is {order!r:.100}, expected a label value for each of the {count}: what predictions hold "
            "where the region is found, later regions over earlier ones"
        )
        order = [members[0] for _, members in regions]
    values = [int(value) for value in order]
    if 0 in values or len(set(values)) < len(values):
        findings.append(f"dataset.json: regions_class_order is {values}, expected other values than 0, each once")
        values = list(range(1, len(regions) + 1))
    if with_background := [name for name, members in regions if 0 in members]:
        findings.append(f"dataset.json: the value 0 is always the background, and no part of a region: {listed(with_background)}")
    named = {0: next((name for name, members in entries if members == (0,)), "background")}
    named |= {value: name for value, (name, _) in zip(values, regions, strict=True)}
    findings += [f"dataset.json: {finding}" for finding in name_findings(named)]
    names = ("background", *(name for name, _ in regions))
    labels = Labels(names=names, values=(0, *values), pairs=left_right_pairs(names), regions=tuple(members for _, members in regions))
    findings += [f"dataset.json: {finding}" for finding in _order_findings(labels)]
    return labels


def _order_findings(labels: Labels) -> Iterator[str]:
    """Regions that no prediction could hold, or that would be taken for another."""
    for index in labels.foreground:
        name, members, value = labels.names[index], labels.members(index), labels.values[index]
        later = [labels.names[other] for other in labels.foreground if other > index and set(members) <= set(labels.members(other))]
        if value not in members:
            yield f"regions_class_order gives {name!r} the value {value}, which it is not made of (it is made of {list(members)})"
        elif later:
            yield (
                f"{name!r} lies inside of {later[0]!r}, which comes later and would be written over it: no prediction could hold {name!r}. "
                "List outer regions first, in labels and in regions_class_order"
            )


def _values(entries: Sequence[tuple[str, tuple[int, ...]]]) -> set[int]:
    return {value for _, members in entries for value in members}


def _is_region(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_integer(each) for each in value)


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
