"""The phantom dataset: its layout, that it repeats itself, and that it holds what it promises."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.data.phantom import LABELS, ORIENTATIONS, PhantomCase, make_case, make_phantom_dataset, orientation_from_code
from medseg3d.errors import DatasetError
from medseg3d.geometry import canonical_spacing, code_of, geometry_of, orientation_of, to_canonical
from medseg3d.workflows.demo import demo


@cache
def case_of(number: int) -> PhantomCase:
    return make_case(number, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom_dataset(tmp_path_factory.mktemp("phantom"), num_training=2, num_test=1, seed=3)


def test_the_folder_is_a_complete_nnunet_dataset(folder: Path) -> None:
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert description["numTraining"] == 2
    assert description["labels"] == LABELS
    assert description["channel_names"] == {"0": "MRI"}
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.nii.gz"))
    assert files == [
        "imagesTr/phantom_000_0000.nii.gz",
        "imagesTr/phantom_001_0000.nii.gz",
        "imagesTs/phantom_002_0000.nii.gz",
        "labelsTr/phantom_000.nii.gz",
        "labelsTr/phantom_001.nii.gz",
        "labelsTs/phantom_002.nii.gz",
    ]


def test_image_and_label_share_one_grid_and_the_declared_types(folder: Path) -> None:
    image = nibabel.load(folder / "imagesTr" / "phantom_001_0000.nii.gz")
    label = nibabel.load(folder / "labelsTr" / "phantom_001.nii.gz")
    assert image.shape == label.shape
    np.testing.assert_array_equal(image.affine, label.affine)
    assert image.get_data_dtype() == np.int16
    assert label.get_data_dtype() == np.uint8


def test_a_case_depends_on_the_seed_and_its_number_only(folder: Path) -> None:
    again = make_case(2, seed=3)
    on_disk = nibabel.load(folder / "imagesTs" / "phantom_002_0000.nii.gz")
    np.testing.assert_array_equal(np.asarray(on_disk.dataobj), again.image)
    assert not np.array_equal(make_case(2, seed=4).image, again.image)


@pytest.mark.parametrize("number", range(5))
def test_every_case_holds_all_labels_with_left_on_the_left(number: int) -> None:
    case = case_of(number)
    orientation = orientation_of(case.affine)
    assert code_of(orientation) == ORIENTATIONS[number]
    labels = to_canonical(case.labels, orientation)
    assert set(np.unique(labels)) == set(LABELS.values())
    left = np.argwhere(labels == LABELS["left_nodule"]).mean(0)
    right = np.argwhere(labels == LABELS["right_nodule"]).mean(0)
    assert left[2] + 10 < right[2]


def test_spacing_is_anisotropic_and_slices_are_axial() -> None:
    spacings = []
    for number in range(4):
        case = case_of(number)
        spacings.append(canonical_spacing(geometry_of(case.image.shape, case.affine), orientation_of(case.affine)))
    spacings_array = np.array(spacings)
    assert (spacings_array[:, 0] >= 2).all()
    assert ((spacings_array[:, 1:] > 0.89) & (spacings_array[:, 1:] < 1.11)).all()
    assert np.unique(spacings_array[:, 0]).size == 4


def test_some_grids_are_oblique_and_some_are_not() -> None:
    directions = [case.affine[:3, :3] for case in (case_of(number) for number in range(5))]
    oblique = [np.count_nonzero(np.abs(d) > 1e-9) > 3 for d in directions]
    assert 0 < sum(oblique) < 5


@pytest.mark.parametrize("code", sorted(set(ORIENTATIONS)))
def test_orientation_codes_are_read_back(code: str) -> None:
    assert code_of(orientation_from_code(code)) == code


def test_demo_does_not_write_into_a_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DatasetError, match="not empty"):
        demo(tmp_path)


def test_demo_may_be_run_twice(tmp_path: Path) -> None:
    for _ in range(2):
        demo(tmp_path / "new", num_training=1, num_test=0)
    assert (tmp_path / "new" / "imagesTr" / "phantom_000_0000.nii.gz").is_file()
