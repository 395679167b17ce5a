"""What a stored label map means: file values and what a case was annotated for go in, one small integer per voxel comes out.

An ordinary dataset stores label indices. With an ignore label, regions, or cases that were annotated for some structures only, a voxel's
*code* is ``value + n * lacking``: the place of its file value among the ``n`` that annotated voxels may hold, and which set of structures
its case was not annotated for (0: none). The last code is that of voxels that nobody has annotated. So patches, rotations, mirroring and
deep supervision move one label map, whatever it means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medseg3d.errors import LabelValueError
from medseg3d.labels import Labels, places_of


@dataclass(frozen=True, slots=True)
class LabelCodes:
    """The codes of a dataset's labels."""

    labels: Labels

    @property
    def are_indices(self) -> bool:
        """An ordinary dataset, whose codes are the label indices."""
        return not (self.labels.regions or self.labels.unannotated or self.labels.ignore is not None)

    @property
    def num_values(self) -> int:
        """Different file values of annotated voxels, the background counts."""
        return len(self.labels.annotated_values)

    @property
    def ignored(self) -> int | None:
        """The code of voxels that nobody has annotated; None without an ignore label."""
        return None if self.labels.ignore is None else self.num_values * (1 + len(self.labels.unannotated))

    @property
    def num_codes(self) -> int:
        """All codes."""
        return self.num_values * (1 + len(self.labels.unannotated)) + (self.ignored is not None)

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds them."""
        return np.min_scalar_type(max(1, self.num_codes - 1))

    def encode(self, label_map: np.ndarray, source: str, annotated: Sequence[str] | None = None) -> np.ndarray:
        """File values → codes; ``annotated`` names what the case was annotated for, None for everything.

        Voxels of structures that the case was not annotated for count as background. Raises :class:`LabelValueError` for values that are
        not in the list, and for a set of structures that was not planned with.
        """
        labels = self.labels
        if self.are_indices and annotated is None:
            return labels.encode(label_map, source)
        codes = places_of(label_map, labels.file_values, source, dtype=self.dtype)
        lacking = lacking_of(labels, annotated)
        is_ignored = None if labels.ignore is None else codes == self.num_values
        if lacking:
            if lacking not in labels.unannotated:
                raise LabelValueError(
                    f"{source}: is annotated for {', '.join(annotated or ()) or 'nothing'}, and the plan knows of no case that lacks the "
                    "others. Plan again."
                )
            hidden = self._hidden_values(lacking)
            if hidden:
                codes[np.isin(codes, hidden)] = 0
            codes += self.dtype.type(self.num_values * (1 + labels.unannotated.index(lacking)))
        if is_ignored is not None and self.ignored is not None:
            codes[is_ignored] = self.ignored
        return codes

    def _hidden_values(self, lacking: Sequence[int]) -> list[int]:
        """The places of file values that only belong to structures a case was not annotated for."""
        is_in = self.contents()[1:, : self.num_values]
        known = [index - 1 for index in self.labels.foreground if index not in lacking]
        return [place for place in range(1, self.num_values) if is_in[:, place].any() and not is_in[known, place].any()]

    def contents(self) -> np.ndarray:
        """Bool ``(class, code)``: whether a code belongs to a class or a region by its index; ignored voxels belong to none."""
        labels, values = self.labels, self.labels.annotated_values
        rows = [[value in labels.members(index) for value in values] for index in range(labels.num_classes)]
        table = np.tile(np.array(rows, bool), (1, 1 + len(labels.unannotated)))
        return np.pad(table, ((0, 0), (0, self.num_codes - table.shape[1])))

    def is_background(self, codes: np.ndarray) -> np.ndarray:
        """Where codes say that nothing of what the case was annotated for is there; ignored voxels are not background."""
        if not self.labels.unannotated:
            found: np.ndarray = codes == 0
            return found
        background: np.ndarray = codes % self.dtype.type(self.num_values) == 0
        return background if self.ignored is None else background & (codes != self.ignored)

    def lacking_in(self, codes: np.ndarray) -> tuple[int, ...]:
        """The indices that a case was not annotated for, by its codes."""
        if not self.labels.unannotated or not codes.size:
            return ()
        known = codes if self.ignored is None else codes[codes != self.ignored]
        number = int(known.max(initial=0)) // self.num_values
        return () if number == 0 else self.labels.unannotated[number - 1]

    def lacking(self) -> np.ndarray:
        """Bool ``(set, class)``: what the cases of each set were not annotated for; the first set lacks nothing."""
        table = np.zeros((1 + len(self.labels.unannotated), self.labels.num_classes), bool)
        for row, indices in zip(table[1:], self.labels.unannotated, strict=True):
            row[list(indices)] = True
        return table

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs of codes that mirroring from left to right exchanges.

        With regions a value is exchanged with the one that belongs to the mirrored regions, where there is one.
        """
        labels = self.labels
        if not labels.pairs:
            return ()
        if self.are_indices:
            return labels.pairs
        mirrored = mirrored_index(labels)
        values = self._mirrored_values(mirrored)
        sets = [(), *labels.unannotated]
        found = set()
        for number, lacking in enumerate(sets):
            other = tuple(sorted(mirrored.get(index, index) for index in lacking))
            place = sets.index(other) if other in sets else number
            for value in range(self.num_values):
                here, there = value + self.num_values * number, values[value] + self.num_values * place
                if here != there:
                    found.add((min(here, there), max(here, there)))
        return tuple(sorted(found))

    def _mirrored_values(self, mirrored: Mapping[int, int]) -> list[int]:
        table = self.contents()[:, : self.num_values]
        order = [mirrored.get(index, index) for index in range(len(table))]
        result = list(range(self.num_values))
        for place in range(1, self.num_values):
            same = [other for other in range(1, self.num_values) if np.array_equal(table[order, place], table[:, other])]
            result[place] = place if place in same or not same else same[0]
        return [other if result[other] == place else place for place, other in enumerate(result)]


def as_predicted(labels: Labels, label_map: np.ndarray) -> np.ndarray:
    """A reference as a prediction would hold it, in file values: regions in their class order, what nobody has annotated as background.

    Values that are not listed stay.
    """
    if not labels.regions and labels.ignore is None:
        return label_map
    result = label_map.copy()
    if labels.ignore is not None:
        result[label_map == labels.ignore] = 0
    for index in labels.foreground if labels.regions else ():
        result[np.isin(label_map, labels.members(index))] = labels.values[index]
    return result


def unrecovered_values(labels: Labels) -> tuple[int, ...]:
    """The values of regions' members that belong to other regions than the value which a perfect prediction holds there.

    >>> nested = Labels(names=("background", "whole", "core"), values=(0, 1, 2), regions=((1, 2), (2,)))
    >>> unrecovered_values(nested), unrecovered_values(replace(nested, values=(0, 2, 1)))
    ((), (1, 2))
    """
    values = labels.annotated_values
    predicted = as_predicted(replace(labels, ignore=None), np.asarray(values)).tolist()
    known = [{index for index in labels.foreground if value in labels.members(index)} for value in values]
    seen = [{index for index in labels.foreground if value in labels.members(index)} for value in predicted]
    return tuple(value for value, true, found in zip(values, known, seen, strict=True) if labels.regions and true != found)


def mirrored_index(labels: Labels) -> dict[int, int]:
    """Each index of a left-right pair, and its other one."""
    return {one: other for pair in labels.pairs for one, other in (pair, pair[::-1])}


def lacking_of(labels: Labels, annotated: Sequence[str] | None) -> tuple[int, ...]:
    """The indices that a case was not annotated for, by the names of what it was annotated for (None: everything)."""
    if annotated is None:
        return ()
    return tuple(index for index in labels.foreground if labels.names[index] not in annotated)


def with_annotated(labels: Labels, annotated: Mapping[str, Sequence[str] | None]) -> Labels:
    """The labels with the sets of structures that some cases lack, and the mirror images of these; by case what it was annotated for."""
    mirrored = mirrored_index(labels)

    def sets() -> Iterator[tuple[int, ...]]:
        for names in annotated.values():
            lacking = lacking_of(labels, names)
            yield lacking
            yield tuple(sorted(mirrored.get(index, index) for index in lacking))

    return replace(labels, unannotated=tuple(sorted(set(sets()) - {()})))
