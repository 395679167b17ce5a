"""DICOM SEG: a label map, or probabilities, on the slices of its series.

Three kinds: ``binary`` has a frame of bits for each segment and slice, takes regions that overlap, and is what every archive and viewer
takes; ``labelmap`` has one frame of label values per slice (a storage class of 2024, which older archives refuse); ``fractional`` has
the probability of each segment in 255 steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medseg3d.dicom_objects.codes import Code
from medseg3d.dicom_objects.made_by import MANUFACTURER, SERIAL_NUMBER
from medseg3d.dicom_objects.result import Result, Segment
from medseg3d.dicom_objects.source import decimal, one_line
from medseg3d.errors import InputError
from medseg3d.options import SegmentationType

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code as DicomCode

MAX_SEGMENT = 65535
"""What 16 bits hold."""
STEPS = 255
"""Of a probability: what 8 bits hold."""
SERIES_NUMBER = 7001
"""Behind the series of scanners, whose numbers have three or four digits; RT structure sets and reports follow."""
ARTIFICIAL_INTELLIGENCE = Code(value="123110", scheme="DCM", meaning="Artificial Intelligence")
COLORS = (
    (221, 82, 60), (80, 174, 96), (78, 121, 190), (232, 178, 64), (148, 103, 189), (68, 183, 194), (226, 119, 194), (140, 110, 84),
    (188, 189, 34), (255, 152, 150), (152, 223, 138), (174, 199, 232),
)  # fmt: skip
"""RGB of segments, in turn: told apart from each other and from the gray of the image."""


def segmentation(result: Result, kind: SegmentationType = "binary") -> Dataset:
    """A SEG of a result; its UIDs are the same for the same content.

    Raises :class:`InputError` for a label map of regions or of values that 16 bits do not hold, and for probabilities that are missing.
    """
    from highdicom.seg import Segmentation

    if kind == "labelmap":
        _check_label_map(result)
    shown = sorted(result.segments, key=lambda segment: number_of(segment, kind))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # highdicom's remarks on empty frames and on names without a caret: nothing that a user could change
        seg = Segmentation(
            source_images=result.source.datasets(),
            pixel_array=_in_file_order(result, _pixels(result, shown, kind)),
            segmentation_type=kind.upper(),
            segment_descriptions=[_description(result, segment, number_of(segment, kind)) for segment in shown],
            series_instance_uid=result.uid(f"seg series {kind}"),
            series_number=SERIES_NUMBER,
            sop_instance_uid=seg_uid(result, kind),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=result.made_by.name,
            software_versions=list(result.made_by.software),
            device_serial_number=SERIAL_NUMBER,
            max_fractional_value=STEPS,
            content_description=f"Predicted by {result.made_by.name}"[:64],
            content_label="SEGMENTATION",
            series_description=f"Segmentation {result.made_by.name}"[:64],
            specific_character_set="ISO_IR 192",
        )
    if len(result.source.slices) == 1:  # there is no next slice to go by, and highdicom says 1 mm
        measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SpacingBetweenSlices = decimal(result.source.geometry.spacing[2])
    return seg


def seg_uid(result: Result, kind: SegmentationType) -> str:
    """The SOP instance UID that a SEG of a result has."""
    return result.uid(f"seg {kind}")


def number_of(segment: Segment, kind: SegmentationType) -> int:
    """Its number in a SEG: the label's value in a label map, else its place, as such numbers must follow each other."""
    return segment.value if kind == "labelmap" else segment.index


def algorithm(result: Result) -> AlgorithmIdentificationSequence:
    """The model as the algorithm of a segment."""
    from highdicom import AlgorithmIdentificationSequence

    made = result.made_by
    return AlgorithmIdentificationSequence(name=made.name, family=coded(ARTIFICIAL_INTELLIGENCE), version=made.version, source=MANUFACTURER)


def coded(code: Code) -> DicomCode:
    """A code as pydicom and highdicom take it."""
    from pydicom.sr.coding import Code as DicomCode

    return DicomCode(code.value, code.scheme, code.meaning)


def _check_label_map(result: Result) -> None:
    if result.is_overlapping:
        raise InputError(
            "--segmentation-type labelmap: the model's regions overlap, and a voxel has one value. Choose binary or fractional."
        )
    odd = [segment.value for segment in result.segments if not 0 < segment.value <= MAX_SEGMENT]
    if odd:
        raise InputError(
            f"--segmentation-type labelmap: the label value {odd[0]} does not fit; expected 1 to {MAX_SEGMENT}. Choose binary."
        )


def _pixels(result: Result, shown: Sequence[Segment], kind: SegmentationType) -> np.ndarray:
    """Frames (slice, row, column) of segment numbers, or (slice, row, column, segment)."""
    if kind == "labelmap":
        wide = max(segment.value for segment in shown) > np.iinfo(np.uint8).max
        return np.ascontiguousarray(result.values.T, np.uint16 if wide else np.uint8)
    if kind == "binary" and not result.is_overlapping:
        return np.ascontiguousarray(result.labels.encode(result.values, "the prediction").T)
    frames = np.empty((*result.values.shape[::-1], len(shown)), np.float32 if kind == "fractional" else np.uint8)
    for place, segment in enumerate(shown):
        frames[..., place] = (_probability(result, segment) if kind == "fractional" else result.mask(segment)).T
    return frames


def _in_file_order(result: Result, frames: np.ndarray) -> np.ndarray:
    """Frames of a multi-frame file are told by their number in it; those of single slices by their place."""
    return frames[list(result.source.frame_order)] if result.source.is_multi_frame else frames


def _probability(result: Result, segment: Segment) -> np.ndarray:
    """Of regions every output is one; otherwise the background's is the first."""
    if result.probabilities is None:
        raise InputError("--segmentation-type fractional: needs the probabilities of the prediction.")
    output = segment.index - 1 if result.labels.regions else segment.index
    return np.clip(np.asarray(result.probabilities[output], np.float32), 0, 1)


def _description(result: Result, segment: Segment, number: int) -> SegmentDescription:
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

    structure = segment.structure
    described = SegmentDescription(
        segment_number=number,
        segment_label=label_of(segment),
        segmented_property_category=coded(structure.category),
        segmented_property_type=coded(structure.code),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm(result),
        tracking_id=label_of(segment),
        tracking_uid=tracking_uid(result, segment),
        anatomic_regions=None if structure.region is None else [coded(structure.region)],
        display_color=CIELabColor.from_rgb(*COLORS[(segment.index - 1) % len(COLORS)]),
    )
    if structure.side is not None:
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(coded(structure.side))]
    return described


def label_of(segment: Segment) -> str:
    """The name of a label as a long string (LO)."""
    return one_line(segment.name)[:64].strip() or f"label {segment.value}"


def tracking_uid(result: Result, segment: Segment) -> str:
    """The same in the SEG and in the report of a result."""
    return result.uid(f"structure {segment.index}")
