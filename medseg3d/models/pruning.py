"""A model without the parts of its networks that do not predict: the parts of a model and a level go in, smaller parts come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medseg3d.errors import InputError
from medseg3d.models.parts import MemberDescription, ModelParts, Tensors
from medseg3d.networks.build import family_of, lacks_extension
from medseg3d.plan import NetworkPlan


def chosen_level(levels: Sequence[int], stage: MemberDescription, wanted: int | None) -> int | None:
    """The level of a configuration that predicts: the wanted one, 0 for the deepest, or for None the one that validation chose.

    None for networks without levels, where 0 is right as well. Raises :class:`InputError` for a level that is not there.
    """
    if not levels:
        if wanted:
            raise InputError(f"--level {wanted}: {stage.configuration} is no network with levels; only a UNet++ is. Leave --level out.")
        return None
    level = wanted if wanted is not None else stage.levels.level if stage.levels is not None else 0
    level = level or levels[-1]
    if level not in levels:
        known = ", ".join(map(str, levels))
        raise InputError(f"--level {level}: {stage.configuration} has the levels {known}. Name one of them, or full.")
    return level


def pruned_parts(parts: ModelParts, wanted: int | None) -> ModelParts:
    """The parts with the networks of the level that predicts (:func:`chosen_level`), the same ones where nothing is left out."""
    configurations = dict(parts.description.plan.configurations)
    cut: dict[str, int] = {}
    for stage in parts.description.stages:
        network = configurations[stage.configuration].network
        levels = plan_levels(network)
        level = chosen_level(levels, stage, wanted if stage in parts.description.members else None)
        prune = family_of(network).prune if levels else None
        if level is not None and prune is not None and level < levels[-1]:
            cut[stage.configuration] = level
            configurations[stage.configuration] = replace(configurations[stage.configuration], network=prune(network, level))
    if not cut:
        return parts

    def smaller(member: MemberDescription) -> MemberDescription:
        return replace(member, levels=None) if member.configuration in cut else member

    description = parts.description
    plan = replace(description.plan, configurations=configurations)
    kept = {name: _tensor_names(configurations[name].network) for name in cut}

    def read(configuration: str, fold: str) -> Tensors:
        tensors = parts.tensors(configuration, fold)
        names = kept.get(configuration)
        return tensors if names is None else {name: tensor for name, tensor in tensors.items() if name in names}

    return replace(
        parts,
        description=replace(
            description, plan=plan, members=tuple(map(smaller, description.members)), previous=tuple(map(smaller, description.previous))
        ),
        identity=parts.identity + "".join(f";{name} level {level}" for name, level in cut.items()),
        read=read,
    )


def plan_levels(network: NetworkPlan) -> tuple[int, ...]:
    """The levels of a plan's network that can predict, without building it; none where there is nothing to choose."""
    if lacks_extension(network):
        return ()
    family = family_of(network)
    return tuple(family.levels(network)) if family.prune is not None else ()


def _tensor_names(network: NetworkPlan) -> frozenset[str]:
    import torch

    from medseg3d.networks.build import checked_plan

    with torch.device("meta"):
        return frozenset(family_of(network).build(checked_plan(network)).state_dict())
