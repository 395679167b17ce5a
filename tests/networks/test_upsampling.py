"""Every way up has the right size for a factor per axis, and the numbers that it is known by."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medseg3d.networks import build_network
from medseg3d.networks.blocks import initialize
from medseg3d.networks.style import CHOICES
from medseg3d.networks.upsampling import UPSAMPLING, Carafe, MetaUpscale, PixelShuffle, cubic, linear, nearest, shuffled
from tests.networks.test_families import plan

FACTORS = [(2, 2), (1, 2), (3, 2), (2, 2, 2), (1, 2, 2), (1, 1, 4)]


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("name", UPSAMPLING)
def test_sizes_grow_by_the_factor_of_each_axis(name: str, factors: tuple[int, ...]) -> None:
    way = UPSAMPLING[name](6, 4, factors)
    initialize(way)
    x = torch.randn(2, 6, *(5, 4, 3)[: len(factors)], requires_grad=True)
    y = way(x)
    assert tuple(y.shape) == (2, 4, *(n * f for n, f in zip(x.shape[2:], factors, strict=True)))
    y.square().sum().backward()
    assert x.grad is not None
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in way.parameters())


@pytest.mark.parametrize("how", [nearest, linear, cubic])
def test_interpolations_are_torchs_in_2d(how) -> None:
    x = torch.randn(1, 3, 6, 7)
    mode = {nearest: "nearest", linear: "bilinear", cubic: "bicubic"}[how]
    assert torch.allclose(how(x, (3, 2)), F.interpolate(x, scale_factor=(3.0, 2.0), mode=mode), atol=1e-5)


@pytest.mark.parametrize("how", [nearest, linear, cubic])
def test_interpolations_go_an_axis_after_the_other(how) -> None:
    x = torch.randn(1, 2, 4, 5, 3)
    one_by_one = how(how(how(x, (2, 1, 1)), (1, 3, 1)), (1, 1, 2))
    assert torch.allclose(how(x, (2, 3, 2)), one_by_one, atol=1e-5)


def test_shuffling_is_torchs_where_factors_are_equal() -> None:
    x = torch.randn(2, 12, 3, 4)
    assert torch.equal(shuffled(x, (2, 2)), F.pixel_shuffle(x, 2))


def test_shuffling_keeps_every_value_where_factors_differ() -> None:
    x = torch.arange(2.0 * 12 * 3 * 4).view(2, 12, 3, 4)
    wide = shuffled(x, (1, 4))
    assert tuple(wide.shape) == (2, 3, 3, 16)
    assert torch.equal(wide.flatten().sort().values, x.flatten())


@pytest.mark.parametrize("build", [PixelShuffle, MetaUpscale])
def test_a_learned_way_up_begins_without_a_checkerboard(build) -> None:
    torch.manual_seed(0)
    way = build(3, 2, (2, 2))
    initialize(way)
    y = way(torch.ones(1, 3, 6, 6))[..., 2:-2, 2:-2]
    assert (y - y.mean((2, 3), keepdim=True)).abs().max() < 0.35 * y.abs().max()


def test_carafe_is_a_mean_of_the_neighborhood() -> None:
    way = Carafe(2, 2, (2, 2))
    initialize(way)
    inside = way(torch.full((1, 2, 8, 8), 3.0))[..., 4:-4, 4:-4]
    assert torch.allclose(inside, way.project(torch.full((1, 2, 1, 1), 3.0)).expand_as(inside), atol=1e-5)


def test_a_plan_may_choose_every_way_up() -> None:
    assert CHOICES["upsampling"] == tuple(UPSAMPLING)


@pytest.mark.parametrize("family", ["plain_unet", "residual_unet", "classic_unet"])
@pytest.mark.parametrize("name", ["linear", "carafe"])
def test_decoders_take_every_way_up(family: str, name: str) -> None:
    network = build_network(plan(family, (4, 8, 8), strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), deep=True, upsampling=name))
    assert not [module for module in network.modules() if isinstance(module, nn.ConvTranspose3d)]
    assert [tuple(logits.shape[2:]) for logits in network.train()(torch.randn(1, 1, 4, 8, 8))] == [(4, 8, 8), (4, 4, 4)]
