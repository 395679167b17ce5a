"""The kinds of results: which file each is written to, and how it is made of a label map; NIfTI stands beside DICOM's three."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medseg3d.data.dataset import Case
from medseg3d.dicom_objects.codes import NO_CODES, CodeTable, read_codes
from medseg3d.dicom_objects.made_by import MadeBy
from medseg3d.dicom_objects.result import Result
from medseg3d.dicom_objects.source import SourceSeries, source_series
from medseg3d.errors import InputError
from medseg3d.files import file_digest, remove_file, replacing
from medseg3d.images import ImageHeader, ending_of, write_label_map
from medseg3d.labels import Labels
from medseg3d.options import DicomOptions, OutputType, SegmentationType

ENDINGS: dict[OutputType, str] = {
    "nifti": ".nii.gz",
    "dicom-seg": ".seg.dcm",
    "dicom-rtstruct": ".rtstruct.dcm",
    "dicom-sr": ".sr.dcm",
}
CODES = "codes.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What is written for each case: ``types``, the first of which is the main one, by whose file a case is known."""

    types: tuple[OutputType, ...] = ("nifti",)
    segmentation_type: SegmentationType = "binary"
    codes: CodeTable = NO_CODES
    codes_digest: str = ""

    @property
    def main(self) -> OutputType:
        """The type of the main file."""
        return self.types[0]

    @property
    def has_dicom(self) -> bool:
        """Whether a source series is needed."""
        return any(each != "nifti" for each in self.types)

    @property
    def needs_probabilities(self) -> bool:
        """A fractional SEG holds them."""
        return self.segmentation_type == "fractional" and "dicom-seg" in self.types

    @property
    def identity(self) -> str:
        """What changes the main file beside the model; empty for NIfTI."""
        kind = f";{self.main}={self.segmentation_type}" if self.main in ("dicom-seg", "dicom-sr") else ""
        return f"{kind};codes={self.codes_digest}" if self.codes_digest and self.main != "nifti" else kind

    @property
    def beside_identity(self) -> str:
        """What changes the files of the other types beside the model; empty where there are none."""
        kinds = [f"{each}={self.segmentation_type}" if each in ("dicom-seg", "dicom-sr") else each for each in self.types[1:]]
        return ";".join([*kinds, f"codes={self.codes_digest}"] if kinds and self.codes_digest else kinds)

    def beside(self, target: Path) -> dict[OutputType, Path]:
        """The files of the other types, beside the main file ``target``."""
        stem = stem_of(target)
        return {each: target.with_name(stem + ENDINGS[each]) for each in self.types[1:]}

    def are_there(self, target: Path) -> bool:
        """All files of a case."""
        return all(path.exists() for path in (target, *self.beside(target).values()))

    def source(self, case: Case) -> SourceSeries | None:
        """The series that results of a case refer to; raises :class:`InputError` where DICOM is wanted and the image is none."""
        return source_series(case.channels[0].path, case.channels[0].files) if self.has_dicom else None

    def result(
        self, values: np.ndarray, labels: Labels, source: SourceSeries, made_by: MadeBy, probabilities: np.ndarray | None = None
    ) -> Result:
        """The label map as what DICOM objects are made of."""
        return Result(values=values, labels=labels, source=source, made_by=made_by, codes=self.codes, probabilities=probabilities)

    def write(self, path: Path, kind: OutputType, values: np.ndarray, header: ImageHeader, result: Result | None) -> None:
        """Write one of the files as it is; ``result`` is there where one of the types is DICOM."""
        if kind == "nifti" or result is None:
            write_label_map(path, values, header)
        else:
            write_dicom(path, result, kind, self.segmentation_type, refers_to_seg="dicom-seg" in self.types)

    def write_beside(self, target: Path, values: np.ndarray, header: ImageHeader, result: Result | None) -> None:
        """Write the files of the other types, each atomically."""
        for kind, path in self.beside(target).items():
            with replacing(path) as temporary:
                self.write(temporary, kind, values, header, result)

    def remove_beside(self, target: Path) -> None:
        """Those of an earlier model do not stay beside a new label map."""
        for path in self.beside(target).values():
            remove_file(path)


NIFTI_ONLY = Outputs()


def write_dicom(path: Path, result: Result, kind: OutputType, segmentation_type: SegmentationType, *, refers_to_seg: bool) -> None:
    """Write a DICOM object of a result."""
    from pydicom.config import disable_value_validation

    from medseg3d.dicom_objects.rtstruct import structure_set
    from medseg3d.dicom_objects.seg import segmentation
    from medseg3d.dicom_objects.structured_report import report

    try:
        with disable_value_validation():  # what is foreign was checked; UIDs with leading zeros are kept as they are
            if kind == "dicom-seg":
                dataset = segmentation(result, segmentation_type)
            elif kind == "dicom-rtstruct":
                dataset = structure_set(result)
            else:
                dataset = report(result, segmentation(result, segmentation_type) if refers_to_seg else None, segmentation_type)
            dataset.save_as(path, enforce_file_format=True)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:  # their texts hold values of the header
        folder, uid = result.source.first.path.parent.name, result.source.first.text("SOPClassUID")[:64]
        raise InputError(
            f"{folder}: its header cannot be taken over into {kind} ({type(error).__name__}, class {uid}). Another --output-type may do."
        ) from None


def outputs_of(options: DicomOptions, output: Path | None = None, *, beside: Sequence[Path] = ()) -> Outputs:
    """What is written, by the options and the name of the output; the codes are those of ``--codes``, else of the first ``codes.csv``
    in the folders ``beside``.

    Raises :class:`InputError` where the name says something else than the options, or what DICOM needs is not installed.
    """
    types = tuple(options.output_type)
    named = named_type(output) if output is not None else None
    if named is not None:
        fallback: OutputType = next((each for each in types if each != "nifti"), "dicom-seg")
        wanted = fallback if named == "dicom" else named
        if types and wanted not in types:
            raise InputError(f"{output}: the name is that of {wanted}, and --output-type says {' '.join(types)}. Change one of them.")
        types = (wanted, *(each for each in types if each != wanted))
    types = types or ("nifti",)
    if types == ("nifti",):
        return NIFTI_ONLY
    require_dicom("--output-type " + " ".join(types))
    table = options.codes or next((folder / CODES for folder in beside if (folder / CODES).is_file()), None)
    return Outputs(
        types=types,
        segmentation_type=options.segmentation_type,
        codes=NO_CODES if table is None else read_codes(table),
        codes_digest="" if table is None else file_digest(table),
    )


def named_type(output: Path) -> OutputType | Literal["dicom"] | None:
    """The type that a file name tells: one of the types, ``dicom`` for a plain ``.dcm``, None where it is no such name."""
    if output.is_dir():
        return None
    name = output.name.lower()
    found = next((kind for kind, ending in ENDINGS.items() if name.endswith(ending)), None)
    return found or ("dicom" if name.endswith(".dcm") else None)


def stem_of(target: Path) -> str:
    """The name of a result without its ending.

    >>> stem_of(Path("anna.seg.dcm")), stem_of(Path("anna.nii.gz")), stem_of(Path("anna.dcm"))
    ('anna', 'anna', 'anna')
    """
    for ending in (*ENDINGS.values(), ".dcm"):
        if target.name.lower().endswith(ending):
            return target.name[: -len(ending)]
    return target.name[: -len(ending_of(target))]


def require_dicom(what: str) -> None:
    """Raise :class:`InputError` with what to install where highdicom or pydicom is missing."""
    try:
        import highdicom  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise InputError(f"{what}: needs highdicom and pydicom ({error}): pip install 'medseg3d[dicom]'") from error
