"""What is said where the extra packages are missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from medseg3d.dicom_objects.outputs import outputs_of
from medseg3d.errors import InputError
from medseg3d.options import DicomOptions
from medseg3d.workflows.listen import listen


def test_a_listener_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    with pytest.raises(InputError, match=r"pip install 'medseg3d\[dicom\]'"):
        listen(Path("night.toml"))


def test_dicom_output_says_what_to_install_and_nifti_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert outputs_of(DicomOptions()).types == ("nifti",)
    with pytest.raises(InputError, match=r"--output-type dicom-sr: needs highdicom .*pip install 'medseg3d\[dicom\]'"):
        outputs_of(DicomOptions(output_type=("dicom-sr",)))
