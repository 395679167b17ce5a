"""What a training step takes is counted on tensors without data; torch's profiler counts the same on real ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from medseg3d.networks import NETWORKS, build_network
from medseg3d.networks.cost import Tracer, _stand_in_loss, step_cost
from medseg3d.plan import NetworkPlan

STYLED = ("plain_unet", "residual_unet", "classic_unet", "vnet", "u2net")
"""The others have tests of their own: test_published_networks.py and test_monai_families.py."""
PUBLISHED = sorted({name for name, family in NETWORKS.built_in.items() if family.has_style} - set(STYLED))


def plan(family: str, **options: bool | int | float | str) -> NetworkPlan:
    return NetworkPlan(
        family=family,
        dimensions=3,
        in_channels=1,
        num_classes=3,
        features=(8, 16, 32),
        kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        encoder_blocks=(2, 2, 2),
        decoder_blocks=(2, 2),
        options=options,
    )


def profiled_bytes(network_plan: NetworkPlan, batch: int, *, in_half_precision: bool) -> int:
    """Bytes that were allocated during the forward pass and are still held after it, as the profiler counts them."""
    network = build_network(network_plan).train()
    image = torch.randn(batch, 1, 8, 32, 32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        with torch.autocast("cpu", torch.bfloat16, enabled=in_half_precision):
            outputs = network(image)
        loss = _stand_in_loss(outputs)
    held = sum(event.self_cpu_memory_usage for event in recorded.key_averages())
    assert loss.requires_grad
    return int(held)


@pytest.mark.parametrize("in_half_precision", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("options", [{}, {"separable": True}, {"norm": "batch", "dropout": 0.1, "activation": "elu"}], ids=str)
@pytest.mark.parametrize("family", STYLED)
def test_saved_bytes_are_within_a_tenth_of_the_profilers(
    family: str, options: dict[str, bool], batch: int, in_half_precision: bool
) -> None:
    if family == "u2net":
        options = {name: value for name, value in options.items() if name != "separable"}  # it is so by itself
    network_plan = plan(family, **options)
    counted = step_cost(network_plan, (8, 32, 32), batch, in_half_precision=in_half_precision).saved_bytes
    assert counted == pytest.approx(profiled_bytes(network_plan, batch, in_half_precision=in_half_precision), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("family", PUBLISHED)
def test_saved_bytes_of_published_networks_are_within_a_tenth_of_the_profilers(family: str) -> None:
    network_plan = replace(plan(family), deep_supervision=False)
    counted = step_cost(network_plan, (8, 32, 32), 2).saved_bytes
    assert counted == pytest.approx(profiled_bytes(network_plan, 2, in_half_precision=True), rel=0.1)


@pytest.mark.parametrize("family", STYLED)
def test_costs_grow_with_the_batch_and_parameters_are_those_of_the_network(family: str) -> None:
    one, three = (step_cost(plan(family), (8, 32, 32), batch) for batch in (1, 3))
    assert three.multiply_adds == 3 * one.multiply_adds
    assert three.saved_bytes == pytest.approx(3 * one.saved_bytes, rel=0.2)
    assert one.parameters == sum(p.numel() for p in build_network(plan(family)).parameters())
    assert one.peak_bytes > one.fixed_bytes + one.saved_bytes


def test_multiply_adds_are_those_of_the_formula() -> None:
    network_plan = plan("plain_unet")
    cost = step_cost(network_plan, (8, 32, 32), 1)
    full, half, deep = 8 * 32 * 32, 8 * 16 * 16, 4 * 8 * 8
    encoder = full * 9 * (1 * 8 + 8 * 8) + half * 27 * (8 * 16 + 16 * 16) + deep * 27 * (16 * 32 + 32 * 32)
    up = half * 32 * 16 + full * 16 * 8  # a transposed convolution whose kernel is its stride: one product per output and channel pair
    decoder = half * 27 * (32 * 16 + 16 * 16) + full * 9 * (16 * 8 + 8 * 8)
    heads = (half * 16 + full * 8) * 3
    assert cost.multiply_adds == encoder + up + decoder + heads


def test_an_optimizer_with_more_numbers_takes_more() -> None:
    sgd, adamw = (step_cost(plan("vnet"), (8, 32, 32), 1, optimizer=name) for name in ("sgd", "adamw"))
    assert adamw.peak_bytes - sgd.peak_bytes == 4 * sgd.parameters


@pytest.mark.parametrize(
    ("features", "batches"), [((8, 16, 32), (40,)), pytest.param((8, 16, 256), (6, 40), marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("family", STYLED)
def test_a_large_batch_costs_what_its_trace_says(family: str, features: tuple[int, ...], batches: tuple[int, ...]) -> None:
    # with 256 features the weights in half precision are the largest of what is saved, until the batch is large
    network_plan = replace(plan(family), features=features)
    for batch in batches:
        assert step_cost(network_plan, (4, 8, 8), batch) == Tracer(network_plan).traced_cost((4, 8, 8), batch)


@pytest.mark.parametrize("family", ["plain_unet", "mcibi"])
def test_bytes_are_the_same_where_the_work_is_not_counted(family: str) -> None:
    tracer = Tracer(replace(plan(family), features=(8, 16, 32)))
    with_work, again, without = (tracer.step_cost((8, 32, 32), 2, counts_work=counts) for counts in (True, True, False))
    assert again == with_work
    assert without == replace(with_work, multiply_adds=0)
