"""Encoders take each other's place in every family that has a trunk, and have the parameters of their reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medseg3d.errors import PlanError
from medseg3d.networks import NETWORKS, build_network
from medseg3d.networks.attention_gates import GatedSkip
from medseg3d.networks.build import checked_plan
from medseg3d.networks.convolutions import DepthwiseConv3d, convolution
from medseg3d.networks.encoders import STAGES, Trunk
from medseg3d.networks.resnet import spread
from medseg3d.plan import NetworkPlan
from tests.networks.test_families import count, num_parameters, plan

RESNET_18, RESNET_50 = (64, 64, 64, 128, 256, 512), (64, 64, 256, 512, 1024, 2048)
BLOCKS = {18: (1, 1, 2, 2, 2, 2), 34: (1, 1, 3, 4, 6, 3), 50: (1, 1, 3, 4, 6, 3), 101: (1, 1, 3, 4, 23, 3)}
TRUNKS = ("deeplab_v3", "pspnet", "icnet", "bisenet", "swiftnet", "msfnet", "isnet", "mcibi", "fcn")
UNETS = ("plain_unet", "attention_unet", "unet_plus_plus")
SMALL = {
    "deeplab_v3": {"head_features": 8},
    "isnet": {"head_features": 8, "attention_features": 8},
    "mcibi": {"head_features": 8, "attention_features": 8},
    "bisenet": {"context_features": 8},
    "icnet": {"context_features": 8},
    "swiftnet": {"decoder_features": 8},
    "msfnet": {"decoder_features": 8},
}


def of_images(family: str, features: tuple[int, ...], encoder: tuple[int, ...], options: dict[str, object], **sizes: object) -> NetworkPlan:
    made = plan(family, features, dimensions=2, channels=3, encoder=encoder, **sizes)
    return replace(made, options={**made.options, **options})


FCN = {"encoder": "residual", "norm": "batch"}


@pytest.mark.parametrize(
    ("network_plan", "expected"),
    [
        # torchvision 0.28, 21 classes, with and without the auxiliary head
        (of_images("fcn", RESNET_50, BLOCKS[50], FCN, classes=21), 32_957_013),
        (of_images("fcn", RESNET_50, BLOCKS[50], FCN, classes=21, deep=True), 35_322_218),
        (of_images("fcn", RESNET_50, BLOCKS[101], FCN, classes=21), 51_949_141),
        (of_images("fcn", RESNET_50, BLOCKS[101], FCN, classes=21, deep=True), 54_314_346),
        (of_images("deeplab_v3", RESNET_50, BLOCKS[101], {}, classes=21, deep=True), 60_996_202),
        # segmentation_models.pytorch 0.6, one class
        (of_images("deeplab_v3", RESNET_18, BLOCKS[18], {"block": "basic"}, classes=1), 15_898_945),
        (of_images("deeplab_v3", RESNET_18, BLOCKS[34], {"block": "basic"}, classes=1), 26_007_105),
        (of_images("deeplab_v3", RESNET_50, BLOCKS[50], {}, classes=1), 39_633_729),
        (of_images("deeplab_v3", RESNET_50, BLOCKS[101], {}, classes=1), 58_625_857),
    ],
)
def test_residual_encoders_have_their_references_number_of_parameters(network_plan: NetworkPlan, expected: int) -> None:
    assert count(network_plan) == expected


def trunk(features: tuple[int, ...], blocks: tuple[int, ...], kind: str) -> Trunk:
    complete = checked_plan(of_images("deeplab_v3", features, blocks, {"encoder": kind, "output_stride": 32}))
    with torch.device("meta"):
        return Trunk(complete, kind)


@pytest.mark.parametrize(
    ("alpha", "parameters", "mega_multiply_adds"),
    [(1.0, 4_231_976, 568.7), (0.75, 2_585_560, 325.4), (0.5, 1_331_592, 149.5), (0.25, 470_072, 41.0)],
)
def test_the_separable_encoder_is_mobilenet(alpha: float, parameters: int, mega_multiply_adds: float) -> None:
    features = tuple(int(alpha * width) for width in (64, 64, 128, 256, 512, 1024))
    encoder = trunk(features, (1, 1, 2, 2, 6, 2), "separable")
    classifier = features[-1] * 1000
    assert num_parameters(encoder) + classifier + 1000 == parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    assert (counter.get_total_flops() / 2 + classifier) / 1e6 == pytest.approx(mega_multiply_adds, abs=0.06)


def test_the_xception_encoder_is_xception() -> None:
    encoder = trunk((64, 64, 128, 256, 728, 2048), (1, 1, 1, 1, 9, 1), "xception")
    assert num_parameters(encoder) + 2048 * 1000 + 1000 == 22_855_952  # timm 1.0.31


def _pairs(families: tuple[str, ...], always: str) -> list[object]:
    """Every family with every kind of stages; those that no other pair stands for run always."""
    return [
        (family, kind) if family == families[0] or kind == always else pytest.param(family, kind, marks=pytest.mark.slow)
        for family in families
        for kind in STAGES
    ]


@pytest.mark.parametrize(("family", "kind"), _pairs(TRUNKS, "xception"))
def test_every_encoder_serves_every_family_with_a_trunk(family: str, kind: str) -> None:
    torch.manual_seed(0)
    flat, cube = (1, 2, 2), (2, 2, 2)
    made = plan(
        family,
        (8, 8, 8, 16, 16),
        strides=((1, 1, 1), flat, flat, cube, cube),
        encoder=(1, 1, 2, 2),
        channels=2,
        classes=3,
        deep=True,
        norm="batch",
        **SMALL.get(family, {}),
    )
    network = build_network(replace(made, options={**made.options, "encoder": kind})).train()
    x = torch.randn(2, 2, 5, 17, 22)  # no size is divided evenly
    outputs = network(x)
    assert tuple(outputs[0].shape) == (2, 3, 5, 17, 22)
    sum(logits.square().mean() for logits in outputs).backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.isfinite().all()] == []


@pytest.mark.parametrize(("family", "kind"), _pairs(UNETS, "dla"))
def test_every_encoder_serves_every_unet(family: str, kind: str) -> None:
    torch.manual_seed(0)
    made = plan(family, (8, 8, 16), encoder=(2,), classes=3, strides=((1,) * 3, (1, 2, 2), (2, 2, 2)), deep=True)
    network = build_network(replace(made, options={"encoder": kind})).train()
    outputs = network(torch.randn(2, 1, 4, 8, 12))
    assert tuple(outputs[0].shape) == (2, 3, 4, 8, 12)
    sum(logits.square().mean() for logits in outputs).backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.isfinite().all()] == []


@pytest.mark.parametrize("kind", STAGES)
def test_features_stay_as_fine_as_the_output_stride(kind: str) -> None:
    made = checked_plan(
        of_images("deeplab_v3", (8, 8, 8, 8, 8, 8), (1, 1, 2, 2, 2, 2), {"encoder": kind, "output_stride": 8, "head_features": 8})
    )
    network = build_network(made).eval()
    with torch.no_grad():
        sizes = [tuple(features.shape[2:]) for features in network.encoder(torch.randn(1, 3, 64, 80))]
    assert sizes == [(32, 40), (16, 20), (8, 10), (8, 10), (8, 10)]
    spread_out = {
        conv.dilation for conv in network.encoder.stages[-1].modules() if isinstance(conv, nn.Conv2d) and max(conv.kernel_size) > 1
    }
    assert (4, 4) in spread_out


def test_a_dilated_depthwise_convolution_trains_as_it_predicts() -> None:
    conv = convolution(4, 4, (3, 3, 3), (1, 1, 1), groups=4)
    assert isinstance(conv, DepthwiseConv3d)
    spread(conv, (1, 2, 2))
    x = torch.randn(1, 4, 5, 8, 8)
    expected = F.conv3d(x, conv.weight, conv.bias, padding=(1, 2, 2), dilation=(1, 2, 2), groups=4)
    torch.testing.assert_close(conv(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected)


OWN = sorted(name for name, family in NETWORKS.built_in.items() if family.has_style)


@pytest.mark.parametrize("family", OWN)
def test_squeeze_and_excitation_acts_in_every_family(family: str) -> None:
    small = {"transunet": {"token_features": 16, "heads": 4, "layers": 1, "mlp_features": 16}, "dfanet": {"attention_features": 8}}
    given = {**small.get(family, {}), **({"classifier_kernel": 3} if family == "fcn" else {})}
    changed = plan(family, (8, 8, 16, 16), dimensions=2, squeeze_excitation=4, **given)
    with torch.device("meta"):
        gates = [module for module in build_network(changed).modules() if type(module).__name__ == "ChannelSELayer"]
        none = [
            module
            for module in build_network(plan(family, (8, 8, 16, 16), dimensions=2, **given)).modules()
            if "SELayer" in repr(type(module))
        ]
    assert gates
    assert not none


@pytest.mark.parametrize("family", ["plain_unet", "residual_unet", "classic_unet"])
@pytest.mark.parametrize("num", [1, 2])
def test_attention_gates_stand_on_all_skips_but_the_finest(family: str, num: int) -> None:
    network = build_network(plan(family, (4, 6, 8, 10), attention_gates=num, deep=True)).train()
    gates = network.gates if family == "classic_unet" else network.decoder.gates
    assert [isinstance(gate, GatedSkip) for gate in gates] == [True, True, False]
    assert all(len(gate.gates) == num for gate in gates if isinstance(gate, GatedSkip))
    outputs = network(torch.randn(2, 1, 8, 16, 16))
    sum(logits.square().mean() for logits in outputs).backward()
    assert all(weight.grad is not None for weight in network.parameters())
    with pytest.raises(PlanError, match="attention_gates is 3, expected 0, 1 or 2"):
        build_network(plan(family, (4, 6), attention_gates=3))


def test_gates_need_padding() -> None:
    with pytest.raises(PlanError, match="attention_gates lay coarse features over fine ones"):
        build_network(plan("classic_unet", (4, 6), attention_gates=1, padding="valid"))


@pytest.mark.parametrize("family", OWN)
def test_the_3d_network_is_the_2d_one_with_a_further_axis(family: str) -> None:
    """So the counts of 3D follow from the references' of 2D, weight by weight."""
    own = {
        "fcn": {"classifier_kernel": 3},
        "transunet": {"token_features": 16, "heads": 4, "layers": 1, "mlp_features": 16, "positions": 3},
    }
    flat, solid = (
        {name: tuple(tensor.shape) for name, tensor in shapes(plan(family, (8, 8, 16, 16, 32), dimensions=d, **own.get(family, {})))}
        for d in (2, 3)
    )
    assert list(flat) == list(solid)
    for name, shape in flat.items():
        is_kernel = len(shape) >= 4
        assert solid[name] == ((*shape, shape[-1]) if is_kernel else shape), name


def shapes(network_plan: NetworkPlan) -> list[tuple[str, Tensor]]:
    with torch.device("meta"):
        return list(build_network(network_plan).named_parameters())
