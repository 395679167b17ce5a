"""RT structure set: a label map as contours on the slices of its series, as radiotherapy's planning systems take it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from medseg3d.dicom_objects.codes import Code
from medseg3d.dicom_objects.contours import outlines
from medseg3d.dicom_objects.result import Result, Segment
from medseg3d.dicom_objects.seg import COLORS, SERIES_NUMBER, label_of
from medseg3d.dicom_objects.source import PATIENT, STUDY, allowed, copy_tags, decimal

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"
"""The class that refers to a study (retired, and still what the standard asks for here)."""
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
INTERPRETED = {"anatomy": "ORGAN", "tissue": "ORGAN", "lesion": "GTV"}
"""What planning systems sort structures by; a gross tumor volume is what a model of lesions shows."""


def structure_set(result: Result) -> Dataset:
    """An RT structure set of a result, its UIDs the same for the same content; labels without a voxel are listed without contours."""
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RT_STRUCTURE_SET, rtstruct_uid(result)
    meta.TransferSyntaxUID = EXPLICIT_LITTLE_ENDIAN
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = RT_STRUCTURE_SET, rtstruct_uid(result)
    copy_tags(result.source.first, dataset, (*PATIENT, *STUDY))
    result.made_by.describe_equipment(dataset)
    now = datetime.now()
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", result.uid("rtstruct series")
    dataset.SeriesNumber, dataset.InstanceNumber = SERIES_NUMBER + 1, 1
    dataset.SeriesDescription = f"Structures {result.made_by.name}"[:64]
    dataset.OperatorsName = ""
    dataset.StructureSetLabel, dataset.StructureSetName = "medseg3d", result.made_by.name
    dataset.StructureSetDescription = f"Predicted by {result.made_by.name}, version {result.made_by.version}"[:1024]
    dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = dataset.StructureSetDate, dataset.StructureSetTime
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.FrameOfReferenceUID = result.source.frame_of_reference
    dataset.PositionReferenceIndicator = allowed("PositionReferenceIndicator", result.source.first.text("PositionReferenceIndicator"))
    dataset.ReferencedFrameOfReferenceSequence = [_referenced_series(result)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    for segment, mask in result.masks():
        _add_structure(dataset, result, segment, list(_contours(result, mask)))
    return dataset


def _add_structure(dataset: Dataset, result: Result, segment: Segment, contours: list[Dataset]) -> None:
    from pydicom.dataset import Dataset

    roi, shown = Dataset(), Dataset()
    roi.ROINumber, roi.ReferencedFrameOfReferenceUID = segment.index, result.source.frame_of_reference
    roi.ROIName, roi.ROIGenerationAlgorithm = label_of(segment), "AUTOMATIC"
    roi.ROIGenerationDescription = f"{result.made_by.name}, version {result.made_by.version}"[:64]
    dataset.StructureSetROISequence.append(roi)
    shown.ROIDisplayColor, shown.ReferencedROINumber = list(COLORS[(segment.index - 1) % len(COLORS)]), segment.index
    if contours:
        shown.ContourSequence = contours
    dataset.ROIContourSequence.append(shown)
    dataset.RTROIObservationsSequence.append(_observation(segment))


def rtstruct_uid(result: Result) -> str:
    """The SOP instance UID that the structure set of a result has."""
    return result.uid("rtstruct")


def _contours(result: Result, mask: np.ndarray) -> Iterator[Dataset]:
    """The contours of a mask (x, y, z), each on its slice."""
    from pydicom.dataset import Dataset

    for index in np.flatnonzero(mask.any((0, 1))).tolist():
        for polygon in outlines(mask[:, :, index]):
            contour = Dataset()
            contour.ContourImageSequence = [_reference(result, index)]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(polygon)
            contour.ContourData = [decimal(value) for value in result.source.points(index, polygon).ravel()]
            yield contour


def _reference(result: Result, index: int) -> Dataset:
    from pydicom.dataset import Dataset

    item, file = Dataset(), result.source.slices[index]
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = file.text("SOPClassUID"), file.text("SOPInstanceUID")
    if file.frame:
        item.ReferencedFrameNumber = file.frame
    return item


def _referenced_series(result: Result) -> Dataset:
    from pydicom.dataset import Dataset

    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = result.source.first.text("SeriesInstanceUID")
    series.ContourImageSequence = [_reference(result, index) for index in range(len(result.source.slices))]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_MANAGEMENT, result.source.first.text("StudyInstanceUID")
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = result.source.frame_of_reference
    frame.RTReferencedStudySequence = [study]
    return frame


def _observation(segment: Segment) -> Dataset:
    from pydicom.dataset import Dataset

    observation, structure = Dataset(), segment.structure
    observation.ObservationNumber, observation.ReferencedROINumber = segment.index, segment.index
    observation.ROIObservationLabel = label_of(segment)[:16].strip()
    observation.RTROIInterpretedType, observation.ROIInterpreter = INTERPRETED[structure.kind], ""
    identification = _item(structure.code)
    if structure.side is not None:
        identification.SegmentedPropertyTypeModifierCodeSequence = [_item(structure.side)]
    observation.RTROIIdentificationCodeSequence = [identification]
    return observation


def _item(code: Code) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item
