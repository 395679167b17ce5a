"""Tensors under nnU-Net's names → the same tensors under the names of our network.

nnU-Net's modules hold each other, so a tensor stands in a checkpoint up to four times: ``all_modules`` lists the convolution and the
norm of a block once more, and the decoder keeps the encoder. The copies must agree. Its ``seg_layers`` run coarse to fine, as our
heads do, and exist for every stage even where training had no deep supervision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from medseg3d.errors import PlanMismatchError
from medseg3d.networks.build import build_network
from medseg3d.plan import NetworkPlan
from medseg3d.wording import listed

Rule = tuple[str, str]

_WRAPPERS = ("module.", "_orig_mod.")
"""Put in front of all names by distributed training and by torch.compile."""
_DUPLICATES: tuple[Rule, ...] = (
    (r"^decoder\.encoder\.", "encoder."),
    (r"\.all_modules\.0\.", ".conv."),
    (r"\.all_modules\.1\.", ".norm."),
)
_DECODER: tuple[Rule, ...] = (
    (r"decoder\.transpconvs\.(\d+)\.(weight|bias)", r"decoder.up.\1.\2"),
    (r"decoder\.stages\.(\d+)\.convs\.(\d+)\.((?:conv|norm)\.\w+)", r"decoder.stages.\1.\2.\3"),
    (r"decoder\.seg_layers\.(\d+)\.(weight|bias)", r"decoder.heads.\1.\2"),
)
RULES: dict[str, tuple[Rule, ...]] = {
    "plain_unet": (
        (r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.((?:conv|norm)\.\w+)", r"encoder.\1.\2.\3"),
        *_DECODER,
    ),
    "residual_unet": (
        (r"encoder\.stem\.convs\.0\.((?:conv|norm)\.\w+)", r"stem.\1"),
        (r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv1\.((?:conv|norm)\.\w+)", r"encoder.\1.\2.first.\3"),
        (r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv2\.((?:conv|norm)\.\w+)", r"encoder.\1.\2.second.\3"),
        # the projection stands behind the pooling, where a block has one
        (r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.skip\.[01]\.((?:conv|norm)\.\w+)", r"encoder.\1.\2.projection.\3"),
        *_DECODER,
    ),
}
"""By family: nnU-Net's name of a tensor, and ours."""


def our_tensors(tensors: Mapping[str, torch.Tensor], plan: NetworkPlan, *, source: str) -> dict[str, torch.Tensor]:
    """The state of our network, float32, in its order; ``source`` names the checkpoint in the error.

    Raises :class:`PlanMismatchError` where a tensor is missing, left over, of another shape, or copies of it differ.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build_network(plan).state_dict().items()}
    found: dict[str, torch.Tensor] = {}
    leftover, differing = [], []
    for name, tensor in tensors.items():
        ours = our_name(name, plan.family)
        if ours not in expected:
            leftover.append(name)
        elif ours not in found:
            found[ours] = tensor
        elif not _is_same(tensor, found[ours]):
            differing.append(name)
    wrong = [
        f"{name} {tuple(found[name].shape)} instead of {shape}" for name, shape in expected.items() if _has_other_shape(found, name, shape)
    ]
    problems = {
        "not known": leftover,
        "not the same in its copies": differing,
        "missing": [name for name in expected if name not in found],
        "of another shape": wrong,
    }
    if any(problems.values()):
        text = "; ".join(f"{len(names)} {what} ({listed(names, most=3)})" for what, names in problems.items() if names)
        raise PlanMismatchError(
            f"{source}: the tensors are not those of the {plan.family} that plans.json describes: {text}. A trainer that builds a "
            "network of its own is not supported; otherwise the checkpoint belongs to other plans."
        )
    return {name: found[name].detach().to(torch.float32).contiguous() for name in expected}


def our_name(name: str, family: str) -> str | None:
    """Our name of one of nnU-Net's tensors; None where no rule knows it.

    >>> our_name("module.decoder.encoder.stages.1.0.convs.0.all_modules.0.weight", "plain_unet")
    'encoder.1.0.conv.weight'
    """
    while wrapper := next((w for w in _WRAPPERS if name.startswith(w)), None):
        name = name.removeprefix(wrapper)
    for pattern, replacement in _DUPLICATES:
        name = re.sub(pattern, replacement, name)
    for pattern, replacement in RULES[family]:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def _is_same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and (first.data_ptr() == second.data_ptr() or torch.equal(first, second))


def _has_other_shape(found: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> bool:
    return name in found and tuple(found[name].shape) != shape
