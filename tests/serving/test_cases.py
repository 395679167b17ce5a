"""Which uploaded files make which channels."""

from __future__ import annotations

import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.errors import InputError
from medseg3d.serving.cases import uploaded_case
from tests.dicom_writer import write_series

LIMIT = 2**20


def uploaded(folder: Path, *names: str, num_volumes: int = 1) -> list[Path]:
    """Files as they are received: each in a folder of its own."""
    files = []
    for number, name in enumerate(names):
        path = folder / str(number) / name
        path.parent.mkdir()
        shape = (4, 4, 4) if num_volumes == 1 else (4, 4, 4, num_volumes)
        nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), path)
        files.append(path)
    return files


def channel_names(files: list[Path], num_channels: int) -> tuple[str, list[str]]:
    case = uploaded_case(files, num_channels=num_channels, max_unpacked_bytes=LIMIT)
    return case.name, [channel.path.name for channel in case.channels]


def test_several_files_are_channels_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    assert channel_names(uploaded(tmp_path, "t2.nii.gz", "t1.nii.gz"), 2) == ("t2", ["t2.nii.gz", "t1.nii.gz"])


@pytest.mark.fault("A", "files of channels that are called as the model's and come in another order", "refused with both orders")
def test_names_of_channels_in_another_order_are_refused(tmp_path: Path) -> None:
    files = uploaded(tmp_path, "p1_t1.nii.gz", "p1_FLAIR.nii.gz")
    with pytest.raises(InputError, match=r"called p1_t1, p1_FLAIR and come in this order, and the model takes FLAIR, T1\."):
        uploaded_case(files, num_channels=2, max_unpacked_bytes=LIMIT, channels=("FLAIR", "T1"))
    for channels in (("T1", "FLAIR"), ("T1", "T2"), ("FLAIR", "channel_1")):
        assert uploaded_case(files, num_channels=2, max_unpacked_bytes=LIMIT, channels=channels).name == "p1_t1"


def test_equal_names_are_no_trouble(tmp_path: Path) -> None:
    files = uploaded(tmp_path, "scan.nii.gz", "scan.nii.gz")
    case = uploaded_case(files, num_channels=2, max_unpacked_bytes=LIMIT)
    assert [channel.path for channel in case.channels] == files


def test_numbers_in_names_say_the_order(tmp_path: Path) -> None:
    files = uploaded(tmp_path, "p_0001.nii.gz", "p_0000.nii.gz")
    assert channel_names(files, 2) == ("p", ["p_0000.nii.gz", "p_0001.nii.gz"])


@pytest.mark.parametrize("names", [("p_0000", "q_0001"), ("p_0000", "p_0002"), ("p_0000", "p"), ("p_0001", "p_0001")])
def test_numbers_that_do_not_fit_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="expected CASE_0000, CASE_0001, or names without numbers"):
        channel_names(uploaded(tmp_path, *[f"{name}.nii.gz" for name in names]), 2)


@pytest.mark.parametrize(("names", "num_channels"), [(("a", "b"), 1), (("a", "b"), 3), (("a", "b", "c"), 2)])
def test_the_wrong_number_of_files_is_refused(tmp_path: Path, names: tuple[str, ...], num_channels: int) -> None:
    with pytest.raises(InputError, match=f"{len(names)} files .*, expected {num_channels} channel"):
        channel_names(uploaded(tmp_path, *[f"{name}.nii.gz" for name in names]), num_channels)


def test_one_file_with_a_volume_per_channel_is_a_case(tmp_path: Path) -> None:
    case = uploaded_case(uploaded(tmp_path, "a.nii.gz", num_volumes=2), num_channels=2, max_unpacked_bytes=LIMIT)
    assert [channel.volume for channel in case.channels] == [0, 1]


def test_one_channel_of_several_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected 2"):
        channel_names(uploaded(tmp_path, "p_0000.nii.gz"), 2)


@pytest.mark.fault("A", "channels in a zip whose names do not number them", "refused: files in a zip have no order")
def test_channels_in_a_zip_need_numbers(tmp_path: Path) -> None:
    archive = zipped_files(tmp_path / "case.zip", *uploaded(tmp_path, "t1.nii.gz", "flair.nii.gz"))
    with pytest.raises(InputError, match=r"called flair, t1; expected CASE_0000, CASE_0001: files in a zip have no order"):
        channel_names([archive], 2)


@pytest.mark.fault(
    "A", "a zip with a series and a damaged DICOM file of another folder, which may be a slice of it", "refused, naming the file"
)
def test_a_damaged_file_in_a_zip_is_not_passed_over(tmp_path: Path) -> None:
    slices = sorted(write_series(tmp_path / "series").iterdir())
    last = tmp_path / "rest" / "last.dcm"
    last.parent.mkdir()
    last.write_bytes(slices[-1].read_bytes()[:200])
    with zipfile.ZipFile(tmp_path / "case.zip", "w") as opened:
        for file in (*slices[:-1], last):
            opened.write(file, f"{file.parent.name}/{file.name}")
    with pytest.raises(InputError, match=r"last\.dcm"):
        uploaded_case([tmp_path / "case.zip"], num_channels=1, max_unpacked_bytes=LIMIT)


def zipped_files(archive: Path, *files: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as opened:
        for file in files:
            opened.write(file, f"folder/{file.name}")
    return archive


def test_a_zip_may_hold_the_channels(tmp_path: Path) -> None:
    files = uploaded(tmp_path, "p_0000.nii.gz", "p_0001.nii.gz")
    archive = zipped_files(tmp_path / "case.zip", *files)
    assert channel_names([archive], 2) == ("p", ["p_0000.nii.gz", "p_0001.nii.gz"])
    assert not archive.exists()
