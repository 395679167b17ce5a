"""Weights of other libraries by the names of their tensors: which trunk of ours each of them is, and the names that ours has.

A source is a table of rules. What tells it is one tensor, whatever stands before its name: ``encoder.`` and ``backbone.`` of the
libraries that hold a trunk inside of a network, ``module.`` of distributed training. The classifier of a source has no rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg3d.errors import InputError
from medseg3d.files import unreadable
from medseg3d.models.torch_file import is_dense, load_torch_file
from medseg3d.networks.dla import DeepLayerAggregation
from medseg3d.networks.fcn import FCN
from medseg3d.networks.resnet import ResNet
from medseg3d.networks.segnet import SegNet
from medseg3d.networks.transunet import TransUNet
from medseg3d.weights_header import METADATA_KEY, weights_metadata

Renamed = Mapping[str, str]
"""A tensor's name in the file → in a trunk of ours; several may stand for one, as a query, a key and a value do."""
TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".tar")
STATES = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "encoder")
"""What checkpoints call the weights that stand beside an optimizer's state, in the order in which they are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How libraries name the tensors of a trunk.

    ``libraries`` are for people. ``tells`` is the name of a tensor that no other source has. ``trunks`` are the classes of ours that have
    these tensors, each with the name of the part that holds the trunk, empty for all of it. ``rename`` gives our names for those of a
    file, below what stands before them.
    """

    libraries: str
    tells: str
    trunks: Mapping[type[nn.Module], str]
    rename: Callable[[Sequence[str]], Renamed]


Rule = tuple[str, str]


def by_rules(*rules: Rule) -> Callable[[Sequence[str]], Renamed]:
    """Patterns of whole names, and what stands in ours: the first that fits counts."""

    def rename(names: Sequence[str]) -> Renamed:
        found = {}
        for name in names:
            for pattern, replacement in rules:
                if match := re.fullmatch(pattern, name):
                    found[name] = match.expand(replacement)
                    break
        return found

    return rename


def _resnet_names(names: Sequence[str]) -> Renamed:
    """Blocks and convolutions count from 1 with them and from 0 with us; a deep stem is known by its second convolution."""
    is_deep = any(name in ("conv2.weight", "conv1.3.weight") for name in names)
    found = {}
    for name in names:
        if match := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|norm)(\d)\.(\w+)", name):
            layer, block, kind, number, rest = match.groups()
            part = "conv" if kind == "conv" else "norm"
            found[name] = f"stages.{int(layer) - 1}.{block}.convs.{int(number) - 1}.{part}.{rest}"
        elif match := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.(\d)\.(\w+)", name):
            layer, block, place, rest = match.groups()
            # an average pooling may stand before the convolution (ResNet-D)
            first = 1 if f"layer{layer}.{block}.downsample.2.weight" in names else 0
            part = {first: "conv", first + 1: "norm"}.get(int(place), "")
            found[name] = f"stages.{int(layer) - 1}.{block}.projection.{part}.{rest}"
        elif match := re.fullmatch(r"conv1\.(\d)\.(\w+)", name):  # timm's deep stem: convolution, norm, activation, and again
            found[name] = f"stem.{int(match[1]) // 3}.{'conv' if int(match[1]) % 3 == 0 else 'norm'}.{match[2]}"
        elif match := re.fullmatch(r"(conv|bn|norm)([123])\.(\w+)", name):
            is_last_of_timm = is_deep and "conv1.3.weight" in names
            place = 2 if is_last_of_timm else int(match[2]) - 1
            part = "conv" if match[1] == "conv" else "norm"
            found[name] = f"stem.{place}.{part}.{match[3]}" if is_deep else f"stem.{part}.{match[3]}"
    return found


def _vgg_names(names: Sequence[str]) -> Renamed:
    """``features`` counts convolutions, norms, activations and poolings: a stage ends where the distance of convolutions is larger.

    >>> _vgg_names(["features.0.weight", "features.2.weight", "features.5.weight", "features.5.bias"])["features.5.bias"]
    '1.0.conv.bias'
    """
    places = sorted({int(match[1]) for name in names if (match := re.fullmatch(r"features\.(\d+)\.weight", name))})
    norms = {int(match[1]) for name in names if (match := re.fullmatch(r"features\.(\d+)\.running_mean", name))}
    convs = [place for place in places if place not in norms]
    steps = [after - before for before, after in pairwise(convs)]
    numbers, stage, number = {}, 0, 0
    for place, step in zip(convs, [*steps, 0], strict=True):
        numbers[place] = (stage, number)
        stage, number = (stage + 1, 0) if step > min(steps, default=0) else (stage, number + 1)
    found = {}
    for name in names:
        if match := re.fullmatch(r"features\.(\d+)\.(\w+)", name):
            place = int(match[1])
            part, owner = ("norm", place - 1) if place in norms else ("conv", place)
            if owner in numbers:
                found[name] = "{}.{}.{}.{}".format(*numbers[owner], part, match[2])
    return found


def _dla_names(names: Sequence[str]) -> Renamed:
    """Trees hold trees; their convolutions count from 1."""
    found = {}
    for name in names:
        if match := re.fullmatch(r"base_layer\.([01])\.(\w+)", name):
            found[name] = f"stem.{('conv', 'norm')[int(match[1])]}.{match[2]}"
        elif match := re.fullmatch(r"level([01])\.(\d+)\.(\w+)", name):
            number, place = divmod(int(match[2]), 3)
            found[name] = f"stages.{match[1]}.{number}.{('conv', 'norm')[min(place, 1)]}.{match[3]}"
        elif match := re.fullmatch(r"level(\d)\.((?:tree[12]\.)*)(.+)", name):
            path = match[2].replace("tree1", "first").replace("tree2", "second")
            rest = re.sub(r"^(conv|bn)(\d)\.", lambda m: f"convs.{int(m[2]) - 1}.{'conv' if m[1] == 'conv' else 'norm'}.", match[3])
            rest = re.sub(r"^root\.(conv|bn)\.", lambda m: f"root.conv.{'conv' if m[1] == 'conv' else 'norm'}.", rest)
            rest = re.sub(r"^project\.([01])\.", lambda m: f"projection.{('conv', 'norm')[int(m[1])]}.", rest)
            found[name] = f"stages.{match[1]}.{path}{rest}"
    return found


def _hybrid_names(names: Sequence[str]) -> Renamed:
    """timm's vision transformer on a ResNetV2; ``qkv`` is one tensor there, and cut in :func:`_prepared`."""
    backbone, block = r"patch_embed\.backbone\.", r"stages\.(\d)\.blocks\.(\d+)\."
    found = dict(
        by_rules(
            (backbone + r"stem\.conv\.(\w+)", r"stem.0.conv.\1"),
            (backbone + r"stem\.norm\.(\w+)", r"stem.1.\1"),
            (backbone + block + r"downsample\.conv\.(\w+)", r"stages.\1.\2.projection.0.conv.\3"),
            (backbone + block + r"downsample\.norm\.(\w+)", r"stages.\1.\2.projection.1.\3"),
            (r"patch_embed\.proj\.(\w+)", r"embed.\1"),
            (r"pos_embed", "positions"),
            (r"blocks\.(\d+)\.norm1\.(\w+)", r"layers.\1.norm_of_attention.\2"),
            (r"blocks\.(\d+)\.norm2\.(\w+)", r"layers.\1.norm_of_perceptron.\2"),
            (r"blocks\.(\d+)\.attn\.(query|key|value)\.(\w+)", r"layers.\1.\2.\3"),
            (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"layers.\1.out.\2"),
            (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"layers.\1.perceptron.0.\2"),
            (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"layers.\1.perceptron.3.\2"),
            (r"norm\.(\w+)", r"norm.\1"),
        )(names)
    )
    for name in names:
        if match := re.fullmatch(backbone + block + r"(conv|norm)([123])\.(\w+)", name):
            stage, number, kind, place, rest = match.groups()
            at = 3 * (int(place) - 1) + (kind == "norm")
            found[name] = f"stages.{stage}.{number}.convs.{at}.{'conv.' if kind == 'conv' else ''}{rest}"
    return found


NAMINGS: dict[str, Naming] = {
    "resnet": Naming(
        libraries="torchvision, timm, segmentation_models.pytorch; MONAI's and MedicalNet's are of volumes",
        tells="layer1.0.conv1.weight",
        trunks={ResNet: ""},
        rename=_resnet_names,
    ),
    "vgg": Naming(
        libraries="torchvision, segmentation_models.pytorch",
        tells="features.0.weight",
        trunks={FCN: "trunk", SegNet: "encoder"},
        rename=_vgg_names,
    ),
    "dla": Naming(
        libraries="timm, the authors'",
        tells="base_layer.0.weight",
        trunks={DeepLayerAggregation: ""},
        rename=_dla_names,
    ),
    "vit_hybrid": Naming(
        libraries="timm (vit_base_r50_s16_*)",
        tells="patch_embed.backbone.stem.conv.weight",
        trunks={TransUNet: ""},
        rename=_hybrid_names,
    ),
}
"""By the name of the trunk. Whatever no source tells is looked for under the same names, as MONAI's networks have them in both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """``names``: of a tensor of ours → of the one in the file; ``tensors`` are the file's; ``source`` is the naming, or empty."""

    source: str
    names: Mapping[str, str]
    tensors: Mapping[str, Tensor]


def translated(tensors: Mapping[str, Tensor], network: nn.Module) -> Translation:
    """Which tensor of a file each tensor of ours is, by the first source that knows both the file and a trunk of the network."""
    prepared = _prepared(tensors)
    own = set(network.state_dict())
    for source, naming in NAMINGS.items():
        before = next((name[: -len(naming.tells)] for name in prepared if name.endswith(naming.tells)), None)
        trunks = list(_trunks(network, naming))
        if before is None or not trunks:
            continue
        inside = [name.removeprefix(before) for name in prepared if name.startswith(before)]
        renamed = naming.rename(inside)
        names = {f"{trunk}{ours}": f"{before}{theirs}" for trunk in trunks for theirs, ours in renamed.items()}
        return Translation(source=source, names={name: theirs for name, theirs in names.items() if name in own}, tensors=prepared)
    return Translation(source="", names=_same_names(prepared, own), tensors=prepared)


def _trunks(network: nn.Module, naming: Naming) -> Iterable[str]:
    """What stands before the names of each trunk in a network, with its point."""
    for name, module in network.named_modules():
        for kind, part in naming.trunks.items():
            if isinstance(module, kind):
                yield "".join(f"{each}." for each in (name, part) if each)


def _same_names(tensors: Mapping[str, Tensor], own: set[str]) -> dict[str, str]:
    """Of equal names, whatever stands before all of the file's or of ours: what gives the most."""
    known = {re.sub(*SWIN, name): name for name in tensors}
    before = {"", *(name[: name.index(".") + 1] for name in known if "." in name)}
    within = {"", *(name[: name.index(".") + 1] for name in own if "." in name)}
    best: dict[str, str] = {}
    for outer, inner in product(sorted(before), sorted(within)):
        found = {f"{inner}{name.removeprefix(outer)}": theirs for name, theirs in known.items() if name.startswith(outer)}
        found = {ours: theirs for ours, theirs in found.items() if ours in own}
        best = found if len(found) > len(best) else best
    return best


SWIN = (r"\.mlp\.fc([12])\.", r".mlp.linear\1.")
"""MONAI's own weights of its Swin transformer, trained without labels, have names of before it was in MONAI."""


def _prepared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value as three tensors; positions on their grid without the class token, ``(1, width, edge, edge)``."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        head, point, rest = name.partition(".attn.qkv.")
        if point and len(tensor) % 3 == 0:
            found |= {f"{head}.attn.{part}.{rest}": each for part, each in zip(("query", "key", "value"), tensor.chunk(3), strict=True)}
        elif name.endswith("pos_embed") and tensor.ndim == 3:
            edge = int((tensor.shape[1]) ** 0.5)
            grid = tensor[:, tensor.shape[1] - edge**2 :]
            found[name] = grid.transpose(1, 2).reshape(len(grid), -1, edge, edge)
        else:
            found[name] = tensor
    return found


# ---- files


def is_foreign(path: Path) -> bool:
    """Weights that are not ours: a file of torch's, or safetensors without a plan; raises :class:`InputError` for an unreadable file."""
    if not path.is_file():
        return False
    if path.suffix == ".safetensors":
        try:
            return METADATA_KEY not in weights_metadata(path)
        except OSError as error:
            raise unreadable(path, error) from None
    return path.suffix in TORCH_ENDINGS


def read_foreign(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; raises :class:`InputError` where there are none, or it asks for more than tensors."""
    document = _safetensors(path) if path.suffix == ".safetensors" else load_torch_file(path)
    found = _tensors_in(document)
    if isinstance(document, dict) and "network_weights" in document:
        raise InputError(f"{path}: a checkpoint of nnU-Net, which needs its plans: name the folder that holds plans.json.")
    if not found:
        raise InputError(
            f"{path}: holds no tensors by name. Expected a state dict, or a checkpoint with one under {', '.join(STATES[:3])}."
        )
    return found


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file, or damaged ({error}). Copy or download it again.") from None


def _tensors_in(document: Any) -> dict[str, Tensor]:
    """Of a state dict, or of the one inside a checkpoint."""
    if not isinstance(document, dict):
        return {}
    inner = next((document[key] for key in STATES if isinstance(document.get(key), dict)), None)
    if inner is not None and not any(isinstance(value, torch.Tensor) for value in document.values()):
        return _tensors_in(inner)
    return {str(name): value for name, value in document.items() if is_dense(value)}
