"""A folder as it comes from a hospital, on the command line."""

from __future__ import annotations

from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest

from medseg3d.commandline.cli import main
from tests.dicom_writer import CT, MR, volume, write_other, write_series

SHAPE = (20, 18, 12)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Two MR series, one CT, a localizer and a report of one patient; a second patient with a slice that is cut off."""
    root = tmp_path / "export"
    for number, name in ((2, "T1"), (3, "T2 fat sat")):
        write_series(root / f"P1/S{number}", volume(SHAPE, number), kind=MR, series=f"1.2.3.{number}", SeriesDescription=name)
    write_series(root / "P1/S4", volume(SHAPE), kind=CT, series="1.2.3.4")
    write_series(root / "P1/S1", volume((9, 9, 3)), kind=MR, series="1.2.3.1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_other(root / "P1/SR", "1.2.840.10008.5.1.4.1.1.88.67")
    cut = write_series(root / "P2/S2", volume(SHAPE), kind=MR, series="1.2.4.2", study="1.2.4", patient="p2") / "004.dcm"
    cut.write_bytes(cut.read_bytes()[:-30])
    return root


@pytest.mark.fault("B", "a truncated slice in a tree of DICOM series", "costs its case; exit 3 names it, the others are predicted")
def test_a_tree_gives_a_label_map_per_series_and_lists_what_failed(
    trained: Path, hospital: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(trained), "-i", str(hospital), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 3
    written = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert written == ["p1_Study20240131_Series2.nii.gz", "p1_Study20240131_Series3.nii.gz"]
    found = nibabel.load(tmp_path / "out" / written[0])
    assert found.shape == SHAPE
    np.testing.assert_allclose(found.affine @ [0, 0, 0, 1], (-10, -20, 5, 1), atol=1e-4)
    shown = " ".join(capsys.readouterr().err.split())
    assert "p2_Study20240131_Series2" in shown
    assert "004.dcm: cut off:" in shown
    for reason in ("S1/000.dcm and 2 more: localizer", "SR: structured report", "modality CT, the model takes MR"):
        assert reason in caplog.text
    assert main(command) == 3  # once more: what is there is kept


def test_series_are_chosen_by_their_description(trained: Path, hospital: Path, tmp_path: Path) -> None:
    command = ["predict", str(trained), "-i", str(hospital), "-o", str(tmp_path / "out"), "--device", "cpu", "-q"]
    assert main([*command, "--series-description", "t2.*FAT"]) == 0
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["p1_Study20240131_Series3.nii.gz"]
    assert main([*command, "--series-description", "sagittal"]) == 2


def test_one_series_becomes_a_seg_with_the_voxels_of_the_label_map(trained: Path, tmp_path: Path) -> None:
    series = write_series(tmp_path / "s", volume(SHAPE, 2), kind=MR, orientation=(0, 1, 0, 0, 0, -1))
    command = ["predict", str(trained), "-i", str(series), "--device", "cpu", "-q", "-o"]
    assert main([*command, str(tmp_path / "a.nii.gz")]) == 0
    assert main([*command, str(tmp_path / "a.dcm")]) == 0
    seg = highdicom.seg.segread(tmp_path / "a.dcm")
    uids = [f"1.2.3.1.{index + 1}" for index in range(SHAPE[2])]
    frames = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    labels = np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj)
    assert [each.SegmentLabel for each in seg.SegmentSequence] == ["shell", "core"]
    for place, value in enumerate((3, 7)):
        np.testing.assert_array_equal(frames[..., place].T, labels == value)


def test_several_types_are_written_side_by_side_and_kept(
    trained: Path, hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "codes.csv").write_text("name,code,scheme,meaning\nshell,1,99LAB,Shell\n", "utf-8")
    command = ["predict", str(trained), "-i", str(hospital / "P1/S2"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    command += ["--output-type", "nifti", "dicom-seg", "dicom-rtstruct", "dicom-sr", "--segmentation-type", "fractional"]
    command += ["--codes", str(tmp_path / "codes.csv")]
    assert main(command) == 0
    assert "S2.nii.gz and S2.seg.dcm and S2.rtstruct.dcm and S2.sr.dcm" in " ".join(capsys.readouterr().out.split())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"S2.nii.gz", "S2.seg.dcm", "S2.rtstruct.dcm", "S2.sr.dcm", "predictions.json"}
    seg = pydicom.dcmread(tmp_path / "out/S2.seg.dcm")
    assert seg.SegmentationType == "FRACTIONAL"
    assert seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99LAB"
    assert pydicom.dcmread(tmp_path / "out/S2.sr.dcm").CurrentRequestedProcedureEvidenceSequence
    before = seg.InstanceCreationTime, (tmp_path / "out/S2.seg.dcm").stat().st_mtime_ns
    assert main(command) == 0
    assert before[1] == (tmp_path / "out/S2.seg.dcm").stat().st_mtime_ns
    (tmp_path / "out/S2.sr.dcm").unlink()
    assert main(command) == 0
    assert (tmp_path / "out/S2.sr.dcm").exists()
    assert main([*command, "--segmentation-type", "binary"]) == 0
    assert pydicom.dcmread(tmp_path / "out/S2.seg.dcm").SegmentationType == "BINARY", "one of another kind is not kept"
    (tmp_path / "codes.csv").write_text("name,code,scheme,meaning\nshell,2,99LAB,Shell\n", "utf-8")
    assert main([*command, "--segmentation-type", "binary"]) == 0
    seg = pydicom.dcmread(tmp_path / "out/S2.seg.dcm")
    assert seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue == "2"


def test_what_is_no_series_is_refused_before_it_is_predicted(
    trained: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tiny / "imagesTs/ball_6_0000.nii.gz"
    assert main(["predict", str(trained), "-i", str(image), "-o", str(tmp_path / "a.dcm"), "--device", "cpu"]) == 3
    assert "this image is no DICOM series" in " ".join(capsys.readouterr().err.split())
    command = ["predict", str(trained), "-i", str(image), "--device", "cpu", "-o"]
    assert main([*command, str(tmp_path / "a.nii.gz"), "--output-type", "dicom-sr"]) == 2
    assert "the name is that of nifti" in " ".join(capsys.readouterr().err.split())
