"""Losses of regions, of ignored voxels and of cases that lack structures, beside the formulas written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medseg3d.label_codes import LabelCodes, with_annotated
from medseg3d.labels import Labels
from medseg3d.losses import LOSSES, LossSettings, find_loss, make_loss
from medseg3d.losses.label_kinds import counter_of, has_ignored, loss_of_codes, merge_unannotated

ORGANS = Labels(names=("background", "a", "b", "c"), values=(0, 1, 2, 3))
REGIONS = Labels(names=("background", "whole", "core"), values=(0, 1, 2), regions=((1, 2), (2,)))
SMOOTH = 1e-5


def with_ignore(labels: Labels) -> Labels:
    return Labels(names=labels.names, values=labels.values, regions=labels.regions, ignore=9)


def made(labels: Labels, name: str = "dice_ce", *, batch_dice: bool = False):
    knows = find_loss(name).knows_ignored

    def make(region):
        count = labels.num_classes if region is None else 2
        settings = LossSettings(num_classes=count, batch_dice=batch_dice, has_ignored=knows and has_ignored(labels))
        return make_loss(name, settings, class_voxels=lambda: (5.0,) * count)

    return loss_of_codes(labels, make, knows_ignored=knows)


def data(labels: Labels, *, seed: int = 0, shape=(2, 4, 6, 5)):
    torch.manual_seed(seed)
    logits = torch.randn(shape[0], labels.num_outputs, *shape[1:], requires_grad=True)
    return logits, torch.randint(0, LabelCodes(labels).num_values, shape)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_regions_have_nnunets_dice_of_sigmoids_and_binary_cross_entropy(batch_dice, ignored) -> None:
    labels = with_ignore(REGIONS) if ignored else REGIONS
    logits, codes = data(labels)
    known = torch.ones(codes.shape, dtype=torch.bool)
    if ignored:
        codes[:, 1] = 3
        known = codes != 3
    truth = torch.stack(((codes == 1) | (codes == 2), codes == 2), 1).float()
    predicted = logits.sigmoid()
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    mask = known[:, None].float()
    both, total = (predicted * truth * mask).sum(axes), ((predicted + truth) * mask).sum(axes)
    dice = ((2 * both + SMOOTH) / (total + SMOOTH)).mean()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * mask
    expected = entropy.sum() / (mask.sum() * 2) - dice
    found = made(labels, batch_dice=batch_dice)(logits, codes)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], torch.autograd.grad(expected, logits)[0], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_ignored_voxels_have_no_part_in_dice_and_cross_entropy(batch_dice) -> None:
    labels = with_ignore(ORGANS)
    logits, codes = data(labels)
    codes[:, :2] = 4
    kept_logits, kept = logits[:, :, 2:], codes[:, 2:]
    torch.testing.assert_close(made(labels, batch_dice=batch_dice)(logits, codes), made(ORGANS, batch_dice=batch_dice)(kept_logits, kept))


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("labels", [with_ignore(ORGANS), with_ignore(REGIONS)], ids=["classes", "regions"])
def test_every_loss_is_finite_and_blind_where_nobody_has_annotated(name, labels) -> None:
    logits, codes = data(labels)
    ignored = LabelCodes(labels).ignored
    for hidden in (codes.masked_fill(torch.rand(codes.shape) < 0.3, ignored), torch.full_like(codes, ignored)):
        loss = made(labels, name)(logits, hidden)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert not gradient.movedim(1, -1)[hidden == ignored].any()


def test_merging_gives_the_background_the_probability_of_what_a_sample_lacks() -> None:
    logits = torch.randn(2, 4, 3, 5, 4)
    lacking = torch.tensor([[False, True, False, True], [False] * 4])
    before, after = logits.softmax(1), merge_unannotated(logits, lacking).softmax(1)
    torch.testing.assert_close(after[0, 0], before[0, [0, 1, 3]].sum(0))
    torch.testing.assert_close(after[0, 2], before[0, 2])
    assert not after[0, [1, 3]].any()
    torch.testing.assert_close(after[1], before[1])


def test_a_case_that_lacks_a_structure_does_not_teach_that_it_is_absent() -> None:
    labels = with_annotated(ORGANS, {"x": ("a",), "y": None})
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 6, 5, 4, requires_grad=True)
    codes = torch.full((1, 6, 5, 4), 4)
    codes[0, :2] = 5
    loss = made(labels)(logits, codes)
    predicted = logits.softmax(1)
    probability = torch.where(codes == 5, predicted[:, 1], predicted[:, [0, 2, 3]].sum(1))
    dice_a = 2 * predicted[:, 1][codes == 5].sum() / (predicted[:, 1].sum() + (codes == 5).sum())
    torch.testing.assert_close(loss, -probability.log().mean() - (dice_a + 2) / 3, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[0, 2:][:, 2:] <= 1e-9).all(), "in the background, where b and c may be, nothing pushes them down"


def test_a_region_that_a_case_lacks_is_not_counted_there() -> None:
    labels = with_annotated(REGIONS, {"x": ("whole",), "y": None})
    logits, _ = data(labels, shape=(1, 3, 4, 5))
    codes = torch.randint(3, 5, (1, 3, 4, 5))
    (gradient,) = torch.autograd.grad(made(labels)(logits, codes), logits)
    assert gradient[:, 0].any()
    assert not gradient[:, 1].any()
    assert counter_of(labels)(logits, codes).dice().isnan().tolist() == [True, False, True]


def test_counts_are_those_of_the_annotated_voxels() -> None:
    labels = with_ignore(REGIONS)
    logits, codes = data(labels)
    codes[:, 0] = 3
    counts = counter_of(labels)(logits, codes)
    known = codes != 3
    for index, truth in ((1, (codes == 1) | (codes == 2)), (2, codes == 2)):
        predicted = (logits[:, index - 1] > 0) & known
        assert int(counts.true_positives[index]) == int((predicted & truth).sum())
        assert int(counts.false_positives[index]) == int((predicted & ~truth).sum())
        assert int(counts.false_negatives[index]) == int((~predicted & truth & known).sum())


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("batch_dice", [False, True])
def test_soft_labels_that_are_sure_cost_what_labels_cost(name, batch_dice) -> None:
    logits, codes = data(ORGANS)
    sure = F.one_hot(codes, 4).movedim(-1, 1).float()
    soft_organs = Labels(names=ORGANS.names, values=ORGANS.values, soft=True)
    loss = find_loss(name)

    def make(region):
        return make_loss(name, LossSettings(num_classes=4, batch_dice=batch_dice), class_voxels=lambda: (5.0,) * 4)

    of_soft = loss_of_codes(soft_organs, make, knows_ignored=loss.knows_ignored, knows_soft=loss.knows_soft)
    torch.testing.assert_close(of_soft(logits, sure), make(None)(logits, codes))
    unsure = 0.8 * sure + 0.05
    (gradient,) = torch.autograd.grad(of_soft(logits, unsure), logits)
    assert torch.isfinite(gradient).all()
    assert (counter_of(soft_organs)(logits, unsure).true_positives == counter_of(ORGANS)(logits, codes).true_positives).all()


def test_the_loss_is_least_where_the_network_says_the_probabilities_themselves() -> None:
    soft = torch.full((1, 4, 3, 3, 3), 0.1)
    soft[:, 2] = 0.7
    loss = loss_of_codes(
        Labels(names=ORGANS.names, values=ORGANS.values, soft=True),
        lambda region: make_loss("weighted_ce", LossSettings(num_classes=4)),
        knows_ignored=True,
        knows_soft=True,
    )
    logits = soft.log().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, soft), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-7, rtol=0)
