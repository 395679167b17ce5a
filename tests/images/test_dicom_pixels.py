"""Stored values: those that GDCM and pydicom decode, and one message for a picture that is damaged."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRBigEndian, RLELossless

from medseg3d.errors import ImageReadError
from medseg3d.images import read_image
from medseg3d.images.decoder import Decoder, DecoderError
from tests.dicom_writer import slice_of, volume, write_series

SIZE = (13, 7)
"""Columns and rows: odd, and not alike."""


def gdcm(path) -> np.ndarray:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return sitk.GetArrayFromImage(reader.Execute()).reshape(SIZE[::-1]).T


def noise(dtype: str, low: int | None = None, high: int | None = None) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(3).integers(limits.min if low is None else low, limits.max if high is None else high, SIZE, dtype)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2"])
@pytest.mark.parametrize(("bits", "high"), [(None, None), (5, 4), (5, 6), (7, 6)])
def test_values_are_those_that_gdcm_decodes_whatever_the_other_bits_hold(tmp_path, dtype, bits, high) -> None:
    tags = {} if bits is None else {"BitsStored": bits, "HighBit": high}
    path = tmp_path / "a.dcm"
    slice_of(noise(dtype), **tags).save_as(path, enforce_file_format=True)
    if bits is None or (high == bits - 1 and dtype[1] == "2"):  # GDCM does not shift bits down, and takes all eight of a byte
        np.testing.assert_array_equal(read_image(path).array[:, :, 0], gdcm(path))
    else:
        expected = (noise(dtype).astype(int) >> (high + 1 - bits)) & (1 << bits) - 1
        if dtype[0] == "i":
            expected = np.where(expected >= 1 << bits - 1, expected - (1 << bits), expected)
        np.testing.assert_array_equal(read_image(path).array[:, :, 0], expected)


def compressed(path, kind: str) -> np.ndarray:
    """Write noise of 12 bits as ``kind`` does, and return it."""
    stored = noise("u2", 0, 4096)
    file = slice_of(stored, BitsStored=12, HighBit=11)
    if kind == "RLE":
        file.compress(RLELossless, generate_instance_uid=False)
        file.save_as(path, enforce_file_format=True)
        return stored
    image = sitk.GetImageFromArray(stored.T[None])
    for tag, value in {"0020|0032": "0\\0\\0", "0020|0037": "1\\0\\0\\0\\1\\0", "0008|0060": "CT"}.items():
        image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(kind)
    writer.SetFileName(str(path))
    writer.Execute(image)
    fragment = next(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
    syntax = pydicom.dcmread(path).file_meta.TransferSyntaxUID
    file = slice_of(stored)
    file.PixelData, file.file_meta.TransferSyntaxUID = encapsulate([fragment]), syntax
    file["PixelData"].is_undefined_length, file["PixelData"].VR = True, "OB"
    file.save_as(path, enforce_file_format=True)
    return stored


@pytest.mark.parametrize("kind", ["RLE", "JPEG2000", "JPEG"])
def test_compressed_slices_give_their_values(tmp_path, kind) -> None:
    path = tmp_path / "a.dcm"
    stored = compressed(path, kind)
    np.testing.assert_array_equal(read_image(path).array[:, :, 0], stored)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2"])
def test_run_lengths_of_every_type_give_their_values(tmp_path, dtype) -> None:
    stored = noise(dtype)
    stored[2:9] = 7
    file = slice_of(stored)
    file.compress(RLELossless, generate_instance_uid=False)
    file.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").array[:, :, 0], stored)


@pytest.mark.fault("B", "a compressed picture in DICOM that is damaged or of another size", "refused by name, in bounded memory")
@pytest.mark.parametrize(("kind", "tries"), [("RLE", 60), ("JPEG2000", 6), ("JPEG", 6)])
def test_damaged_compressed_slices_are_read_or_refused(tmp_path, kind, tries, record_property) -> None:
    path = tmp_path / "a.dcm"
    compressed(path, kind)
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    start = data.index(b"\xe0\x7f\x10\x00")
    for _ in range(tries):
        changed = bytearray(data)
        for place in rng.integers(start, len(data), 3):
            changed[place] = rng.integers(256)
        path.write_bytes(changed if rng.random() < 0.7 else changed[: rng.integers(start, len(data))])
        message = "a.dcm"
        try:
            assert read_image(path).array.shape == (*SIZE, 1)
        except ImageReadError as error:
            message = str(error)
        assert "a.dcm" in message
    record_property("tries", tries)


@pytest.mark.fault("B", "a compressed picture in DICOM that is damaged or of another size", "refused by name, in bounded memory")
@pytest.mark.parametrize("kind", ["JPEG2000", "JPEG"])
@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [(7, 14, "the compressed picture has 13 x 7 pixels, expected 14 x 7"), (60_000, 60_000, r"claims 60000 x 60000 pixels in \d+ bytes")],
)
def test_a_picture_of_another_size_than_its_header_is_refused(tmp_path, kind, rows, columns, message) -> None:
    path = tmp_path / "a.dcm"
    compressed(path, kind)
    file = pydicom.dcmread(path)
    file.Rows, file.Columns = rows, columns
    file.save_as(path)
    with pytest.raises(ImageReadError, match=message):
        read_image(path)


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (b"1.2.840.10008.1.2.99", r"the transfer syntax 1\.2\.840\.10008\.1\.2\.99 is not supported"),
        (b"1.2.840.10008.1.2.5\0", "not stored as the transfer syntax 1.2.840.10008.1.2.5 says"),
    ],
)
def test_a_syntax_that_is_not_read_or_does_not_fit_is_named(tmp_path, syntax, message) -> None:
    folder = write_series(tmp_path)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", syntax))
    with pytest.raises(ImageReadError, match=message):
        read_image(folder)


def test_big_endian_words_of_eight_bits_are_swapped_back(tmp_path) -> None:
    stored = (volume()[:, :, 0] % 200).astype(np.uint8)
    file = slice_of(stored)
    file.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    file.PixelData = np.frombuffer(stored.T.tobytes(), "<u2").astype(">u2").tobytes()
    path = tmp_path / "a.dcm"
    pydicom.dcmwrite(path, file, enforce_file_format=True, implicit_vr=False, little_endian=False)
    np.testing.assert_array_equal(read_image(path).array[:, :, 0], stored)


@pytest.mark.fault("B", "a compressed picture that crashes the decoder, or lets it run for ever", "costs its case; the next one is decoded")
def test_a_decoder_that_crashes_is_replaced(tmp_path) -> None:
    path = tmp_path / "a.dcm"
    compressed(path, "JPEG2000")
    with Decoder() as decoder:
        for _ in range(2):
            decoder.decode(path.read_bytes())
            decoder._process.kill()
            with pytest.raises(DecoderError, match="crashed"):
                decoder.decode(path.read_bytes())
        with pytest.raises(DecoderError):
            decoder.decode(b"no DICOM")
        assert decoder.decode(path.read_bytes()).size == 13 * 7
