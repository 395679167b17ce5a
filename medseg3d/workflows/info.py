"""Info: what a model is, in words: its labels, its input, its networks, and what is known about it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from medseg3d.extensions import needed_arguments, source_text
from medseg3d.models.model_card import axes_text, dice_text, step_text
from medseg3d.models.parts import MemberDescription, ModelDescription
from medseg3d.models.sources import kind_of, open_model
from medseg3d.networks.build import checked_plan, family_of, lacks_extension
from medseg3d.plan import NetworkPlan, Option, TrainingPlan
from medseg3d.validation.box import BoxRule
from medseg3d.validation.levels import LevelChoice
from medseg3d.wording import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInfo:
    """One configuration; ``spacing`` (mm) and ``window`` in the order of ``Info.axes``, ``parameters`` of one fold's network.

    ``provider`` is the extension that the family is from, empty for one that is built in; ``parameters`` is None where that is not at
    hand. ``loss`` and ``augmentations`` (those beside the usual ones) are in words, None where the training was another program's.
    ``levels`` is what validation chose of a network that can be pruned. ``previous_stage`` comes before it in a cascade, of which ``box``
    says where to look in a crop cascade.
    """

    configuration: str
    family: str
    spacing: tuple[float, ...]
    window: tuple[int, ...]
    parameters: int | None
    folds: tuple[str, ...]
    mirroring: bool
    is_previous_stage: bool
    options: dict[str, Option]
    provider: str
    loss: str | None
    augmentations: tuple[str, ...] | None
    levels: LevelChoice | None = None
    previous_stage: str | None = None
    box: BoxRule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What a model is; ``kind`` as in :data:`~medseg3d.models.sources.SOURCES`, ``size_bytes`` of the tensors that are used."""

    path: Path
    kind: str
    dataset: str
    planner: str
    num_training: int
    channels: tuple[str, ...]
    labels: dict[str, int]
    has_regions: bool
    ignored: int | None
    partly_annotated: tuple[str, ...]
    axes: str
    networks: tuple[NetworkInfo, ...]
    postprocessing: tuple[str, ...]
    dice: str | None
    size_bytes: int
    facts: dict[str, float | int | str | None]


def info(path: Path) -> Info:
    """What ``predict`` would use of any model, which is read whole; raises :class:`InputError`.

    Where the extension of a network is not at hand, the tensors are not compared with the network.
    """
    parts = open_model(path)
    configurations = parts.description.plan.configurations
    size = 0
    for configuration, fold in parts.networks():
        read = parts.read if lacks_extension(configurations[configuration].network) else parts.tensors
        size += sum(tensor.nbytes for tensor in read(configuration, fold).values())
    return _info(path, kind_of(path) or "", parts.description, size)


def _info(path: Path, kind: str, description: ModelDescription, size: int) -> Info:
    plan = description.plan
    return Info(
        path=path,
        kind=kind,
        dataset=plan.dataset,
        planner=plan.planner,
        num_training=plan.num_training,
        channels=plan.channels,
        labels=dict(zip(plan.labels.names, plan.labels.values, strict=True)),
        has_regions=bool(plan.labels.regions),
        ignored=plan.labels.ignore,
        partly_annotated=tuple(
            name for index, name in enumerate(plan.labels.names) if any(index in lacking for lacking in plan.labels.unannotated)
        ),
        axes=axes_text(plan),
        networks=tuple(
            _network_info(description, member, is_previous_stage=member in description.previous) for member in description.stages
        ),
        postprocessing=tuple(step_text(step, plan) for step in description.postprocessing.steps),
        dice=dice_text(description.facts),
        size_bytes=size,
        facts=dict(description.facts),
    )


def info_lines(found: Info) -> list[str]:
    """The same as lines of text, a name and a value in each."""
    labels = ", ".join(f"{name} ({value})" for name, value in found.labels.items())
    lines = [
        ("Model", f"{found.path} ({found.kind}, {found.size_bytes / 1e6:.1f} MB)"),
        ("Dataset", f"{found.dataset}, {counted(found.num_training, 'training case')}"),
        ("Channels", ", ".join(found.channels)),
        ("Labels", labels + (", from overlapping regions" if found.has_regions else "")),
        *([("Ignored", f"voxels of the value {found.ignored} in the training label maps")] if found.ignored is not None else []),
        *(
            [("In part", f"{', '.join(found.partly_annotated)}: some training images were not annotated for it")]
            if found.partly_annotated
            else []
        ),
        *(line for network in found.networks for line in _network_lines(network, found.axes)),
        ("Planner", found.planner),
        *(
            [("Origin", f"{found.facts['origin']}, {found.facts.get('trainer')}, epoch {found.facts.get('epoch')}")]
            if "origin" in found.facts
            else []
        ),
        ("Dice", found.dice or ("not known" if "origin" in found.facts else "not known; select makes it known, once folds are validated")),
        ("Afterwards", "; ".join(found.postprocessing) or "nothing"),
        *_needs(found),
    ]
    width = max(len(name) for name, _ in lines)
    return [f"{name:<{width}}  {value}" for name, value in lines]


def _needs(found: Info) -> list[tuple[str, str]]:
    """The extensions without which nothing is predicted."""
    providers = tuple(dict.fromkeys(network.provider for network in found.networks if network.provider))
    if not providers:
        return []
    words = shlex.join(needed_arguments(providers))
    return [("Needs", ", ".join(map(source_text, providers)) + (f": predict with {words}" if words else ""))]


def _network_lines(network: NetworkInfo, axes: str) -> list[tuple[str, str]]:
    plane = axes if len(network.window) == 3 else ", ".join(axes.split(", ")[1:])
    size = "number of parameters not known" if network.parameters is None else f"{network.parameters / 1e6:.2f} million parameters"
    source = f" of {source_text(network.provider)}" if network.provider else ""
    return [
        ("Network", network.configuration + (", an earlier stage of a cascade" if network.is_previous_stage else "")),
        ("  family", f"{network.family}{source}, {size}"),
        *([("  options", _numbers(network.options))] if network.provider and network.options else []),
        ("  folds", ", ".join(network.folds)),
        ("  spacing", f"{' × '.join(f'{value:g}' for value in network.spacing)} mm ({plane})"),
        ("  window", f"{' × '.join(map(str, network.window))} voxels"),
        ("  mirroring", "yes" if network.mirroring else "no"),
        *_level_lines(network.levels),
        *_stage_lines(network),
        *([("  loss", network.loss)] if network.loss else []),
        *([("  augmented by", "; ".join(network.augmentations))] if network.augmentations else []),
    ]


def _level_lines(levels: LevelChoice | None) -> list[tuple[str, str]]:
    """Which level predicts, why, and what the others are like."""
    if levels is None:
        return []
    return [("  level", f"{levels.level} of {levels.deepest}: {levels.reason}"), ("  levels", levels.table())]


def _stage_lines(network: NetworkInfo) -> list[tuple[str, str]]:
    """What comes before it in a cascade."""
    if network.previous_stage is None:
        return []
    if network.box is None:
        return [("  after", f"{network.previous_stage}, whose label map it sees")]
    return [("  after", f"{network.previous_stage}; sees what that finds, with {network.box.margin_mm:.3g} mm around it")]


def _numbers(options: Mapping[str, Option]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _part(name: str, options: Mapping[str, float], training: TrainingPlan) -> str:
    """A loss or an augmentation in words: its name, its options, and the extension that it is from."""
    source = f" of {source_text(training.providers[name])}" if name in training.providers else ""
    return name + (f" ({_numbers(options)})" if options else "") + source


def _network_info(description: ModelDescription, member: MemberDescription, *, is_previous_stage: bool) -> NetworkInfo:
    configuration = description.plan.configurations[member.configuration]
    plan, training = configuration.network, configuration.training
    is_ours = "origin" not in description.facts
    return NetworkInfo(
        configuration=configuration.name,
        family=plan.family,
        spacing=configuration.spacing,
        window=configuration.patch_size,
        parameters=None if lacks_extension(plan) else _num_parameters(plan),
        folds=member.folds,
        mirroring=member.mirroring and bool(configuration.mirror_axes),
        levels=member.levels,
        previous_stage=configuration.previous_stage,
        box=member.box,
        is_previous_stage=is_previous_stage,
        options=dict(plan.options),
        provider=plan.provider,
        loss=_part(training.loss, training.loss_options, training) if is_ours else None,
        augmentations=tuple(_part(name, options, training) for name, options in training.augmentations.items()) if is_ours else None,
    )


def _num_parameters(plan: NetworkPlan) -> int:
    """Counted without allocating or initializing them."""
    with torch.device("meta"):
        network = family_of(plan).build(checked_plan(plan))
    return sum(parameter.numel() for parameter in network.parameters())
