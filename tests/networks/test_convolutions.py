"""Convolutions of a single slice are right in half precision, also where torch's own 3D kernel is wrong; layouts and bits do not depend
on how a network came into memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.devices import choose_device
from medseg3d.models.checkpoints import load_into, load_tensors, save_tensors
from medseg3d.networks.build import build_network
from medseg3d.networks.convolutions import convolution, convolve, lone_axis, transposed_convolution
from medseg3d.networks.packed import can_pack, packed
from medseg3d.plan import NetworkPlan

STYLED = ("plain_unet", "residual_unet", "classic_unet", "vnet", "u2net")
"""The others have tests of their own: test_published_networks.py and test_monai_families.py."""

WRONG = 1e35
"""What uninitialized memory looked like."""
LONE = [(1, 6, 5), (6, 1, 5), (6, 5, 1), (1, 1, 5), (1, 6, 1), (1, 1, 1)]


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def assert_rounding_only(found: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.03 * float(exact.detach().square().mean().sqrt()))


@pytest.fixture
def wrong_3d_kernel(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """torch's bf16 conv3d as it is on a CPU with AMX: garbage of a single slice for an odd number of channels."""
    met = []
    true_conv3d = F.conv3d

    def conv3d(x: Tensor, weight: Tensor, *others: Any, **named: Any) -> Tensor:
        result = true_conv3d(x, weight, *others, **named)
        lone = any(n == 1 and k > 1 for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
        if result.dtype == torch.bfloat16 and lone and weight.shape[1] % 2:
            met.append(tuple(x.shape))
            return torch.full_like(result, WRONG)
        return result

    monkeypatch.setattr(F, "conv3d", conv3d)
    return met


@pytest.mark.fault("A", "bf16 conv3d of one slice is wrong on a CPU with AMX", "computed as the 2D convolution that it equals, right")
@pytest.mark.parametrize("size", LONE, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_single_slice_is_convolved_with_the_slice_of_the_kernel_that_meets_it(
    size: tuple[int, ...], channels: int, wrong_3d_kernel: list[tuple[int, ...]], record_property: Callable[[str, object], None]
) -> None:
    torch.manual_seed(0)
    tries = 0
    for kernel, stride, dilation in product([(3, 3, 3), (5, 3, 1), (3, 1, 5)], [(1, 1, 1), (2, 1, 2), (1, 2, 2)], [(1, 1, 1), (2, 1, 2)]):
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        x, weight, bias = rounded(torch.randn(2, channels, *size)), rounded(torch.randn(4, channels, *kernel)), rounded(torch.randn(4))
        exact = F.conv3d(x, weight, bias, stride, padding, dilation)
        found = convolve(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), stride, padding, dilation)
        assert found.dtype == torch.bfloat16
        assert_rounding_only(found, exact)
        tries += 1
    assert not wrong_3d_kernel
    record_property("tries", tries)


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "stride"), [(3, 2, 1, 1), (3, 3, 1, 2), (3, 1, 2, 1), (2, 1, 1, 1), (2, 1, 1, 2), (4, 3, 3, 1)]
)
def test_other_paddings_of_a_single_slice_give_every_slice(kernel: int, padding: int, dilation: int, stride: int) -> None:
    if 2 * padding < dilation * (kernel - 1):
        with pytest.raises(RuntimeError, match="Kernel size"):
            convolve(
                torch.ones(1, 1, 1, 4, 4).bfloat16(),
                torch.ones(1, 1, kernel, 1, 1).bfloat16(),
                None,
                (1, 1, 1),
                (padding, 0, 0),
                (dilation, 1, 1),
            )
        return
    torch.manual_seed(0)
    x, weight = rounded(torch.randn(1, 3, 1, 4, 4)), rounded(torch.randn(2, 3, kernel, 3, 3))
    others = (stride, 1, 1), (padding, 1, 1), (dilation, 1, 1)
    exact = F.conv3d(x, weight, None, *others)
    found = convolve(x.bfloat16(), weight.bfloat16(), None, *others)
    assert found.shape == exact.shape
    assert_rounding_only(found, exact)


@pytest.mark.parametrize("size", LONE[:4], ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        convolution(3, 4, (3, 3, 3), (1, 1, 1)),
        convolution(1, 4, (3, 3, 3), (2, 1, 1)),
        convolution(3, 3, (3, 3, 3), (1, 1, 1), groups=3),
        convolution(3, 3, (3, 3, 3), (1, 2, 1), groups=3),
        transposed_convolution(3, 4, (2, 2, 2)),
        transposed_convolution(3, 4, (2, 1, 2)),
    ],
    ids=["full", "strided", "depthwise", "depthwise strided", "transposed", "transposed within two axes"],
)
def test_gradients_of_a_single_slice_are_those_of_float32(
    layer: nn.Module, size: tuple[int, ...], wrong_3d_kernel: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = rounded(torch.randn_like(parameter))
    x = rounded(
        torch.randn(2, next(layer.parameters()).shape[0 if isinstance(layer, nn.ConvTranspose3d) else 1] * layer.groups, *size)
    ).requires_grad_()
    exact = layer(x)
    direction = rounded(torch.randn_like(exact))
    wanted = torch.autograd.grad(exact, [x, *layer.parameters()], direction)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    assert_rounding_only(found, exact)
    for of_half, of_float in zip(torch.autograd.grad(found, [x, *layer.parameters()], direction.bfloat16()), wanted, strict=True):
        assert of_half.shape == of_float.shape
        assert_rounding_only(of_half, of_float)
    assert not wrong_3d_kernel


@pytest.mark.fault("A", "bf16 gradients of kernels longer than an axis are wrong on every CPU", "computed from an equal convolution, right")
@pytest.mark.parametrize("size", [(2, 4, 4), (2, 2, 2), (3, 4, 6), (4, 2, 5), (4, 6, 1), (5, 1), (1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("edge", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_kernels_longer_than_an_axis_are_those_of_float32(size: tuple[int, ...], edge: int, stride: int) -> None:
    torch.manual_seed(0)
    dimensions = len(size)
    for channels, features in ((16, 16), (5, 8), (1, 4), (3, 16)):
        layer = convolution(channels, features, (edge,) * dimensions, (stride,) * dimensions)
        for parameter in layer.parameters():
            parameter.data = rounded(parameter.data)
        x = rounded(torch.randn(2, channels, *size)).requires_grad_()
        exact = layer(x)
        direction = rounded(torch.randn_like(exact))
        wanted = torch.autograd.grad(exact, [x, *layer.parameters()], direction)
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x)
        for of_half, of_float in zip(torch.autograd.grad(found, [x, *layer.parameters()], direction.bfloat16()), wanted, strict=True):
            assert_rounding_only(of_half, of_float)


def test_float32_keeps_torchs_own_kernel() -> None:
    x, weight = torch.randn(1, 3, 1, 5, 5), torch.randn(2, 3, 3, 3, 3)
    assert lone_axis(x, weight) is None
    assert torch.equal(convolve(x, weight, None, (1, 1, 1), (1, 1, 1)), F.conv3d(x, weight, None, 1, 1))
    assert lone_axis(x.bfloat16(), weight) == 2
    assert lone_axis(torch.randn(1, 3, 2, 5, 5).bfloat16(), weight) is None


def small_plan(family: str, **changes: Any) -> NetworkPlan:
    return replace(
        NetworkPlan(
            family=family,
            dimensions=3,
            in_channels=1,
            num_classes=3,
            features=(8, 12),
            kernel_sizes=((3, 3, 3), (3, 3, 3)),
            strides=((1, 1, 1), (1, 2, 2)),
            encoder_blocks=(1, 2),
            decoder_blocks=(1,),
        ),
        **changes,
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("family", STYLED)
def test_networks_of_a_single_slice_are_right_where_the_3d_kernel_is_not(
    family: str, channels: int, wrong_3d_kernel: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    network = build_network(small_plan(family, in_channels=channels, features=(9, 15))).eval()
    x = torch.randn(1, channels, 1, 8, 8)
    networks = [network, packed(network, torch.bfloat16)] if can_pack() and choose_device("cpu").precision == "bfloat16" else [network]
    with torch.inference_mode():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            results = [each(x).float() for each in networks]
    for result in results:
        assert float((result - exact).square().mean().sqrt()) < 0.05 * float(exact.std())
    assert not wrong_3d_kernel


@pytest.mark.parametrize("family", STYLED)
def test_a_copy_and_a_reloaded_network_have_the_layout_and_the_bits_of_the_built_one(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = small_plan(family)
    with torch.inference_mode():  # tensors that were made so never ask for gradients
        built = build_network(plan)
        for parameter in built.parameters():
            parameter.normal_()
    save_tensors(tmp_path / "weights.safetensors", dict(built.state_dict()), {"format_version": 2})
    tensors, _ = load_tensors(tmp_path / "weights.safetensors")
    loaded, strided = build_network(plan), build_network(plan)
    load_into(loaded, tensors, tmp_path)
    load_into(
        strided, {name: t.contiguous(memory_format=torch.channels_last_3d) if t.ndim == 5 else t for name, t in tensors.items()}, tmp_path
    )
    x = torch.randn(1, 1, 4, 8, 8)
    others = [copy.deepcopy(built), copy.deepcopy(loaded), loaded, strided]
    with torch.inference_mode():
        expected = built.eval()(x)
        for other in others:
            assert [p.stride() for p in other.parameters()] == [p.stride() for p in built.parameters()]
            assert torch.equal(other.eval()(x), expected)


def test_a_pointwise_convolution_is_one_product_of_matrices_whatever_its_weights_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = convolution(4, 6, (1, 1, 1), (1, 1, 1), bias=False)
    shapes = []
    true_linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *others: shapes.append(x.ndim) or true_linear(x, *others))
    x = torch.randn(2, 4, 3, 5, 6)
    exact = torch.einsum("oi,bizyx->bozyx", layer.weight.flatten(1), x)
    torch.testing.assert_close(layer(x), exact)
    assert shapes == [2]


SIZES = [(4, 6, 8), (5, 3, 10), (6, 12), (3, 40)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (5, 1, 3)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_an_image_of_one_channel_is_convolved_two_voxels_at_once_with_the_same_numbers(
    size: tuple[int, ...], kernel: tuple[int, ...], has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = channels_met(monkeypatch)
    generator = torch.Generator().manual_seed(sum(size))
    conv: Any = convolution(1, 3, kernel[-len(size) :], (1,) * len(size), bias=has_bias)
    image = torch.randn(2, 1, *size, generator=generator)
    gradient = torch.randn(2, 3, *size, generator=generator)
    exact_conv = copy.deepcopy(conv).double()
    with torch.no_grad():
        assert set(channels_of(conv, image, met)) == {1}
    found = conv(image)
    found.backward(gradient)
    assert met[-1] == 2
    plain = F.conv2d if len(size) == 2 else F.conv3d
    exact = plain(image.double(), exact_conv.weight, exact_conv.bias, padding=tuple(k // 2 for k in kernel[-len(size) :]))
    exact.backward(gradient.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(conv.parameters(), exact_conv.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("channels", "size", "stride"), [(2, (4, 8), 1), (1, (8, 7), 1), (1, (8, 6), 1), (1, (8, 8), 2)])
def test_other_images_are_convolved_as_they_are(channels: int, size: tuple[int, int], stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    met = channels_met(monkeypatch)
    convolution(channels, 3, (3, 3), (stride, stride))(torch.randn(1, channels, *size))
    assert met == [channels]


def test_two_voxels_at_once_round_as_one_does_in_half_precision() -> None:
    conv: Any = convolution(1, 8, (3, 3, 3), (1, 1, 1))
    image = torch.randn(1, 1, 6, 8, 10, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(image)
    assert found.dtype == torch.bfloat16
    assert_rounding_only(found, F.conv3d(rounded(image), rounded(conv.weight), conv.bias, padding=1))


def channels_met(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the images that torch's convolutions get from now on."""
    met: list[int] = []

    def noting(true: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def noted(x: Tensor, *others: Any, **named: Any) -> Tensor:
            met.append(x.shape[1])
            return true(x, *others, **named)

        return noted

    for name in ("conv2d", "conv3d"):
        monkeypatch.setattr(F, name, noting(getattr(F, name)))
    return met


def channels_of(conv: nn.Module, image: Tensor, met: list[int]) -> list[int]:
    """Of what torch's convolutions get from a call."""
    met.clear()
    conv(image)
    return list(met)
