"""Weights of other libraries go by their published names into our trunks, which then compute what theirs do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medseg3d.errors import InputError
from medseg3d.models.pretrained import NAMINGS, is_foreign, read_foreign, translated
from medseg3d.models.transfer import inflated
from medseg3d.networks.build import build_network
from medseg3d.networks.resnet import ResNet
from medseg3d.plan import NetworkPlan
from medseg3d.planning import load_planner
from medseg3d.planning.stages import stages_of

Names = dict[str, tuple[int, ...]]


def plan(
    family: str, features: tuple[int, ...], blocks: tuple[int, ...], *, dimensions: Any = 2, channels: int = 3, **options: Any
) -> NetworkPlan:
    return NetworkPlan(
        family=family,
        dimensions=dimensions,
        in_channels=channels,
        num_classes=2,
        features=features,
        kernel_sizes=((3,) * dimensions,) * len(features),
        strides=((1,) * dimensions, *((2,) * dimensions,) * (len(features) - 1)),
        encoder_blocks=blocks,
        decoder_blocks=(1,) * (len(features) - 1),
        deep_supervision=False,
        options=options,
    )


RESNET_18 = plan("swiftnet", (8, 8, 8, 16, 32, 64), (1, 1, 2, 2, 2, 2), norm="batch", decoder_features=8)
RESNET_50 = plan("deeplab_v3", (8, 8, 32, 64), (1, 1, 3, 2), norm="batch", output_stride=32, head_features=8)
PSPNET = plan("pspnet", (8, 8, 32, 64), (1, 1, 1, 1), norm="batch", stem="deep")
VGG_11_BN = plan("segnet", (8, 16, 32, 64), (1, 1, 2, 2), norm="batch")
VGG_11 = plan("fcn", (8, 16, 32, 64), (1, 1, 2, 1), classifier_kernel=3)
DLA = plan("dla", (8, 8, 16, 32), (1, 1, 1, 2), norm="batch")
TRANSUNET = plan("transunet", (16, 64, 256), (1, 1, 2), token_features=16, heads=4, layers=2, mlp_features=32, positions=3)


def norm(name: str, width: int) -> Names:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")} | {f"{name}.num_batches_tracked": ()}


def resnet_names(widths: tuple[int, ...], blocks: tuple[int, ...], *, is_bottleneck: bool = False) -> Names:
    """torchvision's, timm's and segmentation_models.pytorch's, without the classifier."""
    found: Names = {"conv1.weight": (widths[0], 3, 7, 7), **norm("bn1", widths[0])}
    before = widths[0]
    for layer, (width, number) in enumerate(zip(widths[1:], blocks, strict=True), 1):
        for block in range(number):
            name, inner = f"layer{layer}.{block}", width // 4 if is_bottleneck else width
            kernels = (
                [(inner, before, 1), (inner, inner, 3), (width, inner, 1)] if is_bottleneck else [(width, before, 3), (width, width, 3)]
            )
            for conv, (out, into, edge) in enumerate(kernels, 1):
                found |= {f"{name}.conv{conv}.weight": (out, into, edge, edge), **norm(f"{name}.bn{conv}", out)}
            if block == 0 and (before != width or layer > 1):
                found |= {f"{name}.downsample.0.weight": (width, before, 1, 1), **norm(f"{name}.downsample.1", width)}
            before = width
    return found


def deep_stem_names() -> Names:
    """Of the ResNets that PSPNet was published with."""
    found = resnet_names((16, 32, 64), (1, 1), is_bottleneck=True)
    return (
        found
        | {"conv1.weight": (8, 3, 3, 3), "conv2.weight": (8, 8, 3, 3), "conv3.weight": (16, 8, 3, 3)}
        | {name: shape for place, width in enumerate((8, 8, 16), 1) for name, shape in norm(f"bn{place}", width).items()}
    )


def timm_deep_stem_names() -> Names:
    """resnet50d: the stem is a sequence, and a pooling stands before each projection."""
    found = {name: shape for name, shape in deep_stem_names().items() if not name.startswith(("conv", "bn"))}
    found = {
        name.replace("downsample.1.", "downsample.2.").replace("downsample.0.", "downsample.1."): shape for name, shape in found.items()
    }
    stem = {"conv1.0.weight": (8, 3, 3, 3), "conv1.3.weight": (8, 8, 3, 3), "conv1.6.weight": (16, 8, 3, 3)}
    return found | stem | norm("conv1.1", 8) | norm("conv1.4", 8) | norm("bn1", 16)


def vgg_names(stages: tuple[tuple[int, ...], ...], *, has_norms: bool) -> Names:
    found: Names = {}
    place, before = 0, 3
    for widths in stages:
        for width in widths:
            found |= {f"features.{place}.weight": (width, before, 3, 3), f"features.{place}.bias": (width,)}
            found |= norm(f"features.{place + 1}", width) if has_norms else {}
            place, before = place + 2 + has_norms, width
        place += 1  # the pooling
    return found


def dla_names() -> Names:
    """timm's and the authors': a tree of one level, and one of two."""
    found: Names = {"base_layer.0.weight": (8, 3, 7, 7), **norm("base_layer.1", 8)}
    for level in (0, 1):
        found |= {f"level{level}.0.weight": (8, 8, 3, 3), **norm(f"level{level}.1", 8)}

    def tree(name: str, before: int, width: int, root: int) -> Names:
        made: Names = {}
        for block, into in (("tree1", before), ("tree2", width)):
            for conv, channels in ((1, into), (2, width)):
                made |= {f"{name}.{block}.conv{conv}.weight": (width, channels, 3, 3), **norm(f"{name}.{block}.bn{conv}", width)}
        made |= {f"{name}.root.conv.weight": (width, root, 1, 1), **norm(f"{name}.root.bn", width)}
        if before != width:
            made |= {f"{name}.project.0.weight": (width, before, 1, 1), **norm(f"{name}.project.1", width)}
        return made

    found |= tree("level2", 8, 16, 32)
    return found | tree("level3.tree1", 16, 32, 64) | tree("level3.tree2", 32, 32, 64 + 32 + 16)


def hybrid_names() -> Names:
    """timm's vit_base_r50_s16, of one stage and two layers."""
    found: Names = {"cls_token": (1, 1, 16), "pos_embed": (1, 10, 16), "patch_embed.backbone.stem.conv.weight": (64, 3, 7, 7)}
    found |= plain("patch_embed.backbone.stem.norm", 64)
    for block in range(2):
        name = f"patch_embed.backbone.stages.0.blocks.{block}"
        for place, (out, into, edge) in enumerate(((64, 256 if block else 64, 1), (64, 64, 3), (256, 64, 1)), 1):
            found |= {f"{name}.conv{place}.weight": (out, into, edge, edge), **plain(f"{name}.norm{place}", out)}
    name = "patch_embed.backbone.stages.0.blocks.0.downsample"
    found |= {f"{name}.conv.weight": (256, 64, 1, 1), **plain(f"{name}.norm", 256)}
    found |= {"patch_embed.proj.weight": (16, 256, 1, 1), "patch_embed.proj.bias": (16,), **plain("norm", 16)}
    for layer in range(2):
        for part, out, into in (("attn.qkv", 48, 16), ("attn.proj", 16, 16), ("mlp.fc1", 32, 16), ("mlp.fc2", 16, 32)):
            found |= {f"blocks.{layer}.{part}.weight": (out, into), f"blocks.{layer}.{part}.bias": (out,)}
        found |= plain(f"blocks.{layer}.norm1", 16) | plain(f"blocks.{layer}.norm2", 16)
    return found


def plain(name: str, width: int) -> Names:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def state(names: Names) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.rand(shape) + 0.1 if shape else torch.tensor(7) for name, shape in names.items()}


SOURCES: dict[str, tuple[NetworkPlan, Names, str]] = {
    "resnet18": (RESNET_18, resnet_names((8, 8, 16, 32, 64), (2, 2, 2, 2)), "encoder."),
    "resnet50": (RESNET_50, resnet_names((8, 32, 64), (3, 2), is_bottleneck=True), "encoder."),
    "deep stem": (PSPNET, deep_stem_names(), "encoder."),
    "timm's deep stem": (PSPNET, timm_deep_stem_names(), "encoder."),
    "vgg with norms": (VGG_11_BN, vgg_names(((8,), (16,), (32, 32)), has_norms=True), "encoder."),
    "vgg": (VGG_11, vgg_names(((8,), (16,), (32, 32)), has_norms=False), "trunk."),
    "dla": (DLA, dla_names(), ""),
    "vit hybrid": (TRANSUNET, hybrid_names(), ""),
}


@pytest.mark.parametrize("before", ["", "module.", "encoder."])
@pytest.mark.parametrize("source", SOURCES)
def test_every_tensor_of_the_trunk_is_found_in_its_shape(source: str, before: str) -> None:
    network_plan, names, trunk = SOURCES[source]
    with torch.device("meta"):
        network = build_network(network_plan)
    found = translated({f"{before}{name}": tensor for name, tensor in state(names).items()}, network)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    wrong = [name for name, theirs in found.names.items() if tuple(found.tensors[theirs].shape) != own[name]]
    assert not wrong
    of_trunk = [name for name in own if name.startswith(trunk) and not name.startswith(("up.", "head.", "project.", "decoder."))]
    assert sorted(set(of_trunk) - set(found.names)) == []
    unused = set(found.tensors) - set(found.names.values())
    assert {name.removeprefix(before) for name in unused} <= {"cls_token"} | {name for name in names if "level3.project" in name}


def test_each_source_is_told_by_a_tensor_that_no_other_has() -> None:
    for source, (_, names, _) in SOURCES.items():
        assert sum(naming.tells in names for naming in NAMINGS.values()) == 1, source


class Block(nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        is_same = before == width and stride == 1
        self.downsample = None if is_same else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + skip).relu()


class Trunk(nn.Module):
    """torchvision's ResNet-18 without its classifier, an eighth as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.maxpool = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1)
        widths = (8, 8, 16, 32, 64)
        for layer, (before, width) in enumerate(pairwise(widths), 1):
            self.add_module(f"layer{layer}", nn.Sequential(Block(before, width, 1 if layer == 1 else 2), Block(width, width, 1)))

    def forward(self, x: Tensor) -> list[Tensor]:
        return features_of(self, x)


def features_of(network: Any, x: Tensor) -> list[Tensor]:
    x = network.bn1(network.conv1(x)).relu()
    found = [x]
    x = network.maxpool(x)
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
        found.append(x)
    return found


def trained(make: Callable[[], nn.Module]) -> nn.Module:
    """With statistics that are not those of a fresh norm."""
    torch.manual_seed(1)
    network = make()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


def ours_with(theirs: nn.Module, network_plan: NetworkPlan, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> ResNet:
    network = build_network(network_plan)
    found = translated(theirs.state_dict(), network)
    network.load_state_dict({name: change(found.tensors[other]) for name, other in found.names.items()}, strict=False)
    encoder: Any = network.eval().encoder
    return encoder  # type: ignore[no-any-return]


def test_the_trunk_computes_what_theirs_computes() -> None:
    theirs = trained(Trunk)
    image = torch.rand(2, 3, 64, 48)
    with torch.inference_mode():
        for ours, expected in zip(ours_with(theirs, RESNET_18)(image), theirs(image), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_trunk_computes_what_torchvision_computes() -> None:
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
    theirs = trained(models.resnet18)
    wide = plan("swiftnet", (64, 64, 64, 128, 256, 512), (1, 1, 2, 2, 2, 2), norm="batch", decoder_features=8)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for ours, expected in zip(ours_with(theirs, wide)(image), features_of(theirs, image), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_volume_that_is_the_same_in_all_slices_gives_the_features_of_its_slice() -> None:
    theirs = trained(Trunk)
    image = torch.rand(1, 3, 32, 32)
    volume_plan = plan("swiftnet", RESNET_18.features, RESNET_18.encoder_blocks, dimensions=3, norm="batch", decoder_features=8)

    def change(tensor: Tensor) -> Tensor:
        edge = tensor.shape[-1] if tensor.ndim == 4 else 0
        return inflated(tensor, edge) if edge else tensor

    ours = ours_with(theirs, volume_plan, change)
    volume = image.unsqueeze(2).expand(-1, -1, 96, -1, -1)
    with torch.inference_mode():
        for found, expected in zip(ours(volume)[:3], theirs(image)[:3], strict=True):
            middle = found[:, :, found.shape[2] // 2]  # far from the zeros beyond the first and the last slice
            torch.testing.assert_close(middle, expected, rtol=1e-4, atol=1e-5)


# ---- files


def test_state_dicts_are_read_from_both_kinds_of_files_also_inside_of_checkpoints(tmp_path: Path) -> None:
    tensors = {"conv1.weight": torch.rand(2, 3, 3, 3), "bn1.bias": torch.zeros(2)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "b.pth")
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer": {"lr": 0.1}}, tmp_path / "c.pt")
    torch.save({"model": {"state_dict": tensors}, "epoch": 3}, tmp_path / "d.ckpt")
    for name in ("a.safetensors", "b.pth", "c.pt", "d.ckpt"):
        assert is_foreign(tmp_path / name)
        found = read_foreign(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("1",))


def test_a_file_that_asks_for_more_than_tensors_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hyper": Runs()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"asks for (builtins\.)?eval"):
        read_foreign(tmp_path / "a.pth")
    torch.save({"epoch": 3}, tmp_path / "b.pth")
    with pytest.raises(InputError, match="holds no tensors by name"):
        read_foreign(tmp_path / "b.pth")
    torch.save({"network_weights": {"a": torch.zeros(1)}}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(InputError, match=r"a checkpoint of nnU-Net, which needs its plans: name the folder"):
        read_foreign(tmp_path / "checkpoint_final.pth")
    (tmp_path / "c.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="not a safetensors file, or damaged"):
        read_foreign(tmp_path / "c.safetensors")


def test_the_planner_file_of_the_docs_has_the_trunk_of_its_library(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/fine-tune.md").read_text(encoding="utf-8")
    (tmp_path / "resnet18.toml").write_text(page.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    rule = load_planner(tmp_path / "resnet18.toml").network
    features, blocks, _ = stages_of(rule, 6, is_3d=False)
    with torch.device("meta"):
        network = build_network(plan("swiftnet", features, blocks, **rule.options))
        names = {name: torch.empty(shape) for name, shape in resnet_names((64, 64, 128, 256, 512), (2, 2, 2, 2)).items()}
    found = translated(names, network)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert set(found.names) == {name for name in shapes if name.startswith("encoder.")}
    assert all(found.tensors[theirs].shape == shapes[name] for name, theirs in found.names.items())


def test_whatever_no_source_tells_goes_by_equal_names_whatever_stands_before_them() -> None:
    inner = nn.ModuleDict({"mlp": nn.ModuleDict({"linear1": nn.Linear(2, 3), "linear2": nn.Linear(3, 2)}), "norm": nn.LayerNorm(2)})
    network = nn.ModuleDict({"swinViT": inner, "out": nn.Linear(2, 2)})
    file = {"module.mlp.fc1.weight": torch.zeros(3, 2), "module.mlp.fc2.bias": torch.zeros(2), "module.norm.weight": torch.zeros(2)}
    found = translated(file, network)
    assert found.source == ""
    assert found.names == {
        "swinViT.mlp.linear1.weight": "module.mlp.fc1.weight",
        "swinViT.mlp.linear2.bias": "module.mlp.fc2.bias",
        "swinViT.norm.weight": "module.norm.weight",
    }
