"""Series of slices: where they lie, what their values are, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from medseg3d.errors import ImageReadError
from medseg3d.images import is_image, read_header, read_image
from tests.dicom_writer import CT, MR, PET, SHAPE, nested, numbers, volume, write_other, write_series

OBLIQUE = (1, 0, 0, 0, 0.96, 0.28)
MOSAIC = "mosaic, many slices in one picture; convert it to NIfTI, for instance with dcm2niix"
PLANES = {
    "axial": (1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "feet first": (-1, 0, 0, 0, 1, 0),
    "oblique": OBLIQUE,
    "doubly oblique": (0.8, 0.6, 0, -0.36, 0.48, 0.8),
}


def shifted(index: int, by: np.ndarray):
    """Moves one slice, in mm."""

    def change(file, k):
        if k == index:
            file.ImagePositionPatient = numbers(np.array(file.ImagePositionPatient, float) + by)

    return change


# ---- the grid


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("names", ["{:03d}.dcm", "{:03d}"])
def test_each_voxel_lies_where_dicom_says(tmp_path, plane, names) -> None:
    orientation = np.array(PLANES[plane], float)
    folder = write_series(tmp_path, orientation=orientation, names=lambda k: names.format((k * 5) % 6), InstanceNumber=1)
    image = read_image(folder)
    np.testing.assert_array_equal(image.array, volume())
    column, row, index = 3, 2, 4
    normal = np.cross(orientation[:3], orientation[3:])
    lps = np.array([10, 20, 5]) + column * 0.5 * orientation[:3] + row * 0.7 * orientation[3:] + index * 2.5 * normal
    ras = image.header.geometry.matrix @ [column, row, index, 1]
    np.testing.assert_allclose(ras[:3], lps * [-1, -1, 1], atol=1e-4)
    assert image.header.geometry.spacing == pytest.approx((0.5, 0.7, 2.5))
    assert image.header.modality == "CT"
    assert is_image(folder)


@pytest.mark.fault("A4", "DICOM slices shifted in their plane", "refused, naming the slice and the shift in pixels")
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("index", [0, 1, 3, 5])
def test_a_slice_that_is_shifted_in_the_plane_is_refused(tmp_path, plane, index) -> None:
    orientation = PLANES[plane]
    folder = write_series(tmp_path, orientation=orientation, change=shifted(index, 0.3 * np.array(orientation[:3])))
    with pytest.raises(ImageReadError, match=rf"1 of 6 slices are shifted in the plane, 00{index}\.dcm by 0\.60 x -?0\.00 pixels"):
        read_header(folder)


def test_rounding_of_positions_is_no_shift(tmp_path) -> None:
    array = np.zeros((2, 2, 100), np.int16)
    tilted = np.array([0.0013, -0.0021, 0.6667])

    def rounded(file, _):
        file.ImagePositionPatient = [f"{float(v):.2f}" for v in file.ImagePositionPatient]

    header = read_header(write_series(tmp_path, array, step=tilted, change=rounded))
    assert header.geometry.spacing[2] == pytest.approx(0.6667, abs=1e-3)


@pytest.mark.fault("A4", "DICOM slices shifted in their plane", "refused, naming the slice and the shift in pixels")
def test_half_a_stack_that_is_shifted_is_refused(tmp_path) -> None:
    def change(file, k):
        shifted(k, np.array([0.0, 2.0, 0.0]) if k >= 3 else np.zeros(3))(file, k)

    with pytest.raises(ImageReadError, match="shifted in the plane"):
        read_header(write_series(tmp_path, change=change))


def test_a_missing_slice_is_refused_with_the_distances_and_the_gap(tmp_path) -> None:
    folder = write_series(tmp_path)
    (folder / "002.dcm").unlink()
    with pytest.raises(ImageReadError, match=r"uneven slice distance \(2\.50 to 5\.00 mm\), the widest between 001\.dcm and 003\.dcm"):
        read_image(folder)


def test_a_tilted_gantry_is_refused_with_the_angle_and_a_small_one_is_kept(tmp_path) -> None:
    tilted = write_series(tmp_path / "tilted", step=(0, 2.5 * np.tan(np.radians(18.5)), 2.5))
    with pytest.raises(ImageReadError, match=r"tilted gantry \(18\.5 degrees\)"):
        read_image(tilted)
    small = read_header(write_series(tmp_path / "small", step=(0, 0.02, 2.5)))
    np.testing.assert_allclose(small.geometry.matrix[:3, 2], (0, -0.02, 2.5), atol=1e-6)


@pytest.mark.fault("A4", "DICOM slices that differ in what a volume shares", "refused, naming the tag, two of its values and their files")
@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("PixelSpacing", ["0.72", "0.5"], r"different pixel spacings: 003\.dcm 0\.5 x 0\.72 mm, 000\.dcm 0\.5 x 0\.7 mm"),
        ("ImageOrientationPatient", numbers((1, 0, 0, 0, np.cos(0.05), np.sin(0.05))), r"turned against each other \(003\.dcm"),
        ("PhotometricInterpretation", "MONOCHROME1", r"differ in PhotometricInterpretation \(0028,0004\): MONOCHROME2 \(000\.dcm\)"),
        ("RescaleType", "US", r"differ in RescaleType \(0028,1054\): HU \(000\.dcm\), US \(003\.dcm\)"),
        ("FrameOfReferenceUID", "1.2.10", r"differ in FrameOfReferenceUID"),
        ("Units", "CNTS", r"differ in Units \(0054,1001\): BQML \(000\.dcm\), CNTS \(003\.dcm\)"),
    ],
)
def test_slices_that_differ_in_what_they_share_are_refused(tmp_path, tag, value, message) -> None:
    def change(file, k):
        if k == 3:
            setattr(file, tag, value)

    folder = write_series(tmp_path, np.zeros((20, 20, 6), np.int16), change=change, RescaleType="HU", Units="BQML")
    with pytest.raises(ImageReadError, match=message):
        read_header(folder)


def test_a_frame_of_reference_for_each_slice_tells_nothing(tmp_path) -> None:
    folder = write_series(tmp_path, change=lambda file, k: setattr(file, "FrameOfReferenceUID", f"1.2.9.{k}"))
    np.testing.assert_array_equal(read_image(folder).array, volume())


def test_directions_of_few_digits_are_brought_to_unit_length(tmp_path) -> None:
    folder = write_series(tmp_path, ImageOrientationPatient=["0.7", "0.7", "0", "-0.7", "0.7", "0"], step=(0, 0, 2.5))
    assert read_header(folder).geometry.spacing == pytest.approx((0.5, 0.7, 2.5))


def test_a_table_of_values_that_is_not_applied_is_told(tmp_path) -> None:
    folder = write_series(tmp_path, change=lambda file, _: setattr(file, "ModalityLUTSequence", nested(1).ReferencedImageSequence))
    assert "a table of values (Modality LUT (0028,3000)) is not applied" in read_header(folder).notes


@pytest.mark.parametrize(("thickness", "expected"), [("3", 3), ("0", 1), ("-2", 1), (None, 1)])
def test_a_thickness_that_is_none_counts_as_one(tmp_path, thickness, expected) -> None:
    folder = write_series(tmp_path, volume((5, 4, 1)), SliceThickness=thickness)
    assert read_header(folder).geometry.spacing[2] == pytest.approx(expected)


@pytest.mark.fault("A4", "DICOM slices that differ in what a volume shares", "refused, naming the tag, two of its values and their files")
def test_slices_of_different_sizes_are_refused(tmp_path) -> None:
    def change(file, k):
        if k == 3:
            file.Rows, file.Columns = file.Columns, file.Rows

    with pytest.raises(ImageReadError, match=r"different sizes: 4 x 5, 5 x 4"):
        read_header(write_series(tmp_path, change=change))


# ---- the values


@pytest.mark.fault("A4", "DICOM slices with slopes or intercepts of their own (PET, MR)", "each slice is scaled by its own")
@pytest.mark.parametrize("one", [None, 0, 3])
def test_slopes_of_each_slice_are_applied(tmp_path, one) -> None:
    slopes = 0.01 + 0.37 * np.arange(6)
    if one is not None:
        slopes[one] = 1

    def change(file, k):
        file.RescaleSlope, file.RescaleIntercept = f"{slopes[k]:.6f}", "0"

    stored = volume().astype(np.uint16)
    image = read_image(write_series(tmp_path, stored, change=change, kind=PET))
    assert image.array.dtype == np.float32
    np.testing.assert_allclose(image.array, stored * np.round(slopes, 6), rtol=1e-6)
    assert image.header.is_scaled


@pytest.mark.fault("A4", "DICOM slices with slopes or intercepts of their own (PET, MR)", "each slice is scaled by its own")
def test_intercepts_of_each_slice_give_whole_numbers(tmp_path) -> None:
    def change(file, k):
        file.RescaleIntercept = str(-40_000 * (k % 2))

    stored = np.abs(volume()).astype(np.uint16)
    image = read_image(write_series(tmp_path, stored, change=change, kind=MR))
    assert image.array.dtype == np.int32
    np.testing.assert_array_equal(image.array, stored.astype(int) - 40_000 * (np.arange(6) % 2))


@pytest.mark.fault("A4", "a DICOM slice without the slope or intercept that the others have", "refused, naming the slice and the tag")
@pytest.mark.parametrize("tag", ["RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("found", [None, ""])
def test_a_slice_without_the_scale_of_the_others_is_refused(tmp_path, tag, found) -> None:
    def change(file, k):
        if k == 4 and found is None:
            delattr(file, tag)
        elif k == 4:
            setattr(file, tag, found)

    scale = {"RescaleSlope": "2", "RescaleIntercept": "-1024"}
    with pytest.raises(ImageReadError, match=rf"004\.dcm has no {tag} \(0028,105[23]\), and 000\.dcm has (2|-1024)"):
        read_image(write_series(tmp_path, change=change, kind=PET, **scale))


def test_a_slice_may_leave_out_what_says_nothing(tmp_path) -> None:
    def change(file, k):
        if k != 4:
            file.RescaleSlope, file.RescaleIntercept = "1", "0"

    np.testing.assert_array_equal(read_image(write_series(tmp_path, change=change, kind=MR)).array, volume())


@pytest.mark.parametrize(
    ("stored", "tags", "dtype"),
    [
        (np.int16, {}, np.int16),
        (np.uint16, {}, np.uint16),
        (np.uint8, {}, np.uint8),
        (np.uint16, {"RescaleSlope": "1", "RescaleIntercept": "-1024", "BitsStored": 12, "HighBit": 11}, np.int16),
        (np.int16, {"RescaleSlope": "1", "RescaleIntercept": "-1024"}, np.int32),
        (np.uint32, {"RescaleIntercept": "-1"}, np.int64),
        (np.uint16, {"RescaleIntercept": "0.5"}, np.float32),
        (np.uint16, {"RescaleSlope": "0"}, np.uint16),
    ],
)
def test_values_take_the_smallest_type_that_holds_them(tmp_path, stored, tags, dtype) -> None:
    array = (np.arange(np.prod(SHAPE)) % 200).reshape(SHAPE).astype(stored)
    image = read_image(write_series(tmp_path, array, **tags))
    assert image.array.dtype == dtype
    np.testing.assert_array_equal(image.array, array.astype(float) + float(tags.get("RescaleIntercept", 0)))


@pytest.mark.fault("A4", "DICOM of MONOCHROME1", "its values are taken as they are, not inverted, and a warning says so")
def test_monochrome1_keeps_its_values_and_is_told(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        image = read_image(write_series(tmp_path, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(image.array, volume())
    assert "MONOCHROME1: shown with dark and bright exchanged; the values are taken as they are" in caplog.text


# ---- what else lies in the folder


@pytest.mark.fault("E", "copies of DICOM slices called a time series", "dropped with a note")
def test_copies_of_slices_are_dropped_with_a_note(tmp_path) -> None:
    folder = write_series(tmp_path)
    for path in sorted(folder.iterdir())[:3]:
        (folder / f"{path.stem} (1).dcm").write_bytes(path.read_bytes())
    image = read_image(folder)
    np.testing.assert_array_equal(image.array, volume())
    assert image.header.notes == ("3 copies of slices were dropped (000.dcm, …)",)


@pytest.mark.fault("E", "copies of DICOM slices called a time series", "dropped with a note")
def test_slices_with_one_uid_that_are_no_copies_are_kept(tmp_path) -> None:
    image = read_image(write_series(tmp_path, SOPInstanceUID="1.2.3.4"))
    np.testing.assert_array_equal(image.array, volume())


@pytest.mark.parametrize(
    ("tag", "values", "listed"),
    [
        ("EchoTime", ("10", "20"), r"EchoTime \(0018,0081\): Echo10, Echo20"),
        ("TemporalPositionIdentifier", ("2", "10"), r"TemporalPositionIdentifier \(0020,0100\): Time2, Time10"),
        ("AcquisitionNumber", ("1", "2"), r"AcquisitionNumber \(0020,0012\): Acquisition1, Acquisition2"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), r"ImageType \(0008,0008\): TypeM, TypeP"),
    ],
)
@pytest.mark.fault("B", "DICOM series over time or of several contrasts", "refused, naming the tag that tells volumes apart")
def test_volumes_in_one_series_are_refused_with_the_tag_that_tells_them_apart(tmp_path, tag, values, listed) -> None:
    for number, value in enumerate(values):
        write_series(
            tmp_path,
            volume(seed=number),
            names=f"{number}-{{:03d}}.dcm".format,
            change=lambda file, k, n=number: setattr(file, "SOPInstanceUID", f"1.2.8.{n}.{k}"),
            **{tag: value},
        )
    with pytest.raises(ImageReadError, match=rf"2 volumes of 6 slices in one series, .*told apart by {listed}\. Split it"):
        read_image(tmp_path)


MAGNITUDE, PHASE = ["ORIGINAL", "PRIMARY", "M", "ND"], ["ORIGINAL", "PRIMARY", "P", "ND"]
KINDS = {
    "magnitude and phase": ("ImageType", MAGNITUDE, PHASE, "magnitude, phase"),
    "of another vendor": ("ImageType", ["ORIGINAL", "PRIMARY", "R_FFE"], ["ORIGINAL", "PRIMARY", "I_FFE"], "real, imaginary"),
    "water and fat": ("ImageType", ["DERIVED", "PRIMARY", "DIXON", "WATER"], ["DERIVED", "PRIMARY", "DIXON", "FAT"], "water, fat"),
    "components": ("ComplexImageComponent", "MAGNITUDE", "PHASE", "MAGNITUDE, PHASE"),
    "echoes": ("EchoTime", "2.3", "4.6", "2.3, 4.6"),
    "b-values": ("DiffusionBValue", 0.0, 800.0, "0, 800"),
}
WEAK = {
    "original and derived": ("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "AXIAL"]),
    "ways of a scanner": ("ImageType", ["ORIGINAL", "PRIMARY", "HELICAL"], ["ORIGINAL", "PRIMARY", "AXIAL"]),
    "inversions": ("InversionTime", "100", "400"),
    "angles": ("FlipAngle", "5", "26"),
    "series": ("SeriesNumber", "4", "5"),
}


@pytest.mark.parametrize("is_first", [lambda k: k % 2 == 0, lambda k: k < 4], ids=["in turns", "one behind the other"])
@pytest.mark.parametrize(("tag", "one", "other", "kinds"), KINDS.values(), ids=list(KINDS))
@pytest.mark.fault(
    "A", "slices of several kinds (magnitude and phase, echoes, b-values) at different places of one series", "refused by name"
)
def test_slices_of_several_kinds_are_no_volume_wherever_they_lie(tmp_path, tag, one, other, kinds, is_first) -> None:
    def change(file, k) -> None:
        setattr(file, tag, one if is_first(k) else other)

    write_series(tmp_path, volume((5, 4, 8)), change=change)
    with pytest.raises(ImageReadError, match=rf"2 volumes of 4 slices in one series, .*{tag} \(.*Split it into one folder each"):
        read_image(tmp_path)
    (tmp_path / "002.dcm").unlink()  # a kind with a gap is no stack of its own
    first, second = kinds.split(", ")
    with pytest.raises(ImageReadError, match=rf"the slices differ in {tag} \(.*\): .*{first}.* \(000.dcm\), .*{second}.* \(00[14].dcm\)"):
        read_image(tmp_path)


@pytest.mark.parametrize(("tag", "one", "other"), WEAK.values(), ids=list(WEAK))
def test_what_may_change_within_a_volume_tells_kinds_only_where_these_take_turns(tmp_path, tag, one, other) -> None:
    for name, is_first in (("turns", lambda k: k % 2 == 0), ("parts", lambda k: k < 4), ("single", lambda k: k != 3)):
        write_series(
            tmp_path / name, volume((5, 4, 8)), change=lambda file, k, is_first=is_first: setattr(file, tag, one if is_first(k) else other)
        )
    with pytest.raises(ImageReadError, match=rf"2 volumes of 4 slices in one series, .*{tag} \(.*Split it into one folder each"):
        read_image(tmp_path / "turns")
    for name in ("parts", "single"):
        np.testing.assert_array_equal(read_image(tmp_path / name).array, volume((5, 4, 8)))


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("SeriesNumber", ("3", "03")),
        ("EchoTime", ("0", "1.4")),
        ("InversionTime", ("0", "250")),
        ("ImageType", (["ORIGINAL", "PRIMARY"], ["ORIGINAL", "PRIMARY", "AXIAL"])),
    ],
)
def test_what_some_slices_do_not_say_tells_no_kinds(tmp_path, tag, values) -> None:
    write_series(tmp_path, volume((5, 4, 8)), change=lambda file, k: setattr(file, tag, values[k % 2]))
    np.testing.assert_array_equal(read_image(tmp_path).array, volume((5, 4, 8)))


def test_one_slice_of_another_kind_is_named(tmp_path) -> None:
    write_series(tmp_path, change=lambda file, k: setattr(file, "ImageType", PHASE if k == 3 else MAGNITUDE))
    message = r"the slices differ in ImageType \(0008,0008\): magnitude \(000.dcm\), phase \(003.dcm\)\. Give each kind"
    with pytest.raises(ImageReadError, match=message):
        read_image(tmp_path)


def test_a_volume_at_the_places_of_another_that_lacks_a_slice_is_told_apart_by_its_kind(tmp_path) -> None:
    for number, kind in enumerate((MAGNITUDE, PHASE)):
        write_series(tmp_path, volume((5, 4, 6 - number), number), names=f"{number}-{{:03d}}".format, ImageType=kind)
    with pytest.raises(ImageReadError, match=r"2 volumes of 6 and 5 slices in one series.* told apart by ImageType .*: TypeM, TypeP"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("EchoTime", ("8.97", "8.98")),  # as it was measured
        ("ImageType", (["ORIGINAL", "PRIMARY", "M", "NORM"], ["ORIGINAL", "PRIMARY", "M", "ND"])),  # steps of a reconstruction
        ("InversionTime", ("260", "310")),  # as the contrast agent leaves
        ("FlipAngle", (None, "90")),  # said by some
        ("TriggerTime", ("10", "400")),  # each slice at its own time
        ("RepetitionTime", ("800", "910")),
    ],
)
def test_what_varies_within_a_volume_is_no_other_kind(tmp_path, tag, values) -> None:
    write_series(tmp_path, change=lambda file, k: values[k % 2] and setattr(file, tag, values[k % 2]))
    np.testing.assert_array_equal(read_image(tmp_path).array, volume())


def test_slices_at_one_position_that_no_tag_tells_apart_are_refused(tmp_path) -> None:
    for number in range(2):
        write_series(tmp_path, volume(seed=number), names=f"{number}-{{:03d}}".format)
    with pytest.raises(ImageReadError, match="12 slices lie at the same positions as others"):
        read_image(tmp_path)


@pytest.mark.fault("B", "reports, segmentations and plans among DICOM slices", "left out, each with its kind")
@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.22", "structured report"),
        ("1.2.840.10008.5.1.4.1.1.88.67", "structured report"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "DICOM SEG"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "RT structure set"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "presentation state"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "encapsulated document"),
        ("1.2.840.10008.5.1.4.1.1.66", "raw data"),
        ("1.3.12.2.1107.5.9.1", r"no pixel data \(OT\)"),
    ],
)
def test_what_is_no_picture_is_left_out_with_its_kind(tmp_path, kind, named) -> None:
    folder = write_series(tmp_path)
    write_other(folder / "report.dcm", kind)
    image = read_image(folder)
    np.testing.assert_array_equal(image.array, volume())
    assert len(image.header.notes) == 1
    assert image.header.notes[0] == f"left out report.dcm: {named}".replace("\\", "")


@pytest.mark.fault("B", "a localizer, a scout or a screenshot among DICOM slices", "left out, with the reason")
@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"orientation": (0, 1, 0, 0, 0, -1)}, "scout: lies in another plane than its series"),
        (
            {"ImageType": ["ORIGINAL", "PRIMARY", "MOSAIC"]},
            "mosaic, many slices in one picture; convert it to NIfTI, for instance with dcm2niix",
        ),
        ({"orientation": (0, 1, 0, 0, 0, -1), "series": "1.2.3.7"}, "scout: 1 slice beside longer series"),
        ({"kind": "1.2.840.10008.5.1.4.1.1.7", "ImagePositionPatient": None, "series": "1.2.3.7"}, "secondary capture"),
    ],
)
def test_scouts_and_screenshots_are_left_out(tmp_path, tags, reason) -> None:
    folder = write_series(tmp_path)
    write_series(folder, volume((9, 9, 1)), names="scout{}".format, **{"SOPInstanceUID": "1.2.8", **tags})
    image = read_image(folder)
    np.testing.assert_array_equal(image.array, volume())
    assert image.header.notes == (f"left out scout0: {reason}",)


def test_two_series_are_listed_and_refused(tmp_path) -> None:
    write_series(tmp_path / "both", SeriesDescription="first")
    write_series(tmp_path / "both", series="1.2.3.2", names="b{}.dcm".format, SeriesDescription="second")
    with pytest.raises(ImageReadError, match=r"2 series found: first \(6 files, first 000\.dcm\); second \(6 files, first b0\.dcm\)"):
        read_image(tmp_path / "both")
    write_series(tmp_path / "study" / "one")
    write_series(tmp_path / "study" / "two", series="1.2.3.2")
    with pytest.raises(ImageReadError, match=r"2 series found: one \(6 files, first 000\.dcm\); two \(6 files, first 000\.dcm\)"):
        read_image(tmp_path / "study")


def test_a_series_that_fills_several_folders_is_one(tmp_path) -> None:
    write_series(tmp_path, names=lambda k: f"{k:03d}.dcm")
    for k in range(3):
        (tmp_path / "rest").mkdir(exist_ok=True)
        (tmp_path / f"{k:03d}.dcm").rename(tmp_path / "rest" / f"{k:03d}.dcm")
    np.testing.assert_array_equal(read_image(tmp_path).array, volume())


def test_a_folder_without_dicom_and_one_without_a_series_are_refused(tmp_path) -> None:
    with pytest.raises(ImageReadError, match="without DICOM files"):
        read_image(tmp_path)
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "._001.dcm").write_bytes(b"macOS")
    with pytest.raises(ImageReadError, match="without DICOM files"):
        read_image(tmp_path)
    write_other(tmp_path / "a.dcm", "1.2.840.10008.5.1.4.1.1.88.22")
    write_other(tmp_path / "b.dcm", "1.2.840.10008.5.1.4.1.1.88.22")
    with pytest.raises(ImageReadError, match=r"no series of slices among 2 DICOM files: left out a\.dcm and 1 more: structured report"):
        read_image(tmp_path)
    with pytest.raises(ImageReadError, match="structured report is not supported as label or image"):
        read_image(tmp_path / "a.dcm")


@pytest.mark.parametrize("path", ["000.dcm", "IM0001", "1.2.840.1", "."])
def test_one_slice_is_an_image_of_its_thickness(tmp_path, path) -> None:
    write_series(tmp_path, volume((5, 4, 1)), names=lambda _: path if path != "." else "000.dcm")
    header = read_header(Path(tmp_path / path))
    assert header.geometry.shape == (5, 4, 1)
    assert header.geometry.spacing == pytest.approx((0.5, 0.7, 3))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"NumberOfFrames": 3}, r"3 frames in one DICOM file that does not say where each lies; convert it to NIfTI"),
        ({"SamplesPerPixel": 3}, r"color image \(3 values per voxel\)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, r"color image \(PALETTE COLOR\)"),
        ({"ImagePositionPatient": None}, r"000\.dcm: the DICOM tag \(0020,0032\) \(ImagePositionPatient\) is missing or damaged"),
        ({"PixelSpacing": None}, r"\(0028,0030\) \(PixelSpacing\) is missing"),
        ({"PixelSpacing": ["0", "0.5"]}, r"every axis needs a number above 0"),
        ({"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]}, r"holds no two directions at right angles"),
        ({"BitsAllocated": 12}, r"values of 16 bits up to bit 15 in 12"),
        ({"Rows": 0}, r"a picture of 5 x 0 pixels"),
    ],
)
def test_what_is_no_gray_slice_is_refused_by_name(tmp_path, tags, message) -> None:
    with pytest.raises(ImageReadError, match=message):
        read_image(write_series(tmp_path, kind=CT, **tags))


def test_slopes_that_change_within_a_ct_are_told(tmp_path) -> None:
    folder = write_series(tmp_path, change=lambda file, k: setattr(file, "RescaleIntercept", "-1024" if k else "-1025"))
    assert read_header(folder).notes == ("CT whose slices have different slopes or intercepts; each is scaled by its own",)


@pytest.mark.fault("B", "slices missing at the end of a PET series", "a warning says how many there should be")
def test_slices_that_are_missing_at_an_end_are_told_where_the_headers_count_them(tmp_path) -> None:
    folder = write_series(tmp_path, kind=PET, NumberOfSlices=8)
    assert read_header(folder).notes == ("6 slices, and each says that there are 8; the others are missing at an end",)


def test_many_files_that_call_themselves_one_slice_are_not_compared_in_pairs(tmp_path) -> None:
    write_series(tmp_path, np.arange(60, dtype=np.int16).reshape(1, 1, 60), SOPInstanceUID="1.2.3.4", step=(0, 0, 0))
    with pytest.raises(ImageReadError, match="60 slices lie at the same positions"):
        read_header(tmp_path)
