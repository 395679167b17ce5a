"""nnU-Net's ``dataset.json``: the names of the channels, the labels or regions, and which of them a network's outputs are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medseg3d.data.side_names import left_right_pairs
from medseg3d.errors import InputError
from medseg3d.labels import Labels
from medseg3d.records import from_plain, read_json

IGNORE = "ignore"
"""The label of voxels that were not annotated; it is never predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The parts of ``dataset.json`` that prediction depends on, under the names of the file; ``modality`` is an older name."""

    labels: dict[str, int | tuple[int, ...]]
    channel_names: dict[int, str] | None = None
    modality: dict[int, str] | None = None
    regions_class_order: tuple[int, ...] | None = None
    numTraining: int = 0

    @property
    def channels(self) -> tuple[str, ...]:
        """Names in the order of their numbers."""
        return tuple(name for _, name in sorted((self.channel_names or self.modality or {}).items()))

    @property
    def foreground_values(self) -> tuple[int, ...]:
        """All values of labels and of members of regions, sorted; one input channel each after the images of a cascade."""
        return tuple(sorted({value for _, members in _without_ignore(self) for value in members} - {0}))


def read_description(path: Path) -> Description:
    """Read ``dataset.json``; raises :class:`InputError` naming what is wrong."""
    description = from_plain(read_json(path), Description, str(path))
    if not description.channels:
        raise InputError(f'{path}: "channel_names" must give each channel a name, for instance {{"0": "CT"}}.')
    if description.labels.get("background") != 0:
        raise InputError(f'{path}: the labels must list "background": 0.')
    return description


def labels_of(description: Description, source: Path) -> Labels:
    """Labels whose output channel ``i`` is the value ``i``, or regions in the order of the file.

    Values are regions as soon as one of them is a list of several. Raises :class:`InputError` for labels with gaps, which nnU-Net
    cannot have trained, and for a ``regions_class_order`` that does not fit.
    """
    entries = list(_without_ignore(description))
    ignored = description.labels.get(IGNORE)
    ignore = ignored[0] if isinstance(ignored, tuple) else ignored
    if all(len(members) == 1 for _, members in entries):
        names: dict[int, str] = {}
        for name, members in entries:
            names.setdefault(members[0], name)
        values = tuple(sorted(names))
        if values != tuple(range(len(values))):
            raise InputError(f"{source}: the label values are {values}; nnU-Net needs 0, 1, 2 … without gaps.")
        ordered = tuple(names[value] for value in values)
        return Labels(names=ordered, values=values, pairs=left_right_pairs(ordered), ignore=ignore)
    regions = [(name, members) for name, members in entries if set(members) != {0}]
    order = description.regions_class_order or ()
    if len(order) != len(regions) or 0 in order:
        raise InputError(f"{source}: regions_class_order is {order}; expected a label value for each of the {len(regions)} regions.")
    return Labels(
        names=("background", *(name for name, _ in regions)),
        values=(0, *order),
        regions=tuple(members for _, members in regions),
        ignore=ignore,
    )


def _without_ignore(description: Description) -> Iterable[tuple[str, tuple[int, ...]]]:
    return ((name, v if isinstance(v, tuple) else (v,)) for name, v in description.labels.items() if name != IGNORE)
