"""Losses of single lesions and of middle lines see what the Dice of everything hardly sees, in millimeters."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medseg3d.losses import LossSettings, make_loss
from medseg3d.losses.components import component_cells
from medseg3d.losses.loss import IGNORED
from medseg3d.losses.skeletons import skeleton_tubes


def sure_of(labels: Tensor, num_classes: int = 2) -> Tensor:
    return 12 * F.one_hot(labels.long(), num_classes).movedim(-1, 1).float()


def loss_of(name: str, predicted: Tensor, labels: Tensor, **settings: object) -> float:
    settings = {"batch_dice": False, **settings}
    return float(make_loss(name, LossSettings(num_classes=2, **settings))(sure_of(predicted), labels))  # type: ignore[arg-type]


# ---- single lesions


def lesions() -> Tensor:
    """A large one and a small one."""
    labels = torch.zeros(1, 24, 24, dtype=torch.uint8)
    labels[0, 2:14, 2:14] = 1
    labels[0, 19:21, 19:21] = 1
    return labels


def test_a_small_lesion_that_is_missed_costs_what_a_large_one_costs() -> None:
    labels = lesions()
    without_small, without_large = labels.clone(), labels.clone()
    without_small[0, 16:], without_large[0, :16] = 0, 0
    whole = [loss_of("dice_ce", each, labels) for each in (labels, without_small, without_large)]
    single = [loss_of("cc_dice_ce", each, labels) for each in (labels, without_small, without_large)]
    assert whole[1] - whole[0] < 0.1 * (whole[2] - whole[0])
    of_lesions = [mine - theirs for mine, theirs in zip(single, whole, strict=True)]
    assert of_lesions[0] == pytest.approx(0, abs=1e-3)
    # the Dice of the lesion's own cell is lost either way; the cross-entropy counts the voxels of each
    assert of_lesions[1] > 0.5
    assert of_lesions[2] > of_lesions[1] > 0.15 * of_lesions[2]


def test_a_false_positive_costs_the_lesion_next_to_it() -> None:
    labels = lesions()
    near_small, near_large = labels.clone(), labels.clone()
    near_small[0, 19:21, 21:23], near_large[0, 2:4, 14:16] = 1, 1
    costs = [loss_of("cc_dice_ce", each, labels) - loss_of("dice_ce", each, labels) for each in (near_small, near_large)]
    assert costs[0] > 5 * costs[1]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 1.0, 2.0)])
def test_a_cell_is_what_is_nearest_to_its_component_in_millimeters(spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(3)
    labels = np.zeros((1, 5, 9, 8), np.int64)
    for _ in range(5):
        labels[(0, *(rng.integers(n) for n in labels.shape[1:]))] = 1
    (cells,) = component_cells(torch.from_numpy(labels), 2, spacing)
    places = np.argwhere(labels[0] == 1)
    found = cells[1].numpy()
    components = [{tuple(place) for place in places if found[tuple(place)] == number} for number in range(1, found.max() + 1)]
    for voxel in product(*map(range, labels.shape[1:])):
        distances = [min(float((((np.array(voxel) - p) * spacing) ** 2).sum()) for p in component) for component in components]
        assert distances[found[voxel] - 1] == pytest.approx(min(distances))


def test_touching_corners_are_one_component_and_a_lone_component_owns_the_patch() -> None:
    labels = torch.zeros(2, 4, 4, 4, dtype=torch.int64)
    labels[0, 0, 0, 0] = labels[0, 1, 1, 1] = 1
    one, none = component_cells(labels, 2, (1.0,) * 3)
    assert set(one[1].unique().tolist()) == {1}
    assert none == {}


def test_ignored_voxels_belong_to_no_lesion() -> None:
    labels = lesions().long()
    labels[:, :, 20:] = IGNORED
    (cells,) = component_cells(labels, 2, (1.0, 1.0))
    assert not cells[1][:, 20:].any()
    assert cells[1][:, :20].all()


def test_logits_of_a_patch_without_lesions_have_a_gradient() -> None:
    logits = torch.zeros(1, 2, 6, 6, requires_grad=True)
    make_loss("cc_dice_ce", LossSettings(num_classes=2))(logits, torch.zeros(1, 6, 6, dtype=torch.uint8)).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


# ---- middle lines


def tube(dimensions: int = 2) -> Tensor:
    """Seven voxels thick, thirty long."""
    labels = torch.zeros(1, *[9] * (dimensions - 1), 40, dtype=torch.uint8)
    labels[(0, *[slice(1, 8)] * (dimensions - 1), slice(5, 35))] = 1
    return labels


def test_a_cut_vessel_costs_more_than_a_thinner_one_of_as_many_voxels() -> None:
    labels = tube()
    cut, thin = labels.clone(), labels.clone()
    cut[0, :, 18:22], thin[0, 1, 6:34] = 0, 0  # 28 voxels each
    assert int((labels - cut).sum()) == int((labels - thin).sum()) == 28
    costs = [loss_of("skeleton_recall", each, labels) - loss_of("dice_ce", each, labels) for each in (labels, cut, thin)]
    assert costs[0] == pytest.approx(0, abs=1e-3)
    assert costs[1] > 0.1
    assert costs[2] < 0.02


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_tube_lies_in_the_label_about_its_middle_line(dimensions: int) -> None:
    labels = tube(dimensions)
    (found,) = skeleton_tubes(labels, 2, (1.0,) * dimensions, radius=1.0)
    assert bool((found[0].bool() <= labels[0].bool()).all())
    middle = (4,) * (dimensions - 1)
    assert bool(found[(0, *middle, slice(10, 30))].all())
    assert not found[(0, *(1,) * (dimensions - 1), slice(10, 30))].any()


def test_across_thick_slices_the_tube_stays_one_slice_thick() -> None:
    labels = torch.zeros(1, 7, 9, 30, dtype=torch.uint8)
    labels[0, 1:6, 1:8, 2:28] = 1
    (even,), (thick,) = (skeleton_tubes(labels, 2, spacing, radius=2.0)[:, 0] for spacing in ((1.0, 1.0, 1.0), (5.0, 1.0, 1.0)))
    assert [int(each[:, :, 15].any(1).sum()) for each in (even, thick)] == [5, 1]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 1, 8), (6, 6, 6)])
def test_single_voxels_and_single_slices_have_a_middle(shape: tuple[int, ...]) -> None:
    labels = torch.zeros(1, *shape, dtype=torch.uint8)
    labels[(0, *(n // 2 for n in shape))] = 1
    assert skeleton_tubes(labels, 2, (1.0,) * 3, radius=2.0).sum() == 1


def test_deep_supervision_keeps_millimeters() -> None:
    made = [
        LossSettings(num_classes=2, spacing=(4.0, 1.0), patch_size=(8, 32)),
        LossSettings(num_classes=2, spacing=(4.0, 2.0), patch_size=(8, 16)),
    ]
    labels = torch.zeros(1, 8, 16, dtype=torch.uint8)
    labels[0, 1, 1], labels[0, 6, 12], labels[0, 1, 13] = 1, 1, 1
    logits = torch.randn(1, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    values = [float(make_loss("cc_dice_ce", settings)(logits, labels)) for settings in made]
    assert values[0] == values[1]
