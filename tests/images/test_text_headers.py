"""NRRD and MetaImage: what ITK writes is read as ITK reads it, and no header can crash, hang or claim what is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medseg3d.errors import ImageReadError
from medseg3d.images import data_files, read_header, read_image

ARRAY = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
"""(z, y, x), as ITK has it."""


def fields_of(kind: str) -> dict[str, str]:
    if kind == "nrrd":
        return {
            "type": "short",
            "dimension": "3",
            "space": "left-posterior-superior",
            "sizes": "4 5 6",
            "space directions": "(0,2,0) (3,0,0) (0,0,-4)",
            "kinds": "domain domain domain",
            "endian": "little",
            "encoding": "raw",
            "space origin": "(10,-20,30)",
        }
    return {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "0 1 0 1 0 0 0 0 -1",
        "Offset": "10 -20 30",
        "ElementSpacing": "2 3 4",
        "DimSize": "4 5 6",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }


def write(path: Path, kind: str, changes: dict[str, str | None], voxels: bytes | None = None, extra: str = "") -> Path:
    """A file of the fields, some of them changed (None: left out), with ``extra`` before the last one."""
    found = {name: text for name, text in {**fields_of(kind), **changes}.items() if text is not None}
    if kind == "nrrd":
        header = "NRRD0005\n" + "".join(f"{name}: {text}\n" for name, text in found.items()) + extra + "\n"
    else:
        last = found.pop("ElementDataFile", None)
        header = "".join(f"{name} = {text}\n" for name, text in found.items()) + extra
        header += f"ElementDataFile = {last}\n" if last else ""
    path.write_bytes(header.encode() + (ARRAY.tobytes() if voxels is None else voxels))
    return path


ENDINGS = {"nrrd": ".nrrd", "mha": ".mha"}


@pytest.mark.parametrize("kind", ENDINGS)
def test_the_plain_file_is_read_as_itk_reads_it(tmp_path, kind) -> None:
    path = write(tmp_path / f"a{ENDINGS[kind]}", kind, {})
    ours, theirs = read_image(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(ours.array, sitk.GetArrayFromImage(theirs).transpose(2, 1, 0))
    for index in ((0, 0, 0), (3, 0, 0), (0, 4, 0), (0, 0, 5)):
        there = np.array(theirs.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        np.testing.assert_allclose((ours.header.geometry.matrix @ [*index, 1])[:3], there)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_all_types_come_back_as_they_were_written(tmp_path, name, dtype, is_compressed) -> None:
    array = ARRAY.astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name), is_compressed)
    found = read_image(tmp_path / name)
    np.testing.assert_array_equal(found.array, array.transpose(2, 1, 0))
    assert (found.array.dtype, found.header.dtype) == (array.dtype, str(array.dtype))
    assert len(data_files(tmp_path / name)) == (2 if name.endswith(("hdr", "hd")) else 1)


@pytest.mark.parametrize(
    ("space", "signs"),
    [("left-posterior-superior", (-1, -1, 1)), ("RAS", (1, 1, 1)), ("right-anterior-superior", (1, 1, 1)), ("LAS", (-1, 1, 1))],
)
def test_the_space_of_a_nrrd_says_where_its_axes_point(tmp_path, space, signs) -> None:
    path = write(tmp_path / "a.nrrd", "nrrd", {"space": space, "space directions": "(2,0,0) (0,3,0) (0,0,4)"})
    np.testing.assert_array_equal(read_header(path).geometry.matrix[:3, :3], np.diag(signs) * (2, 3, 4))
    there = np.array(sitk.ReadImage(str(path)).GetOrigin()) * (-1, -1, 1)
    np.testing.assert_allclose(read_header(path).geometry.origin, there)


def test_encodings_of_a_nrrd(tmp_path) -> None:
    import bz2
    import gzip

    written = {
        "raw": ARRAY.tobytes(),
        "gzip": gzip.compress(ARRAY.tobytes()),
        "bzip2": bz2.compress(ARRAY.tobytes()),
        "ascii": " ".join(map(str, ARRAY.ravel())).encode(),
        "hex": ARRAY.tobytes().hex().encode(),
    }
    for encoding, voxels in written.items():
        path = write(tmp_path / "a.nrrd", "nrrd", {"encoding": encoding}, voxels)
        np.testing.assert_array_equal(read_image(path).array, ARRAY.transpose(2, 1, 0), err_msg=encoding)
    path = write(tmp_path / "a.nrrd", "nrrd", {"endian": "big", "byte skip": "-1"}, b"more" + ARRAY.astype(">i2").tobytes())
    np.testing.assert_array_equal(read_image(path).array, ARRAY.transpose(2, 1, 0))


@pytest.mark.parametrize("kind", ENDINGS)
def test_slices_in_files_of_their_own(tmp_path, kind) -> None:
    for number, piece in enumerate(ARRAY):
        (tmp_path / f"s{number}.raw").write_bytes(piece.tobytes())
    names = "\n".join(f"s{number}.raw" for number in range(6))
    field, ending = ("data file", ".nhdr") if kind == "nrrd" else ("ElementDataFile", ".mhd")
    pattern = "s%d.raw 0 5 1"
    for text in (f"LIST\n{names}", pattern):
        path = write(tmp_path / f"a{ending}", kind, {field: text}, b"")
        np.testing.assert_array_equal(read_image(path).array, ARRAY.transpose(2, 1, 0))
        assert len(data_files(path)) == 7


@pytest.mark.fault("E", "NRRD units other than mm (microns)", "converted to mm, with a note, as units of NIfTI are")
@pytest.mark.parametrize(("unit", "factor"), [("microns", 1e-3), ("um", 1e-3), ("mm", 1), ("cm", 10), ("arbitrary", 1)])
def test_units_of_a_nrrd_are_converted(tmp_path, unit, factor) -> None:
    header = read_header(write(tmp_path / "a.nrrd", "nrrd", {"space units": " ".join([f'"{unit}"'] * 3)}))
    np.testing.assert_allclose(header.geometry.spacing, np.array([2, 3, 4]) * factor)
    np.testing.assert_allclose(header.geometry.origin, np.array([-10, 20, 30]) * factor)
    assert bool(header.notes) == (factor != 1)


@pytest.mark.fault("E", "a segmentation of 3D Slicer (.seg.nrrd)", "read by its name; layers that overlap are refused")
def test_a_segmentation_of_slicer_is_a_label_map(tmp_path) -> None:
    from medseg3d.images import case_name

    path = write(tmp_path / "case1.seg.nrrd", "nrrd", {}, extra="Segment0_ID:=Segment_1\nSegment0_LabelValue:=1\n")
    assert case_name(path) == "case1"
    np.testing.assert_array_equal(read_image(path).array, ARRAY.transpose(2, 1, 0))
    layers = {
        "dimension": "4",
        "sizes": "2 4 5 6",
        "kinds": "list domain domain domain",
        "space directions": "none (2,0,0) (0,3,0) (0,0,4)",
    }
    path = write(tmp_path / "case2.seg.nrrd", "nrrd", layers, bytes(480))
    with pytest.raises(ImageReadError, match="2 layers, as its segments overlap"):
        read_image(path)


DAMAGED_NRRD: dict[str, dict[str, str | None]] = {
    "dimension 16": {"dimension": "16", "sizes": " ".join(["2"] * 16)},
    "dimension 0": {"dimension": "0"},
    "dimension -1": {"dimension": "-1"},
    "dimension in words": {"dimension": "three"},
    "dimension of 5000 digits": {"dimension": "3" * 5000},
    "no dimension": {"dimension": None},
    "sizes of 2^40": {"sizes": "1099511627776 1099511627776 4"},
    "sizes beyond the file": {"sizes": "4 5 7"},
    "negative sizes": {"sizes": "4 -5 6"},
    "sizes of 0": {"sizes": "4 0 6"},
    "two sizes": {"sizes": "4 5"},
    "a type of no number": {"type": "block"},
    "an unknown type": {"type": "x" * 30000},
    "an unknown encoding": {"encoding": "zip"},
    "endian": {"endian": "middle"},
    "two directions": {"space directions": "(1,0,0) (0,1,0)"},
    "directions of words": {"space directions": "(a,b,c) (0,1,0) (0,0,1)"},
    "directions of nested brackets": {"space directions": "(" * 5000},
    "NaN directions": {"space directions": "(nan,0,0) (0,1,0) (0,0,1)"},
    "infinite directions": {"space directions": "(inf,0,0) (0,1,0) (0,0,1)"},
    "zero directions": {"space directions": "(0,0,0) (0,1,0) (0,0,1)"},
    "huge directions": {"space directions": "(1e300,0,0) (0,1,0) (0,0,1)"},
    "parallel directions": {"space directions": "(1,0,0) (1,0,0) (0,0,1)"},
    "NaN origin": {"space origin": "(nan,0,0)"},
    "kinds": {"kinds": "domain"},
    "complex": {"kinds": "complex domain domain"},
    "byte skip": {"byte skip": "99999999999"},
    "negative byte skip": {"byte skip": "-2"},
    "line skip": {"line skip": "-1"},
    "a file elsewhere": {"data file": "/etc/passwd"},
    "a file above": {"data file": "../secret.raw"},
    "a lost file": {"data file": "lost.raw"},
    "a list without end": {"data file": "s%d.raw 0 2000000000 1"},
    "a list of no step": {"data file": "s%d.raw 0 5 0"},
    "a format that writes": {"data file": "s%n%s.raw 0 5 1"},
}
DAMAGED_META: dict[str, dict[str, str | None]] = {
    "NDims -1": {"NDims": "-1"},
    "NDims 100": {"NDims": "100"},
    "NDims 0": {"NDims": "0"},
    "NDims 1": {"NDims": "1", "DimSize": "120"},
    "no NDims": {"NDims": None},
    "sizes of 2^40": {"DimSize": "1099511627776 1099511627776 4"},
    "sizes beyond the file": {"DimSize": "4 5 7"},
    "negative sizes": {"DimSize": "-4 5 6"},
    "two sizes": {"DimSize": "4 5"},
    "a type of no number": {"ElementType": "MET_STRING"},
    "an unknown type": {"ElementType": "x" * 30000},
    "NaN spacing": {"ElementSpacing": "nan 1 1"},
    "zero spacing": {"ElementSpacing": "0 1 1"},
    "negative spacing": {"ElementSpacing": "-1 1 1"},
    "two spacings": {"ElementSpacing": "1 1"},
    "NaN matrix": {"TransformMatrix": "nan 0 0 0 1 0 0 0 1"},
    "zero matrix": {"TransformMatrix": "0 0 0 0 0 0 0 0 0"},
    "short matrix": {"TransformMatrix": "1 0 0"},
    "NaN offset": {"Offset": "nan 0 0"},
    "a billion channels": {"ElementNumberOfChannels": "1000000000"},
    "no channel": {"ElementNumberOfChannels": "0"},
    "compressed text": {"BinaryData": "False", "CompressedData": "True"},
    "voxels that are not compressed": {"CompressedData": "True"},
    "text that is none": {"BinaryData": "False"},
    "a file elsewhere": {"ElementDataFile": "/etc/passwd"},
    "a file above": {"ElementDataFile": "../secret.raw"},
    "a list without end": {"ElementDataFile": "s%d.raw 0 2000000000 1"},
    "a format that writes": {"ElementDataFile": "s%n%s.raw 0 5 1"},
    "no file": {"ElementDataFile": None},
}


@pytest.mark.fault("B", "a NRRD header that crashes ITK, or claims what is not there", "refused by our own reader, naming the field")
@pytest.mark.parametrize("changes", DAMAGED_NRRD.values(), ids=DAMAGED_NRRD)
def test_a_damaged_nrrd_header_is_refused(tmp_path, changes) -> None:
    with pytest.raises(ImageReadError) as error:
        read_image(write(tmp_path / "a.nrrd", "nrrd", changes))
    assert len(str(error.value)) < 1000


@pytest.mark.fault("B", "a MetaImage header that crashes ITK, or claims what is not there", "refused by our own reader, naming the field")
@pytest.mark.parametrize("changes", DAMAGED_META.values(), ids=DAMAGED_META)
def test_a_damaged_metaimage_header_is_refused(tmp_path, changes) -> None:
    with pytest.raises(ImageReadError) as error:
        read_image(write(tmp_path / "a.mha", "mha", changes))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("kind", ENDINGS)
@pytest.mark.parametrize("extra", ["k" * 100_000 + ":=v\n", "k:=" + "v" * 100_000 + "\n", "no field at all\n" * 30_000, "k: v\n" * 30_000])
def test_long_lines_and_many_of_them_are_refused(tmp_path, kind, extra) -> None:
    with pytest.raises(ImageReadError, match=r"header is damaged|not a"):
        read_image(write(tmp_path / f"a{ENDINGS[kind]}", kind, {}, extra=extra))


@pytest.mark.fault(
    "A7", "a flipped bit in the compressed voxels of a NRRD or MetaImage file", "refused; no voxel is another without a word"
)
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_flipped_bits_of_compressed_voxels_are_refused(tmp_path, ending, record_property) -> None:
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 400, (8, 12, 12)).astype(np.int16)), str(path), True)
    content, expected = path.read_bytes(), read_image(path).array
    places = np.random.default_rng(1).integers(8 * (len(content) - 1200), 8 * len(content), 60)
    record_property("tries", len(places))
    wrong = 0
    for place in places:
        changed = bytearray(content)
        changed[place // 8] ^= 1 << (place % 8)
        path.write_bytes(changed)
        try:
            wrong += not np.array_equal(read_image(path).array, expected)
        except ImageReadError:
            continue
    assert wrong == 0


@pytest.mark.parametrize("kind", ENDINGS)
@pytest.mark.fault(
    "A9", "a header that claims fewer slices than its file holds, or voxels of a smaller type", "a warning names what is left over"
)
def test_more_voxels_than_claimed_are_told(tmp_path, kind, caplog) -> None:
    path = write(tmp_path / f"a{ENDINGS[kind]}", kind, {"sizes": "4 5 4"} if kind == "nrrd" else {"DimSize": "4 5 4"})
    np.testing.assert_array_equal(read_image(path).array, ARRAY[:4].T)
    assert "80 bytes are left, as much as 2 more slices" in caplog.text


@pytest.mark.parametrize("kind", ENDINGS)
@pytest.mark.fault(
    "A9", "a detached file of voxels that has a header of its own, which nothing says to skip", "a warning names the bytes left over"
)
def test_a_byte_too_many_in_a_detached_file_is_told(tmp_path, kind, caplog) -> None:
    (tmp_path / "a.raw").write_bytes(b"header" + ARRAY.tobytes())
    names = {"nrrd": ("data file", "a.nhdr"), "mha": ("ElementDataFile", "a.mhd")}[kind]
    read_image(write(tmp_path / names[1], kind, {names[0]: "a.raw"}, b""))
    assert "6 bytes are left" in caplog.text
    caplog.clear()
    (tmp_path / "a.raw").write_bytes(ARRAY.tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / names[1]).array, ARRAY.T)
    assert caplog.text == ""
