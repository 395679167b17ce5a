"""Networks have nnU-Net's sizes, shapes and starting values, for any number of stages and any strides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from medseg3d.errors import PlanError
from medseg3d.networks import NETWORKS, build_network
from medseg3d.networks.blocks import ResidualBlock
from medseg3d.networks.build import checked_plan
from medseg3d.networks.convolutions import convolution, transposed_convolution
from medseg3d.networks.normalization import InstanceNorm
from medseg3d.plan import NetworkPlan

FLAT_STRIDES = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
FLAT_KERNELS = ((1, 3, 3), (1, 3, 3), *((3, 3, 3),) * 5)
HEADS_AT_EVERY_STAGE = ["plain_unet", "residual_unet", "classic_unet", "vnet"]
"""The u2net adds its coarse scores up into one output; MONAI's families have tests of their own."""
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6)


def plan(family, strides, *, kernels=None, features=None, num_classes=3, in_channels=1):
    num_stages, dimensions = len(strides), len(strides[0])
    is_plain = family == "plain_unet"
    return NetworkPlan(
        family=family,
        dimensions=dimensions,
        in_channels=in_channels,
        num_classes=num_classes,
        features=features or tuple(min(320 if dimensions == 3 else 512, 32 * 2**stage) for stage in range(num_stages)),
        kernel_sizes=kernels or ((3,) * dimensions,) * num_stages,
        strides=strides,
        encoder_blocks=(2,) * num_stages if is_plain else RESIDUAL_BLOCKS[:num_stages],
        decoder_blocks=(2 if is_plain else 1,) * (num_stages - 1),
    )


def isotropic(dimensions, pools):
    return ((1,) * dimensions, *((2,) * dimensions,) * pools)


def small(family, strides, **others):
    return plan(family, strides, features=tuple(4 + 2 * stage for stage in range(len(strides))), **others)


@pytest.mark.parametrize(
    ("network_plan", "expected"),
    [
        (plan("plain_unet", isotropic(3, 3)), 5_603_177),
        (plan("plain_unet", isotropic(3, 5)), 31_196_399),
        (plan("plain_unet", FLAT_STRIDES, kernels=FLAT_KERNELS), 44_578_482),
        (plan("plain_unet", isotropic(2, 7), num_classes=2), 46_324_558),
        (plan("residual_unet", isotropic(3, 3)), 25_895_593),
        (plan("residual_unet", isotropic(3, 5)), 102_350_575),
        (plan("residual_unet", isotropic(2, 7), num_classes=2), 140_017_038),
    ],
)
def test_networks_have_as_many_parameters_as_nnunets(network_plan, expected):
    # the meta device knows sizes without filling hundreds of megabytes
    with torch.device("meta"):
        network = NETWORKS[network_plan.family].build(checked_plan(network_plan))
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("family", HEADS_AT_EVERY_STAGE)
@pytest.mark.parametrize(
    ("strides", "size"),
    [
        (((1, 1, 1),), (3, 4, 5)),
        (isotropic(3, 1), (4, 6, 4)),
        (isotropic(3, 3), (8, 16, 8)),
        (((1, 1, 1), (1, 2, 2), (2, 2, 2)), (4, 8, 12)),
        (isotropic(2, 2), (8, 12)),
        (((1, 1), (1, 2), (2, 2)), (4, 8)),
    ],
)
def test_every_head_has_the_size_of_its_stage(family, strides, size):
    network = build_network(small(family, strides, in_channels=2)).train()
    logits = network(torch.randn(2, 2, *size))
    expected, current = [], size
    for stride in strides[: max(1, len(strides) - 1)]:
        current = tuple(n // s for n, s in zip(current, stride, strict=True))
        expected.append((2, 3, *current))
    assert [tuple(head.shape) for head in logits] == expected
    sum(head.float().square().mean() for head in logits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("family", HEADS_AT_EVERY_STAGE)
def test_evaluation_gives_the_finest_logits_of_training(family):
    network = build_network(small(family, isotropic(3, 2)))
    x = torch.randn(1, 1, 8, 8, 8)
    finest = network.train()(x)[0]
    torch.testing.assert_close(network.eval()(x), finest)
    network.train().deep_supervision = False
    torch.testing.assert_close(network(x), finest)


def test_decoder_stages_use_the_kernel_of_their_skip():
    kernels = ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    with torch.device("meta"):
        network = build_network(plan("plain_unet", strides, kernels=kernels))
    assert [stage[0].conv.kernel_size for stage in network.decoder.stages] == [(3, 3, 3), (1, 3, 3), (1, 3, 3)]
    assert [up.kernel_size for up in network.decoder.up] == [(2, 2, 2), (1, 2, 2), (1, 2, 2)]


def test_the_same_generator_gives_the_same_weights():
    first, second, third = (
        build_network(small("plain_unet", isotropic(2, 1)), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.encoder[0][0].conv.weight, third.encoder[0][0].conv.weight)
    assert all(not p.any() for name, p in first.named_parameters() if name.endswith("bias"))


def test_weights_begin_with_the_spread_of_he_initialization():
    network = build_network(plan("plain_unet", isotropic(3, 1)))
    conv = network.encoder[1][1].conv
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (1 + 0.01**2) / (64 * 27)) ** 0.5, rel=0.02)


def test_a_residual_block_begins_as_its_skip():
    network = build_network(small("residual_unet", isotropic(3, 1)))
    block = next(m for m in network.modules() if isinstance(m, ResidualBlock) and m.projection is None)
    x = torch.randn(1, 4, 4, 4, 4)
    torch.testing.assert_close(block(x), F.leaky_relu(x, 0.01))


def test_a_skip_is_pooled_and_projected_only_where_it_must_be():
    network = build_network(small("residual_unet", isotropic(3, 1)))
    blocks = [m for m in network.modules() if isinstance(m, ResidualBlock)]
    assert [block.projection is not None for block in blocks] == [False, True, False, False]
    assert blocks[1].projection.conv.bias is None


@pytest.mark.parametrize("shape", [(3, 5, 4, 6, 7), (1, 5, 4, 6, 7), (2, 5, 6, 7), (2, 5, 1, 3)])
def test_instance_norm_is_torchs_instance_norm(shape):
    norm = InstanceNorm(5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    ours = torch.randn(shape, dtype=torch.float32).mul_(3).add_(2).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    weight, bias = (p.detach().clone().requires_grad_() for p in (norm.weight, norm.bias))
    result, expected = norm(ours), F.instance_norm(theirs, weight=weight, bias=bias)
    torch.testing.assert_close(result, expected)
    gradient = torch.randn(shape)
    result.backward(gradient)
    expected.backward(gradient)
    for a, b in ((ours, theirs), (norm.weight, weight), (norm.bias, bias)):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 4, 64, 80, 96), (1, 3, 300, 301), (1, 2, 3, 1, 1)])
def test_instance_norm_is_exact_in_float32_prediction(shape: tuple[int, ...]) -> None:
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 20
    norm = InstanceNorm(shape[1])
    exact = x.double()
    axes = tuple(range(2, len(shape)))
    exact = (exact - exact.mean(axes, keepdim=True)) / torch.sqrt(exact.var(axes, unbiased=False, keepdim=True) + 1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(norm(x).double(), exact, rtol=0, atol=5e-6)


def test_a_single_spatial_element_is_scaled_and_shifted():
    norm = InstanceNorm(2)
    torch.nn.init.constant_(norm.weight, 2)
    torch.nn.init.constant_(norm.bias, 1)
    x = torch.tensor([[3.0, -1.0]]).view(1, 2, 1, 1, 1)
    assert norm(x).flatten().tolist() == [7.0, -1.0]
    network = build_network(small("plain_unet", isotropic(3, 2))).train()
    assert all(head.isfinite().all() for head in network(torch.randn(1, 1, 4, 4, 4)))


@pytest.mark.parametrize("family", HEADS_AT_EVERY_STAGE)
def test_bfloat16_comes_close_to_float32(family):
    network = build_network(small(family, isotropic(3, 2))).eval()
    x = torch.randn(2, 1, 8, 8, 8)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(x).float()
    assert float((rounded - exact).square().mean().sqrt()) < 0.05 * float(exact.std())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "no_such"}, "There is no network 'no_such'; known are "),
        (
            {"options": {"alpha": 0.5}},
            "plain_unet does not know alpha; it takes activation, attention_gates, dropout, dropout_of, encoder, heads, norm",
        ),
        ({"decoder_blocks": (2, 2)}, "decoder_blocks has 2 entries, expected 1"),
        ({"strides": ((1, 1), (2, 2))}, r"strides\[0\] is \(1, 1\), expected 3 numbers"),
    ],
)
def test_a_wrong_record_is_refused_with_what_is_wrong(change, message):
    with pytest.raises(PlanError, match=message):
        build_network(replace(small("plain_unet", isotropic(3, 1)), **change))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("own", "plain"),
    [
        (convolution(3, 4, (1, 3, 3), (1, 1, 1), bias=True), F.conv3d),
        (convolution(3, 4, (1, 3, 5), (1, 2, 1), bias=False), F.conv3d),
        (convolution(3, 4, (1, 1, 1), (1, 1, 1), bias=True), F.conv3d),
        (transposed_convolution(3, 4, (1, 2, 3)), F.conv_transpose3d),
    ],
    ids=["flat", "flat strided", "pointwise", "flat transposed"],
)
def test_flat_kernels_give_the_numbers_of_torchs_3d_kernels(own, plain, layout):
    x = torch.randn(2, 3, 5, 6, 8).contiguous(memory_format=layout).requires_grad_()
    padding = {} if plain is F.conv_transpose3d else {"padding": own.padding}
    found, expected = own(x), plain(x, own.weight, own.bias, stride=own.stride, **padding)
    direction = torch.randn_like(expected)
    parameters = [x, *own.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(found, parameters, direction)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters, direction), rtol=1e-4, atol=1e-4)
