"""The label map of a first stage moves with the image, and its shapes change as nnU-Net changes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import scipy.ndimage
import torch

from medseg3d.patches.augmentation import AugmentationDraw, Batch, SpatialCrop, augment, augmentation_policy, crop_box, draw_augmentation
from medseg3d.patches.loading import PatchLoader
from medseg3d.patches.previous_stage import (
    OPERATORS,
    P_OPERATOR_LABEL,
    P_OPERATORS,
    P_REMOVAL,
    P_REMOVAL_LABEL,
    PreviousDraw,
    change_previous,
    dilated,
    draw_previous,
    one_hot,
)
from medseg3d.patches.sampling import PatchBox

CPU = torch.device("cpu")
PATCH = (8, 10, 9)
POLICY = augmentation_policy(PATCH, num_channels=1, mirror_axes=(0, 1, 2), previous_labels=(2, 1))


def ball(radius: float, dimensions: int) -> np.ndarray:
    offsets = np.stack(np.meshgrid(*[np.arange(-math.floor(radius), math.floor(radius) + 1)] * dimensions, indexing="ij"))
    return (offsets**2).sum(0) <= radius**2


@pytest.mark.parametrize("shape", [(9, 14, 11), (13, 12)])
@pytest.mark.parametrize("radius", [1.0, 1.5, 4.0, 7.5])
def test_dilation_is_that_by_a_ball_also_where_the_ball_is_larger_than_the_patch(shape: tuple[int, ...], radius: float) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.01
    expected = scipy.ndimage.binary_dilation(mask, ball(radius, len(shape)))
    assert np.array_equal(dilated(torch.from_numpy(mask), radius).numpy(), expected)


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_takes_the_voxels_that_it_adds_from_other_labels(operator: str) -> None:
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 3, (1, *PATCH)))
    channels = one_hot(labels, (1, 2))[0]
    change_previous(channels, PreviousDraw(operators=((0, operator, 2.0),)))  # type: ignore[arg-type]
    assert set(channels.unique().tolist()) <= {0.0, 1.0}
    assert channels.sum(0).max() <= 1
    before = channels.clone()
    change_previous(channels, PreviousDraw())
    assert torch.equal(before, channels)


def test_erosion_does_not_begin_at_the_border_of_the_patch() -> None:
    channels = torch.ones(1, *PATCH)
    change_previous(channels, PreviousDraw(operators=((0, "erode", 3.0),)))
    assert channels.all()


def test_one_component_is_taken_away_unless_it_is_large() -> None:
    channels = torch.zeros(1, 10, 10, 10)
    channels[0, :6, :6, :6] = 1  # 21.6 % of the patch
    channels[0, 8, 8, 8] = channels[0, 8, 1, 1] = 1
    for pick in (0.0, 0.6, 0.999):
        changed = channels.clone()
        change_previous(changed, PreviousDraw(removals=((0, pick),)))
        assert changed.sum() == channels.sum() - 1
        assert changed[0, :6, :6, :6].all()


def test_draws_come_as_often_as_the_rules_say() -> None:
    draws = [draw_previous(2, np.random.default_rng(seed)) for seed in range(4000)]
    operated = np.mean([len(draw.operators) for draw in draws]) / 2
    removed = np.mean([len(draw.removals) for draw in draws]) / 2
    assert operated == pytest.approx(P_OPERATORS * P_OPERATOR_LABEL, abs=0.02)
    assert removed == pytest.approx(P_REMOVAL * P_REMOVAL_LABEL, abs=0.02)
    radii = [radius for draw in draws for _, _, radius in draw.operators]
    assert (min(radii), max(radii)) == (1.0, 7.5)
    assert {operator for draw in draws for _, operator, _ in draw.operators} == set(OPERATORS)


def test_plans_without_a_first_stage_draw_as_before() -> None:
    plain = augmentation_policy(PATCH, num_channels=1, mirror_axes=(0, 1, 2))
    draw = draw_augmentation(plain, np.random.default_rng(3))
    assert draw.previous is None
    with_stage = draw_augmentation(POLICY, np.random.default_rng(3))
    assert with_stage.previous is not None
    assert with_stage.matrix == draw.matrix
    assert with_stage.mirror == draw.mirror


@dataclass(frozen=True)
class FakeCase:
    name: str
    image: np.ndarray
    labels: np.ndarray
    outside: None = None
    annotated: None = None
    foreground: dict[int, np.ndarray] = field(default_factory=dict)


def test_the_channels_of_the_first_stage_move_with_the_labels() -> None:
    """Where the first stage is perfect, its channels are those of the labels after every change of place."""
    labels = np.random.default_rng(0).integers(0, 3, (14, 15, 13)).astype(np.uint8)
    case = FakeCase("case", np.random.default_rng(1).normal(size=(1, *labels.shape)).astype(np.float32), labels)
    loader = PatchLoader([case], patch_size=PATCH, batch_size=4, seed=0, policy=POLICY, previous={"case": labels})
    seen_matrix = False
    for iteration in range(12):
        batch = loader.make_batch(0, iteration)
        still = tuple(AugmentationDraw(matrix=draw.matrix, mirror=draw.mirror) for draw in batch.draws)
        seen_matrix |= any(draw.matrix is not None for draw in still)
        image, target = augment(Batch(**{**{f: getattr(batch, f) for f in batch.__slots__}, "draws": still}), POLICY, CPU)
        assert image.shape == (4, 3, *PATCH)
        assert torch.equal(image[:, 1], (target == 2).float())
        assert torch.equal(image[:, 2], (target == 1).float())
    assert seen_matrix


def test_a_rotated_patch_sees_nothing_of_the_first_stage_beyond_the_volume() -> None:
    matrix = ((1.4, 0.0, 0.0), (0.0, 1.4, 0.0), (0.0, 0.0, 1.4))
    part, center = crop_box(PatchBox(start=(0, 0, 0), size=PATCH), matrix, PATCH)
    ones = torch.ones(part.size, dtype=torch.int16)
    batch = Batch(
        image=torch.zeros(1, 1, *PATCH),
        labels=torch.zeros(1, *PATCH, dtype=torch.int16),
        names=("case",),
        draws=(AugmentationDraw(matrix=matrix),),
        crops=(SpatialCrop(image=torch.zeros(1, *part.size), labels=ones, center=center, previous=ones),),
        previous=torch.zeros(1, *PATCH, dtype=torch.int16),
    )
    image, _ = augment(batch, POLICY, CPU)
    assert image[0, 2, 0, 0, 0] == 0
    assert image[0, 2, 4, 5, 4] == 1
