from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medseg3d.errors import ImageReadError, InputError
from medseg3d.images import case_name, is_image, read_header, read_image, write_image, write_label_map

OBLIQUE = np.array([[0.7, -0.1, 0.3, -12.3], [0.1, 0.8, 0.2, 7.1], [-0.2, -0.1, 3.1, 55.5], [0, 0, 0, 1]])
TYPES = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


def save(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE, *, kind: type = nibabel.Nifti1Image) -> Path:
    nibabel.save(kind(array, affine), path)
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(TYPES),
    is_big_endian=st.booleans(),
    kind=st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]),
    ending=st.sampled_from([".nii", ".nii.gz"]),
    scaling=st.sampled_from([None, (2.5, -1000.0), (0.0754, 3100.8)]),
    seed=st.integers(0, 1000),
)
def test_voxels_and_grid_are_those_that_nibabel_reads(tmp_path, dtype, is_big_endian, kind, ending, scaling, seed) -> None:
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 100, tuple(rng.integers(1, 6, 3))).astype(dtype)
    header = kind.header_class(endianness=">" if is_big_endian else "<")
    header.set_data_dtype(dtype)
    image = kind(array, OBLIQUE, header)
    path = tmp_path / f"a{ending}"
    nibabel.save(image, path)
    if scaling:
        content = path.read_bytes()
        content = bytearray(gzip.decompress(content) if ending == ".nii.gz" else content)
        raw = kind.load(path).header
        at, name = (112, "f4") if kind is nibabel.Nifti1Image else (176, "f8")
        content[at : at + 2 * int(name[1])] = np.array(scaling, raw.endianness + name).tobytes()
        path.write_bytes(gzip.compress(bytes(content)) if ending == ".nii.gz" else bytes(content))
    expected = kind.load(path)
    found = read_image(path)
    np.testing.assert_array_equal(found.array.astype(np.float32), np.asarray(expected.dataobj).astype(np.float32))
    np.testing.assert_array_equal(found.header.geometry.matrix, expected.affine)
    assert found.array.dtype.isnative
    assert found.header.is_scaled == bool(scaling)
    assert scaling or found.array.dtype == np.dtype(dtype)
    assert read_header(path) == found.header


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(("sform", "qform"), list(itertools.product((0, 1, 4), (0, 1, 2))))
def test_a_label_map_lies_on_exactly_the_grid_of_its_image(tmp_path, kind, sform, qform) -> None:
    image = kind(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    image.set_qform(nibabel.affines.from_matvec(np.diag([-0.7, 0.8, 3.1]), [1.0, 2, 3]), code=qform)
    image.set_sform(OBLIQUE, code=sform)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "image.nii.gz")
    labels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    path = write_label_map(tmp_path / "out" / "labels.nii.gz", labels, read_header(tmp_path / "image.nii.gz"))
    before, after = kind.load(tmp_path / "image.nii.gz"), kind.load(path)
    assert type(nibabel.load(path)) is kind
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in ("sform_code", "qform_code", "srow_x", "srow_z", "quatern_b", "quatern_d", "qoffset_y", "xyzt_units"):
        np.testing.assert_array_equal(after.header[field], before.header[field])
    np.testing.assert_array_equal(after.header["pixdim"][:4], before.header["pixdim"][:4])
    np.testing.assert_array_equal(np.asarray(after.dataobj), labels)
    assert after.get_data_dtype() == np.uint8
    assert [p.name for p in path.parent.iterdir()] == ["labels.nii.gz"]


@pytest.mark.parametrize(
    ("dtype", "highest", "stored"),
    [("bool", 1, "uint8"), ("int64", 300, "int16"), ("uint32", 60_000, "uint16"), ("uint16", 3, "uint16")],
)
def test_label_maps_are_stored_in_a_small_type(tmp_path, dtype, highest, stored) -> None:
    header = read_header(save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8)))
    path = write_label_map(tmp_path / "b.nii.gz", np.full((2, 2, 2), highest, dtype), header)
    assert nibabel.load(path).get_data_dtype() == stored
    assert np.asarray(nibabel.load(path).dataobj).max() == highest


def test_float_label_maps_are_not_written(tmp_path) -> None:
    header = read_header(save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8)))
    with pytest.raises(InputError, match="integers"):
        write_label_map(tmp_path / "b.nii.gz", np.zeros((2, 2, 2)), header)
    with pytest.raises(InputError, match="does not fit"):
        write_label_map(tmp_path / "b.nii.gz", np.zeros((2, 2, 3), np.uint8), header)


def test_equal_label_maps_are_equal_files(tmp_path) -> None:
    header = read_header(save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8)))
    first, second = (write_label_map(tmp_path / name, np.ones((2, 2, 2), np.uint8), header) for name in ("b.nii.gz", "c.nii.gz"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 1)])
def test_a_single_slice_is_read_as_3d_and_written_as_it_was(tmp_path, shape) -> None:
    path = save(tmp_path / "slice.nii.gz", np.arange(35, dtype=np.uint8).reshape(shape))
    image = read_image(path)
    assert image.array.shape == (7, 5, 1) == image.header.geometry.shape
    assert min(image.header.geometry.spacing) > 0
    out = nibabel.load(write_label_map(tmp_path / "out.nii.gz", image.array, image.header))
    assert out.shape == shape
    np.testing.assert_array_equal(out.affine, nibabel.load(path).affine)


def test_a_2d_file_without_slice_thickness_gets_one_millimeter(tmp_path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4), np.uint8), None)
    image.header["pixdim"][1:4] = (0.5, 0.5, 0)
    image.header["qform_code"] = 1
    nibabel.save(image, tmp_path / "a.nii")
    assert read_header(tmp_path / "a.nii").geometry.spacing == (0.5, 0.5, 1.0)


def test_a_4d_file_needs_a_volume(tmp_path) -> None:
    array = np.arange(3 * 4 * 5 * 7, dtype=np.int16).reshape(3, 4, 5, 7)
    path = save(tmp_path / "4d.nii.gz", array)
    with pytest.raises(ImageReadError, match=r"4d\.nii\.gz: 4D image with 7 volumes"):
        read_image(path)
    with pytest.raises(ImageReadError, match="volume 7 was asked for"):
        read_image(path, volume=7)
    for volume in (0, 4, 6):
        np.testing.assert_array_equal(read_image(path, volume=volume).array, array[..., volume])
    assert read_header(path).num_volumes == 7
    assert read_header(path).stored_shape == (3, 4, 5, 7)


def test_a_vector_image_counts_its_components_as_volumes(tmp_path) -> None:
    array = np.arange(3 * 4 * 5 * 2, dtype=np.float32).reshape(3, 4, 5, 1, 2)
    path = save(tmp_path / "vector.nii.gz", array)
    np.testing.assert_array_equal(read_image(path, volume=1).array, array[..., 0, 1])


@pytest.mark.parametrize(("unit", "factor"), [("micron", 0.001), ("meter", 1000.0), ("mm", 1.0), ("unknown", 1.0)])
def test_the_unit_of_the_header_is_converted_to_mm_and_kept_in_the_output(tmp_path, unit, factor) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.diag([4.0, 4, 50, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii.gz")
    header = read_header(tmp_path / "a.nii.gz")
    assert header.geometry.spacing == pytest.approx((4 * factor, 4 * factor, 50 * factor))
    assert bool(header.notes) == (factor != 1)
    out = nibabel.load(write_label_map(tmp_path / "b.nii.gz", np.zeros((2, 3, 4), np.uint8), header))
    np.testing.assert_array_equal(out.affine, image.affine)
    assert out.header.get_xyzt_units()[0] == unit


def test_a_file_is_decompressed_by_what_it_is_not_by_its_name(tmp_path) -> None:
    content = save(tmp_path / "a.nii", np.arange(8, dtype=np.uint8).reshape(2, 2, 2)).read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(content)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(content))
    for name in ("plain.nii.gz", "packed.nii"):
        assert read_image(tmp_path / name).array.sum() == 28


def test_every_truncation_is_refused_by_name(tmp_path) -> None:
    array = np.random.default_rng(0).normal(size=(6, 6, 6))
    for ending in (".nii", ".nii.gz"):
        whole = save(tmp_path / f"whole{ending}", array).read_bytes()
        for length in (0, 1, 2, 20, 300, len(whole) // 2, len(whole) - 9, len(whole) - 1):
            path = tmp_path / f"cut{ending}"
            path.write_bytes(whole[:length])
            with pytest.raises(ImageReadError, match="cut"):
                read_image(path)


def test_damaged_gzip_is_noticed_by_its_checksum(tmp_path) -> None:
    content = bytearray(save(tmp_path / "a.nii.gz", np.ones((6, 6, 6), np.uint8)).read_bytes())
    content[-6] ^= 255
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(ImageReadError, match="damaged"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.nii.gz", gzip.compress(b"x" * 1000), "not a NIfTI file"),
        ("a.nii", b"<html>" * 100, "not a NIfTI file"),
        ("a.mgz", b"", "mri_convert"),
        ("a.mnc", b"", "MINC"),
        ("a.img", b"", "two files"),
        ("a.png", b"", "pictures"),
        ("a.docx", b"", "not an image by its name"),
        ("a.nrrd", b"nothing", "not a NRRD file"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(tmp_path, name, content, reason) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageReadError, match=reason) as error:
        read_image(tmp_path / name)
    assert name in str(error.value)


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(ImageReadError, match="no such file"):
        read_image(tmp_path / "a.nii.gz")


def test_color_and_complex_voxels_are_refused(tmp_path) -> None:
    color = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ImageReadError, match="color image \\(3 x 8 bit\\)"):
        read_image(save(tmp_path / "a.nii.gz", color))
    with pytest.raises(ImageReadError, match="complex"):
        read_image(save(tmp_path / "b.nii.gz", np.zeros((2, 2, 2), np.complex64)))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_grid_without_extent_is_refused(tmp_path, value) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header["srow_z"] = (0, 0, value, 0)
    image.header["vox_offset"] = 352
    path = tmp_path / "a.nii"
    path.write_bytes(image.header.binaryblock + bytes(12))
    with pytest.raises(ImageReadError, match="spacing" if value == 0 else r"the sform .* holds NaN or infinite numbers \(1 of 12\)"):
        read_image(path)


def test_negative_spacings_are_read_as_positive(tmp_path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), None)
    image.header["pixdim"][:4] = (0, -2, -2, 3)
    image.header["qform_code"], image.header["vox_offset"] = 1, 352
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(12))
    assert read_header(tmp_path / "a.nii").geometry.spacing == (2, 2, 3)


def test_a_sheared_grid_is_accepted_with_a_note(tmp_path) -> None:
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    assert "sheared" in read_header(save(tmp_path / "a.nii.gz", np.zeros((2, 2, 2)), sheared)).notes[0]


def test_written_images_come_back(tmp_path) -> None:
    for dtype in (np.int16, np.float32, np.float16, bool):
        array = (np.arange(24).reshape(2, 3, 4) % 2).astype(dtype)
        image = read_image(write_image(tmp_path / "a.nii.gz", array, OBLIQUE))
        np.testing.assert_array_equal(image.array, array)
        np.testing.assert_allclose(image.header.geometry.matrix, OBLIQUE, rtol=1e-6)
    write_image(tmp_path / "four.nii.gz", np.ones((2, 3, 4, 5), np.float32), OBLIQUE)
    assert read_header(tmp_path / "four.nii.gz").num_volumes == 5
    with pytest.raises(InputError, match=r"end in \.nii\.gz"):
        write_image(tmp_path / "a.mha", array, OBLIQUE)


def test_companion_files_of_macos_are_no_images() -> None:
    assert not is_image(Path("._case.nii.gz"))
    assert is_image(Path("case.nii.gz"))
    assert not is_image(Path("notes.txt"))
    assert case_name(Path("a/b.c.NII.GZ")) == "b.c"
