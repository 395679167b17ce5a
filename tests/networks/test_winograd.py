"""Convolutions in fewer products, beside torch's in float64: outputs and all gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medseg3d.networks import winograd
from medseg3d.networks.convolutions import VolumeConv3d, convolution
from medseg3d.networks.winograd import FOUR, TWO, Scheme, convolve_in_tiles, scheme_for

ROUNDING = 2e-5
"""Of a float32 sum of a thousand products, as a share of the root mean square; the differences of F(4, 3) take a digit."""


def made(size: tuple[int, ...], *, out_channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """An image, a kernel and a bias that ask for gradients."""
    torch.manual_seed(0)
    image, kernel, bias = torch.randn(size), torch.randn(out_channels, size[1], 3, 3, 3), torch.randn(out_channels)
    return image.to(dtype).requires_grad_(), kernel.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()


def with_gradients(out: Tensor, variables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The result, and its gradients in a fixed direction."""
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(out.dtype)
    return (out.detach(), *torch.autograd.grad(out, variables, direction))


def distances(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    """In units of the exact values' root mean square."""
    return [float((a.double() - b).abs().max() / b.square().mean().sqrt()) for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize(("scheme", "depths"), [(TWO, (2, 6)), (FOUR, (4, 12))], ids=["two", "four"])
@pytest.mark.parametrize("at_once", [1, 2**23], ids=["tile by tile", "all at once"])
def test_outputs_and_gradients_are_those_of_the_convolution(
    scheme: Scheme, depths: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "NUMBERS_AT_ONCE", at_once)
    for depth in depths:
        size = (2, 5, depth, 7, 6)
        own, exact = made(size, out_channels=4), made(size, out_channels=4)
        exact = tuple(each.detach().double().requires_grad_() for each in exact)  # type: ignore[assignment]
        found = with_gradients(convolve_in_tiles(*own, scheme), own)
        expected = with_gradients(F.conv3d(exact[0], exact[1], exact[2], padding=1), exact)
        assert max(distances(found, expected)) < ROUNDING


def test_what_needs_no_gradient_gets_none() -> None:
    image, kernel, bias = made((1, 3, 4, 5, 5), out_channels=2)
    out = convolve_in_tiles(image.detach(), kernel, bias.detach(), FOUR)
    (of_kernel,) = torch.autograd.grad(out.sum(), [kernel])
    assert of_kernel.shape == kernel.shape
    frozen = convolve_in_tiles(image, kernel.detach(), None, FOUR)
    (of_image,) = torch.autograd.grad(frozen.sum(), [image])
    assert of_image.shape == image.shape


@pytest.mark.parametrize(("depth", "expected"), [(8, FOUR), (6, TWO), (5, None)])
def test_the_scheme_follows_from_the_number_of_slices(depth: int, expected: Scheme | None) -> None:
    image, kernel, _ = made((1, 32, depth, 4, 4), out_channels=32)
    assert scheme_for(image.detach(), kernel, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1) is expected


def test_only_trainings_in_float32_have_fewer_products() -> None:
    image, kernel, _ = made((1, 32, 8, 4, 4), out_channels=32)
    assert scheme_for(image, kernel, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1) is not None
    assert scheme_for(image, kernel, (2, 2, 2), (1, 1, 1), (1, 1, 1), 1) is None
    assert scheme_for(image.bfloat16(), kernel, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1) is None
    assert scheme_for(image[:, :16], kernel[:, :16], (1, 1, 1), (1, 1, 1), (1, 1, 1), 1) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert scheme_for(image, kernel, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1) is None
    with torch.no_grad():
        assert scheme_for(image, kernel, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1) is None


def test_the_convolutions_of_networks_use_it() -> None:
    torch.manual_seed(0)
    module = convolution(32, 32, (3, 3, 3), (1, 1, 1))
    image = torch.randn(1, 32, 4, 6, 6, requires_grad=True)
    assert isinstance(module, VolumeConv3d)
    own = with_gradients(module(image), (image, *module.parameters()))
    exact = tuple(each.detach().double().requires_grad_() for each in (image, *module.parameters()))
    assert max(distances(own, with_gradients(F.conv3d(exact[0], exact[1], exact[2], padding=1), exact))) < ROUNDING
    assert "_InTiles" in type(module(image).grad_fn).__name__
