"""A structure's numbers say where it is in the world, whatever the axes of its file."""

from __future__ import annotations

import itertools
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from medseg3d.errors import InputError, UnsupportedError
from medseg3d.geometry import Geometry, geometry_of
from medseg3d.labels import Labels
from medseg3d.structures.distances import wanted_pairs
from medseg3d.structures.measure_case import measure_case
from medseg3d.structures.radiomics import radiomics_extractor
from medseg3d.structures.records import CaseStructures, Structure, Structures, distances_csv, read_structures, to_csv, write_structures
from medseg3d.structures.shapes import diameter

LABELS = Labels(names=("background", "liver", "tumor"), values=(0, 1, 2))
OBLIQUE = np.array([[0.8, -0.6, 0, -20], [0.6, 0.8, 0, 11], [0, 0, 2.5, -3], [0, 0, 0, 1]])


IDENTITY = np.eye(4)


def measured(label_map: np.ndarray, affine: np.ndarray = IDENTITY, **keywords: object) -> CaseStructures:
    return measure_case(label_map, geometry_of(label_map.shape, affine), labels=LABELS, **keywords)


def two_blocks() -> np.ndarray:
    label_map = np.zeros((12, 10, 8), np.uint8)
    label_map[2:6, 3:7, 1:5] = 1
    label_map[9:11, 3:5, 2] = 2
    return label_map


def turned(label_map: np.ndarray, affine: np.ndarray, axes: tuple[int, ...], flipped: tuple[bool, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels at the same places, stored with other axes."""
    array, matrix = label_map, affine.copy()
    for axis, is_flipped in enumerate(flipped):
        if is_flipped:
            array = np.flip(array, axis)
            matrix[:3, 3] += matrix[:3, axis] * (array.shape[axis] - 1)
            matrix[:3, axis] *= -1
    return array.transpose(axes), np.concatenate((matrix[:, list(axes)], matrix[:, 3:]), 1)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("flipped", [(False, False, True), (True, True, False)], ids=str)
def test_the_axes_of_a_file_change_no_number(axes: tuple[int, ...], flipped: tuple[bool, ...]) -> None:
    image = np.random.default_rng(0).normal(size=two_blocks().shape)
    array, affine = turned(two_blocks(), OBLIQUE, axes, flipped)
    other_image, _ = turned(image, OBLIQUE, axes, flipped)
    expected = measured(two_blocks(), OBLIQUE, images={"CT": image}, pairs=[("liver", "tumor")])
    found = measured(array, affine, images={"CT": other_image}, pairs=[("liver", "tumor")])
    assert flat(found.structures) == pytest.approx(flat(expected.structures))
    assert flat(found.distances) == pytest.approx(flat(expected.distances))


def flat(records: tuple[object, ...]) -> list[float]:
    """Every number of some records, in order."""
    text = to_csv(
        [CaseStructures(case="", shape=(1, 1, 1), spacing_mm=(1, 1, 1), structures=tuple(r for r in records if isinstance(r, Structure)))]
    )
    numbers = [
        float(cell) for line in text.splitlines()[1:] for cell in line.split(",") if cell.replace(".", "").replace("-", "").isdigit()
    ]
    return numbers or [
        getattr(each, name) for each in records for name in ("minimum_mm", "mean_first_to_second_mm", "mean_second_to_first_mm")
    ]


def test_a_block_measures_what_it_is() -> None:
    liver, tumor = measured(two_blocks(), np.diag([2.0, 1.0, 0.5, 1.0]), images={"CT": two_blocks() * 100.0}).structures
    assert (liver.voxels, liver.volume_ml, liver.num_objects) == (64, 0.064, 1)
    assert liver.centroid_mm == (7.0, 4.5, 1.25)
    assert (liver.box_low_mm, liver.box_high_mm) == ((3.0, 2.5, 0.25), (11.0, 6.5, 2.25))
    assert liver.extent_mm == (8.0, 4.0, 2.0)
    assert liver.diameter_mm == pytest.approx(np.sqrt(36 + 9 + 2.25))
    assert (tumor.intensities["CT"].mean, tumor.intensities["CT"].std) == (200.0, 0.0)


def test_what_is_not_there_has_a_volume_of_zero_and_no_place() -> None:
    tumor = measured(np.ones((3, 3, 3), np.uint8)).structures[1]
    assert (tumor.voxels, tumor.volume_ml, tumor.centroid_mm, tumor.diameter_mm, tumor.intensities) == (0, 0.0, None, None, {})


def test_a_structure_that_reaches_the_edge_may_lack_a_part() -> None:
    label_map = two_blocks()
    label_map[0, 0, 0] = 2
    liver, tumor = measured(label_map).structures
    assert (liver.is_at_edge, tumor.is_at_edge) == (False, True)
    slice_alone = np.zeros((9, 9, 1), np.uint8)
    slice_alone[3:5, 3:5, 0] = 1
    assert not measured(slice_alone).structures[0].is_at_edge


def test_objects_that_touch_by_a_corner_are_one() -> None:
    label_map = np.zeros((6, 6, 6), np.uint8)
    label_map[1, 1, 1] = label_map[2, 2, 2] = label_map[2, 2, 3] = label_map[5, 5, 5] = 1
    liver = measured(label_map).structures[0]
    assert (liver.num_objects, liver.largest_object_ml) == (2, 0.003)


def test_regions_are_measured_as_the_unions_that_they_are() -> None:
    nested = Labels(names=("background", "whole", "core"), values=(0, 1, 2), regions=((1, 2), (2,)))
    label_map = np.zeros((5, 5, 5), np.uint8)
    label_map[1:4, 1:4, 1:4], label_map[2, 2, 2] = 1, 2
    whole, core = measure_case(label_map, geometry_of(label_map.shape, np.eye(4)), labels=nested).structures
    assert (whole.voxels, core.voxels) == (27, 1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 3))
def test_the_diameter_is_that_of_the_farthest_pair(seed: int, number: int, dimensions: int) -> None:
    """Also of points in a plane, on a line, and of a single one."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 6, (number, dimensions)) @ rng.normal(size=(dimensions, 3))
    assert diameter(points) == pytest.approx(max(pdist(points), default=0.0), abs=1e-6)


def test_the_gap_runs_between_the_nearest_voxels() -> None:
    (distance,) = measured(two_blocks(), np.diag([2.0, 1.0, 0.5, 1.0]), pairs=[("liver", "tumor")]).distances
    assert (distance.minimum_mm, distance.is_touching) == (8.0, False)
    label_map = two_blocks()
    label_map[6, 4, 2] = 2
    (distance,) = measured(label_map, pairs=[("liver", "tumor")]).distances
    assert (distance.minimum_mm, distance.is_touching) == (1.0, True)


def test_pairs_are_named_by_their_labels() -> None:
    assert wanted_pairs(["Liver:tumor"], ["liver", "tumor"]) == (("liver", "tumor"),)
    with pytest.raises(InputError, match=r"--distances liver:lung: expected two labels such as tumor:vessel.* liver, tumor"):
        wanted_pairs(["liver:lung"], ["liver", "tumor"])


def test_structures_are_read_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("structures")
    case = measured(two_blocks(), OBLIQUE, images={"CT": two_blocks() * 1.5}, pairs=[("liver", "tumor")])
    found = Structures(labels="labels", images="images", cases=(case,))
    written = write_structures(found, folder / "numbers.csv")
    assert [file.name for file in written] == ["numbers.json", "numbers.csv", "numbers-distances.csv"]
    assert read_structures(written[0]) == found
    assert len(distances_csv(found.cases).splitlines()) == 2


def test_radiomics_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "radiomics", None)
    with pytest.raises(UnsupportedError, match=r"--radiomics needs pyradiomics.*pip install pyradiomics"):
        radiomics_extractor()


def test_radiomics_are_measured_of_the_structure_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that says what it is given; of a structure of one voxel it is not asked."""
    monkeypatch.setitem(sys.modules, "radiomics", stand_in())
    label_map = two_blocks()
    image = np.random.default_rng(1).normal(size=label_map.shape)
    affine = np.diag([2.0, 1.0, 0.5, 1.0])
    liver, tumor = measured(label_map, affine, images={"CT": image}, radiomics=radiomics_extractor()).structures
    assert liver.radiomics == pytest.approx({"sum": image[label_map == 1].sum(), "spacing": 0.5})
    assert tumor.radiomics["sum"] == pytest.approx(image[label_map == 2].sum())
    label_map[label_map == 2] = 0
    label_map[9, 9, 7] = 2
    assert measured(label_map, affine, images={"CT": image}, radiomics=radiomics_extractor()).structures[1].radiomics == {}


def stand_in() -> types.ModuleType:
    import SimpleITK

    class RadiomicsFeatureExtractor:
        def __init__(self, **settings: object) -> None:
            assert settings == {"additionalInfo": False}

        def execute(self, image: SimpleITK.Image, mask: SimpleITK.Image) -> dict[str, float]:
            values = SimpleITK.GetArrayFromImage(image)[SimpleITK.GetArrayFromImage(mask) == 1]
            return {"original_sum": values.sum(), "original_spacing": image.GetSpacing()[2], "original_lost": float("nan")}

    module = types.ModuleType("radiomics")
    module.featureextractor = types.SimpleNamespace(RadiomicsFeatureExtractor=RadiomicsFeatureExtractor)
    return module


def test_the_geometry_of_a_case_is_that_of_its_file() -> None:
    found = measured(two_blocks(), np.diag([2.0, 1.0, 0.5, 1.0]))
    assert (found.shape, found.spacing_mm) == ((12, 10, 8), (2.0, 1.0, 0.5))
    assert isinstance(geometry_of((1, 1, 1), np.eye(4)), Geometry)
