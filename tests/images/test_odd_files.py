"""Real odd files that people do feed to a segmentation tool; only where MEDSEG3D_DATA names their folder."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.reading import RawCase, read_case
from medseg3d.errors import GeometryMismatchError, ImageReadError, InputError, LabelValueError
from medseg3d.images import read_image, write_label_map

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.fault(
        "B", "odd files of the real world (headers, 4D, DICOM, NRRD, label types)", "read on the right grid, or refused with what was found"
    ),
]

REFUSED = {
    "4d/dmri.nii.gz": "4D image with 7 volumes",
    "4d/venc.nii.gz": "4D image with 3 volumes",
    "4d/nibabel_functional.nii": "4D image with 20 volumes",
    "dicom/Study1": "2 series found",
    "dicom/ge_head_ct_variable_tilt": r"tilted gantry \(18\.5 degrees\) and uneven slice distance \(1\.08 to 7\.00 mm\)",
    "headers/nibabel_example_nifti2.nii.gz": "4D image with 2 volumes",
    "headers/nibabel_test.mgz": "mgz is not supported",
    "headers/nibabel_minc2_baddim.mnc": "MINC",
    "headers/rgb_2d_report.nii.gz": "color image",
}
SPACINGS = {
    "dicom/Study1/12-T1post-05670": (0.4297, 0.4297, 6.5),
    "dicom/dcmqi_ct3/ct-3slice": (0.810547, 0.810547, 1.0),
    "dicom/torchio": (2, 2, 2),
    "headers/em_isbi_label_units_micron.nii.gz": (4e-6, 4e-6, 5e-5),
    "nrrd_pyradiomics/breast1_image.nrrd": (0.6640625, 0.6640625, 2.1),
    "spinal_cord/images/mt0.nii.gz": (0.84375, 0.84375, 17),
}
PAIRS = [
    ("headers/monai_anatomical.nii", "headers/monai_anatomical_label.nii.gz"),
    ("headers/monai_reoriented_anat_moved.nii", "headers/monai_reoriented_anat_moved_label.nii.gz"),
    ("nrrd_pyradiomics/breast1_image.nrrd", "nrrd_pyradiomics/breast1_label.nrrd"),
    ("nrrd_pyradiomics/prostate_phantom_subvolume.nrrd", "nrrd_pyradiomics/prostate_phantom_subvolume-label.nrrd"),
    ("prostate/Prostatex_0000.nii.gz", "prostate/Prostatex_0000_lab.nii.gz"),
    ("spinal_cord/images/mt0.nii.gz", "spinal_cord/labels/mt0_cord.nii.gz"),
    ("spinal_cord/images/mt1.nii.gz", "spinal_cord/labels/mt1_cord.nii.gz"),
    ("spinal_cord/images/t1w.nii.gz", "spinal_cord/labels/t1w_cord.nii.gz"),
    ("spinal_cord/images/t2.nii.gz", "spinal_cord/labels/t2_cord.nii.gz"),
    ("spinal_cord/images/t2.nii.gz", "spinal_cord/labels/t2_levels_float64.nii.gz"),
    ("spinal_cord/images/t2s.nii.gz", "spinal_cord/labels/t2s_gm.nii.gz"),
    ("vertebra_tptbox/sub-ct_label-22_ct.nii.gz", "vertebra_tptbox/sub-ct_seg-subreg_label-22_msk.nii.gz"),
    ("vertebra_tptbox/sub-mri_label-6_T2w.nii.gz", "vertebra_tptbox/sub-mri_seg-vert_label-6_msk.nii.gz"),
    ("dicom/dcmqi_ct3/ct-3slice", "dicom/dcmqi_ct3/liver_spine_gapped_seg.nrrd"),
    ("dicom/dcmqi_ct3/ct-3slice", "dicom/dcmqi_ct3/liver.dcm"),
]


@pytest.fixture
def odd(real_data) -> Path:
    if not (real_data / "robustness").is_dir():
        pytest.skip("no folder robustness")
    return real_data / "robustness"


def pair(folder: Path, image: str, label: str) -> RawCase:
    return read_case(Case(name="x", channels=(ChannelFile(path=folder / image),), label=folder / label))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_one_volume_is_refused_with_the_facts(odd, name) -> None:
    with pytest.raises(ImageReadError, match=REFUSED[name]):
        read_image(odd / name)


@pytest.mark.parametrize("name", SPACINGS)
def test_spacings_are_millimeters_between_centers(odd, name, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_image(odd / name).header.geometry.spacing == pytest.approx(SPACINGS[name], rel=1e-4)


@pytest.mark.parametrize(("image", "label"), PAIRS)
def test_pairs_are_read_and_results_lie_on_the_images_grid(odd, image, label, tmp_path) -> None:
    case = pair(odd, image, label)
    assert case.labels is not None
    assert case.labels.shape == case.image.shape[1:]
    written = write_label_map(tmp_path / "r.nii.gz", np.zeros(case.header.geometry.shape, np.uint8), case.header)
    np.testing.assert_allclose(read_image(written).header.geometry.matrix, case.header.geometry.matrix, atol=1e-4)


def test_soft_labels_and_foreign_labels_are_refused(odd) -> None:
    with pytest.raises(LabelValueError, match="SOFT"):
        pair(odd, "spinal_cord/images/mt1.nii.gz", "spinal_cord/labels/mt1_gm_SOFT_noninteger.nii.gz")
    with pytest.raises(GeometryMismatchError, match="shape 512 x 512 x 94"):
        pair(odd, "hippocampus_odd/hippocampus_118.nii.gz", "hippocampus_odd/hippocampus_281_label.nii.gz")


def test_slope_and_intercept_of_one_volume_are_applied(odd) -> None:
    path = odd / "4d/nibabel_functional.nii"
    expected = nibabel.load(path).get_fdata()[..., 19]
    np.testing.assert_array_equal(read_image(path, volume=19).array, expected.astype(np.float32))


def test_a_dicom_seg_is_the_same_label_as_its_twin_in_nrrd(odd) -> None:
    folder = odd / "dicom/dcmqi_ct3"
    seg, nrrd = (pair(folder, "ct-3slice", name).labels for name in ("liver.dcm", "liver_seg.nrrd"))
    assert (seg != 0).any()
    np.testing.assert_array_equal(seg, nrrd)


@pytest.mark.parametrize("name", ["sparse-labelmap-ppv5.dcm", "sparse-labelmap-noppv.dcm"])
def test_a_label_map_seg_keeps_its_missing_slice_and_its_padding_is_background(odd, name) -> None:
    folder = odd / "dicom/dcmqi_ct3"
    seg, nrrd = read_image(folder / name), read_image(folder / f"{name[:-4].replace('-', '_')}_seg.nrrd")
    np.testing.assert_allclose(seg.header.geometry.matrix, nrrd.header.geometry.matrix, atol=1e-4)
    np.testing.assert_array_equal(seg.array, np.where(nrrd.array == 5, 0, nrrd.array))
    assert not (seg.array[:, :, 1] != 0).any()


def test_a_dicom_seg_is_no_image(odd) -> None:
    with pytest.raises(InputError, match=r"liver\.dcm is a segmentation"):
        read_case(Case(name="x", channels=(ChannelFile(path=odd / "dicom/dcmqi_ct3/liver.dcm"),)))
