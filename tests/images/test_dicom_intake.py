"""From a folder of patients, studies and series to cases: which series are taken, what they are called, what is left out."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from medseg3d.errors import InputError
from medseg3d.images import read_volumes
from medseg3d.images.dicom_intake import find_dicom_cases
from medseg3d.images.modalities import modality_of
from tests.dicom_writer import CT, MR, PET, volume, write_other, write_series

REPORT = "1.2.840.10008.5.1.4.1.1.88.67"


def names(root: Path, **chosen) -> list[str]:
    return [case.name for case in find_dicom_cases(root, **chosen).cases]


def array_of(case) -> np.ndarray:
    return read_volumes(case.folder, [None], files=case.files)[0].array


def hospital(root: Path) -> Path:
    """Two patients: two series and a report of the first in folders of their own, one of the second without endings."""
    write_series(root / "DICOM/P1/ST1/SE2", volume(seed=1), series="1.2.3.2", SeriesDescription="Abdomen")
    write_series(root / "DICOM/P1/ST1/SE3", volume(seed=2), series="1.2.3.3", SeriesDescription="Lung", names="IM{}".format)
    write_other(root / "DICOM/P1/ST1/SR/report.dcm", REPORT)
    write_series(root / "DICOM/P2/ST1", volume(seed=3), series="1.2.4.2", study="1.2.4", patient="p2", names="{}".format)
    (root / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(99))
    (root / "README.TXT").write_text("export", encoding="utf-8")
    return root


def test_each_series_of_a_tree_is_a_case_of_its_own_name(tmp_path) -> None:
    intake = find_dicom_cases(hospital(tmp_path))
    assert [case.name for case in intake.cases] == ["p1_Study20240131_Series2", "p1_Study20240131_Series3", "p2_Study20240131_Series2"]
    for seed, case in enumerate(intake.cases, 1):
        np.testing.assert_array_equal(array_of(case), volume(seed=seed))
    assert intake.left_out == (f"left out {Path('DICOM/P1/ST1/SR/report.dcm')}: structured report",)
    assert intake.failures == ()


@pytest.mark.fault("B", "several series and patients in one DICOM folder", "each is a case named PatientID_StudyDATE_SeriesNUMBER")
def test_a_flat_folder_gives_the_cases_of_the_tree(tmp_path) -> None:
    tree, flat = hospital(tmp_path / "tree"), tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(path for path in tree.rglob("*") if path.is_file())):
        (flat / f"{number:05d}").write_bytes(path.read_bytes())
    in_tree, in_flat = find_dicom_cases(tree), find_dicom_cases(flat)
    assert [case.name for case in in_flat.cases] == [case.name for case in in_tree.cases]
    for one, other in zip(in_tree.cases, in_flat.cases, strict=True):
        np.testing.assert_array_equal(array_of(one), array_of(other))


def test_a_folder_with_one_series_gives_its_name(tmp_path) -> None:
    write_series(tmp_path / "anna", study="1.2.4")
    write_series(tmp_path / "bert", study="1.2.5")
    write_other(tmp_path / "bert/report.dcm", REPORT, study="1.2.5")
    assert names(tmp_path) == ["anna", "bert"]
    assert names(tmp_path / "bert") == ["bert"]


def test_equal_names_get_a_checksum_and_stay_the_same_in_every_call(tmp_path) -> None:
    for number in (1, 2):
        write_series(tmp_path / f"x/{number}", study=f"1.2.{number}", series=f"1.2.{number}.7")
    found = names(tmp_path)
    assert len({name.casefold() for name in found}) == 2
    assert all(name.startswith("p1_Study20240131_Series7-") for name in found)
    assert names(tmp_path) == found


@pytest.mark.parametrize(
    ("patient", "tags", "expected"),
    [
        ("Müller^Jörg / 7", {}, "Müller-Jörg-7_Study20240131_Series1"),
        ("../../etc/passwd", {}, "etc-passwd_Study20240131_Series1"),
        ("山田", {}, "山田_Study20240131_Series1"),
        ("", {"StudyDate": None, "StudyID": "42", "SeriesNumber": "3"}, "unknown_Study42_Series3"),
        ("a" * 64, {}, "a" * 48 + "_Study20240131_Series1"),
        ("CON", {}, "CON_Study20240131_Series1"),
    ],
)
def test_names_are_safe_as_file_names(tmp_path, patient, tags, expected) -> None:
    write_series(tmp_path / "a/b", patient=patient, SpecificCharacterSet="ISO_IR 192", **tags)
    (name,) = names(tmp_path)
    assert name == unicodedata.normalize("NFC", expected)
    assert len(f"{name}.nii.gz".encode()) <= 255


def test_series_are_chosen_by_the_modality_of_the_model_where_there_is_one(tmp_path) -> None:
    for kind, series in ((CT, "1.2.3.1"), (MR, "1.2.3.2"), (PET, "1.2.3.3")):
        write_series(tmp_path / "st" / series, kind=kind, series=series)
    assert names(tmp_path, channel="T1w MRI") == ["p1_Study20240131_Series2"]
    assert names(tmp_path, channel="PET") == ["p1_Study20240131_Series3"]
    assert len(names(tmp_path, channel="channel_0")) == 3
    assert len(names(tmp_path, channel="US")) == 3
    intake = find_dicom_cases(tmp_path, channel="CT")
    assert intake.left_out[0].endswith("modality MR, the model takes CT")
    assert len(intake.left_out) == 2


@pytest.mark.parametrize(
    ("channel", "modality"), [("CT", "CT"), ("FLAIR", "MR"), ("t1ce", "MR"), ("PT", "PT"), ("CT/PET", None), ("x", None)]
)
def test_names_of_channels_tell_the_modality(channel, modality) -> None:
    assert modality_of(channel) == modality


def test_series_are_chosen_by_their_description(tmp_path) -> None:
    hospital(tmp_path)
    assert names(tmp_path, description="^abd") == ["p1_Study20240131_Series2"]
    with pytest.raises(InputError, match=r"no series has a description like 'brain'; found: Abdomen, Lung, without a description"):
        names(tmp_path, description="brain")
    with pytest.raises(InputError, match=r"--series-description '\(': not a regular expression"):
        names(tmp_path, description="(")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"--series-description 'x' chooses among DICOM series, and there are none"):
        names(tmp_path / "none", description="x")


@pytest.mark.fault("B", "a DICOM series over time or of several contrasts in a tree", "taken apart: each volume is a case of its own name")
def test_volumes_of_one_series_are_cases_of_their_own(tmp_path) -> None:
    for number, echo in enumerate(("5", "10", "100")):
        write_series(
            tmp_path / "a",
            volume(seed=number),
            names=f"{number}-{{}}".format,
            change=lambda file, k, n=number: setattr(file, "SOPInstanceUID", f"1.2.8.{n}.{k}"),
            EchoTime=echo,
        )
    intake = find_dicom_cases(tmp_path)
    assert [case.name for case in intake.cases] == [f"p1_Study20240131_Series1_Echo{echo}" for echo in (10, 100, 5)]
    np.testing.assert_array_equal(array_of(intake.cases[0]), volume(seed=1))


@pytest.mark.fault(
    "A", "slices of several kinds at different places of one series, in a tree", "taken apart: each kind is a case of its own name"
)
def test_kinds_that_take_turns_along_a_stack_are_cases_of_their_own(tmp_path) -> None:
    def change(file, k) -> None:
        file.ImageType = ["ORIGINAL", "PRIMARY", "MP"[k % 2]]

    write_series(tmp_path / "a", volume((5, 4, 8)), change=change)
    intake = find_dicom_cases(tmp_path)
    assert [case.name for case in intake.cases] == [f"p1_Study20240131_Series1_Type{kind}" for kind in ("magnitude", "phase")]
    np.testing.assert_array_equal(array_of(intake.cases[1]), volume((5, 4, 8))[:, :, 1::2])


def test_one_series_in_two_folders_under_one_uid_is_two_where_its_numbers_repeat(tmp_path) -> None:
    write_series(tmp_path / "anna", volume(seed=1))
    write_series(tmp_path / "bert", volume(seed=2))
    assert names(tmp_path) == ["anna", "bert"]


def test_two_series_that_share_every_uid_are_two_cases(tmp_path) -> None:
    """As a program leaves them that changes the values of a series and keeps its header."""
    write_series(tmp_path / "a/original", volume(seed=1))
    write_series(tmp_path / "b/denoised", volume(seed=2))
    found = find_dicom_cases(tmp_path).cases
    assert len({case.name for case in found}) == 2
    assert {int(array_of(case)[0, 0, 0]) for case in found} == {int(volume(seed=seed)[0, 0, 0]) for seed in (1, 2)}
    assert [case.name for case in found] == names(tmp_path)


def write_phases(folder: Path, slices: tuple[int, ...]) -> Path:
    """A scan over time, with so many slices in each phase."""
    for number, count in enumerate(slices):

        def change(file, k, n=number) -> None:
            file.SOPInstanceUID, file.TemporalPositionIdentifier = f"1.2.8.{n}.{k}", n + 1

        write_series(folder, volume(seed=number)[:, :, :count], names=f"{number}-{{}}".format, change=change)
    return folder


@pytest.mark.fault(
    "B", "a scan over time whose last volume was stopped", "that volume is listed with how many slices it lacks; the others are cases"
)
def test_a_volume_with_slices_missing_costs_no_other_of_its_series(tmp_path) -> None:
    intake = find_dicom_cases(write_phases(tmp_path / "a", (6, 6, 4)).parent)
    assert [case.name for case in intake.cases] == [f"p1_Study20240131_Series1_Time{number}" for number in (1, 2)]
    np.testing.assert_array_equal(array_of(intake.cases[1]), volume(seed=1))
    ((name, reason),) = intake.failures
    assert name == "p1_Study20240131_Series1_Time3"
    assert "2 of 6 slices are missing" in reason


def test_slices_of_which_few_are_whole_volumes_are_not_taken_apart(tmp_path) -> None:
    (case,) = find_dicom_cases(write_phases(tmp_path / "a", (6, 4, 4)).parent).cases
    with pytest.raises(InputError, match="no tag tells volumes apart"):
        array_of(case)


def write_stacks(folder: Path, *, tilt: float) -> Path:
    """Two stacks of five slices in one series, as through two discs of a spine."""

    def change(file, k) -> None:
        stack, place = divmod(k, 5)
        file.StackID = str(stack + 1)
        file.ImagePositionPatient = ["0", "0", f"{100 * stack + 3 * place}"]
        if stack:
            file.ImageOrientationPatient = ["1", "0", "0", "0", f"{np.cos(tilt):.8f}", f"{np.sin(tilt):.8f}"]
            file.ImagePositionPatient = ["0", f"{-3 * place * np.sin(tilt):.8f}", f"{100 + 3 * place * np.cos(tilt):.8f}"]

    return write_series(folder, volume((5, 4, 10)), change=change)


@pytest.mark.parametrize("tilt", [0.0, 0.4])
def test_stacks_of_one_series_are_cases_of_their_own(tmp_path, tilt) -> None:
    cases = find_dicom_cases(write_stacks(tmp_path / "a", tilt=tilt).parent).cases
    assert [case.name for case in cases] == [f"p1_Study20240131_Series1_Stack{number}" for number in (1, 2)]
    np.testing.assert_array_equal(array_of(cases[1]), volume((5, 4, 10))[:, :, 5:])


def test_kinds_are_told_apart_whatever_their_stacks_are_called(tmp_path) -> None:
    def change(file, k) -> None:
        file.ImageType = ["ORIGINAL", "PRIMARY", "M" if k % 2 else "P"]
        file.StackID = str(1 + k // 4)
        file.ImagePositionPatient = ["0", "0", f"{3 * (k // 2) + (0.5 if k % 2 else 0)}"]

    write_series(tmp_path / "a", volume((5, 4, 12)), change=change)
    assert len(find_dicom_cases(tmp_path).cases) == 2


def test_an_even_stack_is_one_volume_whatever_its_parts_are_called(tmp_path) -> None:
    write_series(tmp_path / "a", change=lambda file, k: setattr(file, "StackID", str(1 + k // 3)))
    assert names(tmp_path) == ["a"]


def test_localizers_and_short_series_are_left_out_beside_longer_ones(tmp_path) -> None:
    write_series(tmp_path / "st/scout", volume((4, 4, 2)), series="1.2.3.7", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "st/planes", volume((4, 4, 2)), series="1.2.3.8")
    write_series(tmp_path / "st/planes", volume((4, 4, 3)), series="1.2.3.8", orientation=(0, 1, 0, 0, 0, -1), names="x{}".format)
    write_series(tmp_path / "st/volume", series="1.2.3.9")
    write_series(tmp_path / "st/other", volume((4, 4, 2)), series="1.2.5.1", patient="p2", study="1.2.5")
    intake = find_dicom_cases(tmp_path)
    assert [case.name for case in intake.cases] == ["p1_Study20240131_Series9", "p2_Study20240131_Series1"]
    assert {line.split(": ", 1)[1] for line in intake.left_out} == {"localizer", "scout: 5 slices beside longer series"}


@pytest.mark.fault("B", "a damaged file in a tree of DICOM series", "costs the series of its folder, or itself where there is none")
def test_a_damaged_file_costs_the_series_of_its_folder(tmp_path) -> None:
    hospital(tmp_path)
    (tmp_path / "DICOM/P1/ST1/SE2/broken.dcm").write_bytes(b"\0" * 300)
    (tmp_path / "alone.dcm").write_bytes(b"")
    intake = find_dicom_cases(tmp_path)
    assert [case.name for case in intake.cases] == ["p1_Study20240131_Series3", "p2_Study20240131_Series2"]
    assert {name for name, _ in intake.failures} == {"p1_Study20240131_Series2", "alone.dcm"}
    assert all("not a DICOM file" in reason for _, reason in intake.failures)


@pytest.mark.fault("B", "the last slice of a DICOM stack that names another series", "costs the stack, which would be shorter")
@pytest.mark.parametrize("tag", ["SeriesInstanceUID", "StudyInstanceUID"])
def test_a_slice_that_continues_a_stack_under_another_name_costs_the_stack(tmp_path, tag) -> None:
    folder = write_series(tmp_path / "anna", change=lambda file, k: setattr(file, tag, "1.2.9") if k == 5 else None)
    intake = find_dicom_cases(tmp_path)
    assert intake.cases == ()
    ((name, reason),) = intake.failures
    assert name == "anna"
    assert reason.startswith(f"{folder / '005.dcm'}: names another series, study or patient")


def test_a_slice_that_is_cut_off_is_not_taken_for_a_report(tmp_path) -> None:
    folder = write_series(tmp_path)
    data = (folder / "005.dcm").read_bytes()
    (folder / "005.dcm").write_bytes(data[: data.index(b"\xe0\x7f\x10\x00")])  # ends where another element could begin
    (case,) = find_dicom_cases(folder).cases
    with pytest.raises(InputError, match=r"005\.dcm: the DICOM file is cut off"):
        array_of(case)


def test_folders_that_cannot_be_looked_into_are_failures(tmp_path, monkeypatch) -> None:
    write_series(tmp_path / "a")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    intake = find_dicom_cases(tmp_path)
    assert [case.name for case in intake.cases] == ["a"]
    assert intake.failures == (("closed", f"{tmp_path / 'closed'}: cannot be looked into (Permission denied)"),)


def test_a_folder_whose_name_is_no_unicode_does_not_name_its_case(tmp_path) -> None:
    write_series(Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller")))
    assert names(tmp_path) == ["p1_Study20240131_Series1"]


def test_links_in_a_circle_end(tmp_path) -> None:
    write_series(tmp_path / "a")
    (tmp_path / "a/again").symlink_to(tmp_path, target_is_directory=True)
    assert len(names(tmp_path)) == 1
