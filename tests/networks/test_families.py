"""Each family is true to its paper in parameters, sizes and structure, and runs for every kind of plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from medseg3d.devices import Device, choose_device
from medseg3d.errors import PlanError
from medseg3d.networks import build_network, output_size
from medseg3d.networks.blocks import ConvBlock, SeparableConv
from medseg3d.networks.build import checked_plan, family_of, sharing_of
from medseg3d.networks.convolutions import DepthwiseConv3d, convolution
from medseg3d.networks.packed import PackedConvolution, can_pack, packed
from medseg3d.networks.style import Style
from medseg3d.networks.u2net import SHARING, U2Net
from medseg3d.plan import NetworkPlan
from medseg3d.precision import checked_precision

STYLED = ("plain_unet", "residual_unet", "classic_unet", "vnet", "u2net")
"""The others have tests of their own: test_published_networks.py and test_monai_families.py."""


def plan(
    family, features, *, strides=None, dimensions=3, kernel=3, encoder=(2,), decoder=(2,), channels=1, classes=2, deep=False, **options
):
    num_stages = len(features)
    return NetworkPlan(
        family=family,
        dimensions=dimensions,
        in_channels=channels,
        num_classes=classes,
        features=tuple(features),
        kernel_sizes=((kernel,) * dimensions,) * num_stages,
        strides=strides or ((1,) * dimensions, *((2,) * dimensions,) * (num_stages - 1)),
        encoder_blocks=(encoder + encoder[-1:] * num_stages)[:num_stages],
        decoder_blocks=(decoder + decoder[-1:] * num_stages)[: num_stages - 1],
        deep_supervision=deep,
        options=options,
    )


def count(network_plan):
    with torch.device("meta"):
        network = family_of(network_plan).build(checked_plan(network_plan))
    return num_parameters(network)


def num_parameters(network, *, without=()):
    return sum(p.numel() for m in network.modules() if not isinstance(m, without) for p in m.parameters(recurse=False))


UNET = (64, 128, 256, 512, 1024)
UNET_3D = {"channels": 3, "classes": 3, "first_conv": "half", "up_features": "keep", "padding": "valid"}
VNET = (16, 32, 64, 128, 256)


@pytest.mark.parametrize(
    ("network_plan", "expected"),
    [
        # U-Net 2015, one channel, two classes
        (plan("classic_unet", UNET, dimensions=2, padding="valid"), 31_030_658),
        # the U-Net and the wide U-Net of the UNet++ paper, one sigmoid channel
        (plan("classic_unet", (32, 64, 128, 256, 512), dimensions=2, classes=1, dropout=0.5), 7_759_521),
        (plan("classic_unet", (35, 70, 140, 280, 560), dimensions=2, classes=1, dropout=0.5), 9_282_246),
        # 3D U-Net: the published figure does not count batch norm and the biases of the transposed convolutions
        (plan("classic_unet", UNET[:4], up_bias=False, **UNET_3D), 19_069_955),
        (plan("classic_unet", UNET[:4], norm="batch", **UNET_3D), 19_075_523),
        # V-Net with batch norm and ELU, as in a widely used port
        (plan("vnet", VNET, kernel=5, encoder=(1, 1, 2, 3, 2), decoder=(2, 2, 1, 1), norm="batch", activation="elu"), 45_600_316),
    ],
)
def test_classic_networks_have_their_published_number_of_parameters(network_plan, expected):
    assert count(network_plan) == expected


@pytest.mark.parametrize(
    ("encoder", "decoder", "head", "expected"),
    [
        ((1, 1, 2, 3, 3), (3, 2, 1, 1), "convolved", 61_979_512),  # the authors' published model
        ((1, 2, 3, 3, 3), (3, 3, 2, 1), "pointwise", 65_171_858),  # the paper's figure
    ],
)
def test_vnets_convolutions_have_their_number_of_parameters(encoder, decoder, head, expected):
    # the figures are of weights and biases of convolutions; the slopes of the PReLUs come on top
    with torch.device("meta"):
        network = build_network(plan("vnet", VNET, kernel=5, encoder=encoder, decoder=decoder, head=head))
    assert num_parameters(network, without=(nn.PReLU,)) == expected


PAPER = tuple(16 * 2**stage for stage in range(6))
FIVE = ((1, 2, 6), (1, 2, 6), (1, 3, 4), (2, 3, 6), (1, 2, 6))
"""Channels, classes and stages of heart, liver, hippocampus, prostate and pancreas."""


def domain_plans(domains, **options):
    return {
        f"d{index}": checked_plan(plan("u2net", PAPER[:stages], channels=channels, classes=classes, deep=True, **options))
        for index, (channels, classes, stages) in enumerate(domains)
    }


def universal(domains, **options):
    with torch.device("meta"):
        return U2Net(domain_plans(domains, **options))


def deep(domains):
    """The published code gives every domain six stages."""
    return tuple((channels, classes, 6) for channels, classes, _ in domains)


@pytest.mark.parametrize(
    ("domains", "options", "expected"),
    [
        (FIVE[:1], {"adapters": "none"}, 33_113_214),
        (FIVE[2:3], {"adapters": "none"}, 2_055_285),
        (FIVE[3:4], {"adapters": "none"}, 33_113_765),
        (deep(FIVE), {"adapters": "none"}, 33_152_724),
        (deep(FIVE), {"separable_strides": False}, 6_577_460),
        ((*deep(FIVE), (1, 2, 6)), {"separable_strides": False}, 6_722_050),
        (deep(FIVE), {}, 2_112_468),
    ],
)
def test_3d_u2nets_have_the_number_of_parameters_of_the_published_code(domains, options, expected):
    assert num_parameters(universal(domains, **options)) == expected


def test_a_wide_3d_u2net_has_the_number_of_parameters_of_the_published_code():
    wide = {
        name: replace(network_plan, features=tuple(2 * n for n in network_plan.features))
        for name, network_plan in domain_plans(deep(FIVE), separable_strides=False).items()
    }
    with torch.device("meta"):
        assert num_parameters(U2Net(wide)) == 24_853_524


def test_a_universal_network_of_five_domains_is_under_two_percent_of_five_networks():
    independent = sum(num_parameters(universal((domain,), adapters="none")) for domain in FIVE)
    assert independent == 134_508_692
    assert num_parameters(universal(FIVE)) < 0.02 * independent
    assert num_parameters(universal((*deep(FIVE), (1, 2, 6)))) - num_parameters(universal(deep(FIVE))) < 165_000


def small_domains():
    features = (8, 12, 16)
    flat = ((1, 1, 1), (1, 2, 2), (1, 2, 2))
    return {
        "ct": checked_plan(plan("u2net", features, deep=True, classes=3)),
        "mr": checked_plan(replace(plan("u2net", features, deep=True, channels=2, strides=flat), kernel_sizes=((1, 3, 3),) * 3)),
        "tiny": checked_plan(plan("u2net", features[:2], deep=True)),
    }


def test_domains_share_the_same_tensors_and_nothing_else():
    network = U2Net(small_domains())
    x = {"ct": torch.randn(1, 1, 8, 8, 8), "mr": torch.randn(1, 2, 4, 8, 8), "tiny": torch.randn(1, 1, 4, 4, 4)}
    used = {}
    for name, image in x.items():
        network.zero_grad()
        network(image, name).square().mean().backward()
        used[name] = {id(p) for p in network.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    shared = {id(p) for p in SHARING.shared_parameters(network)}
    assert used["ct"] & used["mr"] <= shared
    assert used["ct"] & shared == used["mr"] & shared
    assert used["tiny"] & shared < used["ct"] & shared  # it has fewer stages
    assert all(id(p) in used["ct"] | used["mr"] for p in SHARING.shared_parameters(network) if p.ndim > 1)


def test_the_name_of_a_tensor_says_whose_it_is() -> None:
    network = U2Net(small_domains())
    owners = {name: SHARING.domain_of(name) for name in network.state_dict()}
    assert set(owners.values()) == {None, "ct", "mr", "tiny"}
    alone = U2Net({SHARING.only: small_domains()["tiny"]}).state_dict()
    renamed = {SHARING.renamed(name, SHARING.only) for name, owner in owners.items() if owner in (None, "tiny")}
    assert alone.keys() <= renamed


def test_one_network_is_of_one_family_that_can_be_shared() -> None:
    plans = small_domains()
    with pytest.raises(PlanError, match=r"Only u2net serves several datasets, found mr: plain_unet\. Plan them with --planner universal"):
        sharing_of({**plans, "mr": replace(plans["mr"], family="plain_unet")})
    assert sharing_of(plans) is SHARING


def test_adding_and_training_a_domain_leaves_the_old_ones_bit_identical():
    plans = small_domains()
    torch.manual_seed(0)
    network = U2Net({name: plans[name] for name in ("ct", "mr")}).eval()
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        before = network(x, "ct")
    old = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.add_domain("tiny", plans["tiny"])
    added = list(network.domains["tiny"].parameters())
    for parameter in network.parameters():
        parameter.requires_grad_(any(parameter is p for p in added))
    optimizer = torch.optim.SGD(added, lr=0.1, momentum=0.9, weight_decay=0.1)
    start = added[0].detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        network.train()(torch.randn(1, 1, 4, 4, 4), "tiny").square().mean().backward()
        optimizer.step()
    assert not torch.equal(start, added[0])
    with torch.no_grad():
        assert torch.equal(network.eval()(x, "ct"), before)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in old.items())


def test_domains_that_do_not_agree_are_refused():
    network = U2Net({"a": checked_plan(plan("u2net", (8, 16)))})
    with pytest.raises(PlanError, match="the shared part has \\(8, 16\\)"):
        network.add_domain("b", checked_plan(plan("u2net", (8, 12))))
    with pytest.raises(PlanError, match="same planner"):
        network.add_domain("c", checked_plan(plan("u2net", (8, 16, 32))))


@pytest.mark.parametrize(
    ("network_plan", "given", "expected"),
    [
        (plan("classic_unet", UNET, dimensions=2, padding="valid"), (572, 572), (388, 388)),
        (plan("classic_unet", UNET, dimensions=2, padding="valid"), (188, 220), (4, 36)),
        (plan("classic_unet", UNET[:4], first_conv="half", padding="valid"), (132, 132, 116), (44, 44, 28)),
    ],
)
def test_unpadded_networks_give_the_published_sizes(network_plan, given, expected):
    assert output_size(checked_plan(network_plan), given) == expected
    assert family_of(network_plan).input_size(checked_plan(network_plan), expected) == given
    with pytest.raises(PlanError, match="cannot be pooled evenly"):
        output_size(checked_plan(network_plan), tuple(n + 2 for n in given))
    with pytest.raises(PlanError, match="too small"):
        output_size(checked_plan(network_plan), tuple(12 if len(given) == 2 else 4 for _ in given))


def test_an_unpadded_network_sees_exactly_its_input_around_its_output():
    network_plan = checked_plan(plan("classic_unet", (2, 4), dimensions=2, padding="valid"))
    size = family_of(network_plan).input_size(network_plan, (6, 10))
    network = build_network(network_plan).double().eval()
    x = torch.randn(1, 1, *size, dtype=torch.double, requires_grad=True)
    logits = network(x)
    assert tuple(logits.shape[2:]) == output_size(network_plan, size)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert (gradient != 0).float().mean() > 0.8  # the border is used
    with pytest.raises(PlanError, match="deep_supervision"):
        build_network(replace(network_plan, deep_supervision=True))


def test_vnets_blocks_add_their_input_before_the_activation():
    network = build_network(plan("vnet", (4, 8), encoder=(2, 1), decoder=(1,)))
    block = network.encoder[1]
    x = torch.randn(1, 8, 4, 4, 4)
    nn.init.zeros_(block.convs[-1].conv.weight)
    torch.testing.assert_close(block(x, x), torch.where(x < 0, 0.25 * x, x))
    assert build_network(plan("vnet", (4, 8), channels=3)).lift is not None  # three channels cannot be repeated to four
    assert build_network(plan("vnet", (4, 8), channels=2)).lift is None


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("family", ["residual_unet", "vnet", "u2net"])
def test_fresh_blocks_with_sums_do_not_amplify(family, norm):
    torch.manual_seed(0)
    network = build_network(plan(family, (8, 16, 32, 64), encoder=(1, 2, 3, 3), decoder=(3, 2, 1), norm=norm)).train()
    if family == "vnet":
        block, x = network.encoder[1], torch.randn(1, 16, 8, 8, 8)
        torch.testing.assert_close(block(x, x), block.activation(x))  # it begins as its skip
    with torch.no_grad():
        assert network(torch.randn(2, 1, 32, 32, 32)).std() < 3  # beyond it the softmax is saturated


def test_separable_convolutions_cost_what_the_formula_says():
    full = ConvBlock(64, 64, (3, 3, 3), (1, 1, 1), bias=False).conv
    separable = ConvBlock(64, 64, (3, 3, 3), (1, 1, 1), Style(separable=True, norm="none"), bias=False).conv
    assert isinstance(separable, SeparableConv)
    assert num_parameters(separable) / num_parameters(full) == pytest.approx(1 / 64 + 1 / 27)
    assert not isinstance(ConvBlock(1, 64, (3, 3, 3), (1, 1, 1), Style(separable=True)).conv, SeparableConv)


ISOTROPIC = {num: ((1,) * 3, *((2,) * 3,) * num) for num in (1, 3, 4)}
FLAT = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
PLANS = {
    "3,3,3": (ISOTROPIC[3], (16, 24, 16)),
    "4,4,4": (ISOTROPIC[4], (32, 32, 32)),
    "2,6,6": (FLAT, (8, 128, 128)),
    "7,7": (((1, 1), *((2, 2),) * 7), (256, 256)),
    "two stages": (ISOTROPIC[1], (4, 6, 8)),
}
STYLES = {
    "as it is": {},
    "separable": {"separable": True},
    "dropout and gates": {"dropout": 0.1, "squeeze_excitation": 4, "norm": "group", "activation": "silu"},
}


def tiny(family, name, **options):
    strides, size = PLANS[name]
    features = tuple(min(16, 8 + 2 * stage) for stage in range(len(strides)))
    kernels = tuple((1, 3, 3) if name == "2,6,6" and stage < 3 else (3,) * len(size) for stage in range(len(strides)))
    made = plan(family, features, strides=strides, dimensions=len(size), channels=2, classes=3, deep=True, **options)
    return replace(made, kernel_sizes=kernels), size


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("family", STYLED)
def test_every_family_trains_on_every_plan(family, name, style):
    if family == "u2net" and style == "separable":
        style = "as it is"  # it is separable by itself, and says so
    network_plan, size = tiny(family, name, **STYLES[style])
    torch.manual_seed(0)
    network = build_network(network_plan)
    x = torch.randn(1, 2, *size)
    outputs = network.train()(x)
    heads = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    assert heads[0].shape == (1, 3, *size)
    assert len(heads) == (1 if family == "u2net" else len(network_plan.features) - 1)
    sum(head.float().square().mean() for head in heads).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    device = Device(device=torch.device("cpu"), precision="bfloat16")
    if choose_device("cpu").precision == "bfloat16":  # elsewhere it is emulated, a hundred times slower
        assert checked_precision(network, x, device, is_trained=False).precision == "bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["3,3,3", "two stages"])
@pytest.mark.parametrize("family", STYLED)
def test_every_family_is_one_graph(family, name):
    network_plan, size = tiny(family, name)
    network = build_network(network_plan).eval()
    x = torch.randn(1, 2, *size)
    with torch.no_grad():
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")(x)
        expected = network(x)
    assert float((compiled - expected).square().mean().sqrt()) < 1e-3 * float(expected.std())


@pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("family", STYLED)
def test_every_family_keeps_its_logits_with_prepacked_weights(family, name):
    network_plan, size = tiny(family, name)
    torch.manual_seed(0)
    network = build_network(network_plan).eval()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    prepacked = packed(network, torch.float32)
    assert sum(isinstance(module, PackedConvolution) for module in prepacked.modules()) >= len(network_plan.features)
    x = torch.randn(2, 2, *size)
    with torch.inference_mode():
        expected, found = network(x), prepacked(x)
        assert float((found - expected).square().mean().sqrt()) < 1e-3 * float(expected.std())  # depth amplifies rounding
        assert torch.equal(network(x), expected)  # the original is as it was, also beside the copy that writes in place
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("adapters", ["separable", "none"])
def test_a_shared_convolution_follows_the_strides_of_domains_with_prepacked_weights(adapters):
    plans = {
        name: checked_plan(replace(network_plan, options={**network_plan.options, "adapters": adapters}, strides=strides))
        for (name, network_plan), strides in zip(
            small_domains().items(), (((1,) * 3, (2,) * 3, (2,) * 3), None, ((1,) * 3, (1, 2, 2))), strict=True
        )
        if strides is not None
    }
    torch.manual_seed(0)
    network = U2Net(plans).eval()
    prepacked = packed(network, torch.float32)
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.inference_mode():
        for name in plans:
            torch.testing.assert_close(prepacked(x, name), network(x, name), rtol=1e-4, atol=1e-4)


def test_fresh_separable_networks_do_not_amplify_noise():
    torch.manual_seed(0)
    network = build_network(plan("u2net", (16, 32, 64), deep=True)).eval()
    smooth = nn.functional.avg_pool3d(torch.randn(1, 1, 32, 32, 32), 5, 1, 2) * 5
    with torch.no_grad():
        logits, moved = network(smooth), network(smooth + 1e-3 * torch.randn_like(smooth))
    assert float((moved - logits).square().mean().sqrt()) < 0.02 * float(logits.std())


@pytest.mark.parametrize("separable", [False, True])
def test_dropout_without_norms_does_not_amplify(separable):
    torch.manual_seed(0)
    made = plan("plain_unet", (16, 16, 16), norm="none", dropout=0.5, dropout_of="voxels", separable=separable)
    network = build_network(made).train()
    plain = build_network(replace(made, options={**made.options, "dropout": 0.0})).train()
    x = torch.randn(4, 1, 16, 16, 16)
    with torch.no_grad():
        logits, without = (each[0] if isinstance(each, list) else each for each in (network(x), plain(x)))
    assert 0.3 < float(logits.std() / without.std()) < 3  # 32 times as large where the convolutions begin as without dropout


def test_dropout_takes_channels_or_voxels():
    def zeroed(what):
        torch.manual_seed(0)
        block = ConvBlock(1, 64, (3, 3, 3), (1, 1, 1), Style(norm="none", dropout=0.5, dropout_of=what), is_activated=False).train()
        with torch.no_grad():
            return (block(torch.randn(1, 1, 8, 8, 8)) == 0).flatten(2).float().mean(2)

    assert set(zeroed("channels").flatten().tolist()) == {0.0, 1.0}
    assert ((zeroed("voxels") - 0.5).abs() < 0.1).all()


def test_unknown_and_wrong_options_are_refused():
    with pytest.raises(PlanError, match="vnet does not know speed; it takes activation"):
        build_network(plan("vnet", (4, 8), speed=1))
    with pytest.raises(PlanError, match="norm is 'layer', expected one of instance"):
        build_network(plan("vnet", (4, 8), norm="layer"))
    with pytest.raises(PlanError, match="u2net is separable by itself"):
        build_network(plan("u2net", (4, 8), separable=True))
    with pytest.raises(PlanError, match="dropout is 2"):
        build_network(plan("plain_unet", (4, 8), dropout=2))


@pytest.mark.parametrize("option", [{"squeeze_excitation": 2}, {"dropout": 0.5}, {"norm": "group"}, {"activation": "silu"}], ids=str)
@pytest.mark.parametrize("family", STYLED)
def test_every_option_acts_in_every_family(family, option):
    def outputs(**options):
        torch.manual_seed(0)
        network = build_network(plan(family, (8, 16), **options)).train()
        torch.manual_seed(1)
        logits = network(torch.ones(1, 1, 4, 4, 4) + torch.arange(64).view(1, 1, 4, 4, 4) / 64)
        return logits if isinstance(logits, torch.Tensor) else logits[0]

    assert not torch.equal(outputs(), outputs(**option))


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2)])
@pytest.mark.parametrize(
    ("kernel", "size"), [((3, 3, 3), (6, 8, 10)), ((5, 5, 5), (8, 6, 4)), ((3, 1, 3), (2, 4, 6)), ((3, 3, 3), (1, 4, 5))]
)
def test_depthwise_convolutions_have_torchs_outputs_and_gradients(kernel, size, stride):
    torch.manual_seed(0)
    own = convolution(4, 4, kernel, stride, groups=4).double()
    assert isinstance(own, DepthwiseConv3d)
    x = torch.randn(2, 4, *size, dtype=torch.double, requires_grad=True)
    expected = nn.functional.conv3d(x, own.weight, own.bias, stride, tuple(k // 2 for k in kernel), groups=4)
    found = own(x)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    variables = (x, own.weight, own.bias)
    torch.testing.assert_close(torch.autograd.grad(found, variables, direction), torch.autograd.grad(expected, variables, direction))


def test_depthwise_convolutions_follow_mixed_precision():
    torch.manual_seed(0)
    own = convolution(8, 8, (3, 3, 3), (1, 1, 1), groups=8)
    x = torch.randn(2, 8, 6, 8, 10, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = own(x)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    rounded, own.weight.grad = own.weight.grad, None
    own(x).square().sum().backward()
    assert rounded.dtype == torch.float32
    assert float((rounded - own.weight.grad).norm() / own.weight.grad.norm()) < 0.02
