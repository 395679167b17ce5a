"""Structured report with the volume of each structure: DICOM's Measurement Report (TID 1500).

Where the SEG is written as well, each measurement refers to its segment (TID 1411); else to the slices of the series (TID 1501).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg3d.dicom_objects.codes import Code
from medseg3d.dicom_objects.made_by import MANUFACTURER, SERIAL_NUMBER
from medseg3d.dicom_objects.result import Result, Segment
from medseg3d.dicom_objects.seg import SERIES_NUMBER, coded, label_of, number_of, seg_uid, tracking_uid
from medseg3d.dicom_objects.source import uid_of
from medseg3d.images.dicom_file import DicomFile
from medseg3d.options import SegmentationType

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SEG_STORAGE = {
    "binary": "1.2.840.10008.5.1.4.1.1.66.4",
    "fractional": "1.2.840.10008.5.1.4.1.1.66.4",
    "labelmap": "1.2.840.10008.5.1.4.1.1.66.7",
}
MM3_PER_ML = 1000.0
VOLUME = Code(value="118565006", meaning="Volume")
MILLILITER = Code(value="cm3", scheme="UCUM", meaning="cubic centimeter")
TITLE = Code(value="126000", scheme="DCM", meaning="Imaging Measurement Report")
PROCEDURES = {
    "CT": Code(value="25045-6", scheme="LN", meaning="CT unspecified body region"),
    "MR": Code(value="25056-3", scheme="LN", meaning="MRI unspecified body region"),
    "PT": Code(value="44136-0", scheme="LN", meaning="PET unspecified body region"),
}
"""DICOM's CID 100, by modality; a report has to name a procedure."""
DEVICE = Code(value="121007", scheme="DCM", meaning="Device")
IMAGING = Code(value="363679005", meaning="Imaging procedure")


def report(result: Result, seg: Dataset | None = None, kind: SegmentationType = "binary") -> Dataset:
    """A report of the volumes of a result in cm³, which are ml; structures that are not there have the volume 0 and refer to the slices.

    ``seg`` is the SEG of the same result, of ``kind``, which the measurements refer to.
    """
    from highdicom.sr import Comprehensive3DSR, MeasurementReport

    made = result.made_by
    datasets = result.source.datasets()
    content = MeasurementReport(
        observation_context=_context(result),
        procedure_reported=coded(PROCEDURES.get(result.source.modality, IMAGING)),
        imaging_measurements=[_group(result, segment, mask, seg, kind) for segment, mask in result.masks()],
        title=coded(TITLE),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Comprehensive3DSR(
            evidence=[*datasets, *([] if seg is None else [seg])],
            content=content,
            series_number=SERIES_NUMBER + 2,
            series_instance_uid=result.uid(f"sr series {seg is not None}"),
            sop_instance_uid=result.uid(f"sr {seg is not None} {kind}"),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=made.name,
            software_versions=list(made.software),
            device_serial_number=SERIAL_NUMBER,
            series_description=f"Volumes {made.name}"[:64],
            is_complete=True,
            is_verified=False,
            specific_character_set="ISO_IR 192",
        )


def _context(result: Result) -> Any:
    """Who observed: a program, and which model."""
    from highdicom.sr import DeviceObserverIdentifyingAttributes, ObservationContext, ObserverContext

    made = result.made_by
    device = DeviceObserverIdentifyingAttributes(
        uid=uid_of("device", made.version),
        name="medseg3d",
        manufacturer_name=MANUFACTURER,
        model_name=made.name,
        serial_number=made.version,
    )
    observer = ObserverContext(observer_type=coded(DEVICE), observer_identifying_attributes=device)
    return ObservationContext(observer_device_context=observer)


def volume_ml(result: Result, mask: np.ndarray) -> float:
    """Voxels times their volume; that is in mm³ the determinant of the grid's axes."""
    voxel_mm3 = abs(float(np.linalg.det(result.source.geometry.matrix[:3, :3])))
    return int(mask.sum()) * voxel_mm3 / MM3_PER_ML


def _group(result: Result, segment: Segment, mask: np.ndarray, seg: Dataset | None, kind: SegmentationType) -> Any:
    from highdicom.sr import (
        AlgorithmIdentification,
        FindingSite,
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    structure, made = segment.structure, result.made_by
    site = structure.region if structure.kind == "lesion" else structure.code
    side = None if structure.side is None else coded(structure.side)
    volume = Measurement(name=coded(VOLUME), value=float(f"{volume_ml(result, mask):.6g}"), unit=coded(MILLILITER))
    algorithm = AlgorithmIdentification(name=made.name, version=made.version, parameters=[f"software {made.software[0]}"])
    shared = {
        "tracking_identifier": TrackingIdentifier(uid=tracking_uid(result, segment), identifier=label_of(segment)),
        "finding_type": coded(structure.code),
        "finding_category": coded(structure.category),
        "finding_sites": None if site is None else [FindingSite(anatomic_location=coded(site), laterality=side)],
        "measurements": [volume],
        "algorithm_id": algorithm,
    }
    there = np.flatnonzero(mask.any((0, 1))).tolist()
    first = [result.source.slices[index] for index in there or range(len(result.source.slices))]
    if seg is None or not there:
        images = [SourceImageForMeasurementGroup(*reference) for reference in _references(first)]
        return MeasurementsAndQualitativeEvaluations(source_images=images, **shared)
    referenced = _segment(result, segment, kind, first)
    return VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=referenced, **shared)


def _segment(result: Result, segment: Segment, kind: SegmentationType, files: list[DicomFile]) -> Any:
    """The segment of the SEG that a measurement is of, and the slices that show it."""
    from highdicom.sr import ReferencedSegment, SourceImageForSegmentation

    return ReferencedSegment(
        sop_class_uid=SEG_STORAGE[kind],
        sop_instance_uid=seg_uid(result, kind),
        segment_number=number_of(segment, kind),
        source_images=[SourceImageForSegmentation(*reference) for reference in _references(files)],
    )


def _references(files: list[DicomFile]) -> list[tuple[str, str, list[int] | None]]:
    """Class, instance and frames (None: all) of the files of slices; the frames of one file together."""
    frames: dict[tuple[str, str], list[int]] = {}
    for file in files:
        frames.setdefault((file.text("SOPClassUID"), file.text("SOPInstanceUID")), []).append(file.frame)
    return [(kind, uid, sorted(numbers) if any(numbers) else None) for (kind, uid), numbers in frames.items()]
