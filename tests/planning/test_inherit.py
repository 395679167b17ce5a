"""A dataset can be planned as a model was: the network fits its weights, labels and channels are the dataset's own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medseg3d.data.open_dataset import open_dataset
from medseg3d.errors import InputError, PlanError
from medseg3d.fingerprint.make_fingerprint import make_fingerprint
from medseg3d.fingerprint.records import Fingerprint
from medseg3d.frame import Direction
from medseg3d.labels import Labels
from medseg3d.plan import Normalization, Plan
from medseg3d.planning import DatasetSummary, explain, load_planner
from medseg3d.planning.inherit import inherited_plan, with_axes_of
from medseg3d.planning.make_plan import explained_plan
from medseg3d.planning.reasons import Decided
from medseg3d.records import read_record
from medseg3d.workflows.plan import plan
from tests.planning.test_suggested_loss import summary_of
from tests.test_plan import PLAN
from tests.workflows.test_initial_weights import with_folds

RULES = load_planner("default")
MODEL = replace(PLAN, dataset="Theirs", axis_order=(1, 0, 2))


def dataset(**changed: Any) -> DatasetSummary:
    return replace(summary_of(None), **changed)


def inherited(summary: DatasetSummary, model: Plan = MODEL) -> Decided[Plan]:
    return inherited_plan(explained_plan(summary, RULES), summary, RULES, model, "model.medseg3d")


def test_all_but_channels_and_labels_of_the_network_is_the_models() -> None:
    summary = dataset(channel_names=("T1", "MRI"))
    made = inherited(summary).value
    (name,), theirs = made.configurations, MODEL.configuration(None)
    ours = made.configurations[name]
    assert ours.network == replace(theirs.network, in_channels=2, num_classes=3)
    kept = ("name", "spacing", "patch_size", "batch_size", "resampling", "training", "batch_dice")
    assert [getattr(ours, field) for field in kept] == [getattr(theirs, field) for field in kept]
    assert (made.labels, made.channels, made.axis_order) == (summary.labels, ("T1", "MRI"), MODEL.axis_order)
    assert (made.inherits, made.recommended) == ("model.medseg3d", name)


def test_normalization_goes_by_the_name_of_the_channel() -> None:
    ours = inherited(dataset(channel_names=("T1", "mri"))).value.configuration(None)
    assert ours.normalization == (Normalization(scheme="zscore"), MODEL.configuration(None).normalization[0])


def test_the_median_case_is_ours_at_the_models_spacing() -> None:
    summary = dataset(spacings=((2.0, 3.0, 1.0),) * 3, cropped_shapes=((10, 20, 30),) * 3)
    # (S, A, R) in mm are 20, 60, 30; the model's axes are A, S, R at 1.5, 1 and 1 mm
    assert inherited(summary).value.configuration(None).median_shape == (40.0, 20.0, 30.0)


def test_left_and_right_of_the_dataset_decide_the_mirroring() -> None:
    paired = Labels(names=("background", "left a", "right a"), values=(0, 1, 2), pairs=((1, 2),))
    assert inherited(dataset()).value.configuration(None).mirror_axes == (0, 1, 2)
    assert inherited(dataset(labels=paired)).value.configuration(None).mirror_axes == (0, 1)


def test_every_number_has_its_reason_and_can_be_explained_again() -> None:
    summary = dataset()
    decided = inherited(summary)
    said = {reason.quantity for reason in decided.reasons if reason.configuration == "3d_fullres"}
    assert said >= {"spacing", "patch size", "batch size", "network", "normalization", "training"}
    assert all("model.medseg3d" in reason.rule for reason in decided.reasons if reason.configuration == "3d_fullres")
    assert explain(decided.value, summary, RULES) == decided.reasons


SAGITTAL = ((0, 1, 0), (0, 0, 1), (1, 0, 0))
"""The directions (x, y, z) of a file whose slices run from left to right."""


def with_grids(root: Path, direction: tuple[tuple[float, ...], ...], spacing: tuple[float, float, float]) -> Fingerprint:
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction, np.float64).T * spacing
    for file in (*root.glob("images*/*.nii.gz"), *root.glob("labels*/*.nii.gz")):
        nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(file).dataobj), affine), file)
    return make_fingerprint(open_dataset(root))


@pytest.mark.fault(
    "A0", "--inherit-plan where the model's slices lie along another axis than the dataset's would", "read as the model's cases were"
)
def test_thick_slices_lie_where_those_of_the_model_do(tiny_source: Path, tmp_path: Path) -> None:
    fingerprint = with_grids(Path(shutil.copytree(tiny_source, tmp_path / "data")), ((1, 0, 0), (0, 0.6, 0.8), (0, -0.8, 0.6)), (1, 1, 8))
    ours = fingerprint.frame.slice_axis
    assert ours is not None
    theirs = replace(MODEL, frame=replace(fingerprint.frame, directions=turned(fingerprint.frame.directions), slice_axis=1 - ours))
    assert with_axes_of(replace(MODEL, frame=fingerprint.frame), fingerprint) == (replace(MODEL, frame=fingerprint.frame), fingerprint)
    _, read = with_axes_of(theirs, fingerprint)
    assert read.frame == theirs.frame
    assert [case.spacing[1 - ours] for case in read.cases] == pytest.approx([8] * len(read.cases))


def turned(directions: tuple[Direction, Direction, Direction]) -> tuple[Direction, Direction, Direction]:
    """About the axis R, so that what was S is A."""
    s, a, r = directions
    x, y, z = s
    return a, (-x, -y, -z), r


@pytest.mark.fault(
    "A0", "--inherit-plan of an nnU-Net model, which has files' axes as they are stored, for sagittal stacks", "slices stay slices"
)
def test_axes_as_they_are_stored_become_those_of_the_dataset(tiny_source: Path, tmp_path: Path) -> None:
    fingerprint = with_grids(Path(shutil.copytree(tiny_source, tmp_path / "data")), SAGITTAL, (1, 1, 4))
    stored = replace(MODEL, orientation="as_stored", axis_order=(0, 1, 2))
    model, read = with_axes_of(stored, fingerprint)
    assert read == fingerprint
    assert (model.orientation, model.axis_order) == ("canonical", (2, 0, 1))  # slices run from left to right: z is R, y is S, x is A
    assert [fingerprint.cases[0].spacing[axis] for axis in model.axis_order] == [4, 1, 1]
    axial = with_grids(tmp_path / "data", ((-1, 0, 0), (0, -1, 0), (0, 0, 1)), (1, 1, 4))
    assert with_axes_of(stored, axial)[0].axis_order == (0, 1, 2)


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(PlanError, match=r"--inherit-plan model\.medseg3d: .*single slices, and it was planned for volumes"):
        inherited(dataset(cropped_shapes=((1, 64, 64),) * 3))
    staged = replace(MODEL.configuration(None), previous_stage="3d_lowres")
    with pytest.raises(PlanError, match="stages of cascades"):
        inherited(dataset(), replace(MODEL, configurations={"3d_fullres": staged}))


def test_a_plan_from_a_work_folder_is_kept_when_planned_again(tiny_source: Path, tmp_path: Path) -> None:
    model = with_folds(tmp_path / "theirs")
    first = plan(tiny_source, tmp_path / "work", inherit_plan=model).plan
    assert first.configuration(None).network == replace(PLAN.configuration(None).network, num_classes=3)
    assert read_record(tmp_path / "work/plan.json", Plan, "plan") == first
    assert plan(tiny_source, tmp_path / "work").plan == first
    assert plan(tiny_source, tmp_path / "work", planner="default").plan.inherits == ""
    with pytest.raises(InputError, match=r"--inherit-plan .*no such model"):
        plan(tiny_source, tmp_path / "work", inherit_plan=tmp_path / "nothing")
