"""Turn the network's part of a plan into a network with fresh weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from medseg3d.errors import PlanError
from medseg3d.networks.blocks import initialize
from medseg3d.networks.plain_unet import PlainUNet
from medseg3d.networks.residual_unet import ResidualUNet
from medseg3d.plan import NetworkPlan

NETWORKS: dict[str, Callable[[NetworkPlan], nn.Module]] = {"plain_unet": PlainUNet, "residual_unet": ResidualUNet}
"""The families by their name in a plan; each is built from the whole record."""


def build_network(plan: NetworkPlan, *, generator: torch.Generator | None = None) -> nn.Module:
    """The network of a plan, initialized; ``generator`` (on the CPU) makes the weights repeatable.

    ``forward(x)`` gives logits ``(batch, num_classes, …)``, and while training with ``deep_supervision``, an attribute that
    can be switched, a list of logits at the decoder stages' own sizes, finest first. Raises :class:`PlanError` for an
    unknown family, for options that the family does not know, and for lists whose lengths do not belong together.
    """
    if plan.family not in NETWORKS:
        raise PlanError(f"network.family is {plan.family!r}; known families: {', '.join(sorted(NETWORKS))}.")
    if plan.options:
        raise PlanError(f"network.options: {plan.family} takes no options, found {', '.join(sorted(plan.options))}. Remove them.")
    _check_lengths(plan)
    network = NETWORKS[plan.family](plan)
    initialize(network, generator)
    return network


def _check_lengths(plan: NetworkPlan) -> None:
    """One entry per stage, one fewer for the decoder, one number per axis."""
    num_stages = len(plan.features)
    wrong = [
        f"{name} has {len(values)} entries, expected {expected}"
        for name, values, expected in (
            ("kernel_sizes", plan.kernel_sizes, num_stages),
            ("strides", plan.strides, num_stages),
            ("encoder_blocks", plan.encoder_blocks, num_stages),
            ("decoder_blocks", plan.decoder_blocks, num_stages - 1),
        )
        if len(values) != expected
    ]
    wrong += [
        f"{name}[{stage}] is {values}, expected {plan.dimensions} numbers"
        for name, stages in (("kernel_sizes", plan.kernel_sizes), ("strides", plan.strides))
        for stage, values in enumerate(stages)
        if len(values) != plan.dimensions
    ]
    if not num_stages:
        wrong.append("features is empty, expected one entry per stage")
    if wrong:
        raise PlanError(f"network of family {plan.family}: {'; '.join(wrong)}. Plan again, or correct the plan file.")
