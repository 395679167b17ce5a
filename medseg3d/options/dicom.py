"""Options of results in DICOM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from medseg3d.errors import InputError
from medseg3d.options.option import Option, Options

OutputType = Literal["nifti", "dicom-seg", "dicom-rtstruct", "dicom-sr"]
SegmentationType = Literal["binary", "labelmap", "fractional"]


@dataclass(frozen=True, kw_only=True)
class DicomOptions(Options):
    """What is written of a prediction, and how a DICOM SEG holds it."""

    output_type: Annotated[
        Sequence[OutputType],
        Option(
            "--output-type",
            "nifti, or of DICOM series dicom-seg, dicom-rtstruct (contours), dicom-sr (volumes); several are written side by side "
            "(default: what the output's name ends with, else nifti)",
            metavar="TYPE",
            several="words",
        ),
    ] = ()
    segmentation_type: Annotated[
        SegmentationType,
        Option(
            "--segmentation-type",
            "of a DICOM SEG: binary (default: every archive takes it), labelmap (smaller, new in 2024), fractional (probabilities)",
        ),
    ] = "binary"
    codes: Annotated[
        Path | None,
        Option("--codes", "codes of structures in DICOM: name,code,scheme,meaning (default: codes.csv beside the dataset)", metavar="FILE"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.output_type)) < len(self.output_type):
            raise InputError(f"--output-type {' '.join(self.output_type)}: each type once.")
