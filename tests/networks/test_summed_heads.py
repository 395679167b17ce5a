"""Logits that are summed from coarse to fine: what they are, and that all else stays as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from medseg3d.networks.build import build_network
from medseg3d.networks.decoder import HEADS
from medseg3d.plan import NetworkPlan
from medseg3d.planning import load_planner, make_plan
from medseg3d.planning.memory import UNCOUNTED_OPTIONS
from tests.planning.test_make_plan import summary_of

DEFAULT = load_planner("default")


def network_plan(family: str, heads: str, dimensions: int = 3, **changes: Any) -> NetworkPlan:
    strides = ((1,) * dimensions, *((2,) * dimensions,) * 3)
    fields: dict[str, Any] = {
        "family": family,
        "dimensions": dimensions,
        "in_channels": 1,
        "num_classes": 3,
        "features": (4, 8, 16, 16),
        "kernel_sizes": ((3,) * dimensions,) * 4,
        "strides": strides,
        "encoder_blocks": (1, 1, 1, 1),
        "decoder_blocks": (1, 1, 1),
        "deep_supervision": True,
        "options": {"heads": heads},
    }
    return NetworkPlan(**{**fields, **changes})


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("family", ["plain_unet", "residual_unet"])
def test_the_logits_of_a_stage_are_the_sum_of_its_own_and_the_coarser_ones(family: str, dimensions: int) -> None:
    torch.manual_seed(0)
    network = build_network(network_plan(family, "summed", dimensions)).train()
    own: list[torch.Tensor] = []
    for head in network.decoder.heads:
        head.register_forward_hook(lambda _module, _inputs, output: own.append(output.detach().clone()))
    found = network(torch.randn(1, 1, *(16,) * dimensions))
    expected: list[torch.Tensor] = []
    for each in own:  # coarse to fine
        mode = "bilinear" if dimensions == 2 else "trilinear"
        coarser = F.interpolate(expected[-1], each.shape[2:], mode=mode, align_corners=False) if expected else 0
        expected.append(each + coarser)
    assert len(found) == 3
    for a, b in zip(found, expected[::-1], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("family", ["plain_unet", "residual_unet"])
def test_prediction_gives_the_finest_logits_of_training_and_weights_fit_both_ways(family: str) -> None:
    torch.manual_seed(0)
    summed, separate = (build_network(network_plan(family, heads)) for heads in ("summed", "separate"))
    separate.load_state_dict(summed.state_dict())
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        trained = [network.train()(x)[0] for network in (summed, separate)]
        predicted = [network.eval()(x) for network in (summed, separate)]
    for a, b in zip(trained, predicted, strict=True):
        torch.testing.assert_close(a, b)
    assert (predicted[0] - predicted[1]).abs().max() > 1e-3


def test_the_loss_at_full_resolution_reaches_the_coarsest_head() -> None:
    torch.manual_seed(0)
    for heads, is_reached in (("summed", True), ("separate", False)):
        network = build_network(network_plan("plain_unet", heads)).train()
        network(torch.randn(1, 1, 16, 16, 16))[0].square().mean().backward()
        gradient = network.decoder.heads[0].weight.grad
        assert (gradient is not None and bool(gradient.abs().max() > 0)) is is_reached


def test_planning_knows_the_heads_without_the_networks() -> None:
    assert UNCOUNTED_OPTIONS["heads"] == HEADS


def test_plans_have_the_patch_and_batch_of_separate_heads() -> None:
    summary = summary_of((1.0, 1.0, 1.0), (160, 200, 180), num_cases=40)
    separate, summed = (
        make_plan(summary, replace(DEFAULT, network=replace(DEFAULT.network, options=options))).configuration(None)
        for options in ({}, {"heads": "summed"})
    )
    assert replace(summed, network=replace(summed.network, options=separate.network.options)) == separate
