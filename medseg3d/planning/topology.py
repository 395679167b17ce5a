"""How a patch is pooled: spacing and size go in, strides, kernels and the padded patch come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from medseg3d.planning.planner import PatchRule
from medseg3d.planning.reasons import Explanation, times

SIMILAR_SPACING = 2.0
"""Spacings closer than this factor count as alike (nnU-Net 2.8.1): such axes are pooled together and convolved together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Strides and kernels per stage, finest first; ``divisor`` is the total stride per axis, ``patch_size`` a multiple of it."""

    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    patch_size: tuple[int, ...]
    divisor: tuple[int, ...]

    @property
    def num_stages(self) -> int:
        """Stages of the encoder, bottleneck included."""
        return len(self.strides)


def derive_topology(
    spacing: Sequence[float],
    size: Sequence[float],
    *,
    min_edge: int = 4,
    lone_axis_factor: int = 3,
    kernel_edge: int = 3,
    max_stages: int = 0,
    pooling: Mapping[str, Any] | None = None,
) -> Topology:
    """Pool the axes whose spacing is within a factor 2 of the finest one that still can be halved, until none can.

    ``size`` is in voxels and may be fractional (a median of an even number of cases). An axis can be halved while it has ``2 *
    min_edge`` voxels; one axis alone only while it has ``lone_axis_factor * min_edge``. An axis is convolved with
    ``kernel_edge`` as soon as its spacing is within a factor 2 of the finest, until then with 1; the last stage always with
    ``kernel_edge``. At most ``max_stages`` stages, 0 for any. The patch is padded up to a multiple of the total stride. Rule:
    nnU-Net 2.8.1 ``get_pool_and_conv_props``. ``pooling`` is what a family asks instead, as the fields of
    :class:`~medseg3d.networks.family.Pooling`.

    >>> derive_topology((3.6, 0.62, 0.62), (20, 320, 256)).divisor
    (4, 64, 64)
    """
    asked = pooling or {}
    if num_stages := asked.get("num_stages"):
        return _fixed_topology(size, int(num_stages), first_stride=int(asked["first_stride"]), kernel_edge=kernel_edge)
    axes = range(len(spacing))
    current_spacing, current_size = [float(s) for s in spacing], [float(n) for n in size]
    kernel = [1] * len(spacing)
    strides, kernels = [(1,) * len(spacing)], []
    pool = _all_axes_or_none if asked.get("all_axes") else _axes_to_pool
    while pooled := pool(current_spacing, current_size, min_edge, lone_axis_factor):
        if max_stages and len(strides) == max_stages:
            break
        finest = min(current_spacing)
        kernel = [kernel_edge if k > 1 or s / finest < SIMILAR_SPACING else 1 for k, s in zip(kernel, current_spacing, strict=True)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in pooled else 1 for axis in axes))
        for axis in pooled:
            current_spacing[axis] *= 2
            current_size[axis] = ceil(current_size[axis] / 2)
    kernels.append((kernel_edge,) * len(spacing))
    if asked.get("same_kernels"):
        kernels = [kernels[-1]] * len(kernels)
    divisor = tuple(2 ** sum(stride[axis] == 2 for stride in strides) for axis in axes)
    patch = tuple(ceil(n / d) * d for n, d in zip(size, divisor, strict=True))
    return Topology(strides=tuple(strides), kernel_sizes=tuple(kernels), patch_size=patch, divisor=divisor)


def _axes_to_pool(spacing: Sequence[float], size: Sequence[float], min_edge: int, lone_axis_factor: int) -> list[int]:
    large = [axis for axis, n in enumerate(size) if n >= 2 * min_edge]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    pooled = [axis for axis in large if spacing[axis] / finest < SIMILAR_SPACING]
    is_too_short = len(pooled) == 1 and size[pooled[0]] < lone_axis_factor * min_edge
    return [] if is_too_short else pooled


def _all_axes_or_none(spacing: Sequence[float], size: Sequence[float], min_edge: int, lone_axis_factor: int) -> list[int]:
    return list(range(len(size))) if min(size) >= 2 * min_edge else []


def _fixed_topology(size: Sequence[float], num_stages: int, *, first_stride: int, kernel_edge: int) -> Topology:
    """Of families whose depth is fixed: every axis is halved between stages. The deepest feature map has two voxels at least, to norm."""
    axes = len(size)
    divisor = (first_stride * 2 ** (num_stages - 1),) * axes
    patch = [ceil(n / d) * d for n, d in zip(size, divisor, strict=True)]
    if tuple(patch) == divisor:
        patch[-1] *= 2
    return Topology(
        strides=((first_stride,) * axes, *((2,) * axes,) * (num_stages - 1)),
        kernel_sizes=((kernel_edge,) * axes,) * num_stages,
        patch_size=tuple(patch),
        divisor=divisor,
    )


def topology_reasons(
    topology: Topology,
    *,
    spacing: Sequence[float],
    patch_size: Sequence[int],
    patch: PatchRule,
    kernel_edge: int,
    pooling: Mapping[str, Any] | None = None,
) -> tuple[Explanation, Explanation]:
    """Why :func:`derive_topology` gave these strides and kernels for a patch of that spacing."""
    edge, asked = patch.min_feature_map_edge, pooling or {}
    by_spacing = (
        f"Between stages an axis is halved while it has at least {2 * edge} voxels and its spacing is less than "
        f"{SIMILAR_SPACING:g} times the finest of such axes; a lone axis only from {patch.lone_axis_factor * edge} voxels on. So "
        "coarse axes join once the others have caught up."
    )
    alike = f"The family halves all axes alike, whatever their spacing, while each has at least {2 * edge} voxels."
    fixed = f"The family has {topology.num_stages} stages and halves all axes alike between them."
    along = (
        f"{kernel_edge} voxels along an axis as soon as its spacing at that stage is less than {SIMILAR_SPACING:g} times the "
        f"finest, 1 before that; {kernel_edge} along all axes in the last stage."
    )
    return (
        Explanation(
            quantity="strides",
            value=", ".join(times(stride) for stride in topology.strides),
            rule=fixed if asked.get("num_stages") else alike if asked.get("all_axes") else by_spacing,
            inputs=f"Patch {times(patch_size)}, spacing {times(spacing, 4)} mm: {topology.num_stages} stages, total stride "
            f"{times(topology.divisor)}.",
            changes_it="A larger patch, another ratio of spacings, patch.min_feature_map_edge or patch.lone_axis_factor of the planner.",
        ),
        Explanation(
            quantity="kernels",
            value=", ".join(times(kernel) for kernel in topology.kernel_sizes),
            rule=f"The family has one size of kernel: {kernel_edge} voxels along all axes." if asked.get("same_kernels") else along,
            inputs=f"Spacing {times(spacing, 4)} mm and the strides.",
            changes_it="Another ratio of spacings, or network.kernel_edge of the planner.",
        ),
    )
