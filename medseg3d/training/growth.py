"""Patches that grow in the course of a run: a full size goes in, smaller ones come out, and which of them it is time for.

Small patches hold as many steps' worth of different places in the same work, and the network learns what lies near before what lies far
(progressive growing of patch size: Fischer et al., MICCAI 2024; 2025, arXiv 2510.23241). Here a batch is filled with as many voxels as at
full size, so that steps cost the same; the size changes between epochs only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from medseg3d.plan import total_stride
from medseg3d.training.domains import TrainingDomain

SIZES = 4
"""Sizes of a run, the full one among them: each costs a GPU a search for its kernels, and a CPU a probe of bfloat16."""
LEAST_STRIDES = 2
"""Voxels of the coarsest feature map along an axis at least: a single one has nothing to be normalized by."""
LEAST_SHARE = 0.5
"""Of the full edge along an axis at least: smaller patches see little but the border that convolutions pad."""


def growing_sizes(full: Sequence[int], stride: Sequence[int]) -> list[tuple[int, ...]]:
    """Up to :data:`SIZES` patch sizes, all multiples of the total ``stride``, from the smallest to the ``full`` one, whose numbers of
    voxels grow by about the same factor.

    >>> growing_sizes((40, 56, 40), (8, 8, 8))
    [(24, 32, 24), (32, 40, 24), (32, 48, 32), (40, 56, 40)]
    """
    edges = [_smallest(edge, step) for edge, step in zip(full, stride, strict=True)]
    path = [tuple(edges)]
    while edges != list(full):
        smaller = [axis for axis in range(len(full)) if edges[axis] < full[axis]]
        axis = min(smaller, key=lambda axis: (edges[axis] / full[axis], -full[axis]))
        edges[axis] = min(full[axis], edges[axis] + stride[axis])
        path.append(tuple(edges))
    volumes = [math.log(math.prod(size)) for size in path]
    wanted = [volumes[0] + (volumes[-1] - volumes[0]) * k / (SIZES - 1) for k in range(SIZES)]
    nearest = [min(range(len(path)), key=lambda place: abs(volumes[place] - volume)) for volume in wanted]
    return [path[place] for place in dict.fromkeys(nearest)]


def _smallest(full: int, stride: int) -> int:
    half = math.ceil(full * LEAST_SHARE / stride) * stride
    return min(full, max(half, LEAST_STRIDES * stride))


def growth_stage(progress: float, share: float, num_sizes: int) -> int:
    """Which size it is time for after ``progress`` of a run: each smaller one has the same part of the first ``share``.

    >>> [growth_stage(progress, 0.6, 4) for progress in (0, 0.19, 0.21, 0.59, 0.6, 1)]
    [0, 0, 1, 2, 3, 3]
    """
    return min(num_sizes - 1, math.floor(progress / share * (num_sizes - 1) + 1e-9))


def grown_batch(batch_size: int, full: Sequence[int], size: Sequence[int]) -> int:
    """How many patches hold as many voxels as a batch at full size, rounded down."""
    return batch_size * math.prod(full) // math.prod(size)


def grown_domains(domain: TrainingDomain) -> list[TrainingDomain]:
    """The domain at each size, the full one last and as it is. Unpadded networks have the full size only: most of a smaller patch would be
    their margin."""
    configuration = domain.configuration
    sizes = growing_sizes(configuration.patch_size, total_stride(configuration.network.strides))
    if any(domain.margin()):
        sizes = sizes[-1:]
    return [*(replace(domain, configuration=replace(configuration, patch_size=size)) for size in sizes[:-1]), domain]
