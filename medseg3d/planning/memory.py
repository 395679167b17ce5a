"""How much a network's feature maps take: a plan's numbers go in, a count of elements comes out.

The count is a proxy for GPU memory: the outputs of all convolutions and transposed convolutions for one patch, in elements, not
bytes. It equals ``compute_conv_feature_map_size`` of dynamic_network_architectures 0.4.4, which nnU-Net 2.8.1 plans with, without
building the network. nnU-Net plans without deep supervision, also for networks that are trained with it: only the finest
segmentation head counts. So do we.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from medseg3d.errors import PlanError


def feature_map_elements(
    family: str,
    *,
    patch_size: Sequence[int],
    strides: Sequence[Sequence[int]],
    features: Sequence[int],
    encoder_blocks: Sequence[int],
    decoder_blocks: Sequence[int],
    num_classes: int,
    deep_supervision: bool = False,
) -> int:
    """Elements of all convolution outputs for one patch; lists per stage are finest first, ``decoder_blocks`` coarsest first.

    A network of one stage has no decoder, and its head is not counted. Raises :class:`PlanError` for a family without a formula.

    >>> stride = ((1, 1, 1), *((2, 2, 2),) * 5)
    >>> feature_map_elements("plain_unet", patch_size=(128,) * 3, strides=stride, features=(32, 64, 128, 256, 320, 320),
    ...                      encoder_blocks=(2,) * 6, decoder_blocks=(2,) * 5, num_classes=3, deep_supervision=True)
    453694976
    """
    if family not in FEATURE_MAPS:
        raise PlanError(f"There is no memory formula for the network family {family!r}; there is one for {', '.join(FEATURE_MAPS)}.")
    voxels = stage_voxels(patch_size, strides)
    encoder = FEATURE_MAPS[family](prod(patch_size), voxels, strides, features, encoder_blocks)
    return encoder + _decoder(voxels, features, decoder_blocks, num_classes, deep_supervision=deep_supervision)


def stage_voxels(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Voxels of the feature maps of each encoder stage, finest first.

    >>> stage_voxels((8, 16), ((1, 1), (2, 2)))
    (128, 32)
    """
    size, voxels = list(patch_size), []
    for stride in strides:
        size = [n // s for n, s in zip(size, stride, strict=True)]
        voxels.append(prod(size))
    return tuple(voxels)


Encoder = Callable[[int, Sequence[int], Sequence[Sequence[int]], Sequence[int], Sequence[int]], int]
"""(voxels of the patch, voxels per stage, strides, features, blocks) → elements of the encoder."""


def _plain_encoder(
    patch: int, voxels: Sequence[int], strides: Sequence[Sequence[int]], features: Sequence[int], blocks: Sequence[int]
) -> int:
    return sum(n * f * v for v, f, n in zip(voxels, features, blocks, strict=True))


def _residual_encoder(
    patch: int, voxels: Sequence[int], strides: Sequence[Sequence[int]], features: Sequence[int], blocks: Sequence[int]
) -> int:
    """Stem, then two convolutions per block; the first block of a stage also projects its skip where features or size change."""
    total = features[0] * patch
    before = features[0]
    for v, stride, f, n in zip(voxels, strides, features, blocks, strict=True):
        is_projected = f != before or max(stride) > 1
        total += (2 * n + is_projected) * f * v
        before = f
    return total


def _decoder(voxels: Sequence[int], features: Sequence[int], blocks: Sequence[int], num_classes: int, *, deep_supervision: bool) -> int:
    """Per stage a transposed convolution and its blocks at the size and width of the skip; heads at all stages or the finest."""
    # The decoder runs coarse to fine, the encoder's lists run fine to coarse; the last encoder stage has no decoder stage.
    stages = zip(reversed(voxels[:-1]), reversed(features[:-1]), blocks, strict=True)
    heads = sum(voxels[:-1] if deep_supervision else voxels[:-1][:1])
    return sum((n + 1) * f * v for v, f, n in stages) + num_classes * heads


FEATURE_MAPS: dict[str, Encoder] = {"plain_unet": _plain_encoder, "residual_unet": _residual_encoder}
"""The encoder's formula of each family; all share the plain decoder."""
UNCOUNTED_OPTIONS = {"heads": ("separate", "summed")}
"""Options of these families that leave the formula as it is, and what they may be: sums of logits are small beside features."""


def has_formula(family: str, options: Mapping[str, object]) -> bool:
    """Whether the closed formula counts a network with these options."""
    return family in FEATURE_MAPS and all(value in UNCOUNTED_OPTIONS.get(name, ()) for name, value in options.items())
