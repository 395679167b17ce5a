"""A format of an extension is read, found in folders and, where it can, written, like those that are built in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d import images
from medseg3d.data.open_dataset import open_dataset
from medseg3d.errors import ImageReadError, InputError
from medseg3d.extensions import forget_extensions, use_extension
from medseg3d.images import READERS, case_name, is_image, read_header, read_image, read_volumes, refusal, write_label_map

AFFINE = np.array([[0, 0, 2.0, -10], [1, 0, 0, 5], [0, 3, 0, 7], [0, 0, 0, 1]])
TEXT = """
import nibabel
import numpy as np

from medseg3d.images import array_reader


def read(path):
    image = nibabel.load(path)
    return np.asanyarray(image.dataobj), image.affine


def write(path, array, affine):
    nibabel.save(nibabel.MGHImage(array.astype(np.int32), affine), path)


READERS = {".mgz": array_reader("mgz", read, write), ".npy": array_reader("npy", lambda path: (np.load(path), np.eye(4)))}
"""


@pytest.fixture(autouse=True)
def _extension(tmp_path: Path) -> Iterator[None]:
    path = tmp_path / "formats.py"
    path.write_text(TEXT, encoding="utf-8")
    use_extension(path)
    yield
    forget_extensions()


def mgz(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.MGHImage(array, AFFINE), path)
    return path


def test_a_file_is_read_on_its_grid(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    path = mgz(tmp_path / "Brain.MGZ", array)
    assert is_image(path)
    assert refusal(path) is None
    assert case_name(path) == "Brain"
    assert images.data_files(path) == (path,)
    header = read_header(path)
    assert (header.format, header.num_volumes, header.geometry.shape) == ("mgz", 1, (2, 3, 4))
    np.testing.assert_allclose(header.geometry.matrix, AFFINE)
    np.testing.assert_array_equal(read_image(path).array, array)


def test_volumes_and_single_slices_have_three_axes_each(tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", np.arange(48).reshape(2, 3, 4, 2))
    assert [each.array[0, 0, 0] for each in read_volumes(tmp_path / "many.npy", [1, 0])] == [1, 0]
    with pytest.raises(ImageReadError, match="4D image with 2 volumes where one is expected"):
        read_image(tmp_path / "many.npy")
    np.save(tmp_path / "flat.npy", np.ones((2, 3)))
    assert read_image(tmp_path / "flat.npy").array.shape == read_header(tmp_path / "flat.npy").geometry.shape == (2, 3, 1)


@pytest.mark.parametrize("array", [np.ones(3), np.ones((2, 2, 2), complex), np.ones((0, 2, 2)), np.array(["a", "b"])], ids=str)
def test_what_is_no_image_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "odd.npy", array)
    with pytest.raises(ImageReadError, match=r"odd\.npy: its reader gave an array .*; expected numbers \(x, y\)"):
        read_image(tmp_path / "odd.npy")


def test_damage_is_told_as_of_any_file(tmp_path: Path) -> None:
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ImageReadError, match=r"cut\.npy"):
        read_image(tmp_path / "cut.npy")


def test_a_label_map_is_written_where_the_format_can_be(tmp_path: Path) -> None:
    header = read_header(mgz(tmp_path / "image.mgz", np.ones((2, 3, 4), np.float32)))
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    again = read_image(write_label_map(tmp_path / "labels.mgz", labels, header))
    np.testing.assert_array_equal(again.array, labels)
    np.testing.assert_allclose(again.header.geometry.matrix, AFFINE)
    with pytest.raises(InputError, match=r"labels.npy: label maps are not written as this; the name must end in .nii.gz or .nii or .mgz"):
        write_label_map(tmp_path / "labels.npy", labels, header)


def test_a_dataset_of_such_files_is_opened(tmp_path: Path) -> None:
    for name in ("a", "b"):
        mgz(tmp_path / "images" / f"{name}.mgz", np.ones((4, 4, 4), np.float32))
        mgz(tmp_path / "labels" / f"{name}.mgz", np.eye(4, dtype=np.int32)[:, :, None].repeat(4, 2))
    assert [case.name for case in open_dataset(tmp_path).training] == ["a", "b"]


def test_without_the_extension_nothing_is_left() -> None:
    assert ".mgz" in READERS
    forget_extensions()
    assert ".mgz" not in READERS
    assert "not supported" in (refusal(Path("brain.mgz")) or "")
    assert list(READERS) == list(READERS.built_in)
