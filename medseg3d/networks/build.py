"""Turn the network's part of a plan into a network with fresh weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from medseg3d.errors import InputError, PlanError
from medseg3d.extensions import Registry
from medseg3d.networks import (
    attention_unet,
    bisenet,
    classic_unet,
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
    monai_families,
    msfnet,
    plain_unet,
    pspnet,
    residual_unet,
    segnet,
    swiftnet,
    transunet,
    u2net,
    unet_plus_plus,
    vnet,
)
from medseg3d.networks.blocks import initialize
from medseg3d.networks.family import Family, Sharing, Size
from medseg3d.plan import NetworkPlan

NETWORKS = Registry(
    "networks",
    Family,
    {
        family.name: family
        for family in (
            plain_unet.FAMILY,
            residual_unet.FAMILY,
            classic_unet.FAMILY,
            vnet.FAMILY,
            u2net.FAMILY,
            *monai_families.FAMILIES,
            *(unet_plus_plus.FAMILY, attention_unet.FAMILY, fcn.FAMILY, segnet.FAMILY, dla.FAMILY, transunet.FAMILY),
            *(deeplab.FAMILY, pspnet.FAMILY, icnet.FAMILY, bisenet.FAMILY, dfanet.FAMILY, espnet.FAMILY),
            *(swiftnet.FAMILY, fast_scnn.FAMILY, dfnet.FAMILY, msfnet.FAMILY, isnet.FAMILY, mcibi.FAMILY),
        )
    },
)
"""The families by their name in a plan: one file each, and those of extensions."""


def family_of(plan: NetworkPlan) -> Family:
    """The family that a plan names; raises :class:`PlanError` for an unknown one, with the extension that it is from."""
    return NETWORKS.find(plan.family, provider=plan.provider)


def lacks_extension(plan: NetworkPlan) -> bool:
    """The plan's family is of an extension that is not at hand, so that its network cannot be built."""
    return bool(plan.provider) and plan.family not in NETWORKS


def checked_plan(plan: NetworkPlan) -> NetworkPlan:
    """The plan with every option of its family filled in; raises :class:`PlanError` for what cannot be built."""
    family = family_of(plan)
    _check_lengths(plan)
    return family.completed(plan)


def output_size(plan: NetworkPlan, patch_size: Size) -> Size:
    """The middle part of a patch that gets logits: all of it, but for networks without padding."""
    return family_of(plan).output_size(plan, tuple(patch_size))


def build_network(plan: NetworkPlan, *, generator: torch.Generator | None = None) -> nn.Module:
    """The network of a plan, initialized; ``generator`` (on the CPU) makes the weights repeatable.

    ``forward(x)`` gives logits ``(batch, num_classes, …)``, and while training with ``deep_supervision``, an attribute that
    can be switched, a list of logits at the decoder stages' own sizes, finest first. Raises :class:`PlanError` for an
    unknown family, for options that the family does not know, and for lists whose lengths do not belong together.
    """
    if not isinstance(plan, NetworkPlan):
        raise InputError(f"build_network takes the network of a configuration (plan.configuration().network), not a {type(plan).__name__}.")
    family = family_of(plan)
    if family.keeps_weights:
        return _with_own_weights(family, checked_plan(plan), generator)
    network = family.build(checked_plan(plan))
    initialize(network, generator)
    return network


def _with_own_weights(family: Family, plan: NetworkPlan, generator: torch.Generator | None) -> nn.Module:
    """The network as its family begins it, from torch's own random numbers, which ``generator`` seeds for so long."""
    if generator is None:
        return family.build(plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return family.build(plan)


def build_universal(plans: Mapping[str, NetworkPlan], *, generator: torch.Generator | None = None) -> nn.Module:
    """One network for several datasets, initialized; ``forward(x, domain)`` gives the logits of one of them.

    Raises :class:`PlanError` where a family serves one dataset only, or the plans do not agree.
    """
    sharing = sharing_of(plans)
    network = sharing.build({name: checked_plan(plan) for name, plan in plans.items()})
    initialize(network, generator)
    return network


def sharing_of(plans: Mapping[str, NetworkPlan]) -> Sharing:
    """How one network serves the datasets of these plans, by domain; raises :class:`PlanError` where none can."""
    sharing = {name: family_of(plan).sharing for name, plan in plans.items()}
    if others := [f"{name}: {plans[name].family}" for name, found in sharing.items() if found is None]:
        serving = ", ".join(name for name, family in NETWORKS.items() if family.sharing is not None)
        raise PlanError(f"Only {serving} serves several datasets, found {', '.join(others)}. Plan them with --planner universal.")
    family, *more = sorted({plan.family for plan in plans.values()})
    if more:
        raise PlanError(f"One network is of one family, found {', '.join((family, *more))}. Plan all datasets with the same planner.")
    return next(found for found in sharing.values() if found is not None)


def _check_lengths(plan: NetworkPlan) -> None:
    """One entry per stage, one fewer for the decoder, one number per axis."""
    if wrong := "; ".join(plan.problems()):
        raise PlanError(f"network of family {plan.family}: {wrong}. Plan again, or correct the plan file.")
