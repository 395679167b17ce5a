"""The networks of the field's history have the parameters of their reference to the digit, and its structure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from medseg3d.errors import PlanError
from medseg3d.networks import (
    NETWORKS,
    attention_unet,
    bisenet,
    deeplab,
    dfanet,
    dfnet,
    dla,
    espnet,
    fast_scnn,
    fcn,
    icnet,
    isnet,
    mcibi,
    msfnet,
    pspnet,
    segnet,
    swiftnet,
    transunet,
    unet_plus_plus,
)
from medseg3d.networks.blocks import initialize
from medseg3d.networks.context_heads import AtrousBlock, PyramidPooling, averaged
from medseg3d.networks.family import Family
from medseg3d.networks.packed import can_pack, packed
from medseg3d.networks.resizing import upsampled
from medseg3d.networks.resnet import dilated
from medseg3d.networks.style import Style
from medseg3d.plan import NetworkPlan
from tests.networks import small_options
from tests.networks.test_families import num_parameters, plan

FAMILIES = {
    family.name: family
    for family in (
        unet_plus_plus.FAMILY, attention_unet.FAMILY, fcn.FAMILY, segnet.FAMILY, dla.FAMILY, deeplab.FAMILY, pspnet.FAMILY,
        transunet.FAMILY, icnet.FAMILY, bisenet.FAMILY, dfanet.FAMILY, espnet.FAMILY, swiftnet.FAMILY, fast_scnn.FAMILY, dfnet.FAMILY,
        msfnet.FAMILY, isnet.FAMILY, mcibi.FAMILY,
    )
}  # fmt: skip
UNET = (32, 64, 128, 256, 512)
VGG = (64, 128, 256, 512, 512)
RESNET_18 = (64, 64, 64, 128, 256, 512)
RESNET_50 = (64, 64, 256, 512, 1024, 2048)
RESNET_50_C = (32, 32, 256, 512, 1024, 2048)
DLA_34, DLA_60 = (16, 32, 64, 128, 256, 512), (16, 32, 128, 256, 512, 1024)
BLOCKS_18, BLOCKS_50, BLOCKS_101 = (1, 1, 2, 2, 2, 2), (1, 1, 3, 4, 6, 3), (1, 1, 3, 4, 23, 3)
CITYSCAPES = {"dimensions": 2, "channels": 3, "classes": 19}
SMALL = {
    **small_options.SMALL,
    "transunet": {"token_features": 16, "heads": 4, "layers": 2, "mlp_features": 32, "positions": 3},
    "dfanet": {"attention_features": 16, "decoder_features": 8},
}


def build(network_plan: NetworkPlan) -> nn.Module:
    family = FAMILIES[network_plan.family]
    network = family.build(family.completed(network_plan))
    if not family.keeps_weights:
        initialize(network)
    return network


def count(network_plan: NetworkPlan) -> int:
    family = NETWORKS[network_plan.family]
    with torch.device("meta"):
        return num_parameters(family.build(family.completed(network_plan)))


COUNTS = {
    # one sigmoid channel and one head; the authors' table has 0.1, 0.5, 2.2 and 9.0 million for the levels
    "UNet++ L1": (plan("unet_plus_plus", UNET[:2], dimensions=2, classes=1), 100_961),
    "UNet++ L2": (plan("unet_plus_plus", UNET[:3], dimensions=2, classes=1), 511_105),
    "UNet++ L3": (plan("unet_plus_plus", UNET[:4], dimensions=2, classes=1), 2_204_961),
    "UNet++ L4": (plan("unet_plus_plus", UNET, dimensions=2, classes=1), 9_041_601),
    "UNet++, four heads": (plan("unet_plus_plus", UNET, dimensions=2, classes=1, deep=True), 9_041_700),
    "UNet+": (plan("unet_plus_plus", UNET, dimensions=2, classes=1, skips="short"), 8_728_257),
    "U-Net^e": (plan("unet_plus_plus", UNET, dimensions=2, classes=1, skips="shared"), 8_728_257),
    # a port with batch norm and interpolation (4uiiurz1/pytorch-nested-unet), one and three channels
    **{
        f"{name}, ported, {channels} channels": (
            plan(family, UNET, dimensions=2, channels=channels, classes=1, norm="batch", upsampling="linear", up_projection=False),
            expected,
        )
        for name, family, channels, expected in (
            ("U-Net", "classic_unet", 1, 7_851_969),
            ("U-Net", "classic_unet", 3, 7_852_545),
            ("UNet++", "unet_plus_plus", 1, 9_162_753),
            ("UNet++", "unet_plus_plus", 3, 9_163_329),
        )
    },
    # the authors' three networks for CT
    "attention U-Net without gates": (plan("attention_unet", (16, 32, 64, 128, 256), classes=4, gates=0), 5_888_004),
    "attention U-Net": (plan("attention_unet", (16, 32, 64, 128, 256), classes=4), 6_214_151),
    "attention U-Net, two gates": (plan("attention_unet", (16, 32, 64, 128, 256), classes=4, gates=2), 6_473_322),
    # convolutions with biases and batch norm, as published (29.45 million)
    "SegNet": (
        plan("segnet", (*VGG, 512), dimensions=2, channels=3, classes=11, encoder=(2, 2, 3, 3, 3), decoder=(3, 3, 3, 2, 2)),
        29_449_355,
    ),
    # without the fixed weights of the interpolation
    **{
        f"FCN-{name}": (
            plan("fcn", (*VGG, 4096), dimensions=2, channels=3, classes=21, encoder=(2, 2, 3, 3, 3, 1), skips=skips),
            expected,
        )
        for name, skips, expected in (("32s", 0, 134_346_581), ("16s", 1, 134_357_354), ("8s", 2, 134_362_751))
    },
    # torchvision 0.28, with and without its auxiliary head
    "DeepLabv3 R50": (plan("deeplab_v3", RESNET_50, dimensions=2, channels=3, classes=21, encoder=BLOCKS_50), 39_638_869),
    "DeepLabv3 R101": (plan("deeplab_v3", RESNET_50, dimensions=2, channels=3, classes=21, encoder=BLOCKS_101), 58_630_997),
    "DeepLabv3 R50, auxiliary": (
        plan("deeplab_v3", RESNET_50, dimensions=2, channels=3, classes=21, encoder=BLOCKS_50, deep=True),
        42_004_074,
    ),
    # the rest as in lxtGH/Fast_Seg for 19 classes; less the classifiers of its encoders, which segmentation does not use
    "PSPNet R50": (plan("pspnet", RESNET_50, **CITYSCAPES, encoder=BLOCKS_50, deep=True), 51_445_222),
    "PSPNet R101": (plan("pspnet", RESNET_50, **CITYSCAPES, encoder=BLOCKS_101, deep=True), 70_437_350),
    "ICNet R50": (plan("icnet", RESNET_50, **CITYSCAPES, encoder=BLOCKS_50, deep=True), 47_489_184),
    "BiSeNet R18": (plan("bisenet", RESNET_18, **CITYSCAPES, encoder=BLOCKS_18), 13_042_643),
    "SwiftNet R18": (plan("swiftnet", RESNET_18, **CITYSCAPES, encoder=BLOCKS_18, deep=True, decoder_features=19), 11_803_241),
    "Fast-SCNN": (plan("fast_scnn", (32, 32, 48, 64, 64, 96), **CITYSCAPES, encoder=(1, 1, 1, 1, 3, 3)), 1_138_051),
    "DFANet": (plan("dfanet", (8, 8, 48, 96, 192), **CITYSCAPES, encoder=(1, 1, 4, 6, 4), deep=True), 2_696_089 - 193_000),
    "DF-Net 1": (plan("dfnet", (32, 32, 64, 64, 128, 256), **CITYSCAPES, encoder=(1, 1, 1, 3, 3, 3)), 9_733_659 - 513_000),
    "DF-Net 2": (plan("dfnet", (32, 32, 64, 64, 128, 256), **CITYSCAPES, encoder=(1, 1, 1, 2, 10, 4), version=2), 19_187_739 - 513_000),
    "ESPNet": (plan("espnet", (16, 16, 64, 128), **CITYSCAPES, encoder=(1, 1, 2, 3)), 201_542),
    "ESPNet, 20 classes": (plan("espnet", (16, 16, 64, 128), **(CITYSCAPES | {"classes": 20}), encoder=(1, 1, 2, 3)), 203_189),
    "ESPNet-C, 20 classes": (
        replace(plan("espnet", (16, 16, 64, 128), **(CITYSCAPES | {"classes": 20}), encoder=(1, 1, 5, 8)), options={"decoder": "none"}),
        373_065,
    ),
    # SSSegmentation, whose heads have 25,469,497 and 67,681,849 behind a ResNet with a deep stem of 32 features
    "ISNet R50": (plan("isnet", RESNET_50_C, **CITYSCAPES, encoder=BLOCKS_50, deep=True), 25_469_497 + 23_527_264),
    "MCIBI R50, atrous pyramid": (plan("mcibi", RESNET_50_C, **CITYSCAPES, encoder=BLOCKS_50, deep=True), 67_681_849 + 23_527_264),
    # the authors' code for 224 x 224 and nine classes
    "TransUNet R50-ViT-B/16": (
        plan("transunet", (16, 64, 256, 512, 1024), dimensions=2, channels=3, classes=9, encoder=(1, 1, 3, 4, 9)),
        105_277_081,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_their_references_number_of_parameters(name: str) -> None:
    network_plan, expected = COUNTS[name]
    assert count(network_plan) == expected


@pytest.mark.parametrize(
    ("levels", "features", "options", "encoder", "expected", "unused"),
    [
        # the reference's figures hold what its segmentation networks do not use: projections of deep trees, and its fixed interpolation
        ((1, 1, 1, 2, 2, 1), DLA_34, {}, 15_742_104, 18_095_163, 41_728),
        ((1, 1, 1, 2, 3, 1), DLA_60, {"block": "bottleneck"}, 22_036_632, 31_303_227, 297_472),
        ((1, 1, 1, 3, 4, 1), DLA_60, {"block": "bottleneck", "residual_root": True}, 33_268_888, 42_700_859, 462_848),
        ((1, 1, 2, 3, 5, 1), DLA_60, {"block": "bottleneck", "residual_root": True}, 53_389_720, 62_958_139, 599_296),
    ],
)
def test_deep_layer_aggregation_has_its_parameters(levels, features, options, encoder, expected, unused) -> None:
    network_plan = plan("dla", features, **CITYSCAPES, encoder=levels, **options)
    with torch.device("meta"):
        network = dla.DeepLayerAggregation(dla.FAMILY.completed(network_plan))
    classifier = features[-1] * 1000 + 1000
    assert num_parameters(network.stem) + num_parameters(network.stages) + classifier == encoder  # timm
    assert num_parameters(network) + classifier + 19 * 4 * 4 + unused == expected


SHAPES = {
    "3D": ((16, 24, 16), None, 4),
    "thick": ((6, 32, 32), ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)), 4),
    "2D": ((32, 48), None, 5),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("deep", [False, True])
def test_every_network_trains_and_gives_a_logit_for_every_voxel(name: str, shape: str, deep: bool) -> None:
    size, strides, stages = SHAPES[shape]
    family = FAMILIES[name]
    network_plan = plan(
        name, tuple(8 * 2**stage for stage in range(stages)), dimensions=len(size), strides=strides, channels=2, classes=3, deep=deep,
        **SMALL.get(name, {}),
    )  # fmt: skip
    if deep and list(family.problems(replace(network_plan, options=family.completed_options(network_plan.options)))):
        pytest.skip("has one head, as published")
    torch.manual_seed(0)
    network = build(network_plan)
    x = torch.randn(2, 2, *size)
    outputs = network.train()(x)
    assert isinstance(outputs, list) == deep
    heads = outputs if deep else [outputs]
    assert tuple(heads[0].shape) == (2, 3, *size)
    assert all(len(head.shape) == len(size) + 2 and head.shape[1] == 3 for head in heads)
    sum(head.square().mean() for head in heads).backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.isfinite().all()] == []
    with torch.no_grad():
        assert tuple(network.eval()(x).shape) == (2, 3, *size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_prepacked_weights_give_the_same_logits(name: str, shape: str) -> None:
    if not can_pack():
        pytest.skip("this torch has no prepacked convolutions")
    size, strides, stages = SHAPES[shape]
    network_plan = plan(
        name,
        (16, 16, 32, 32, 32)[:stages],
        dimensions=len(size),
        strides=strides,
        channels=1,
        classes=2,
        norm="instance",
        **SMALL.get(name, {}),
    )
    if shape == "thick":
        network_plan = replace(network_plan, kernel_sizes=((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)))
    torch.manual_seed(0)
    network = build(network_plan).eval()
    x = torch.randn(1, 1, *size)
    with torch.no_grad():
        expected = network(x)
        found = packed(network, torch.float32)(x)
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


# --- UNet++


def nested(*, deep: bool = True, **options: object) -> unet_plus_plus.UNetPlusPlus:
    torch.manual_seed(1)
    network = build(plan("unet_plus_plus", (4, 6, 8, 10), dimensions=2, classes=2, deep=deep, **options))
    assert isinstance(network, unet_plus_plus.UNetPlusPlus)
    return network


@pytest.mark.parametrize("skips", ["dense", "short", "shared"])
def test_a_level_gives_the_bits_of_the_whole_network_at_its_head(skips: str) -> None:
    network, x = nested(skips=skips), torch.randn(1, 1, 16, 24)
    with torch.no_grad():
        heads = network.train()(x)[::-1]
        network.eval()
        for level, expected in enumerate(heads, start=1):
            network.level = level
            assert torch.equal(network(x), expected)
            pruned = build(unet_plus_plus.pruned_plan(network_plan_of(network, skips), level))
            pruned.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if name in pruned.state_dict()})
            assert torch.equal(pruned.eval()(x), expected)


def network_plan_of(network: unet_plus_plus.UNetPlusPlus, skips: str) -> NetworkPlan:
    return plan("unet_plus_plus", (4, 6, 8, 10), dimensions=2, classes=2, deep=True, skips=skips)


def test_the_loss_of_a_head_reaches_its_level_and_nothing_else() -> None:
    network, x = nested(), torch.randn(1, 1, 16, 16)
    for level, logits in enumerate(network.train()(x)[::-1], start=1):
        network.zero_grad()
        logits.square().sum().backward(retain_graph=True)
        reached = {name for name, weight in network.named_parameters() if weight.grad is not None and weight.grad.any()}
        inside = {f"{row}_{column}" for row in range(4) for column in range(4 - row) if row + column <= level}
        assert {name.split(".")[1] for name in reached if name.startswith("nodes.")} == inside
        assert {name for name in reached if name.startswith("heads.")} == {f"heads.{level}.weight", f"heads.{level}.bias"}


def test_the_mean_of_all_heads_predicts_where_it_is_asked_for() -> None:
    network, x = nested(prediction="mean"), torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        heads = network.train()(x)
        assert torch.allclose(network.eval()(x), torch.stack(heads).mean(0), atol=1e-6)


# --- what the others are known by


def test_gates_stand_on_all_skips_but_the_finest() -> None:
    network = build(plan("attention_unet", (4, 6, 8, 10)))
    assert [isinstance(gate, attention_unet.GatedSkip) for gate in network.gates] == [True, True, False]
    gate = network.gates[0].gates[0]
    strength = []
    gate.strength.register_forward_hook(lambda module, inputs, output: strength.append(torch.sigmoid(output)))
    network.eval()(torch.randn(1, 1, 16, 16, 16))
    assert 0 <= strength[0].min() <= strength[0].max() <= 1


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (17, 64)])
@pytest.mark.parametrize(
    "name",
    ["fcn", "segnet", "deeplab_v3", "pspnet", "fast_scnn", "icnet", "bisenet", "swiftnet", "espnet", "dfnet", "msfnet", "isnet", "mcibi"],
)
def test_every_size_passes_networks_that_resize(name: str, size: tuple[int, int]) -> None:
    network = build(plan(name, (8, 8, 16, 16), dimensions=2, channels=1, classes=3, **SMALL.get(name, {})))
    with torch.no_grad():
        assert tuple(network.eval()(torch.randn(1, 1, *size)).shape[2:]) == size


def test_only_indices_cross_in_segnet() -> None:
    network = build(plan("segnet", (4, 4, 4), dimensions=2)).eval()
    pooled, indices = segnet._pooled_with_indices(torch.arange(16.0).view(1, 1, 4, 4), (2, 2))
    restored = segnet._unpooled(pooled, indices, (2, 2), (4, 4))
    assert restored.flatten().nonzero().flatten().tolist() == [5, 7, 13, 15]
    assert all(conv.in_channels == 4 for stack in network.decoder for conv in stack.modules() if isinstance(conv, nn.Conv2d))


def test_fully_connected_layers_are_convolutions() -> None:
    linear = nn.Linear(3 * 7 * 7, 5)
    convolution = nn.Conv2d(3, 5, 7)
    with torch.no_grad():
        convolution.weight.copy_(linear.weight.view(5, 3, 7, 7))
        convolution.bias.copy_(linear.bias)
        x = torch.randn(1, 3, 7, 7)
        assert torch.allclose(convolution(x).flatten(), linear(x.flatten(1)).flatten(), atol=1e-5)


@pytest.mark.parametrize("factors", [(2, 2), (1, 4), (3, 2), (2, 1, 4)])
def test_fixed_upsampling_keeps_lines_straight(factors: tuple[int, ...]) -> None:
    size = (9,) * len(factors)
    line = sum(torch.arange(9.0).view(*(-1 if a == axis else 1 for a in range(len(size)))) for axis in range(len(size)))
    wide = upsampled(line.expand(1, 1, *size).contiguous(), factors)
    assert tuple(wide.shape[2:]) == tuple(n * f for n, f in zip(size, factors, strict=True))
    expected = sum(
        ((torch.arange(n * f) + 0.5) / f - 0.5).view(*(-1 if a == axis else 1 for a in range(len(size))))
        for axis, (n, f) in enumerate(zip(size, factors, strict=True))
    )
    inside = tuple(slice(f, n * f - f) for n, f in zip(size, factors, strict=True))
    assert torch.allclose(wide[0, 0][inside], expected[inside], atol=1e-4)


def test_dilations_take_the_place_of_strides() -> None:
    strides, dilations = dilated([(1, 2), (2, 2), (2, 2), (2, 2), (2, 2)], 8)
    assert strides == [(1, 2), (2, 2), (2, 2), (2, 1), (1, 1)]
    assert dilations == [(1, 1), (1, 1), (1, 1), (1, 2), (2, 4)]


@pytest.mark.parametrize("size", [(1, 5, 40), (6, 6, 6), (2, 24, 3)])
def test_rates_and_bins_never_exceed_the_features(size: tuple[int, int, int]) -> None:
    block = AtrousBlock(2, 2, (3, 3, 3), 12, Style())
    assert all(1 <= rate <= max(1, length - 1) for rate, length in zip(block.rates(size), size, strict=True))
    pyramid = PyramidPooling(2, 8, (1, 2, 3, 6), 3, Style(norm="none"))
    assert all(cells <= length for number in (1, 2, 3, 6) for cells, length in zip(pyramid.cells(number, size), size, strict=True))
    assert tuple(pyramid(torch.randn(1, 2, *size)).shape) == (1, 2 + 4 * 8, *size)


@pytest.mark.parametrize("cells", [(1, 1, 1), (2, 3, 2), (3, 5, 6), (4, 7, 9)])
def test_means_over_cells_are_torchs_adaptive_pooling(cells: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, 4, 7, 9)
    assert torch.allclose(averaged(x, cells), torch.nn.functional.adaptive_avg_pool3d(x, cells), atol=1e-6)
    assert torch.allclose(averaged(x[:, :, 0], cells[1:]), torch.nn.functional.adaptive_avg_pool2d(x[:, :, 0], cells[1:]), atol=1e-6)


def test_transunets_parts_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = transunet.FAMILY.build(transunet.FAMILY.completed(COUNTS["TransUNet R50-ViT-B/16"][0]))
    decoder = num_parameters(network.project) + num_parameters(network.decoder)
    assert (num_parameters(network) - decoder - num_parameters(network.head), decoder, num_parameters(network.head)) == (
        97_888_576, 7_387_200, 1_305,
    )  # fmt: skip


def test_a_way_up_without_projection_must_be_an_interpolation() -> None:
    with pytest.raises(PlanError, match="up_projection = false needs an upsampling of nearest, linear, cubic, found transposed"):
        unet_plus_plus.FAMILY.completed(plan("unet_plus_plus", UNET[:3], up_projection=False))


def test_any_window_works_for_tokens() -> None:
    network = build(plan("transunet", (8, 8, 16, 16), dimensions=2, **SMALL["transunet"])).eval()
    with torch.no_grad():
        assert [tuple(network(torch.randn(1, 1, n, 32)).shape[2:]) for n in (16, 24, 64)] == [(16, 32), (24, 32), (64, 32)]


def test_families_have_names_of_their_own() -> None:
    assert len(FAMILIES) == 18
    assert all(isinstance(family, Family) for family in FAMILIES.values())
