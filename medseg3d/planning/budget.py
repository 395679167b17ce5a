"""Whether a network fits the memory, and how many patches of it: a planner and a topology go in, estimates come out.

The U-Nets of nnU-Net are counted by its closed formula, in feature-map elements, without torch. All other networks are traced:
the real network is run on tensors without data (:mod:`medseg3d.networks.cost`), and the bytes of its training step are counted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil, prod
from typing import TYPE_CHECKING, Protocol

from medseg3d.plan import NetworkPlan, OptimizerName
from medseg3d.planning.memory import feature_map_elements, has_formula
from medseg3d.planning.planner import Planner
from medseg3d.planning.stages import network_plan_of, stages_of
from medseg3d.planning.summary import DatasetSummary
from medseg3d.planning.topology import Topology
from medseg3d.records import from_plain, to_plain

if TYPE_CHECKING:
    from medseg3d.networks.cost import Tracer

GIB = 2**30
RESERVED_GB = 1.5
"""GPU memory that is not for tensors: the CUDA context (0.5 GB), workspaces of convolutions, and fragments."""


class MemoryBudget(Protocol):
    """What the memory allows; estimates and ``reference`` are in one unit, elements or bytes."""

    @property
    def reference(self) -> float:
        """How much there is."""

    @property
    def fitting_batch(self) -> int:
        """The batch that has to fit while the patch is being shrunk."""

    @property
    def limit(self) -> float:
        """The largest estimate at which that batch fits."""

    def estimate(self, topology: Topology) -> int:
        """How much a network of this topology takes."""

    def fits(self, estimate: int) -> bool:
        """Whether so much is there."""

    def batch_size(self, topology: Topology, estimate: int) -> int:
        """How many patches fit."""

    def patch_size(self, topology: Topology) -> tuple[int, ...]:
        """The patch that the network is given: the topology's, or more for a network that loses its border."""

    def refusal(self, estimate: int) -> str:
        """What to say where not even the smallest patch fits."""

    def in_words(self, estimate: float) -> str:
        """With its unit."""

    def reasoning(self, estimate: int) -> tuple[str, str]:
        """By which rule patches are counted, and what a network with this estimate takes."""


def memory_budget_of(planner: Planner, summary: DatasetSummary, *, gpu_memory_gb: float, is_3d: bool) -> MemoryBudget:
    """The closed formula where the family has one and no option changes its feature maps, otherwise the trace."""
    if has_formula(planner.network.family, planner.network.options):
        return _CountedElements(planner, summary, gpu_memory_gb, is_3d)
    return _TracedBytes(planner, summary, gpu_memory_gb, is_3d)


@dataclass(frozen=True)
class _CountedElements:
    """nnU-Net 2.8.1's proxy: feature-map elements per patch against a reference that was measured on a real GPU."""

    planner: Planner
    summary: DatasetSummary
    gpu_memory_gb: float
    is_3d: bool

    @cached_property
    def reference(self) -> float:
        memory = self.planner.memory
        return (memory.reference_3d if self.is_3d else memory.reference_2d) * (self.gpu_memory_gb / memory.reference_gpu_memory_gb)

    @property
    def reference_batch(self) -> int:
        memory = self.planner.memory
        return memory.reference_batch_3d if self.is_3d else memory.reference_batch_2d

    @property
    def fitting_batch(self) -> int:
        return self.planner.batch.min_size if self.planner.memory.fit == "min_batch" else self.reference_batch

    @property
    def limit(self) -> float:
        return self.reference * self.reference_batch / self.fitting_batch

    def estimate(self, topology: Topology) -> int:
        features, encoder_blocks, decoder_blocks = stages_of(self.planner.network, topology.num_stages, is_3d=self.is_3d)
        return feature_map_elements(
            self.planner.network.family,
            patch_size=topology.patch_size,
            strides=topology.strides,
            features=features,
            encoder_blocks=encoder_blocks,
            decoder_blocks=decoder_blocks,
            num_classes=self.summary.num_label_entries,
        )

    def fits(self, estimate: int) -> bool:
        if self.planner.memory.fit == "reference_batch":
            return estimate <= self.reference
        # The order of the operations is nnU-Net's: another one could round to the other side.
        return estimate / self.reference_batch * self.planner.batch.min_size <= self.reference

    def batch_size(self, topology: Topology, estimate: int) -> int:
        return round(self.reference / estimate * self.reference_batch)

    def patch_size(self, topology: Topology) -> tuple[int, ...]:
        return topology.patch_size

    def refusal(self, estimate: int) -> str:
        return "Not even a patch of one voxel fits the GPU memory. Give more with --gpu-memory, or choose a smaller network."

    def in_words(self, estimate: float) -> str:
        return f"{estimate:,.0f} feature-map elements"

    def reasoning(self, estimate: int) -> tuple[str, str]:
        return (
            f"As many patches as the memory holds, where {self.reference_batch} patches of {self.reference:,.0f} feature-map elements fit "
            f"{self.gpu_memory_gb:g} GB",
            f"One patch has {estimate:,} elements (with {self.summary.num_label_entries} labels)",
        )


@dataclass(frozen=True)
class _TracedBytes:
    """Bytes of a training step with the smallest batch, counted on the real network."""

    planner: Planner
    summary: DatasetSummary
    gpu_memory_gb: float
    is_3d: bool

    @cached_property
    def reference(self) -> float:
        return max(0.0, self.gpu_memory_gb - RESERVED_GB) * GIB

    @property
    def fitting_batch(self) -> int:
        return self.planner.batch.min_size

    @property
    def limit(self) -> float:
        return self.reference

    def estimate(self, topology: Topology) -> int:
        return self._bytes(topology, self.planner.batch.min_size)

    def fits(self, estimate: int) -> bool:
        return estimate <= self.reference

    def batch_size(self, topology: Topology, estimate: int) -> int:
        smallest = self.planner.batch.min_size  # the patch fits with it, so no line has to say whether one more could
        per_sample = self._traced(self._network(topology), self.patch_size(topology), smallest + 1) - estimate
        return smallest + int((self.reference - estimate) / max(1, per_sample))

    def patch_size(self, topology: Topology) -> tuple[int, ...]:
        from medseg3d.networks.build import family_of

        plan = self._network(topology)
        return family_of(plan).input_size(plan, topology.patch_size)

    def refusal(self, estimate: int) -> str:
        needed = ceil(10 * (estimate / GIB + RESERVED_GB)) / 10  # rounded down it would not fit
        return (
            f"{self.planner.network.family} does not fit {self.gpu_memory_gb:g} GB: a training step on the smallest patch takes "
            f"{needed:.1f} GB ({RESERVED_GB:g} GB of it for the GPU's own use). Give --gpu-memory {needed:.1f} if there is so much, or a "
            "planner file with a smaller network.width_multiplier or network.max_stages."
        )

    def in_words(self, estimate: float) -> str:
        return f"{estimate / GIB:.2f} GB"

    def reasoning(self, estimate: int) -> tuple[str, str]:
        return (
            f"As many patches as fit {self.gpu_memory_gb:g} GB, {RESERVED_GB:g} GB of which the GPU keeps for itself, by the bytes that a "
            "training step of the real network keeps",
            f"A step with {self.planner.batch.min_size} patches takes {self.in_words(estimate)}",
        )

    def _network(self, topology: Topology) -> NetworkPlan:
        return network_plan_of(
            self.planner.network,
            self.summary,
            topology=topology,
            dimensions=3 if self.is_3d else 2,
            num_classes=self.summary.num_label_entries,
        )

    def _bytes(self, topology: Topology, batch_size: int) -> int:
        """Of a step. Two traces per topology give a line over the patch's voxels, which is enough to know that far too much is taken;
        near the limit and below it the patch itself is traced.
        """
        plan, patch = self._network(topology), self.patch_size(topology)
        is_padded = patch == topology.patch_size
        if is_padded:
            samples = [tuple(edge * d for d in topology.divisor) for edge in SAMPLE_EDGES]
        else:
            samples = [self._input_size(plan, edge) for edge in UNPADDED_SAMPLE_EDGES]
        (small, less), (large, more) = ((prod(n), self._traced(plan, n, batch_size)) for n in samples)
        per_voxel = (more - less) / (large - small) if large > small else more / large
        on_a_line = int(less + per_voxel * (prod(patch) - small))
        if on_a_line * (PADDED_SHARE if is_padded else UNPADDED_SHARE) > self.reference:
            return on_a_line
        return self._traced(plan, patch, batch_size)

    def _traced(self, plan: NetworkPlan, patch_size: tuple[int, ...], batch_size: int) -> int:
        return _traced_bytes(json.dumps(to_plain(plan), sort_keys=True), patch_size, batch_size, self.planner.training.optimizer)

    def _input_size(self, plan: NetworkPlan, edge: int) -> tuple[int, ...]:
        from medseg3d.networks.build import family_of

        return family_of(plan).input_size(plan, (edge,) * plan.dimensions)


SAMPLE_EDGES = (4, 8)
"""Voxels per edge at the deepest stage of the patches that a padded network is traced with."""
UNPADDED_SAMPLE_EDGES = (32, 64)
"""Edges of the outputs that an unpadded network is traced with."""
PADDED_SHARE, UNPADDED_SHARE = 0.85, 0.6
"""No patch takes less than this share of what the line says: feature maps of padded networks grow in proportion to the voxels, those
of unpadded ones, which lose their borders, do not."""


@lru_cache(maxsize=512)
def _traced_bytes(key: str, patch_size: tuple[int, ...], batch_size: int, optimizer: OptimizerName) -> int:
    """Bytes of a step of the network whose record ``key`` is, as JSON; the search for a patch asks for the same topologies again."""
    return _tracer(key).step_cost(patch_size, batch_size, optimizer=optimizer, counts_work=False).peak_bytes


@lru_cache(maxsize=2)
def _tracer(key: str) -> Tracer:
    """The network of a record, built once for all patches: a topology is traced for several."""
    from medseg3d.networks.cost import Tracer

    return Tracer(from_plain(json.loads(key), NetworkPlan, "network"))
