"""Uploads cannot name files of the server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medseg3d.errors import InputError
from medseg3d.images.text_header import MAX_HEADER_BYTES
from medseg3d.serving.attached import check_attached

IMAGE = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_files_with_their_voxels_inside_pass(tmp_path: Path, ending: str, is_compressed: bool) -> None:
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(IMAGE, str(path), is_compressed)
    check_attached(path)


@pytest.fixture
def nrrd(tmp_path: Path) -> bytes:
    sitk.WriteImage(IMAGE, str(tmp_path / "a.nrrd"))
    return (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")[0]


@pytest.fixture
def meta(tmp_path: Path) -> bytes:
    sitk.WriteImage(IMAGE, str(tmp_path / "a.mha"))
    return (tmp_path / "a.mha").read_bytes().partition(b"ElementDataFile")[0]


@pytest.mark.parametrize("field", [b"data file: ", b"datafile: ", b"Data File:", b"DATA\tFILE: "])
def test_a_nrrd_that_names_a_file_is_refused(tmp_path: Path, nrrd: bytes, field: bytes) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(48))
    path = tmp_path / "x.nrrd"
    for end in (b"\n", b"\n\n", b"\r\n\r\n"):
        path.write_bytes(nrrd + b"\n" + field + str(tmp_path / "secret.raw").encode() + end)
        with pytest.raises(InputError, match="with its voxels inside"):
            check_attached(path)


@pytest.mark.parametrize(
    "end",
    [
        b"ElementDataFile = secret.raw\n",
        b"ElementDataFile = LIST\nsecret.raw\n",
        b" ElementDataFile = secret.raw\nElementDataFile = LOCAL\n",
        b"elementdatafile = LOCAL\nElementDataFile = secret.raw\n",
        b"Comment = ElementDataFile = LOCAL\nElementDataFile = secret.raw\n",
        b"Comment = " + b"x" * MAX_HEADER_BYTES + b"\nElementDataFile = LOCAL\n",
        b"",
    ],
)
def test_a_metaimage_that_names_a_file_is_refused(tmp_path: Path, meta: bytes, end: bytes) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(48))
    path = tmp_path / "x.mha"
    path.write_bytes(meta + end + bytes(48))
    with pytest.raises(InputError, match="with its voxels inside"):
        check_attached(path)


@pytest.mark.parametrize(("written", "named"), [("a.hdf5", "x.nrrd"), ("a.hdf5", "x.mha"), ("a.nrrd", "x.mha"), ("a.mha", "x.nrrd")])
def test_another_format_under_a_harmless_name_is_refused(tmp_path: Path, written: str, named: str) -> None:
    sitk.WriteImage(IMAGE, str(tmp_path / written))
    (tmp_path / written).rename(tmp_path / named)
    with pytest.raises(InputError, match="with its voxels inside"):
        check_attached(tmp_path / named)


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr"])
def test_detached_headers_are_refused_by_their_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="voxels lie in another file"):
        check_attached(tmp_path / name)
