"""Every loss a plan can name is lowest for a perfect prediction, teaches a better one, and is what its paper says."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from medseg3d.errors import PlanError
from medseg3d.losses import LOSSES, LossSettings, check_loss, make_loss, supervised_loss
from medseg3d.losses.regions import dice_and_cross_entropy
from medseg3d.losses.shapes import signed_distances
from medseg3d.losses.supervision import center_crop, count_voxels, deep_supervision_weights, downsample_labels

NAMES = tuple(LOSSES.built_in)
PER_SAMPLE = [name for name in NAMES if LOSSES[name].knows_batches]
"""The others weigh voxels of the whole batch against each other."""
VOXELS = (1000.0, 100.0, 10.0)
"""Per class, background first."""
MINIMA = dict.fromkeys(("dice_ce", "cldice", "surface", "cc_dice_ce", "skeleton_recall"), -1.0)
"""Of the losses whose lowest value is not 0; that of the boundary loss depends on the labels."""


@pytest.fixture(autouse=True)
def _one_thread():
    """The problems are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name, *, num_classes=3, batch_dice=False, class_voxels=None, **options):
    settings = LossSettings(num_classes=num_classes, batch_dice=batch_dice, options=options, class_voxels=class_voxels)
    return make_loss(name, settings)


def blocks(dimensions=3, *, batch=2, edge=8):
    """Labels with a box of class 1, a smaller one of class 2 in it, shifted in every sample; background at all borders."""
    labels = torch.zeros(batch, *[edge] * dimensions, dtype=torch.uint8)
    for sample in range(batch):
        labels[(sample, *[slice(1, 6)] * (dimensions - 1), slice(1 + sample, 6))] = 1
        labels[(sample, *[slice(2, 4)] * (dimensions - 1), slice(2 + sample, 5))] = 2
    return labels


def one_hot(labels, num_classes=3):
    return F.one_hot(labels.long(), num_classes).movedim(-1, 1).float()


def dice_of(logits, labels):
    """The mean Dice of the arg-max over foreground labels."""
    predicted = logits.argmax(1)
    pairs = [((predicted == c), (labels == c)) for c in range(1, logits.shape[1])]
    return sum(float(2 * (p & r).sum() / (p.sum() + r.sum())) for p, r in pairs) / len(pairs)


# --- options


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_allowed_and_complete_what_is_given(name):
    defaults = check_loss(name, {})
    assert set(defaults) == set(LOSSES[name].options)
    assert check_loss(name, defaults) == defaults


def test_a_given_option_stays_beside_the_default_of_the_other():
    assert check_loss("tversky", {"beta": 0.9}) == {"alpha": 0.3, "beta": 0.9}


@given(st.sampled_from([(n, o) for n, table in LOSSES.built_in.items() for o in table.options]), st.floats())
def test_a_value_is_taken_if_and_only_if_it_lies_in_the_range(which, value):
    name, option = which
    rule = LOSSES[name].options[option]
    if rule.minimum <= value <= rule.maximum and (not rule.is_whole or value.is_integer()):
        assert check_loss(name, {option: value})[option] == value
    else:
        with pytest.raises(PlanError, match=f"Loss {name}: {option} is .* from {rule.minimum:g} to {rule.maximum:g}"):
            check_loss(name, {option: value})


def test_the_message_names_all_findings_and_what_is_allowed():
    with pytest.raises(PlanError) as caught:
        check_loss("tversky", {"alpha": 7.0, "gamma": 2.0})
    assert "alpha is 7.0, must be a number from 0.01 to 1 (weight of false positives)" in str(caught.value)
    assert "no option 'gamma'; it has alpha, beta" in str(caught.value)
    with pytest.raises(PlanError, match="no option 'alpha'; it has none"):
        check_loss("dice_ce", {"alpha": 0.5})
    with pytest.raises(PlanError, match=r"There is no loss 'hinge'; known are boundary, "):
        check_loss("hinge", {})


def test_skeletons_take_whole_iterations():
    with pytest.raises(PlanError, match=r"iterations is 2\.5, must be a whole number from 1 to 50"):
        check_loss("cldice", {"iterations": 2.5})


# --- every loss


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_prediction_reaches_the_minimum_and_a_worse_one_costs_more(name, dimensions, batch_dice):
    labels, loss = blocks(dimensions), make(name, batch_dice=batch_dice, class_voxels=VOXELS)
    right = one_hot(labels)
    values = [float(loss(scale * right, labels)) for scale in (30, 6, 3, 1, 0, -1, -3)]
    minimum = MINIMA.get(name, 0.0)
    if name == "boundary":
        minimum = 0.01 * float(signed_distances(labels, 3).clamp_max(0).mean())
    assert values[0] == pytest.approx(minimum, abs=2e-3)
    assert all(better < worse for better, worse in pairwise(values))


@pytest.mark.parametrize("name", NAMES)
def test_the_further_a_prediction_is_shifted_the_more_it_costs(name):
    labels = torch.zeros(1, 24, 12, dtype=torch.uint8)
    labels[:, 3:10, 3:9] = 1
    labels[:, 5:8, 4:8] = 2
    loss = make(name, class_voxels=VOXELS)
    values = [float(loss(5 * one_hot(labels.roll(shift, 1)), labels)) for shift in (0, 1, 2)]
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", NAMES)
def test_descent_lowers_the_loss_and_raises_the_dice(name):
    torch.manual_seed(0)
    labels, loss = blocks(2), make(name, batch_dice=True, class_voxels=VOXELS)
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    before, dice_before = loss(logits, labels).item(), dice_of(logits, labels)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, labels).backward()
        optimizer.step()
    assert loss(logits, labels).item() < before
    assert dice_of(logits, labels) > max(0.9, dice_before)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "skeleton_recall"])  # thinning begins at one side
def test_renaming_labels_and_mirroring_changes_nothing(name):
    torch.manual_seed(0)
    labels, logits = blocks(), torch.randn(2, 3, 8, 8, 8)
    expected = float(make(name, class_voxels=VOXELS)(logits, labels))
    renamed = torch.tensor([0, 2, 1], dtype=torch.uint8)[labels.long()]
    again = make(name, class_voxels=(VOXELS[0], VOXELS[2], VOXELS[1]))(logits[:, [0, 2, 1]], renamed)
    assert float(again) == pytest.approx(expected, rel=1e-4)
    for axis in (1, 2, 3):
        mirrored = make(name, class_voxels=VOXELS)(logits.flip(axis + 1), labels.flip(axis))
        assert float(mirrored) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_without_pooling_a_batch_is_the_mean_of_its_samples(name):
    torch.manual_seed(0)
    labels, logits, loss = blocks(), torch.randn(2, 3, 8, 8, 8), make(name)
    each = [float(loss(logits[n : n + 1], labels[n : n + 1])) for n in range(2)]
    assert float(loss(logits, labels)) == pytest.approx(sum(each) / 2, rel=1e-4)


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_pooling_two_equal_samples_changes_nothing_and_two_others_does(name):
    torch.manual_seed(0)
    labels, logits = blocks(batch=1), torch.randn(1, 3, 8, 8, 8)
    one = float(make(name, batch_dice=True)(logits, labels))
    twice = float(make(name, batch_dice=True)(torch.cat([logits] * 2), torch.cat([labels] * 2)))
    assert twice == pytest.approx(one, rel=5e-3)  # the smoothing of skeletons is not doubled
    logits, labels = torch.cat([logits, 2 * logits]), torch.cat([labels, labels.roll(1, 1).clamp_max(1)])
    assert float(make(name, batch_dice=True)(logits, labels)) != pytest.approx(float(make(name)(logits, labels)), rel=1e-4)


CASES = {
    "only background": (torch.zeros_like, lambda logits: logits),
    "a label absent": (lambda labels: labels.clamp_max(1), lambda logits: logits),
    "a label fills the patch": (torch.ones_like, lambda logits: logits),
    "bfloat16": (lambda labels: labels, lambda logits: logits.bfloat16()),
    "extreme": (lambda labels: labels, lambda logits: 50 * logits.sign()),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_finite_and_something_is_learned(name, batch_dice, dimensions, batch, case):
    torch.manual_seed(0)
    change_labels, change_logits = CASES[case]
    labels = change_labels(blocks(dimensions, batch=batch))
    logits = change_logits(torch.randn(batch, 3, *labels.shape[1:])).requires_grad_()
    value = make(name, batch_dice=batch_dice, class_voxels=VOXELS)(logits, labels)
    value.backward()
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0


@pytest.mark.parametrize("scale", [50.0, -50.0])
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in NAMES), ("dice_focal", {"gamma": 0.5})])
def test_gradients_are_finite_where_every_voxel_is_certain(name, options, scale):
    labels = blocks(2)
    logits = (scale * one_hot(labels)).requires_grad_()
    value = make(name, **options)(logits, labels)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name):
    torch.manual_seed(0)
    labels, logits, loss = blocks(), torch.randn(2, 3, 8, 8, 8), make(name)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(logits, labels)
    assert float(inside) == float(loss(logits, labels))


@pytest.mark.parametrize("name", NAMES)
def test_patches_of_one_voxel_across_are_possible(name):
    labels = torch.zeros(1, 1, 5, 1, dtype=torch.uint8)
    labels[0, 0, 2] = 1
    logits = torch.zeros(1, 3, 1, 5, 1, requires_grad=True)
    make(name)(logits, labels).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0


# --- regions


@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_is_that_of_dice_ce(batch_dice):
    torch.manual_seed(0)
    labels, logits = blocks(), torch.randn(2, 3, 8, 8, 8)
    minus_dice, cross_entropy = dice_and_cross_entropy(logits, labels, batch_dice)
    assert float(make("dice", batch_dice=batch_dice)(logits, labels)) == pytest.approx(1 + float(minus_dice), rel=1e-5)
    assert float(make("dice_ce", batch_dice=batch_dice)(logits, labels)) == float(minus_dice + cross_entropy)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_squared_dice_is_that_of_the_formula(batch_dice):
    torch.manual_seed(0)
    labels, logits = blocks(2), torch.randn(2, 3, 8, 8)
    predicted, reference = logits.softmax(1)[:, 1:], one_hot(labels)[:, 1:]
    axes = (0, 2, 3) if batch_dice else (2, 3)
    expected = 1 - (2 * (predicted * reference).sum(axes) / (predicted**2 + reference**2).sum(axes)).mean()
    assert float(make("dice_squared", batch_dice=batch_dice)(logits, labels)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_generalized_dice_is_monais_where_every_label_is_present_and_small(batch_dice):
    from monai.losses import GeneralizedDiceLoss

    torch.manual_seed(0)
    labels, logits = blocks(2), torch.randn(2, 3, 8, 8)
    theirs = GeneralizedDiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=batch_dice)(logits, labels[:, None])
    assert float(make("generalized_dice", batch_dice=batch_dice)(logits, labels)) == pytest.approx(float(theirs), rel=1e-3)


def test_generalized_dice_of_large_labels_does_not_vanish_in_the_smoothing():
    labels = torch.zeros(1, 1024, 1024, dtype=torch.uint8)
    labels[:, :512], labels[:, 512:800] = 1, 2
    assert float(make("generalized_dice")(-9 * one_hot(labels), labels)) == pytest.approx(1, abs=1e-3)


def test_focal_term_without_focus_is_cross_entropy_and_with_it_monais():
    from monai.losses import FocalLoss

    torch.manual_seed(0)
    labels, logits = blocks(), torch.randn(2, 3, 8, 8, 8)
    dice = float(make("dice")(logits, labels))
    plain = float(F.cross_entropy(logits, labels.long()))
    assert float(make("dice_focal", gamma=0.0)(logits, labels)) == pytest.approx(dice + plain, rel=1e-5)
    theirs = 3 * float(FocalLoss(gamma=1.5, use_softmax=True)(logits, one_hot(labels)))  # which divides by the classes, too
    assert float(make("dice_focal", gamma=1.5, weight=2.0)(logits, labels)) == pytest.approx(dice + 2 * theirs, rel=1e-5)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_tversky_with_equal_weights_is_the_dice(batch_dice):
    torch.manual_seed(0)
    labels, logits = blocks().clamp_max(1), torch.randn(2, 3, 8, 8, 8)
    logits[:, 2] -= 18  # absent and hardly predicted: there the smoothing decides
    dice = make("dice", batch_dice=batch_dice)(logits, labels)
    assert float(make("tversky", alpha=0.5, beta=0.5, batch_dice=batch_dice)(logits, labels)) == pytest.approx(float(dice), rel=1e-6)


def test_alpha_is_the_price_of_false_positives_and_beta_that_of_false_negatives():
    labels = torch.zeros(1, 10, 10, dtype=torch.uint8)
    labels[:, :2] = 1  # 20 voxels
    predicted = labels.roll(1, 1)  # 10 hits, 10 false positives, 10 false negatives
    predicted[:, 2, 5:] = 0  # 5 false positives
    value = float(make("tversky", num_classes=2, alpha=0.2, beta=0.6)(60 * one_hot(predicted, 2), labels))
    assert value == pytest.approx(1 - 10 / (10 + 0.2 * 5 + 0.6 * 10), abs=1e-5)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_focal_tversky_is_tversky_for_gamma_1_and_a_power_of_it_otherwise(batch_dice):
    torch.manual_seed(0)
    labels, logits = blocks().clamp_max(1), torch.randn(2, 2, 8, 8, 8)
    logits, labels = logits[:1], labels[:1]  # one sample with one label: no mean is in the way
    plain = float(make("tversky", num_classes=2, batch_dice=batch_dice)(logits, labels))
    focal = [float(make("focal_tversky", num_classes=2, gamma=g, batch_dice=batch_dice)(logits, labels)) for g in (1.0, 2.0)]
    assert focal == pytest.approx([plain, plain**0.5], rel=1e-5)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_lovasz_of_a_hard_prediction_is_the_jaccard_loss(batch_dice):
    torch.manual_seed(0)
    labels, predicted = torch.randint(0, 2, (2, 9, 7)), torch.randint(0, 3, (2, 9, 7))
    labels[1, 0, 0] = 2  # absent from the first sample
    value = float(make("lovasz", batch_dice=batch_dice)(200 * one_hot(predicted), labels))
    samples = [(predicted, labels)] if batch_dice else list(zip(predicted, labels, strict=True))
    expected = []
    for p, r in samples:
        jaccard = [((p == c) & (r == c)).sum() / ((p == c) | (r == c)).sum() for c in r.unique()]
        expected.append(1 - sum(float(j) for j in jaccard) / len(jaccard))
    assert value == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_lovasz_is_the_piecewise_linear_extension_of_the_jaccard_loss():
    """Written out: the mean over a uniform threshold of the Jaccard loss of all voxels whose error is above it."""
    torch.manual_seed(0)
    labels, logits = torch.randint(0, 2, (1, 5, 6)), torch.randn(1, 2, 5, 6, dtype=torch.float64)
    expected = 0.0
    for c in range(2):
        reference = (labels == c).flatten()
        errors = (reference.double() - logits.softmax(1)[:, c].flatten()).abs()
        levels = torch.cat([torch.zeros(1), errors.sort().values])
        for low, high in pairwise(levels.tolist()):
            is_wrong = errors > low + 1e-12
            predicted = reference ^ is_wrong
            jaccard = float((predicted & reference).sum() / (predicted | reference).sum())
            expected += (high - low) * (1 - jaccard) / 2
    assert float(make("lovasz", num_classes=2)(logits, labels)) == pytest.approx(expected, abs=1e-5)


# --- voxels


def test_weighted_cross_entropy_with_equal_weights_is_cross_entropy():
    torch.manual_seed(0)
    labels, logits = blocks(), torch.randn(2, 3, 8, 8, 8)
    expected = pytest.approx(float(F.cross_entropy(logits, labels.long())), rel=1e-6)
    assert float(make("weighted_ce")(logits, labels)) == expected
    assert float(make("weighted_ce", class_voxels=(7.0, 7.0, 7.0))(logits, labels)) == expected
    assert float(make("weighted_ce", class_voxels=VOXELS, power=0.0)(logits, labels)) == expected


def test_weights_are_a_power_of_the_inverse_of_the_voxels_and_a_class_without_any_counts_as_the_rarest():
    labels, logits = torch.tensor([[[0, 1, 2]]]), torch.zeros(1, 3, 1, 3, requires_grad=True)
    make("weighted_ce", class_voxels=(400.0, 100.0, 0.0), power=0.5)(logits, labels).backward()
    pull = -logits.grad[0, [0, 1, 2], 0, [0, 1, 2]]
    assert (pull / pull[0]).tolist() == pytest.approx([1, 2, 2])


def test_hard_examples_are_the_voxels_of_highest_cross_entropy():
    torch.manual_seed(0)
    labels, logits = blocks(), torch.randn(2, 3, 8, 8, 8)
    each = F.cross_entropy(logits, labels.long(), reduction="none").flatten().sort(descending=True).values
    assert float(make("ohem", share=1.0)(logits, labels)) == pytest.approx(float(each.mean()), rel=1e-5)
    assert float(make("ohem", share=0.25)(logits, labels)) == pytest.approx(float(each[:256].mean()), rel=1e-5)


# --- shapes


@pytest.mark.parametrize("dimensions", [2, 3])
def test_distances_are_negative_inside_and_reach_to_the_face_between_voxels(dimensions):
    torch.manual_seed(0)
    labels = torch.randint(0, 12, (2, *[6] * dimensions)).clamp_max(3).sub(1).clamp_min(0)  # 0, 1 and many 2
    distances = signed_distances(labels, 3)
    grid = torch.cartesian_prod(*[torch.arange(6.0)] * dimensions)
    apart = torch.cdist(grid, grid)
    for sample in range(2):
        for label in (1, 2):
            inside = (labels[sample] == label).flatten()
            nearest = torch.where(inside[:, None] != inside[None], apart, torch.inf).amin(1) - 0.5
            expected = torch.where(inside, -nearest, nearest)
            torch.testing.assert_close(distances[sample, label - 1].flatten(), expected)


def test_a_label_without_a_boundary_has_no_distances():
    labels = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)]).long()
    assert not signed_distances(labels, 3).any()


def test_boundary_term_charges_for_distance_where_the_dice_does_not():
    labels, near = torch.zeros(1, 30, 6, dtype=torch.uint8), torch.zeros(1, 30, 6, dtype=torch.uint8)
    labels[:, :4] = 1
    near[:, :4] = 1
    far = near.clone()
    near[:, 5], far[:, 25] = 1, 1  # a stripe of the same size
    for name in ("boundary", "surface"):
        costs = [make(name, num_classes=2, weight=w)(20 * one_hot(p, 2), labels) for w in (0.0, 1.0) for p in (near, far)]
        assert float(costs[0]) == pytest.approx(float(costs[1]))
        assert float(costs[2]) < float(costs[3])


def test_boundary_term_is_the_mean_of_probability_times_distance():
    labels, logits = blocks(2), torch.randn(2, 3, 8, 8)
    term = (logits.softmax(1)[:, 1:] * signed_distances(labels, 3)).mean()
    expected = float(make("dice")(logits, labels) + 0.3 * term)
    assert float(make("boundary", weight=0.3)(logits, labels)) == pytest.approx(expected, rel=1e-5)


def test_surface_term_runs_from_0_for_the_labels_to_1_for_their_opposite():
    labels = blocks(2).clamp_max(1)
    for predicted, expected in ((labels, 0.0), (1 - labels, 1.0)):
        logits = 60 * one_hot(predicted, 2)
        term = make("surface", num_classes=2, weight=1.0)(logits, labels) - make("dice_ce", num_classes=2)(logits, labels)
        assert float(term) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("fill", [0, 1])
def test_a_label_without_a_boundary_adds_nothing_to_the_surface_term(fill):
    labels, logits = torch.full((1, 5, 5), fill), torch.randn(1, 3, 5, 5)
    assert float(make("surface")(logits, labels)) == pytest.approx(float(make("dice_ce")(logits, labels)), rel=1e-6)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_gap_in_a_tube_costs_more_than_as_many_voxels_of_its_side(dimensions):
    labels = torch.zeros(1, 24, *[9] * (dimensions - 1), dtype=torch.uint8)
    cross = [slice(3, 6)] * (dimensions - 1)
    labels[(0, slice(None), *cross)] = 1
    gap, dent = labels.clone(), labels.clone()
    gap[(0, slice(10, 12), *cross)] = 0
    dent[(0, slice(9, 15), 3, *cross[1:])] = 0  # the same number of voxels
    assert gap.sum() == dent.sum()
    costs = [make("cldice", num_classes=2, weight=w)(20 * one_hot(p, 2), labels) for w in (0.0, 1.0) for p in (gap, dent)]
    assert float(costs[0]) == pytest.approx(float(costs[1]))
    assert float(costs[2]) > float(costs[3]) + 0.01


# --- outputs


def test_heads_are_weighted_against_labels_of_their_size():
    torch.manual_seed(0)
    labels, loss = blocks(2), make("lovasz")
    heads = [torch.randn(2, 3, n, n) for n in (8, 4, 2)]
    parts = [loss(head, downsample_labels(labels, head.shape[2:])) for head in heads]
    expected = sum(weight * float(part) for weight, part in zip(deep_supervision_weights(3), parts, strict=True))
    result = supervised_loss(heads, labels, loss)
    assert float(result.total) == pytest.approx(expected, rel=1e-6)
    assert result.counts is None


@pytest.mark.parametrize("finest", [8, 6])
def test_voxels_are_counted_where_the_finest_output_lies(finest):
    heads = [torch.randn(2, 3, n, n) for n in (finest, finest // 2)]
    counts = supervised_loss(heads, blocks(2), make("dice_ce"), count=count_voxels).counts
    assert int((counts.true_positives + counts.false_negatives).sum()) == 2 * finest**2


def test_an_output_of_valid_convolutions_is_compared_with_the_middle_of_the_labels():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 9, 12))
    heads = [torch.randn(2, 3, 6, 8), torch.randn(2, 3, 3, 4), torch.randn(2, 3, 1, 2)]
    middle = labels[:, 1:7, 2:10]
    expected = supervised_loss(heads, middle, make("dice"))
    assert float(supervised_loss(heads, labels, make("dice")).total) == float(expected.total)
    counts = supervised_loss(heads, labels, make("dice"), count=count_voxels).counts
    assert int(counts.true_positives.sum()) == int((heads[0].argmax(1) == middle).sum())


@pytest.mark.parametrize(("size", "wanted"), [((7, 6, 5), (3, 6, 4)), ((5, 5), (1, 2)), ((4, 4), (4, 4))])
def test_a_crop_leaves_as_much_on_both_sides_and_an_odd_voxel_behind(size, wanted):
    labels = torch.arange(2 * torch.Size(size).numel()).view(2, *size)
    cropped = center_crop(labels, wanted)
    assert cropped.shape == (2, *wanted)
    before = [(s - w) // 2 for s, w in zip(size, wanted, strict=True)]
    after = [s - w - b for s, w, b in zip(size, wanted, before, strict=True)]
    assert all(b <= a <= b + 1 for b, a in zip(before, after, strict=True))
    assert cropped.flatten()[0] == labels[(0, *before)]
    assert cropped.flatten()[-1] == labels[(-1, *(-1 - a for a in after))]


def test_logits_larger_than_the_labels_are_refused():
    with pytest.raises(ValueError, match=r"Logits of \(4, 6\) voxels do not lie inside labels of \(5, 5\)"):
        supervised_loss(torch.zeros(1, 2, 4, 6), torch.zeros(1, 5, 5, dtype=torch.uint8), make("dice", num_classes=2))
