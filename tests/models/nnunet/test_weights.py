"""Tensors under nnU-Net's names: each has one place, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from medseg3d.errors import PlanMismatchError
from medseg3d.models.nnunet.weights import our_name, our_tensors
from medseg3d.plan import NetworkPlan

Weights = dict[str, torch.Tensor]


@pytest.fixture
def weights(plain_plan: NetworkPlan, network_with: Callable[..., Any], checkpoint_of: Callable[..., Any]) -> Weights:
    return dict(checkpoint_of(network_with(plain_plan))["network_weights"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_do_not_matter(prefix: str, weights: Weights, plain_plan: NetworkPlan) -> None:
    wrapped = {prefix + name: tensor for name, tensor in weights.items()}
    expected = our_tensors(weights, plain_plan, source="w")
    found = our_tensors(wrapped, plain_plan, source="w")
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_duplicates_may_be_left_out(weights: Weights, plain_plan: NetworkPlan) -> None:
    few = {name: tensor for name, tensor in weights.items() if "all_modules" not in name and "decoder.encoder" not in name}
    assert len(few) < len(weights) / 2
    assert set(our_tensors(few, plain_plan, source="w")) == set(our_tensors(weights, plain_plan, source="w"))


@pytest.mark.parametrize("name", ["decoder.encoder.stages.0.0.convs.0.conv.weight", "decoder.stages.0.convs.1.all_modules.1.bias"])
def test_duplicates_that_differ_are_refused(name: str, weights: Weights, plain_plan: NetworkPlan) -> None:
    with pytest.raises(PlanMismatchError, match=rf"not the same in its copies \({name}\)"):
        our_tensors(weights | {name: weights[name] + 1}, plain_plan, source="w")


@pytest.mark.parametrize(
    "name", ["encoder.stages.0.0.convs.0.norm.running_mean", "encoder.stages.2.0.convs.0.conv.weight", "encoder.0.0.conv.weight", "head"]
)
def test_a_tensor_that_is_left_over_is_named(name: str, weights: Weights, plain_plan: NetworkPlan) -> None:
    with pytest.raises(PlanMismatchError, match=rf"w: .*1 not known \({name}\)"):
        our_tensors(weights | {name: torch.zeros(4)}, plain_plan, source="w")


def test_a_tensor_that_is_missing_is_named(weights: Weights, plain_plan: NetworkPlan) -> None:
    del weights["decoder.seg_layers.0.bias"]
    with pytest.raises(PlanMismatchError, match=r"1 missing \(decoder\.heads\.0\.bias\)"):
        our_tensors(weights, plain_plan, source="w")


def test_heads_and_upsampling_keep_their_order_from_coarse_to_fine() -> None:
    for place in range(5):
        assert our_name(f"decoder.seg_layers.{place}.weight", "plain_unet") == f"decoder.heads.{place}.weight"
        assert our_name(f"decoder.transpconvs.{place}.bias", "residual_unet") == f"decoder.up.{place}.bias"


def test_half_precision_becomes_float32(weights: Weights, plain_plan: NetworkPlan) -> None:
    halves = {name: tensor.half() for name, tensor in weights.items()}
    assert {tensor.dtype for tensor in our_tensors(halves, plain_plan, source="w").values()} == {torch.float32}
