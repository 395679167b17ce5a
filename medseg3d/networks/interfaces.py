"""Which tensors of a network meet the channels of the image, and which its labels: found by comparing it with one of one more.

Nothing is asked of a family, so this holds for those of extensions as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from medseg3d.errors import MedsegError
from medseg3d.networks.build import build_network, build_universal
from medseg3d.plan import NetworkPlan

ONLY = ""
"""The domain of a network that serves one dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """By tensor the axis that counts the channels of the image, and the one that counts the logits of a voxel."""

    channels: Mapping[str, int]
    outputs: Mapping[str, int]


def interface_of(plans: Mapping[str, NetworkPlan], domain: str = ONLY) -> Interface:
    """Of the network of these plans, by domain, where it meets one of them.

    A tensor that does not simply have one entry per channel or output, such as a head that makes eight voxels of each at once, is left
    out: nothing can be said of its entries.
    """
    plan = plans[domain]
    own = _shapes(plans)
    return Interface(
        channels=_grown(own, plans, domain, replace(plan, in_channels=plan.in_channels + 1), plan.in_channels),
        outputs=_grown(own, plans, domain, replace(plan, num_classes=plan.num_classes + 1), plan.num_classes),
    )


def build_common(plans: Mapping[str, NetworkPlan]) -> nn.Module:
    """The network of one plan without a name, or the one that serves several domains."""
    return build_network(plans[ONLY]) if ONLY in plans else build_universal(plans)


def _shapes(plans: Mapping[str, NetworkPlan]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build_common(plans).state_dict().items()}


def _grown(
    own: Mapping[str, tuple[int, ...]], plans: Mapping[str, NetworkPlan], domain: str, larger: NetworkPlan, count: int
) -> dict[str, int]:
    try:
        others = _shapes({**plans, domain: larger})
    except MedsegError:  # a family that cannot have one more
        return {}
    found = {}
    for name, shape in own.items():
        other = others.get(name, ())
        axes = [axis for axis, (n, m) in enumerate(zip(shape, other, strict=False)) if n != m]
        if len(other) == len(shape) and len(axes) == 1 and (shape[axes[0]], other[axes[0]]) == (count, count + 1):
            found[name] = axes[0]
    return found
