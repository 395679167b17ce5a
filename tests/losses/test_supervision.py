"""The loss is nnU-Net's formula, and is safe for any number of heads, classes and voxels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medseg3d.losses import LossSettings, make_loss, supervised_loss
from medseg3d.losses.regions import dice_and_cross_entropy
from medseg3d.losses.supervision import count_voxels, deep_supervision_weights, downsample_labels


def dice_cross_entropy(outputs, labels, *, batch_dice, count=None):
    loss = make_loss("dice_ce", LossSettings(num_classes=4, batch_dice=batch_dice))
    return supervised_loss(outputs, labels, loss, count=count)


def plain_loss(logits, labels, *, batch_dice):
    """The formulas written out with one-hot maps in float64."""
    logits = logits.double()
    one_hot = F.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1).double()
    probabilities = logits.softmax(1)
    axes = tuple(range(2, logits.ndim))
    overlap, present, predicted = ((probabilities * one_hot).sum(axes), one_hot.sum(axes), probabilities.sum(axes))
    if batch_dice:
        overlap, present, predicted = overlap.sum(0), present.sum(0), predicted.sum(0)
    dice = ((2 * overlap + 1e-5) / (present + predicted + 1e-5).clip(1e-8))[..., 1:].mean()
    return F.cross_entropy(logits, labels.long()) - dice


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_loss_and_gradient_are_those_of_the_formula(batch_dice, shape, dtype):
    torch.manual_seed(0)
    ours = torch.randn(shape[0], 4, *shape[1:], requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    labels = torch.randint(0, 4, shape).to(dtype)
    labels[0] = 1  # classes absent from a sample
    total, expected = dice_cross_entropy(ours, labels, batch_dice=batch_dice).total, plain_loss(theirs, labels, batch_dice=batch_dice)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    total.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_a_perfect_prediction_reaches_minus_one():
    labels = torch.randint(0, 3, (2, 6, 6))
    logits = F.one_hot(labels, 3).movedim(-1, 1) * 50.0
    loss = dice_cross_entropy(logits, labels, batch_dice=False)
    assert float(loss.total) == pytest.approx(-1)


def test_low_precision_logits_are_reduced_in_float32():
    labels = torch.randint(0, 3, (2, 40, 40))
    logits = torch.randn(2, 3, 40, 40).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = dice_cross_entropy(logits, labels, batch_dice=False).total
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(plain_loss(logits, labels, batch_dice=False)), rel=1e-5)


@pytest.mark.parametrize(
    ("num_heads", "expected"),
    [(1, (1,)), (2, (1, 0)), (3, (2 / 3, 1 / 3, 0)), (5, (8 / 15, 4 / 15, 2 / 15, 1 / 15, 0))],
)
def test_weights_halve_and_the_coarsest_head_counts_nothing(num_heads, expected):
    assert deep_supervision_weights(num_heads) == pytest.approx(expected)


def test_heads_are_weighted_against_labels_of_their_size():
    labels = torch.randint(0, 3, (2, 8, 8))
    heads = [torch.randn(2, 3, n, n) for n in (8, 4, 2)]
    expected = 2 / 3 * plain_loss(heads[0], labels, batch_dice=False)
    expected = expected + 1 / 3 * plain_loss(heads[1], downsample_labels(labels, (4, 4)), batch_dice=False)
    assert float(dice_cross_entropy(heads, labels, batch_dice=False).total) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("size", "wanted"), [((8, 6, 5), (4, 3, 5)), ((9, 7), (3, 2)), ((5, 4), (5, 4)), ((13, 11), (6, 5))])
def test_labels_are_sampled_as_torchs_nearest_exact_does(size, wanted):
    labels = torch.randint(0, 100, (2, *size))
    expected = F.interpolate(labels[:, None].double(), wanted, mode="nearest-exact")[:, 0].long()
    assert torch.equal(downsample_labels(labels, wanted), expected)


def test_counts_are_those_of_the_arg_max():
    labels = torch.randint(0, 4, (2, 5, 6, 7), dtype=torch.uint8)
    logits = torch.randn(2, 4, 5, 6, 7)
    predicted = logits.argmax(1)
    counts = dice_cross_entropy([logits], labels, batch_dice=True, count=count_voxels).counts
    for label in range(4):
        assert counts.true_positives[label] == ((predicted == label) & (labels == label)).sum()
        assert counts.false_positives[label] == ((predicted == label) & (labels != label)).sum()
        assert counts.false_negatives[label] == ((predicted != label) & (labels == label)).sum()


def test_pooled_dice_of_an_absent_class_is_nan_and_of_a_missed_one_zero():
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0] = 1
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, 0] = 1
    dice = (count_voxels(logits, labels) + count_voxels(logits, labels)).dice().tolist()
    assert dice[0] == pytest.approx(24 / 28)
    assert dice[1] == 0
    assert dice[2] != dice[2]


def test_sums_over_millions_of_voxels_do_not_round_them_away():
    labels = torch.ones(1, 2048, 2048, dtype=torch.long)
    logits = torch.zeros(1, 2, 2048, 2048)
    logits[:, 1] = 3.0
    share = torch.sigmoid(torch.tensor(3.0, dtype=torch.float64))
    minus_dice, _ = dice_and_cross_entropy(logits, labels, False)
    assert float(minus_dice) == pytest.approx(float(-2 * share / (1 + share)), abs=1e-4)


def test_heads_count_as_their_network_says() -> None:
    heads = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 2, 2)]
    labels = torch.randint(0, 3, (2, 8, 8))
    loss = make_loss("dice_ce", LossSettings(num_classes=3))
    parts = [float(supervised_loss(head, downsample_labels(labels, head.shape[2:]), loss).total) for head in heads]
    total = float(supervised_loss(heads, labels, loss, weights=(1, 0.4, 0.1)).total)
    assert total == pytest.approx(parts[0] + 0.4 * parts[1] + 0.1 * parts[2], rel=1e-5)
