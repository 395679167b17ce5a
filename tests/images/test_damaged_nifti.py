"""NIfTI headers that claim what cannot be: refused by what they say, before anything is allocated, and never read as other voxels."""

from __future__ import annotations

import gzip
import os
import socket
import struct
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.errors import ImageReadError
from medseg3d.images import read_header, read_image, write_image

SHAPE = (5, 4, 3)
ARRAY = np.arange(60, dtype=np.int16).reshape(SHAPE, order="F")


def plain(path: Path, *, version: int = 1, array: np.ndarray = ARRAY) -> Path:
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    nibabel.save(kind(array, np.diag([2.0, 2, 2, 1]), dtype=array.dtype), path)
    return path


def patch(path: Path, place: int, form: str, *values: float) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, place, *values)
    path.write_bytes(content)
    return path


@pytest.mark.fault("A9", "NIfTI vox_offset inside the header, fractional, NaN or beyond the file", "refused, naming vox_offset or the size")
@pytest.mark.parametrize("offset", [0, 4, 347, 348, 351, 352.5, np.nan, np.inf, -np.inf, -352, 1e30, 354, 10_000])
def test_voxels_are_never_shifted_by_their_offset(tmp_path, offset) -> None:
    path = patch(plain(tmp_path / "a.nii"), 108, "<f", offset)
    for read in (read_header, read_image):
        with pytest.raises(ImageReadError, match=r"vox_offset is|ends before its last voxel"):
            read(path)


@pytest.mark.fault("A9", "NIfTI vox_offset inside the header, fractional, NaN or beyond the file", "refused, naming vox_offset or the size")
@pytest.mark.parametrize("offset", [0, 352, 540, 543, 2**40, -1])
def test_voxels_of_nifti_2_are_never_shifted_either(tmp_path, offset) -> None:
    path = patch(plain(tmp_path / "a.nii", version=2), 168, "<q", offset)
    with pytest.raises(ImageReadError, match=r"vox_offset is|ends before its last voxel"):
        read_image(path)


@pytest.mark.fault("A9", "NIfTI vox_offset inside an extension of the header", "refused, naming vox_offset and the extension")
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_an_offset_inside_an_extension_is_refused(tmp_path, ending) -> None:
    image = nibabel.Nifti1Image(ARRAY, np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 40))
    path = tmp_path / "a.nii"
    nibabel.save(image, path)
    np.testing.assert_array_equal(read_image(path).array, ARRAY)
    patch(path, 108, "<f", 352)
    if ending == ".nii.gz":
        path = path.rename(tmp_path / "b.nii.gz")
        path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ImageReadError, match=r"vox_offset is 352.*and its extension"):
        read_image(path)


def test_a_larger_offset_is_followed(tmp_path) -> None:
    path = plain(tmp_path / "a.nii")
    content = path.read_bytes()
    path.write_bytes(content[:352] + bytes(64) + content[352:])
    np.testing.assert_array_equal(read_image(patch(path, 108, "<f", 416)).array, ARRAY)


CLAIMS = [
    ("<4h", 40, (3, 32767, 32767, 32767)),
    ("<4h", 40, (3, 2000, 2000, 2000)),
    ("<4h", 40, (3, 5, 4, 4)),
    ("<5h", 40, (4, 5, 4, 3, 30000)),
    ("<h", 42, (-24,)),
    ("<h", 42, (0,)),
    ("<h", 40, (0,)),
    ("<h", 40, (8,)),
    ("<h", 40, (-1,)),
    ("<h", 70, (9999,)),
    ("<h", 70, (0,)),
    ("<h", 70, (1792,)),
]


@pytest.mark.fault("E", "a NIfTI header that claims absurd sizes or types", "refused by the size of the file; nothing is allocated")
@pytest.mark.parametrize(("form", "place", "values"), CLAIMS)
@pytest.mark.parametrize("is_compressed", [False, True])
def test_claims_that_the_file_cannot_hold_are_refused(tmp_path, form, place, values, is_compressed) -> None:
    path = patch(plain(tmp_path / "a.nii"), place, form, *values)
    if is_compressed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    with pytest.raises(ImageReadError) as error:
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert "close other programs" not in str(error.value).lower()


@pytest.mark.fault("E", "a NIfTI header that claims absurd sizes or types", "refused by the size of the file; nothing is allocated")
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_axes_of_nifti_2_may_not_claim_two_to_the_forty(tmp_path, axis) -> None:
    path = patch(plain(tmp_path / "a.nii", version=2), 16 + 8 * axis, "<q", 2**40)
    with pytest.raises(ImageReadError, match="claims"):
        read_header(path)


@pytest.mark.fault("B", "an honest image that the memory does not hold", "refused before it is allocated, with both sizes")
def test_an_image_that_does_not_fit_the_memory_is_refused_before_it_is_read(tmp_path) -> None:
    path = plain(tmp_path / "a.nii", array=np.zeros((100, 100, 3), np.uint8))
    patch(path, 40, "<4h", 3, 30000, 30000, 3000)
    with path.open("ab") as file:
        file.truncate(352 + 30000 * 30000 * 3000)  # a sparse file of 2.7 TB
    with pytest.raises(MemoryError, match=r"GiB at least, and .* GiB of memory are free"):
        read_image(path)


@pytest.mark.fault("E", "NaN, infinite or absurd numbers in sform, qform or pixdim", "refused, naming the form that holds them")
@pytest.mark.parametrize(
    ("place", "values", "expected"),
    [
        (280, (np.nan,), "the sform .* holds NaN"),
        (292, (np.inf,), "the sform .* holds NaN or infinite"),
        (280, (1e30, 0, 0, 0), "the sform .* gives a spacing of 1e\\+30"),
        (280, (1e-30, 0, 0, 0), "the sform .* gives a spacing of 1e-30"),
        (280, (2, 0, 0, 1e20), "places the first voxel 1e\\+20 mm away"),
        (280, (0, 0, 0, 0), "gives a spacing of 0 x"),
        (280, (2, 2, 0, 0, 0, 1e-3, 0, 0), "point the same way"),
    ],
)
def test_the_form_that_is_damaged_is_named(tmp_path, place, values, expected) -> None:
    path = patch(plain(tmp_path / "a.nii"), place, f"<{len(values)}f", *values)
    with pytest.raises(ImageReadError, match=expected):
        read_header(path)


@pytest.mark.fault("E", "NaN, infinite or absurd numbers in sform, qform or pixdim", "refused, naming the form that holds them")
@pytest.mark.parametrize(("place", "value"), [(268, np.nan), (256, np.nan), (80, np.nan), (80, 0.0), (80, 1e30)])
def test_a_damaged_qform_is_named(tmp_path, place, value) -> None:
    path = patch(plain(tmp_path / "a.nii"), 252, "<2h", 1, 0)
    with pytest.raises(ImageReadError, match=r"qform|no usable grid"):
        read_header(patch(path, place, "<f", value))


@pytest.mark.parametrize(("slope", "factor"), [(0.0, 1), (np.nan, 1), (2.0, 2)])
def test_a_slope_of_zero_or_nan_means_none(tmp_path, slope, factor) -> None:
    path = patch(plain(tmp_path / "a.nii"), 112, "<2f", slope, 0)
    np.testing.assert_array_equal(read_image(path).array, ARRAY * factor)


@pytest.mark.parametrize(("slope", "intercept"), [(np.inf, 0), (1, np.inf), (2, np.nan)])
def test_an_infinite_slope_is_refused(tmp_path, slope, intercept) -> None:
    with pytest.raises(ImageReadError, match="header is damaged"):
        read_image(patch(plain(tmp_path / "a.nii"), 112, "<2f", slope, intercept))


@pytest.mark.fault("B", "flipped bits in a compressed NIfTI file", "read or refused with a message; never another error")
def test_flipped_bits_of_a_compressed_file_are_refused(tmp_path, record_property) -> None:
    array = np.random.default_rng(0).integers(0, 400, (24, 22, 6)).astype(np.int16)
    content = write_image(tmp_path / "a.nii.gz", array, np.eye(4)).read_bytes()
    places = np.random.default_rng(1).integers(0, 8 * len(content), 300)
    record_property("tries", len(places))
    wrong = 0
    for place in places:
        changed = bytearray(content)
        changed[place // 8] ^= 1 << (place % 8)
        (tmp_path / "b.nii.gz").write_bytes(changed)
        try:
            wrong += not np.array_equal(read_image(tmp_path / "b.nii.gz").array, array)
        except ImageReadError:
            continue
    assert wrong == 0


@pytest.mark.fault("E", "text or zeros behind the gzip member of an image", "the image is read; what follows is left out with a warning")
@pytest.mark.parametrize("behind", [b"some text\n", b"\0" * 700, b"xyz", b"<html></html>" * 1000])
def test_what_follows_the_compressed_data_does_no_harm(tmp_path, behind) -> None:
    path = write_image(tmp_path / "a.nii.gz", ARRAY, np.eye(4))
    path.write_bytes(path.read_bytes() + behind)
    np.testing.assert_array_equal(read_image(path).array, ARRAY)


@pytest.mark.fault("B", "a gzip bomb behind the voxels of an image", "is not decompressed to its end")
def test_a_stream_without_end_is_not_followed(tmp_path) -> None:
    path = write_image(tmp_path / "a.nii", ARRAY, np.eye(4))
    packed = gzip.compress(bytes(1 << 24), 9)
    path = path.rename(tmp_path / "a.nii.gz")
    path.write_bytes(gzip.compress(path.read_bytes()) + packed * 400)  # 6.4 GiB
    np.testing.assert_array_equal(read_image(path).array, ARRAY)


@pytest.mark.fault("B", "a named pipe, a socket or a device in the place of an image", "is never opened; the message says what it is")
def test_what_is_no_file_is_never_opened(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.nii.gz")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket may be a hundred bytes long
        server.bind("socket.nrrd")
        os.chdir(here)
    (tmp_path / "zero.mha").symlink_to("/dev/zero")
    (tmp_path / "lost.nii").symlink_to("../annex/x")
    for name, expected in {
        "pipe.nii.gz": "a named pipe",
        "socket.nrrd": "a socket",
        "zero.mha": "a device",
        "lost.nii": "a link to",
    }.items():
        with pytest.raises(ImageReadError, match=expected):
            read_header(tmp_path / name)


@pytest.mark.fault(
    "E", "a pointer of Git LFS, a web page or a zip under the name of an image", "the message says what it is, and what to do"
)
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>" + b" " * 500, "a web page"),
        (b"<html><title>404</title>", "a web page"),
        (b"PK\x03\x04" + b"x" * 500, "a zip archive"),
        (b"", "an empty file"),
    ],
)
def test_what_lies_in_the_place_of_an_image_is_named(tmp_path, name, content, expected) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageReadError, match=expected):
        read_header(tmp_path / name)


@pytest.mark.fault(
    "A9", "a header that claims fewer slices than its file holds, or voxels of a smaller type", "a warning names what is left over"
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_more_voxels_than_the_header_claims_are_told(tmp_path, ending, caplog) -> None:
    path = patch(plain(tmp_path / "a.nii"), 46, "<h", ARRAY.shape[2] - 1)
    if ending == ".nii.gz":
        path = path.rename(tmp_path / "a.nii.gz")
        path.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(read_image(path).array, ARRAY[:, :, :-1])
    assert "as much as 1 more slice" in caplog.text


@pytest.mark.fault("A9", "a NIfTI data type that the size of the file contradicts", "refused, with both numbers of bits")
def test_a_data_type_that_bitpix_and_size_contradict_is_refused(tmp_path) -> None:
    path = patch(plain(tmp_path / "a.nii"), 70, "<h", 2)
    with pytest.raises(ImageReadError, match=r"voxels of 8 bits .* have \d+ \(bitpix"):
        read_image(path)


@pytest.mark.fault("A1", "sform and qform that are mirrored or turned against each other", "doctor notes both; the sform is used")
@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (4, 1)])
def test_forms_that_disagree_on_the_orientation_are_noted(tmp_path, codes) -> None:
    image = nibabel.Nifti1Image(ARRAY, None)
    image.set_sform(np.diag([-1.0, 1, 1, 1]), codes[0])
    image.set_qform(np.eye(4), codes[1])
    nibabel.save(image, tmp_path / "a.nii")
    (note,) = read_header(tmp_path / "a.nii").notes
    assert "the sform is used" in note
