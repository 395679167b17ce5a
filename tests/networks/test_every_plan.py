"""Every family of ours on every kind of plan: forward and backward, deep supervision, half precision, one graph; or a reason why not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medseg3d.devices import Device, choose_device
from medseg3d.errors import PlanError
from medseg3d.networks import NETWORKS, build_network
from medseg3d.networks.build import checked_plan
from medseg3d.plan import NetworkPlan
from medseg3d.precision import checked_precision
from tests.networks import small_options
from tests.networks.test_families import plan

FAMILIES = sorted(name for name, family in NETWORKS.built_in.items() if family.has_style)
ONE_HEAD = {"fcn", "segnet", "dla", "transunet", "espnet", "dfnet"}
"""The papers have one head; asked for more they say so."""
LEAST_STAGES = {
    **dict.fromkeys(("unet_plus_plus", "fcn", "segnet", "fast_scnn", "dfnet"), 2),
    **dict.fromkeys(("deeplab_v3", "pspnet", "icnet", "bisenet", "swiftnet", "msfnet", "isnet", "mcibi"), 3),
    **dict.fromkeys(("dfanet", "transunet", "espnet"), 3),
}
"""A stem takes a stage or two, and something must be left behind it."""
SMALL = {
    **small_options.SMALL,
    "transunet": {"token_features": 8, "heads": 2, "layers": 1, "mlp_features": 8, "positions": 2},
    "dfanet": {"attention_features": 8, "decoder_features": 8},
}
FLAT, CUBE = (1, 2, 2), (2, 2, 2)
PLANS: dict[str, tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]] = {
    "one stage": (((1, 1, 1),), (4, 5, 6)),
    "two stages": (((1, 1, 1), CUBE), (4, 6, 8)),
    "3,3,3": (((1, 1, 1), CUBE, CUBE, CUBE), (16, 24, 16)),
    "5,5,5": (((1, 1, 1), *(CUBE,) * 5), (32, 64, 32)),
    "2,6,6": (((1, 1, 1), FLAT, FLAT, CUBE, CUBE, FLAT, FLAT), (8, 128, 64)),
    "6 slices": (((1, 1, 1), FLAT, FLAT, CUBE), (6, 32, 24)),
    "7,7": (((1, 1), *((2, 2),) * 7), (128, 256)),
}
QUICK = ("one stage", "two stages")
"""The others are slow; three kinds of plans run always in test_published_networks.py and test_families.py."""
BY_PLAN = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PLANS]


def made(family: str, name: str, *, deep: bool) -> tuple[NetworkPlan, tuple[int, ...]]:
    strides, size = PLANS[name]
    network_plan = plan(
        family,
        (8, 8, 8, 8, 16, 16, 16, 16)[: len(strides)],
        strides=strides,
        dimensions=len(size),
        encoder=(1,),
        decoder=(1,),
        channels=2,
        classes=3,
        deep=deep,
        **SMALL.get(family, {}),
    )
    flat = name in ("2,6,6", "6 slices")
    return replace(network_plan, kernel_sizes=tuple((1, 3, 3) if flat and s < 2 else (3,) * len(size) for s in range(len(strides)))), size


@pytest.mark.parametrize("name", BY_PLAN)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_on_every_plan_or_says_why_not(family: str, name: str) -> None:
    network_plan, size = made(family, name, deep=family not in ONE_HEAD)
    if len(network_plan.features) < (least := LEAST_STAGES.get(family, 1)):
        with pytest.raises(PlanError, match=f"it needs {least} stages, and the patch allows {len(network_plan.features)}"):
            build_network(network_plan)
        return
    torch.manual_seed(0)
    network, x = build_network(network_plan).train(), torch.randn(2, 2, *size)
    outputs = network(x)
    heads = [outputs] if isinstance(outputs, Tensor) else outputs
    assert tuple(heads[0].shape) == (2, 3, *size)
    assert len(heads) == len(getattr(network, "head_weights", None) or heads)
    sum(head.float().square().mean() for head in heads).backward()
    assert [key for key, weight in network.named_parameters() if weight.grad is None or not weight.grad.isfinite().all()] == []
    with torch.no_grad():
        assert tuple(network.eval()(x).shape) == (2, 3, *size)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PLANS if name != "one stage"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_predicts_in_half_precision(family: str, name: str) -> None:
    network_plan, size = made(family, name, deep=False)
    if len(network_plan.features) < LEAST_STAGES.get(family, 1) or choose_device("cpu").precision != "bfloat16":
        pytest.skip("refused, or bf16 is emulated here, a hundred times slower")
    torch.manual_seed(0)
    network = build_network(network_plan).eval()
    x, device = torch.randn(1, 2, *size), Device(device=torch.device("cpu"), precision="bfloat16")
    with torch.no_grad(), device.autocast():
        logits = network(x)
    assert logits.isfinite().all()
    assert checked_precision(network, x, device, is_trained=False).precision in ("bfloat16", "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["3,3,3", "6 slices", "7,7"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_one_graph(family: str, name: str) -> None:
    network_plan, size = made(family, name, deep=False)
    torch.manual_seed(0)
    network, x = build_network(network_plan).eval(), torch.randn(1, 2, *size)
    with torch.no_grad():
        expected = network(x)
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")(x)
    assert float((compiled - expected).square().mean().sqrt()) < 1e-3 * float(expected.std())


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ONE_HEAD])
def test_every_family_trains_as_one_graph(family: str) -> None:
    network_plan, size = made(family, "3,3,3", deep=True)
    torch.manual_seed(0)
    network, x = build_network(network_plan).train(), torch.randn(2, 2, *size)
    outputs = torch.compile(network, fullgraph=True, backend="aot_eager")(x)
    heads = [outputs] if isinstance(outputs, Tensor) else outputs
    sum(head.square().mean() for head in heads).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_one_head_refuses_more_and_the_others_do_not(family: str) -> None:
    network_plan, _ = made(family, "3,3,3", deep=True)
    if family in ONE_HEAD:
        with pytest.raises(PlanError, match=r"it has no deep supervision; set network\.deep_supervision = false"):
            checked_plan(network_plan)
    else:
        assert checked_plan(network_plan).deep_supervision
