"""The network of a topology: a planner's numbers and the stages go in, its part of the plan comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from medseg3d.extensions import source_text
from medseg3d.plan import NetworkPlan
from medseg3d.planning.memory import FEATURE_MAPS
from medseg3d.planning.planner import NetworkRule
from medseg3d.planning.reasons import Decided, Explanation
from medseg3d.planning.summary import DatasetSummary
from medseg3d.planning.topology import Topology
from medseg3d.wording import counted


def planned_network(rule: NetworkRule, summary: DatasetSummary, *, topology: Topology, dimensions: Literal[2, 3]) -> Decided[NetworkPlan]:
    """The network of a configuration, with as many outputs as the dataset has classes."""
    network = network_plan_of(rule, summary, topology=topology, dimensions=dimensions, num_classes=summary.labels.num_outputs)
    stages, most = len(network.features), rule.max_features_3d if dimensions == 3 else rule.max_features_2d
    options = ", ".join(f"{name} {value}" for name, value in network.options.items())
    of_a_file = f" of {source_text(network.provider)}" if network.provider else ""
    reasons = (
        Explanation(
            quantity="features",
            value=" ".join(map(str, network.features)),
            rule=(
                "The planner's own for every stage, the last number repeats."
                if rule.features
                else f"{rule.base_features} in the first stage, doubled in each further one, at most {most}."
            ),
            inputs=f"{stages} stages.",
            changes_it=(
                "The number of stages; network.features of the planner."
                if rule.features
                else "The number of stages; network.base_features and network.max_features_2d or _3d of the planner."
            ),
        ),
        Explanation(
            quantity="network",
            value=f"{network.family}{of_a_file}, encoder {' '.join(map(str, network.encoder_blocks))}, decoder "
            f"{' '.join(map(str, network.decoder_blocks)) or 'none'}" + (f", {options}" if options else ""),
            rule=(
                "The planner's family and its numbers of blocks per stage, the last one repeated; "
                f"{counted(network.in_channels, 'input channel')}, {network.num_classes} "
                f"{'overlapping regions' if summary.labels.regions else 'classes with background'}; deep supervision "
                f"{'on' if network.deep_supervision else 'off'}."
            ),
            inputs=f"Channels {', '.join(summary.channel_names)}; {stages} stages.",
            changes_it="Another planner, network.encoder_blocks, network.decoder_blocks or network.finest_blocks.",
        ),
    )
    return Decided(network, reasons)


def network_plan_of(
    rule: NetworkRule, summary: DatasetSummary, *, topology: Topology, dimensions: Literal[2, 3], num_classes: int
) -> NetworkPlan:
    """The network of a topology by the planner's numbers."""
    features, encoder_blocks, decoder_blocks = stages_of(rule, topology.num_stages, is_3d=dimensions == 3)
    if rule.finest_blocks:
        encoder_blocks = (min(encoder_blocks[0], rule.finest_blocks), *encoder_blocks[1:])
        decoder_blocks = (*decoder_blocks[:-1], *(min(blocks, rule.finest_blocks) for blocks in decoder_blocks[-1:]))
    return NetworkPlan(
        family=rule.family,
        dimensions=dimensions,
        in_channels=len(summary.channel_names),
        num_classes=num_classes,
        features=features,
        kernel_sizes=topology.kernel_sizes,
        strides=topology.strides,
        encoder_blocks=encoder_blocks,
        decoder_blocks=decoder_blocks,
        deep_supervision=rule.deep_supervision,
        options=dict(rule.options),
        provider=_provider_of(rule.family),
    )


def pooling_of(family: str) -> dict[str, Any]:
    """What a family asks of strides and kernels, as the fields of its record; those of the closed formula ask nothing."""
    if family in FEATURE_MAPS:
        return {}
    from medseg3d.networks.build import NETWORKS

    return asdict(NETWORKS.find(family).pooling)


def _provider_of(family: str) -> str:
    """Those of the closed formula are built in, which is known without torch."""
    if family in FEATURE_MAPS:
        return ""
    from medseg3d.networks.build import NETWORKS

    return NETWORKS.provider(family)


def stages_of(network: NetworkRule, num_stages: int, *, is_3d: bool) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Features (doubling up to the maximum, or as named, times alpha), encoder and decoder blocks; the last number of blocks repeats.

    Decoder blocks are listed coarsest first; a shallower network lacks the coarsest stages, in a deeper one they repeat.
    """
    most = network.max_features_3d if is_3d else network.max_features_2d
    doubled = (min(most, network.base_features * 2**stage) for stage in range(num_stages))
    widths = _repeated(network.features, num_stages) if network.features else doubled
    features = tuple(max(1, int(network.width_multiplier * width)) for width in widths)
    return features, _repeated(network.encoder_blocks, num_stages), _decoder_blocks(network.decoder_blocks, num_stages - 1)


def _repeated(numbers: Sequence[int], count: int) -> tuple[int, ...]:
    return (tuple(numbers) + tuple(numbers[-1:]) * count)[:count]


def _decoder_blocks(numbers: Sequence[int], count: int) -> tuple[int, ...]:
    return (tuple(numbers[:1]) * count + tuple(numbers))[-count:] if count else ()
