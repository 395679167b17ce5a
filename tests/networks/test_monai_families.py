"""MONAI's networks train on what their families plan, keep MONAI's weights, and say what they cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medseg3d.errors import PlanError
from medseg3d.networks import NETWORKS, build_network
from medseg3d.networks.build import checked_plan
from medseg3d.networks.cost import step_cost
from medseg3d.networks.monai_families import FAMILIES
from medseg3d.networks.packed import can_pack, packed
from medseg3d.plan import NetworkPlan
from medseg3d.planning import load_planner
from medseg3d.planning.topology import derive_topology
from tests.networks.test_families import count, plan

NAMES = tuple(family.name for family in FAMILIES)
FAST = (*(name for name in NAMES if name != "swinunetr"), pytest.param("swinunetr", marks=pytest.mark.slow))
"""The smallest 3D patch of Swin UNETR takes seconds."""
WIDTHS = {"segresnet": 8, "monai_attention_unet": 4, "dynunet": 4, "swinunetr": 12, "mednext": 4}
SPACING, SIZES = (2.5, 1.0, 1.0), {2: (32, 40), 3: (8, 32, 24)}


def made(family: str, dimensions: int = 3, **changes: object) -> tuple[NetworkPlan, tuple[int, ...]]:
    """A small network by the rules of the preset of the same name, for thick slices, and a patch for it."""
    rule = load_planner(family).network
    asked = NETWORKS[family].pooling
    topology = derive_topology(
        SPACING[-dimensions:],
        SIZES[dimensions],
        max_stages=3,
        pooling={"num_stages": asked.num_stages, **{name: getattr(asked, name) for name in ("all_axes", "same_kernels", "first_stride")}},
    )
    stages = topology.num_stages
    plan = NetworkPlan(
        family=family,
        dimensions=dimensions,  # type: ignore[arg-type]
        in_channels=2,
        num_classes=3,
        features=tuple(WIDTHS[family] * 2**stage for stage in range(stages)),
        kernel_sizes=topology.kernel_sizes,
        strides=topology.strides,
        encoder_blocks=(rule.encoder_blocks + rule.encoder_blocks[-1:] * stages)[:stages],
        decoder_blocks=(rule.decoder_blocks[-1],) * (stages - 1),
        deep_supervision=rule.deep_supervision,
        options=dict(rule.options),
    )
    return replace(plan, **changes), topology.patch_size  # type: ignore[arg-type]


def heads_of(outputs: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else outputs


@pytest.mark.parametrize(
    ("family", "dimensions"),
    [pytest.param(name, dimensions, marks=pytest.mark.slow if name == "swinunetr" else ()) for dimensions in (2, 3) for name in NAMES],
)
def test_every_head_has_the_size_of_its_stage_and_every_weight_a_gradient(family: str, dimensions: int) -> None:
    plan, size = made(family, dimensions)
    network = build_network(plan).train()
    heads = heads_of(network(torch.randn(2, 2, *size)))
    expected, current = [], size
    for stride in plan.strides if plan.deep_supervision else plan.strides[:1]:
        current = tuple(n // s for n, s in zip(current, stride, strict=True))
        expected.append((2, 3, *current))
    assert [tuple(head.shape) for head in heads][:1] == [(2, 3, *size)]
    if plan.deep_supervision:
        assert [tuple(head.shape) for head in heads] == expected[: len(heads)]
        assert len(heads) >= len(plan.features) - 1
    sum(head.float().square().mean() for head in heads).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("family", FAST)
def test_evaluation_gives_one_output_of_the_patchs_size(family: str) -> None:
    plan, size = made(family)
    network = build_network(plan)
    x = torch.randn(1, 2, *size)
    with torch.no_grad():
        finest = heads_of(network.train()(x))[0]
        logits = network.eval()(x)
    assert logits.shape == (1, 3, *size)
    if family != "monai_attention_unet":  # its batch norms have other statistics then
        torch.testing.assert_close(logits, finest)


@pytest.mark.parametrize("family", ["dynunet", "mednext"])
def test_deep_supervision_can_be_switched_off(family: str) -> None:
    plan, size = made(family)
    network = build_network(plan).train()
    network.deep_supervision = False
    assert isinstance(network(torch.randn(1, 2, *size)), torch.Tensor)


@pytest.mark.parametrize("family", NAMES)
def test_the_same_generator_gives_the_same_weights_and_torchs_own_goes_on(family: str) -> None:
    plan, _ = made(family)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second, third = (build_network(plan, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


@pytest.mark.parametrize("family", NAMES)
def test_weights_have_monais_names(family: str) -> None:
    from monai.networks.nets import MedNeXt, SegResNet

    plan, _ = made(family)
    ours = set(build_network(plan).state_dict())
    assert len({tensor.data_ptr() for tensor in build_network(plan).parameters()}) == len(list(build_network(plan).parameters()))
    if family == "segresnet":
        blocks = {"blocks_down": plan.encoder_blocks, "blocks_up": plan.decoder_blocks}
        assert ours == set(SegResNet(3, plan.features[0], 2, 3, **blocks).state_dict())
    if family == "mednext":
        down, up = plan.encoder_blocks[:-1], plan.decoder_blocks
        theirs = MedNeXt(
            3, plan.features[0], 2, 3, kernel_size=3, deep_supervision=True, use_residual_connection=True, blocks_down=down, blocks_up=up
        )
        assert ours == set(theirs.state_dict())


@pytest.mark.parametrize("family", FAST)
def test_the_trace_counts_the_real_network(family: str) -> None:
    plan, size = made(family)
    one, three = (step_cost(plan, size, batch, in_half_precision=False) for batch in (1, 3))
    network = build_network(plan).train()
    assert one.parameters == sum(p.numel() for p in network.parameters())
    assert three.multiply_adds == 3 * one.multiply_adds
    saved: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = heads_of(network(torch.randn(1, 2, *size)))
        total = sum(head.log_softmax(1).sum() for head in outputs)
    assert one.saved_bytes == pytest.approx(sum(saved.values()), rel=0.15)
    del total


@pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("family", FAST)
def test_prepacked_weights_keep_the_logits(family: str) -> None:
    plan, size = made(family)
    network = build_network(plan).eval()
    x = torch.randn(1, 2, *size)
    with torch.inference_mode():
        expected, found = network(x), packed(network, torch.float32)(x)
    assert float((found - expected).square().mean().sqrt()) < 1e-3 * float(expected.std())


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("segresnet", {"deep_supervision": True}, "segresnet: it has no deep supervision; set network.deep_supervision = false"),
        ("segresnet", {"features": (8, 16, 20)}, "its features double from stage to stage, expected"),
        ("segresnet", {"strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2))}, "it halves all axes alike, so strides must be"),
        ("segresnet", {"features": (12, 24, 48)}, "a multiple of 8, found 12"),
        ("segresnet", {"options": {"upsample": "nearest"}}, "upsample is 'nearest', expected one of 'nontrainable'"),
        ("segresnet", {"options": {"dropout": 1.5}}, "options.dropout is 1.5, expected a number from 0 to below 1"),
        ("segresnet", {"options": {"norm": "batch"}}, "segresnet does not know norm; it takes dropout, upsample"),
        ("monai_attention_unet", {"kernel_sizes": ((1, 3, 3), (3, 3, 3), (3, 3, 3))}, r"3 or 5 voxels along every axis, found \[1, 3\]"),
        ("monai_attention_unet", {"decoder_blocks": (2, 2)}, "2 convolutions per stage going down and 1 going up"),
        ("swinunetr", {"options": {"heads": 5}}, "a multiple of 12 and of options.heads, found 12 and 5"),
        ("swinunetr", {"options": {"window": 0}}, "options.window is 0, expected a whole number from 1 to 32"),
        ("mednext", {"options": {"expansion": 1.5}}, "options.expansion is 1.5, expected a whole number"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(family: str, changes: dict[str, object], message: str) -> None:
    plan, _ = made(family)
    if "strides" in changes or "features" in changes or "kernel_sizes" in changes or "decoder_blocks" in changes:
        plan = replace(
            plan,
            features=tuple(WIDTHS[family] * 2**stage for stage in range(3)),
            kernel_sizes=((3, 3, 3),) * 3,
            strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
            encoder_blocks=(2, 2, 2),
            decoder_blocks=(1, 1),
        )
    with pytest.raises(PlanError, match=message):
        checked_plan(replace(plan, **changes))  # type: ignore[arg-type]


def test_dynunet_needs_three_stages() -> None:
    plan, _ = made("dynunet")
    short = replace(
        plan,
        features=plan.features[:2],
        kernel_sizes=plan.kernel_sizes[:2],
        strides=plan.strides[:2],
        encoder_blocks=(2, 2),
        decoder_blocks=(2,),
    )
    with pytest.raises(PlanError, match="it needs 3 stages, and the patch allows 2"):
        checked_plan(short)


def test_families_that_halve_all_axes_alike_are_planned_so() -> None:
    alike, fixed = ({"all_axes": True, "same_kernels": True}, {"num_stages": 5, "first_stride": 2})
    assert derive_topology((5, 1, 1), (20, 64, 64), pooling=alike).strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    assert set(derive_topology((5, 1, 1), (20, 64, 64), pooling=alike).kernel_sizes) == {(3, 3, 3)}
    topology = derive_topology((5, 1, 1), (20, 70, 64), pooling=fixed)
    assert (topology.divisor, topology.patch_size, topology.num_stages) == ((32, 32, 32), (32, 96, 64), 5)
    assert derive_topology((1, 1), (20, 20), pooling=fixed).patch_size == (32, 64)  # a single voxel has no variance


SIX = (32, 64, 128, 256, 320, 320)
FLAT = replace(
    plan("dynunet", SIX[:4], classes=3, deep=True, strides=((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))),
    kernel_sizes=((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
)


@pytest.mark.parametrize(
    ("network_plan", "expected"),
    [
        (plan("monai_attention_unet", (64, 128, 256, 512, 1024), dimensions=2, decoder=(1,)), 31_739_250),
        (plan("monai_attention_unet", (16, 32, 64, 128, 256), decoder=(1,)), 5_909_130),
        (plan("dynunet", SIX), 31_189_410),
        (plan("dynunet", SIX, classes=3, deep=True), 31_191_759),
        (plan("dynunet", SIX, classes=3, deep=True, residual=True), 31_421_359),
        (FLAT, 5_375_689),
        (plan("segresnet", (8, 16, 32, 64), encoder=(1, 2, 2, 4), decoder=(1,)), 1_176_186),
        (plan("mednext", (32, 64, 128, 256, 512), classes=3), 5_550_947),
    ],
)
def test_monais_networks_have_the_parameters_that_monai_counts(network_plan: NetworkPlan, expected: int) -> None:
    assert count(network_plan) == expected
