"""Which networks are worth training on a dataset, and what each would cost: a summary goes in, a list of candidates comes out.

:mod:`medseg3d.planning.proposals` judges every preset. The proposed ones are planned, and their real networks traced
(:mod:`medseg3d.networks.cost`); seconds follow from three speeds of the device, which are measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from medseg3d.errors import PlanError
from medseg3d.extensions import source_text
from medseg3d.plan import Configuration, Plan
from medseg3d.planning.budget import GIB
from medseg3d.planning.make_plan import make_plan
from medseg3d.planning.memory import FEATURE_MAPS
from medseg3d.planning.planner import Planner, load_planner
from medseg3d.planning.proposals import THICK, facts_of, opinions
from medseg3d.planning.summary import DatasetSummary

if TYPE_CHECKING:
    from medseg3d.networks.cost import StepCost

BACKWARD = 2
"""The backward pass computes the gradients of inputs and of weights: two products for one."""
PASSES = 3
"""Saved activations are written once and read twice: by the next layer and by the backward pass."""
LANES = 16
"""Channels that a processor's convolutions work on at once: 8 take as long as 16."""
IMAGE_BYTES, LABEL_BYTES = 2, 1
"""Of a stored voxel, per channel and once; the store compresses them to less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a device trains: multiply-adds of convolutions, bytes of feature maps, and augmented voxels, per second."""

    device: str
    multiply_adds: float
    bytes: float
    augmented_voxels: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A network with what a training of it takes; ``problem`` says why it cannot be planned. The numbers are 0 then, and where a network
    is not proposed, as counting takes seconds.

    ``memory_gb`` is of one training step in bf16, without what the GPU keeps for itself; ``disk_gb`` holds the preprocessed
    cases, weights and state of one fold; ``seconds_per_epoch`` is of 250 steps on the measured device, None where no speed is
    known.
    """

    planner: str
    configuration: str
    is_proposed: bool
    reason: str
    parameters: int = 0
    memory_gb: float = 0.0
    multiply_adds_per_step: int = 0
    seconds_per_epoch: float | None = None
    disk_gb: float = 0.0
    problem: str = ""


def candidates(
    summary: DatasetSummary,
    *,
    gpu_memory_gb: float,
    speed: Speed | None,
    num_datasets: int = 1,
    own: Plan | None = None,
    real_time: bool = False,
) -> tuple[Candidate, ...]:
    """Every preset for a dataset, the proposed ones first; ``num_datasets`` of them would share a universal network.

    Only the proposed ones and the default are planned and counted, which takes seconds each. ``own`` is the plan that was made: its
    network stands among them where it is of an extension. With ``real_time`` prediction has to be quick.
    """
    found = list(_candidates(summary, gpu_memory_gb, speed, num_datasets, real_time=real_time))
    if own is not None and (provider := own.configuration(own.recommended).network.provider):
        reason = f"the plan's own, of {source_text(provider)}"
        found.insert(0, _costed(own, own.planner, own.recommended, True, reason, speed))
    return tuple(sorted(found, key=lambda candidate: not candidate.is_proposed))


def _candidates(
    summary: DatasetSummary, gpu_memory_gb: float, speed: Speed | None, num_datasets: int, *, real_time: bool
) -> Iterator[Candidate]:
    plan = make_plan(summary, _rules("default"), gpu_memory_gb=gpu_memory_gb)
    for configuration in ("2d", "3d_fullres", "3d_lowres"):
        if configuration in plan.configurations:
            is_proposed, reason = _of_default(configuration, plan)
            yield _costed(plan, "default", configuration, is_proposed, reason, speed)
    on_gpu = None if speed is None else not speed.device.startswith("cpu")
    for name, opinion in opinions(facts_of(summary, plan, gpu_memory_gb=gpu_memory_gb, on_gpu=on_gpu, real_time=real_time)).items():
        if opinion.is_proposed and (num_datasets == 1 or name != "u2net"):
            yield _planned(name, opinion.reason, summary, gpu_memory_gb, speed)
        else:
            yield Candidate(planner=name, configuration=plan.recommended, is_proposed=False, reason=opinion.reason)
    if num_datasets > 1:
        shared = make_plan(summary, _rules("universal"), gpu_memory_gb=gpu_memory_gb)
        reason = f"{num_datasets} datasets share one network; each costs a few adapters instead of a network"
        yield _costed(shared, "universal", shared.recommended, True, reason, speed)
    else:
        yield Candidate(planner="universal", configuration=plan.recommended, is_proposed=False, reason="for several datasets at once")


def _planned(name: str, reason: str, summary: DatasetSummary, gpu_memory_gb: float, speed: Speed | None) -> Candidate:
    """A proposed preset with what it takes; not proposed where no plan of it can be made."""
    try:
        plan = make_plan(summary, _rules(name), gpu_memory_gb=gpu_memory_gb)
    except PlanError as error:
        return Candidate(planner=name, configuration="3d_fullres", is_proposed=False, reason="cannot be planned", problem=str(error))
    return _costed(plan, name, plan.recommended, True, reason, speed)


def _rules(name: str) -> Planner:
    """A preset; only the default one searches a low resolution as well, which costs a trace per step."""
    rules = load_planner(name)
    return rules if name == "default" else replace(rules, lowres=replace(rules.lowres, patch_share=0.0))


def _of_default(configuration: str, plan: Plan) -> tuple[bool, str]:
    """Whether a configuration of the default preset is worth training, and why; for cross-validation (select) to confirm."""
    if configuration == plan.recommended:
        return True, "the plan recommends it: robust on datasets of all kinds"
    if configuration == "3d_lowres":
        return True, "a patch of full resolution sees little of a case; this one sees more of it"
    if configuration == "2d":
        spacing = plan.configurations["3d_fullres"].spacing
        ratio = spacing[0] / max(spacing[1:])
        if ratio > THICK:
            return True, f"slices are {ratio:.1f} times as thick as the pixels are wide, and neighbors look different"
        return False, f"slices are only {ratio:.1f} times as thick as the pixels are wide, so neighbors help"
    return False, f"{plan.recommended} is recommended for this dataset"


def _costed(plan: Plan, planner: str, name: str, is_proposed: bool, reason: str, speed: Speed | None) -> Candidate:
    from medseg3d.networks.cost import step_cost

    configuration = plan.configuration(name)
    cost = step_cost(configuration.network, configuration.patch_size, configuration.batch_size, optimizer=configuration.training.optimizer)
    seconds = (
        None
        if speed is None
        else step_seconds(cost, configuration, configuration.batch_size, speed) * configuration.training.iterations_per_epoch
    )
    state = cost.fixed_bytes  # last.safetensors holds weights and the optimizer's numbers; weights.safetensors the weights again
    return Candidate(
        planner=planner,
        configuration=name,
        is_proposed=is_proposed,
        reason=reason,
        parameters=cost.parameters,
        memory_gb=cost.peak_bytes / GIB,
        multiply_adds_per_step=cost.multiply_adds,
        seconds_per_epoch=seconds,
        disk_gb=(_store_bytes(plan, configuration) + state) / GIB,
    )


def step_seconds(cost: StepCost, configuration: Configuration, batch: int, speed: Speed) -> float:
    """What a training step takes by a rule of thumb: the multiply-adds of both passes, the passes over what is kept between them, and
    the augmentation of a batch, half of which is the labels' of one channel. On a processor the channels of a U-Net's stages count in
    whole ``LANES``.
    """
    voxels = batch * prod(configuration.patch_size) * (configuration.network.in_channels + 1) / 2
    multiply_adds = _in_lanes(configuration, batch) if speed.device == "cpu" else None
    passes = (1 + BACKWARD) * (multiply_adds or cost.multiply_adds) / speed.multiply_adds + PASSES * cost.saved_bytes / speed.bytes
    return passes + voxels / speed.augmented_voxels


def _in_lanes(configuration: Configuration, batch: int) -> int | None:
    """Multiply-adds with channels rounded up to whole lanes; None where that changes nothing, or is not known of the family."""
    from medseg3d.networks.cost import step_cost

    network = configuration.network
    features = tuple(-(-n // LANES) * LANES for n in network.features)
    if network.family not in FEATURE_MAPS or features == tuple(network.features):
        return None
    return step_cost(replace(network, features=features), configuration.patch_size, batch).multiply_adds


def _store_bytes(plan: Plan, configuration: Configuration) -> float:
    """The preprocessed cases before compression."""
    shape: Sequence[float] = configuration.median_shape
    if len(shape) == 2:  # a 2D configuration keeps the slices of the volumes
        volumes = [other.median_shape for other in plan.configurations.values() if len(other.median_shape) == 3]
        shape = (volumes[-1][0] if volumes else 1, *shape)
    return prod(shape) * plan.num_training * (IMAGE_BYTES * len(plan.channels) + LABEL_BYTES)
