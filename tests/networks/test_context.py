"""ISNet's class means, MSFNet's pooling and boundaries: numbers that they are known by."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medseg3d.label_codes import LabelCodes
from medseg3d.labels import Labels
from medseg3d.losses.supervision import class_boundaries, supervise
from medseg3d.networks import build_network
from medseg3d.networks.cross_attention import CrossAttention
from medseg3d.networks.isnet import class_means
from medseg3d.networks.resizing import widely_pooled
from medseg3d.networks.style import Style
from tests.networks.test_families import plan


@pytest.mark.parametrize("size", [(4, 5), (3, 2, 4)])
def test_each_voxel_gets_the_weighted_mean_of_its_class(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    features, logits = torch.randn(2, 3, *size), torch.randn(2, 4, *size)
    logits[:, 3] = -9  # a class that no voxel has
    found = class_means(features, logits)
    for sample in range(2):
        chosen = logits[sample].argmax(0)
        for number in chosen.unique():
            member = chosen == number
            weights = logits[sample, number][member].softmax(0)
            expected = (features[sample][:, member] * weights).sum(1)
            torch.testing.assert_close(found[sample][:, member], expected[:, None].expand(-1, int(member.sum())))


def test_attention_looks_at_all_voxels() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(3, 3, 4, 5, 2, Style(norm="none")).eval()
    x, seen = torch.randn(1, 3, 4, 5), torch.randn(1, 3, 4, 5)
    query, key, value = (part(y).flatten(2)[0].T for part, y in ((attention.query, x), (attention.key, seen), (attention.value, seen)))
    expected = attention.out(((query @ key.T / 2).softmax(1) @ value).T.view(1, 4, 4, 5))
    torch.testing.assert_close(attention(x, seen), expected)
    moved = seen.flip(2)  # where something is does not matter, only that it is there
    torch.testing.assert_close(attention(x, moved), expected)


@pytest.mark.parametrize(("size", "wanted"), [((16, 16), (4, 8)), ((8, 12, 6), (8, 3, 3)), ((5, 7), (2, 2))])
def test_wide_pooling_takes_windows_of_twice_the_stride_and_one(size: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    x = torch.randn(1, 2, *size)
    found = widely_pooled(x, wanted)
    assert tuple(found.shape[2:]) == wanted
    torch.testing.assert_close(widely_pooled(torch.ones_like(x), wanted), torch.ones_like(found))
    if size == (16, 16):
        torch.testing.assert_close(found[0, 0, 1, 2], x[0, 0, 0:9, 2:7].mean())


def test_boundaries_are_voxels_that_touch_another_label() -> None:
    labels = torch.zeros(1, 6, 6, 6, dtype=torch.long)
    labels[0, 1:5, 1:5, 1:5] = 2
    boundaries = class_boundaries(labels)
    inside = F.pad(torch.full((2, 2, 2), 2), [2] * 6)
    assert torch.equal(boundaries[0] + inside, labels[0])
    assert not class_boundaries(torch.full((1, 3, 3), 2)).any()


def test_boundaries_of_codes_leave_what_is_not_known() -> None:
    codes = LabelCodes(Labels(names=("background", "a", "b"), values=(0, 1, 2), ignore=9, unannotated=((2,),)))
    assert (codes.num_values, codes.ignored) == (3, 6)
    labels = torch.tensor([[0, 1, 1, 1, 6, 6, 1, 1, 0], [3, 4, 4, 4, 6, 4, 4, 4, 4]])
    assert class_boundaries(labels, codes).tolist() == [[0, 1, 0, 0, 6, 6, 0, 1, 0], [3, 4, 3, 3, 6, 3, 3, 3, 3]]


def test_the_second_head_of_msfnet_learns_boundaries() -> None:
    network = build_network(plan("msfnet", (4, 4, 8, 8), dimensions=2, encoder=(1,), deep=True, decoder_features=4)).train()
    labels = F.pad(torch.ones(1, 8, 8, dtype=torch.long), [4] * 4)
    outputs = network(torch.randn(1, 1, 16, 16))
    first, second = supervise(outputs, labels, network.head_weights, network.head_targets)
    assert torch.equal(first.labels, labels)
    assert torch.equal(second.labels, class_boundaries(labels))
    assert sum(head.labels.sum() for head in supervise(outputs, labels, network.head_weights)) == 2 * labels.sum()
    network.eval()
    assert isinstance(network(torch.randn(1, 1, 16, 16)), torch.Tensor)


def test_context_heads_take_every_kind_of_context() -> None:
    for context in ("atrous", "pooling", "none"):
        network = build_network(
            plan("mcibi", (4, 4, 8, 8), dimensions=2, encoder=(1,), head_features=8, attention_features=4, context=context)
        ).eval()
        assert tuple(network(torch.randn(1, 1, 16, 24)).shape) == (1, 2, 16, 24)
