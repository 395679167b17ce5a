"""The networks that the tables count and the pictures show: a preset and a patch in, a plan of a network out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import torch
from torch import nn

from medseg3d.networks.build import build_universal, checked_plan
from medseg3d.networks.cost import StepCost, step_cost
from medseg3d.networks.u2net import U2Net
from medseg3d.plan import NetworkPlan
from medseg3d.planning import load_planner, read_nnunet_fingerprint
from medseg3d.planning.patch import design_configuration
from medseg3d.planning.planner import Planner
from medseg3d.planning.stages import network_plan_of, pooling_of
from medseg3d.planning.summary import DatasetSummary
from medseg3d.planning.topology import derive_topology

GIB = 2**30

CUBE, SLICE = (128, 128, 128), (512, 512)
EXAMPLES: dict[str, tuple[int, ...]] = {
    "default": CUBE,
    "small": CUBE,
    "residual_m": CUBE,
    "unet_2015": (572, 572),  # as published
    "unet_3d": (116, 132, 132),  # as published, slices first
    "unet_wide": SLICE,
    "vnet": CUBE,
    "vnet_batch_norm": CUBE,
    "u2net": CUBE,
    "dynunet": CUBE,
    "segresnet": CUBE,
    "monai_attention_unet": CUBE,
    "mednext": CUBE,
    "swinunetr": CUBE,
    "unet_plus_plus": CUBE,
    "unet_plus": CUBE,
    "unet_e": CUBE,
    "attention_unet": CUBE,
    "fcn": CUBE,
    "segnet": CUBE,
    "dla": CUBE,
    "transunet": CUBE,
    "deeplab_v3": CUBE,
    "pspnet": CUBE,
    "icnet": CUBE,
    "bisenet": CUBE,
    "dfanet": CUBE,
    "espnet": CUBE,
    "swiftnet": CUBE,
    "fast_scnn": CUBE,
    "dfnet": CUBE,
    "msfnet": CUBE,
    "isnet": CUBE,
    "mcibi": CUBE,
}
"""The patch of each preset's example plan: one channel, three classes, and voxels of equal edges."""
BATCH = 2
SPACING, SHAPE, CASES = (2.5, 0.8, 0.8), (200, 512, 512), 40
FINGERPRINT = {
    "spacings": [SPACING] * 3,
    "shapes_after_crop": [SHAPE] * 3,
    "median_relative_size_after_cropping": 1.0,
    "foreground_intensity_properties_per_channel": {
        "0": {"mean": 90.0, "median": 95.0, "std": 40.0, "min": -200.0, "max": 400.0, "percentile_00_5": -30.0, "percentile_99_5": 210.0}
    },
}
DESCRIPTION = {
    "name": "abdominal CT",
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "spleen": 2},
    "numTraining": CASES,
    "file_ending": ".nii.gz",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A network with the patch and the batch that it is counted and drawn for."""

    planner: Planner
    network: NetworkPlan
    patch: tuple[int, ...]
    batch: int = BATCH

    def cost(self) -> StepCost:
        """A training step in bf16."""
        return step_cost(self.network, self.patch, self.batch, optimizer=self.planner.training.optimizer)


@cache
def example(name: str) -> Example:
    """The network that a preset plans for its example patch."""
    return example_of(load_planner(name), EXAMPLES[name])


def example_of(planner: Planner, patch: tuple[int, ...], spacing: Sequence[float] | None = None, classes: int = 3) -> Example:
    """The network that a planner's rules give for a patch, whatever the memory."""
    rule = planner.patch
    topology = derive_topology(
        spacing or (1.0,) * len(patch),
        patch,
        min_edge=rule.min_feature_map_edge,
        lone_axis_factor=rule.lone_axis_factor,
        kernel_edge=planner.network.kernel_edge,
        max_stages=planner.network.max_stages,
        pooling=pooling_of(planner.network.family),
    )
    network = network_plan_of(planner.network, dataset(), topology=topology, dimensions=len(patch), num_classes=classes)  # type: ignore[arg-type]
    return Example(planner=planner, network=checked_plan(network), patch=patch)


@cache
def dataset() -> DatasetSummary:
    """The synthetic dataset, read as ``medseg3d plan --fingerprint`` reads it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dataset_fingerprint.json"
        path.write_text(json.dumps(FINGERPRINT), encoding="utf-8")
        path.with_name("dataset.json").write_text(json.dumps(DESCRIPTION), encoding="utf-8")
        return read_nnunet_fingerprint(path)


@cache
def planned(name: str, configuration: str) -> Example:
    """A configuration of the preset's plan for the synthetic dataset, without the search for ``3d_lowres`` that a whole plan makes."""
    planner = load_planner(name)
    first = 1 if configuration == "2d" else 0
    design = design_configuration(
        SPACING[first:],
        SHAPE[first:],
        dataset(),
        planner,
        dataset_voxels=float(prod(SHAPE) * CASES),
        gpu_memory_gb=planner.memory.gpu_memory_gb,
        axes=dataset().axis_names[first:],
    ).value
    return Example(planner=planner, network=checked_plan(design.network), patch=design.topology.patch_size, batch=design.batch_size)


def universal(plans: Mapping[str, NetworkPlan]) -> U2Net:
    """A universal network without data."""
    with torch.device("meta"):
        return build_universal(plans)


def count(parameters: Iterable[nn.Parameter]) -> int:
    """All numbers of some parameters."""
    return sum(parameter.numel() for parameter in parameters)


def millions(number: int) -> str:
    """31195784 → 31.2 M."""
    return f"{number / 1e6:.2f} M" if number < 10e6 else f"{number / 1e6:.1f} M"


def gib(number: int) -> str:
    """Bytes → 5.39 GiB."""
    return f"{number / GIB:.1f} GiB"


def times(sizes: Sequence[int]) -> str:
    """(64, 160, 160) → 64×160×160."""
    return "×".join(map(str, sizes))
