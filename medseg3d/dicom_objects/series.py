"""An image as a DICOM series, one file per slice, as a scanner would send it: to try with what is made for hospitals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg3d.dicom_objects.source import decimal, uid_of
from medseg3d.files import replacing
from medseg3d.images.itk import LPS_TO_RAS

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

MR = "1.2.840.10008.5.1.4.1.1.4"
DATE, TIME = "20240101", "120000"
"""Of a study that never was."""


def write_series(folder: Path, image: np.ndarray, affine: np.ndarray, *, patient: str, description: str) -> Path:
    """Write an image of whole numbers (x, y, z) with its affine (RAS+ mm) as an MR series of axial or other slices along its third axis.

    The same image gives the same UIDs. Needs pydicom (:func:`medseg3d.dicom_objects.outputs.require_dicom`).
    """
    uid = uid_of("phantom series", np.ascontiguousarray(image).tobytes(), patient)
    for index in range(image.shape[2]):
        with replacing(folder / f"{index + 1:04d}.dcm") as temporary:
            _slice(image, affine, index, uid, patient, description).save_as(temporary, enforce_file_format=True)
    return folder


def _slice(image: np.ndarray, affine: np.ndarray, index: int, uid: str, patient: str, description: str) -> FileDataset:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    linear, origin = LPS_TO_RAS @ affine[:3, :3], LPS_TO_RAS @ affine[:3, 3]  # its own inverse
    spacing = np.linalg.norm(linear, axis=0)
    pixels = np.ascontiguousarray(image[:, :, index].T.astype(np.int16))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MR, uid_of(uid, str(index))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values: dict[str, Any] = {
        **_about(uid, patient, description),
        "SOPClassUID": MR,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "InstanceNumber": index + 1,
        "ImagePositionPatient": [decimal(value) for value in origin + index * linear[:, 2]],
        "ImageOrientationPatient": [decimal(value) for value in (linear[:, :2] / spacing[:2]).T.ravel()],
        "PixelSpacing": [decimal(spacing[1]), decimal(spacing[0])],
        "SliceThickness": decimal(spacing[2]),
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "PixelData": pixels.tobytes(),
    }
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    for name, value in values.items():
        setattr(file, name, value)
    file["PixelData"].VR = "OW"
    return file


def _about(uid: str, patient: str, description: str) -> dict[str, Any]:
    """What all slices share."""
    return {
        "ImageType": ["DERIVED", "SECONDARY", "OTHER"],
        "StudyInstanceUID": uid_of("study", uid),
        "SeriesInstanceUID": uid,
        "FrameOfReferenceUID": uid_of("frame", uid),
        "PatientID": patient,
        "PatientName": f"{patient}^Phantom",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyDate": DATE,
        "StudyTime": TIME,
        "StudyID": "1",
        "SeriesNumber": 1,
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "Manufacturer": "medseg3d phantom",
        "Modality": "MR",
        "SeriesDescription": description,
        "PositionReferenceIndicator": "",
        "PatientPosition": "HFS",
        "BodyPartExamined": "ABDOMEN",
        "ScanningSequence": "RM",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "3D",
        "EchoTime": "1",
        "RepetitionTime": "10",
        "EchoTrainLength": "1",
    }
