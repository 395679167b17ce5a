"""One assignment of axes for a dataset: slices of thick stacks on one axis, the least rotation else, never a mirror image."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.digests import digest_of
from medseg3d.data.reading import read_case
from medseg3d.fingerprint.describe_case import describe_case
from medseg3d.fingerprint.make_fingerprint import in_common_frame, in_frame, merge
from medseg3d.fingerprint.records import Fingerprint
from medseg3d.frame import CANONICAL_FRAME, ORIENTATIONS, Frame, Grid, common_frame, dissenters, grid_of, orientation_in
from medseg3d.geometry import AS_STORED, geometry_of, orientation_of, to_canonical
from medseg3d.labels import Labels
from medseg3d.planning import load_planner, make_plan, summarize

THICK = (1.25, 1.25, 8.0)


def rotation(axis: int, degrees: float) -> np.ndarray:
    """A right-handed rotation about a world axis (0 is R)."""
    first, second = ((1, 2), (2, 0), (0, 1))[axis]
    matrix, angle = np.eye(3), np.radians(degrees)
    matrix[[first, second], [first, second]] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def affine_of(direction: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(spacing)
    return affine


def grid(direction: np.ndarray, spacing: tuple[float, ...] = THICK, shape: tuple[int, ...] = (64, 64, 12)) -> Grid:
    return grid_of(geometry_of(shape, affine_of(direction, spacing)))


def short_axis(degrees: float) -> np.ndarray:
    """Slices that stand upright and are turned about the body's long axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[-s, 0, c], [c, 0, s], [0, 1, 0]])


def chosen_rotation(frame: Frame, one: Grid) -> np.ndarray:
    """The directions of the array's axes (R, A, S) in columns."""
    columns = np.empty((3, 3))
    for vector, (ras, sign) in zip(one.direction, orientation_in(frame, one), strict=True):
        columns[:, ras] = np.asarray(vector) * sign
    return columns


def test_near_the_anatomical_axes_every_file_is_read_as_nibabel_says() -> None:
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        direction = rotation(0, 12) @ (np.eye(3)[:, list(order)] * signs)
        one = grid(direction, (1.0, 1.0, 1.0))
        assert orientation_in(CANONICAL_FRAME, one) == orientation_of(affine_of(direction, (1.0, 1.0, 1.0)))
        assert orientation_in(common_frame([one] * 3), one) == orientation_in(CANONICAL_FRAME, one)


rotations = st.tuples(*(st.floats(-180, 180) for _ in range(3))).map(
    lambda angles: rotation(0, angles[0]) @ rotation(1, angles[1]) @ rotation(2, angles[2])
)


@given(direction=rotations, orientation=st.sampled_from(ORIENTATIONS), spacing=st.sampled_from([(1.0, 1.0, 1.0), THICK]), about=rotations)
@settings(max_examples=150, deadline=None)
def test_no_grid_is_read_as_a_mirror_image_or_turned_further_than_needed(
    direction: np.ndarray, orientation: tuple, spacing: tuple, about: np.ndarray
) -> None:
    permuted = np.stack([direction[:, ras] * sign for ras, sign in orientation], axis=1)
    frame = Frame(directions=tuple(tuple(map(float, column)) for column in about.T[::-1]))
    columns = chosen_rotation(frame, grid(permuted, spacing))
    assert np.linalg.det(columns) == pytest.approx(1, abs=1e-4)
    assert np.trace(columns.T @ about) > 0  # 24 rotations of a cube leave at most 62.8 degrees


@pytest.mark.fault("A0", "oblique stacks whose slices lie nearest to different body axes", "their slices share one axis of the arrays")
@pytest.mark.parametrize("degrees", [(30, 35, 38, 52, 55, 60, 33, 57), (44, 46), (10, 80, 45), (-50, -40, -44, -46), (91, 89, 95)])
@pytest.mark.parametrize("stored", [((0, 1), (1, 1), (2, 1)), ((2, 1), (0, -1), (1, 1)), ((1, -1), (2, -1), (0, -1))])
def test_slices_of_oblique_stacks_land_on_one_axis(degrees: tuple, stored: tuple) -> None:
    def stack(angle: float) -> Grid:
        direction = short_axis(angle)
        order = [ras for ras, _ in stored]
        signs = [sign for _, sign in stored]
        return grid(direction[:, order] * signs, tuple(np.asarray(THICK)[order]), tuple(np.asarray((64, 64, 12))[order]))

    grids = [stack(angle) for angle in degrees]
    frame = common_frame(grids)
    read = [orientation_in(frame, one) for one in grids]
    assert len(set(read)) == 1
    assert frame.slice_axis == 2 - read[0][grids[0].slice_axis][0]
    assert not dissenters(frame, grids)


@pytest.mark.fault("A0", "isotropic volumes turned by about 45 degrees", "all are read with the same axes, none by a quarter turn more")
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_volumes_near_45_degrees_are_not_turned_against_each_other(axis: int) -> None:
    grids = [grid(rotation(axis, angle), (1.0, 1.0, 1.0), (60, 60, 60)) for angle in (43, 44, 45, 46, 47, 44.5)]
    frame = common_frame(grids)
    assert len({orientation_in(frame, one) for one in grids}) == 1


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("degrees", [15, 40, 44, 46, 60, 90])
def test_a_tilted_stack_is_read_like_the_upright_ones_of_the_training(axis: int, degrees: float) -> None:
    frame = common_frame([grid(rotation(2, angle)) for angle in (-3, 0, 4)])
    assert orientation_in(frame, grid(rotation(axis, degrees))) == ((0, 1), (1, 1), (2, 1))


@pytest.mark.fault("A0", "sagittal stacks among axial ones", "stay in the anatomy, are named, and do not coarsen the axes of the others")
def test_sagittal_stacks_among_axial_ones_are_named_and_keep_their_place() -> None:
    axial, sagittal = grid(np.eye(3)), grid(np.eye(3), (8.0, 1.25, 1.25), (12, 64, 64))
    grids = [axial] * 7 + [sagittal]
    frame = common_frame(grids)
    assert frame.is_canonical
    assert dissenters(frame, grids) == (7,)
    assert orientation_in(frame, sagittal) == ((0, 1), (1, 1), (2, 1))
    assert frame.max_slice_angle < 90


def test_a_frame_is_kept_while_it_gives_every_case_the_same_axes() -> None:
    grids = [grid(short_axis(angle)) for angle in (40, 45, 50)]
    before = common_frame(grids)
    assert common_frame([*grids, grid(short_axis(58))], previous=before) is before
    assert common_frame([*grids, grid(short_axis(58))]) != before


def test_a_case_is_brought_into_a_frame_without_reading_its_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, labels = np.zeros((20, 14, 9), np.int16), np.zeros((20, 14, 9), np.uint8)
    image[3:17, 2:10, 1:8] = rng.integers(50, 100, (14, 8, 7))
    labels[5:9, 3:8, 2:4] = 1
    for name, array in (("image", image), ("label", labels)):
        nibabel.save(
            nibabel.Nifti1Image(array, affine_of(rotation(0, 20) @ rotation(2, 110), (1.0, 1.2, 4.0))), tmp_path / f"{name}.nii.gz"
        )
    case = Case(name="x", channels=(ChannelFile(path=tmp_path / "image.nii.gz"),), label=tmp_path / "label.nii.gz")
    canonical = describe_case(read_case(case), digest_of(case))
    for direction in (short_axis(30), rotation(1, 70), rotation(0, -130)):
        frame = Frame(directions=tuple(tuple(map(float, column)) for column in direction.T[::-1]), slice_axis=1)
        turned, measured = in_frame(canonical, frame), describe_case(read_case(case, frame=frame), digest_of(case))
        assert turned.axes == measured.axes != AS_STORED
        for one, other in ((turned, measured), (in_frame(turned, CANONICAL_FRAME), canonical)):
            assert replace(one, labels={}, channels=(), content="") == replace(other, labels={}, channels=(), content="")
            assert one.channels[0].histogram == other.channels[0].histogram
            assert one.labels[1].center == pytest.approx(other.labels[1].center)
            assert one.world_position(one.labels[1].center) == pytest.approx(other.world_position(other.labels[1].center), abs=1e-5)


def test_world_positions_follow_the_anatomy_whatever_the_axes(tmp_path: Path) -> None:
    image = np.full((12, 12, 12), 5, np.int16)
    direction = short_axis(40)
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[2:4, 5:7, 5:7], labels[8:10, 5:7, 5:7] = 1, 2
    for name, array in (("image", image), ("label", labels)):
        nibabel.save(nibabel.Nifti1Image(array, affine_of(direction, (1.0, 1.0, 1.0))), tmp_path / f"{name}.nii.gz")
    case = Case(name="x", channels=(ChannelFile(path=tmp_path / "image.nii.gz"),), label=tmp_path / "label.nii.gz")
    found = describe_case(read_case(case), digest_of(case))
    between = found.world_position(found.labels[2].center) - found.world_position(found.labels[1].center)
    assert between[::-1] == pytest.approx(6 * direction[:, 0], abs=1e-4)


def stacks(folder: Path, directions: list[np.ndarray], *, stored: tuple = AS_STORED) -> Fingerprint:
    """Fingerprints of noise with a block as label, all of the same voxels' sizes; the axes of the files as ``stored`` says."""
    rng, shape = np.random.default_rng(3), (48, 40, 10)
    cases = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, direction in enumerate(directions):
        labels = np.zeros(shape, np.uint8)
        labels[10:20, 10:22, 3:6] = 1
        image, label = folder / f"i{number}.nii.gz", folder / f"l{number}.nii.gz"
        for path, array in ((image, rng.integers(1, 99, shape).astype(np.int16)), (label, labels)):
            nibabel.save(nibabel.Nifti1Image(array, affine_of(direction, THICK)).as_reoriented(np.array(stored)), path)
        case = Case(name=f"c{number}", channels=(ChannelFile(path=image),), label=label)
        cases.append(describe_case(read_case(case), digest_of(case)))
    return in_common_frame(merge(cases, dataset="stacks", channel_names=("MRI",)))


def plan_of(fingerprint: Fingerprint):
    labels = Labels(names=("background", "block"), values=(0, 1))
    return make_plan(summarize(fingerprint, labels), load_planner("nnunet_plain"))


@pytest.mark.fault("A0", "a dataset turned as a whole", "is planned with the spacing and patch of the upright one")
@pytest.mark.parametrize("degrees", [15, 40, 44, 46, 60, 90])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_turned_dataset_has_the_plan_of_the_upright_one(tmp_path: Path, axis: int, degrees: float) -> None:
    upright = plan_of(stacks(tmp_path / "a", [np.eye(3)] * 4)).configuration("3d_fullres")
    turned = plan_of(stacks(tmp_path / "b", [rotation(axis, degrees)] * 4)).configuration("3d_fullres")
    assert turned.spacing == pytest.approx(upright.spacing, abs=1e-4)
    assert sorted(turned.patch_size) == sorted(upright.patch_size)
    assert turned.patch_size[0] == upright.patch_size[0]
    if degrees != 90 or axis == 0:  # a quarter turn about A exchanges R and S: the same plan with its in-plane axes in another order
        assert turned.patch_size == upright.patch_size


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_a_dataset_stored_otherwise_has_the_same_plan(tmp_path: Path, orientation: tuple) -> None:
    plain, stored = stacks(tmp_path / "a", [np.eye(3)] * 3), stacks(tmp_path / "b", [np.eye(3)] * 3, stored=orientation)
    assert {case.orientation for case in stored.cases} != {"RAS"} or orientation == AS_STORED
    assert [case.shape for case in stored.cases] == [case.shape for case in plain.cases]
    assert plan_of(stored).configurations.keys() == plan_of(plain).configurations.keys()
    for name, configuration in plan_of(stored).configurations.items():
        expected = plan_of(plain).configurations[name]
        assert (configuration.spacing, configuration.patch_size) == (expected.spacing, expected.patch_size)


@pytest.mark.parametrize(("num_sagittal", "spacing"), [(2, (8.0, 1.25, 1.25)), (4, (1.25, 1.25, 1.25))])
def test_few_stacks_of_another_plane_do_not_decide_and_many_ask_for_isotropic_voxels(
    tmp_path: Path, num_sagittal: int, spacing: tuple
) -> None:
    sagittal = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # in-plane A and S, slices along R
    plan = plan_of(stacks(tmp_path, [np.eye(3)] * (8 - num_sagittal) + [sagittal] * num_sagittal))
    assert plan.configuration("3d_fullres").spacing == pytest.approx(spacing, abs=1e-4)
    assert any("c7" in note and "another axis" in note for note in plan.notes)


def test_the_sides_follow_the_anatomy_where_the_axes_are_oblique(tmp_path: Path) -> None:
    labels = Labels(names=("background", "left_x", "right_x"), values=(0, 1, 2), pairs=((1, 2),))
    fingerprint = stacks(tmp_path, [short_axis(angle) for angle in (35, 45, 55)])
    plan = make_plan(summarize(fingerprint, labels), load_planner("default"))
    cosines = [abs(plan.frame.directions[axis][0]) for axis in plan.axis_order]
    assert [place for place in range(3) if cosines[place] < 0.4] == list(plan.configuration("3d_fullres").mirror_axes)
    assert len(plan.configuration("3d_fullres").mirror_axes) == 1


def test_arrays_are_turned_as_the_frame_says() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    frame = common_frame([grid(short_axis(45))])
    orientation = orientation_in(frame, grid(short_axis(45)))
    assert to_canonical(array, orientation).shape[frame.slice_axis] == 4
