"""The header reader: the values that pydicom reads, and one message within bounded memory for whatever else a file holds."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg3d.errors import ImageReadError
from medseg3d.images import read_image
from medseg3d.images.dicom_elements import MAX_DEPTH
from medseg3d.images.dicom_file import looks_like_dicom, read_dicom_file
from tests.dicom_writer import nested, slice_of, volume, write_other, write_series

BYTES = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
MEMORY_LIMIT = 16 << 20
"""Bytes; the files here have a few hundred."""


def one_slice(path: Path, **tags) -> Path:
    slice_of(volume()[:, :, 0], **tags).save_as(path, enforce_file_format=True)
    return path


def reads_or_refuses(path: Path) -> str:
    """The message, empty where the file was read; anything else than one of our errors fails the test."""
    message = f"{path.name} was read"
    try:
        read_image(path)
    except ImageReadError as error:
        message = str(error)
    assert path.name in message
    return message.removesuffix(f"{path.name} was read")


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian], ids=lambda u: u.name
)
@pytest.mark.parametrize("has_preamble", [True, False])
def test_headers_and_values_are_those_that_pydicom_reads(tmp_path, syntax, has_preamble) -> None:
    path, stored = tmp_path / "a.dcm", volume()[:, :, 0]
    file = slice_of(stored, SeriesDescription="T1 – späť", SpecificCharacterSet="ISO_IR 192", DiffusionBValue=1000.0)
    file.file_meta.TransferSyntaxUID = syntax
    file.ReferencedImageSequence = nested(3).ReferencedImageSequence
    file["ReferencedImageSequence"].is_undefined_length = True
    pixels = stored.T.astype(">i2" if syntax == ExplicitVRBigEndian else "<i2")
    file.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(
        buffer, file, enforce_file_format=True, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian
    )
    path.write_bytes(buffer.getvalue()[0 if has_preamble else 132 :])
    found, expected = read_dicom_file(path), pydicom.dcmread(path, force=True)
    assert looks_like_dicom(path)
    assert found.syntax == syntax
    assert found.text("SeriesDescription") == "T1 – späť"
    assert found.text("DiffusionBValue") == "1000"
    for name in ("PatientID", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "Modality", "Rows", "Columns", "BitsStored"):
        assert found.text(name) == str(expected[name].value)
    np.testing.assert_array_equal(found.numbers("ImagePositionPatient", 3), np.array(expected.ImagePositionPatient, float))
    np.testing.assert_array_equal(read_image(path).array[:, :, 0], stored)


@pytest.mark.parametrize(
    ("declared", "encoding", "text"),
    [
        ("ISO_IR 100", "latin-1", "Müller^Ænna"),
        ("ISO_IR 192", "utf-8", "Иванова 李"),
        ("ISO_IR 144", "iso8859-5", "Иванова"),
        ("GB18030", "gb18030", "王^小东"),
        ("ISO 2022 IR 87", "iso2022_jp_2", "山田"),
        (None, "utf-8", "undeclared é"),
        (None, "latin-1", "undeclared é"),
        ("ISO_IR 999", "utf-8", "plain"),
    ],
)
def test_names_are_decoded_by_their_character_set(tmp_path, declared, encoding, text) -> None:
    placeholder = "ISO_IR 6".ljust(16)
    path = one_slice(tmp_path / "a.dcm", PatientID="X" * 20, SpecificCharacterSet=declared and placeholder)
    data = path.read_bytes().replace(placeholder.encode(), (declared or "").ljust(16).encode())
    path.write_bytes(data.replace(b"X" * 20, text.encode(encoding).ljust(20)))
    assert read_dicom_file(path).text("PatientID") == text


@pytest.mark.fault("B", "a DICOM slice that is cut off anywhere", "one message with the file's name; costs its case")
def test_a_slice_that_is_cut_off_anywhere_is_refused(tmp_path, record_property) -> None:
    path = one_slice(tmp_path / "a.dcm", SeriesDescription="x", ReferencedImageSequence=nested(2).ReferencedImageSequence)
    data = path.read_bytes()
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        assert reads_or_refuses(path), length
    record_property("tries", len(range(0, len(data), 3)))


@pytest.mark.fault("B", "bytes of a DICOM slice that changed", "read with a right size, or refused with one message; never a crash")
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian], ids=lambda u: u.name)
def test_changed_bytes_are_read_or_refused_within_bounded_memory(tmp_path, syntax, record_property) -> None:
    path = tmp_path / "a.dcm"
    file = slice_of(volume()[:, :, 0], ReferencedImageSequence=nested(2).ReferencedImageSequence)
    file["ReferencedImageSequence"].is_undefined_length = True
    file.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(path, file, enforce_file_format=True, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    tracemalloc.start()
    for _ in range(250):
        changed = bytearray(data)
        for place in rng.integers(128, len(data), rng.integers(1, 5)):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        reads_or_refuses(path)
    assert tracemalloc.get_traced_memory()[1] < MEMORY_LIMIT
    tracemalloc.stop()
    record_property("tries", 250)


@pytest.mark.fault("B", "DICOM sequences nested thousands of times", "refused before any other library sees the file")
@pytest.mark.parametrize("has_length", [True, False])
def test_deep_nesting_is_refused_or_walked_over_without_recursion(tmp_path, has_length) -> None:
    path = one_slice(tmp_path / "a.dcm")
    depth = 20_000
    sequence = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    body = sequence * depth
    if has_length:  # of a length that is known nothing is walked over
        body = b"\x08\x00\x40\x11SQ\0\0" + len(body).to_bytes(4, "little") + body
    data = path.read_bytes()
    place = data.index(b"\x08\x00\x60\x00CS")
    path.write_bytes(data[:place] + body + data[place:])
    message = reads_or_refuses(path)
    assert message == "" if has_length else f"nested more than {MAX_DEPTH // 2} deep" in message


@pytest.mark.fault("B", "garbage behind the pixel data of a DICOM slice", "costs its case within bounded memory: pixels may be shifted")
@pytest.mark.parametrize("garbage", [bytes(range(100)), b"\xfe\xff\x00\xe0" * 25, b"\xff" * 100, b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"])
def test_garbage_behind_the_pixels_is_refused_and_costs_no_memory(tmp_path, garbage) -> None:
    folder = write_series(tmp_path)
    with (folder / "002.dcm").open("ab") as file:
        file.write(garbage)
    tracemalloc.start()
    with pytest.raises(ImageReadError, match=rf"002\.dcm: {len(garbage)} bytes behind the pixel data are no DICOM"):
        read_image(folder)
    assert tracemalloc.get_traced_memory()[1] < MEMORY_LIMIT
    tracemalloc.stop()


@pytest.mark.fault("B", "bytes that came into the pixel data of a DICOM slice", "refused, as the pixels behind them are shifted")
def test_bytes_among_the_pixels_are_found_by_what_is_left_over(tmp_path) -> None:
    path = one_slice(tmp_path / "a.dcm")
    data = path.read_bytes()
    path.write_bytes(data[:-20] + b"\r" + data[-20:])
    assert "1 bytes behind the pixel data" in reads_or_refuses(path)


def test_padding_behind_the_pixels_is_no_garbage(tmp_path) -> None:
    folder = write_series(tmp_path, DataSetTrailingPadding=bytes(50))
    with (folder / "002.dcm").open("ab") as file:
        file.write(bytes(-file.tell() % 512))
    assert read_image(folder).header.notes == ()


@pytest.mark.fault("B", "a DICOM header that claims another size than its pixel data have", "refused, with both sizes")
@pytest.mark.parametrize("tags", [{"Rows": 60_000, "Columns": 60_000}, {"Rows": 3}, {"Columns": 4}, BYTES])
def test_a_size_that_is_not_that_of_the_pixel_data_is_refused(tmp_path, tags) -> None:
    message = reads_or_refuses(one_slice(tmp_path / "a.dcm", **tags))
    assert "40 bytes of pixel data, expected" in message


@pytest.mark.parametrize("content", [b"", b"x", bytes(132), bytes(128) + b"DICM", b"\x1f\x8b" * 99, b"\x08\x00" * 99])
def test_what_is_no_dicom_is_said_so(tmp_path, content) -> None:
    (tmp_path / "a.dcm").write_bytes(content)
    assert reads_or_refuses(tmp_path / "a.dcm")


def test_a_deflated_bomb_is_refused_within_bounded_memory(tmp_path) -> None:
    import zlib

    path = one_slice(tmp_path / "a.dcm")
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file.save_as(path)
    data = path.read_bytes()
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = data.index(DeflatedExplicitVRLittleEndian.encode()) + len(DeflatedExplicitVRLittleEndian)
    bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(66)) + deflate.flush()
    header = 132 + 12 + int.from_bytes(data[140:144], "little")
    assert header >= start
    path.write_bytes(data[:header] + bomb)
    assert "inflates to more than 64 MiB" in reads_or_refuses(path)


def test_objects_without_a_picture_are_read_too(tmp_path) -> None:
    found = read_dicom_file(write_other(tmp_path / "a.dcm", "1.2.840.10008.5.1.4.1.1.88.22", Modality="SR"))
    assert (found.pixels, found.text("Modality"), found.text("SOPClassUID")) == (None, "SR", "1.2.840.10008.5.1.4.1.1.88.22")
