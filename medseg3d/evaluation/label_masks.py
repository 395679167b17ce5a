"""Two label maps of file values → the masks of each label, or of each region, without the voxels that nobody has annotated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg3d.data.cropping import Box
from medseg3d.labels import Labels, places_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoMaps:
    """A prediction and a reference as places in one list of values, 0 the background, and ``members``: the places of each label.

    ``unknown`` are the voxels that nobody has annotated, which are background in both; None where there are none.
    """

    prediction: np.ndarray
    reference: np.ndarray
    members: tuple[tuple[int, ...], ...]
    unknown: np.ndarray | None = None

    def boxes(self) -> list[Box | None]:
        """Per label index the smallest box that holds its voxels in both; None where it has none.

        With unknown voxels there is one more on each side: a neighbor beyond the box must be known to be outside of the label.
        """
        largest = max(place for places in self.members for place in places)
        single = label_boxes(self.prediction, self.reference, largest + 1)
        boxes = [_union([box for place in places if (box := single[place]) is not None]) for places in self.members]
        boxes[0] = None
        if self.unknown is None:
            return boxes
        return [None if box is None else _grown(box, self.prediction.shape) for box in boxes]

    def masks(self, index: int, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Where a label is predicted, and where it is, in a box."""
        return _mask(self.prediction[box], self.members[index]), _mask(self.reference[box], self.members[index])


def two_maps(prediction: np.ndarray, reference: np.ndarray, labels: Labels, name: str) -> TwoMaps:
    """File values, three axes in any order but the same; raises :class:`~medseg3d.errors.LabelValueError` for those not listed."""
    values = tuple(dict.fromkeys((*labels.annotated_values, *labels.values, *labels.file_values)))
    dtype = np.min_scalar_type(max(1, len(values) - 1))
    predicted = places_of(prediction, values, f"{name} (prediction)", dtype=dtype)
    referenced = places_of(reference, values, f"{name} (reference)", dtype=dtype)
    unknown = None
    if labels.ignore is not None:
        place = values.index(labels.ignore)
        unknown = referenced == place
        for array in (predicted, referenced):
            array[unknown] = 0
        predicted[predicted == place] = 0
        unknown = unknown if unknown.any() else None
    members = tuple(tuple(values.index(value) for value in labels.members(index)) for index in range(labels.num_classes))
    return TwoMaps(prediction=predicted, reference=referenced, members=members, unknown=unknown)


def label_boxes(prediction: np.ndarray, reference: np.ndarray, num_classes: int) -> list[Box | None]:
    """Per index the smallest box that holds its voxels in both index arrays; None where it has none."""
    from scipy import ndimage

    boxes: list[Box | None] = [None]
    found = (ndimage.find_objects(array, max_label=max(1, num_classes - 1)) for array in (prediction, reference))
    for first, second in zip(*found, strict=True):
        boxes.append(_union([box for box in (first, second) if box is not None]))
    return boxes


def _union(boxes: Sequence[Box]) -> Box | None:
    if not boxes:
        return None
    sides = [slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in range(3)]
    return (sides[0], sides[1], sides[2])


def _grown(box: Box, shape: Sequence[int]) -> Box:
    sides = [slice(max(0, side.start - 1), min(length, side.stop + 1)) for side, length in zip(box, shape, strict=True)]
    return (sides[0], sides[1], sides[2])


def _mask(places: np.ndarray, members: Sequence[int]) -> np.ndarray:
    found: np.ndarray = places == members[0] if len(members) == 1 else np.isin(places, members)
    return found
