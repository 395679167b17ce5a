"""The records of a plan: what was decided for a dataset, for each configuration and for its network.

All lists over axes are in *network order* (coarsest spacing first), as ``Plan.axis_order`` says; a 2D configuration has lists
of two, the slice plane (network axes 1 and 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

from medseg3d.axes import AxisOrder
from medseg3d.errors import PlanMismatchError
from medseg3d.frame import CANONICAL_FRAME, Frame
from medseg3d.image_profile import ImageProfile
from medseg3d.labels import Labels
from medseg3d.ranges import (
    MAX_STAGES,
    Axis,
    BatchSize,
    Blocks,
    Channels,
    Counted,
    Dimension,
    Features,
    Kernel,
    Millimeters,
    Name,
    NotNegative,
    Order,
    Provider,
    Share,
    ShareBelowOne,
    Steps,
    Stride,
)
from medseg3d.records import Checked

MAX_WEIGHTS = 4e9
"""Numbers; the largest network of any planner has 0.2e9."""
MAX_FEATURE_MAP = 2.0**34
"""Numbers of one feature map at full size, 64 GiB; 192³ voxels of 32 features are 0.2e9."""
OF_CASCADES = frozenset({"3d_lowres", "3d_cascade_fullres", "3d_detect", "3d_crop_fullres"})
"""Configurations that not every plan has."""
ON_CASCADES = (
    "Cascades are planned only where they may help: medseg3d plan --explain says under '3d_lowres' and 'crop cascade' why not here, and "
    "medseg3d docs cascades which keys of a planner change it. A plan for little time (--minutes, --hours) may have coarser voxels, "
    "and need none."
)

Option = bool | int | float | str | tuple[int, ...] | None
"""What a network option may be; TOML and JSON can hold it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization(Checked):
    """How one channel is normalized, before resampling.

    ``ct``: clip to [``lower``, ``upper``], subtract ``mean``, divide by ``std`` (statistics of the foreground of all cases).
    ``zscore``: per image; with ``use_mask`` only inside the non-zero region. ``rescale_0_1``: per image to [0, 1].
    ``rgb_0_1``: divide by 255. ``none``: as it is.
    """

    scheme: Literal["ct", "zscore", "rescale_0_1", "rgb_0_1", "none"]
    use_mask: bool = False
    mean: float | None = None
    std: float | None = None
    lower: float | None = None
    upper: float | None = None

    def problems(self) -> Iterator[str]:
        """``ct`` needs all four numbers."""
        if self.scheme != "ct":
            return
        if None in (self.mean, self.std, self.lower, self.upper):
            yield "ct needs mean, std, lower and upper"
        elif cast(float, self.std) < 0 or cast(float, self.lower) > cast(float, self.upper):
            yield f"std {self.std} and bounds {self.lower} to {self.upper}; expected std of at least 0 and a lower bound below the upper"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling(Checked):
    """Spline orders: in general, and along a coarse axis with separate-z resampling."""

    image_order: Order = 3
    """Spline order for images."""
    image_coarse_order: Order = 0
    """Spline order for images along a coarse axis that is resampled by itself (separate-z resampling)."""
    label_order: Order = 1
    """Spline order for label maps, label by label."""
    label_coarse_order: Order = 0
    """Spline order for label maps along such an axis."""
    logits_order: Order = 1
    """Spline order for logits (predictions)."""
    logits_coarse_order: Order = 0
    """Spline order for logits along such an axis."""
    separate_threshold: NotNegative = 3.0
    """Ratio of spacings from which separate-z resampling begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan(Checked):
    """All that a family needs to build its network; one entry per stage, the finest first.

    ``encoder_blocks``: convolutions (plain) or residual blocks per encoder stage; ``decoder_blocks``: convolutions per decoder
    stage, finest last as the decoder runs coarse to fine (one entry fewer). ``options`` are the family's own. ``provider`` says which
    extension the family is from, empty for one that is built in.
    """

    family: Name
    dimensions: Literal[2, 3]
    in_channels: Channels
    num_classes: Channels
    features: tuple[Features, ...]
    kernel_sizes: tuple[tuple[Kernel, ...], ...]
    strides: tuple[tuple[Stride, ...], ...]
    encoder_blocks: tuple[Blocks, ...]
    decoder_blocks: tuple[Blocks, ...]
    deep_supervision: bool = True
    options: dict[Name, Option] = field(default_factory=dict)
    provider: Provider = ""
    came_later: ClassVar[tuple[str, ...]] = ("provider",)

    def problems(self) -> Iterator[str]:
        """One entry per stage, one fewer for the decoder, one number per axis, and no more weights than any memory holds."""
        num_stages = len(self.features)
        if not 1 <= num_stages <= MAX_STAGES:
            yield f"features has {num_stages} entries, expected one per stage, 1 to {MAX_STAGES}"
        for name, values, expected in (
            ("kernel_sizes", self.kernel_sizes, num_stages),
            ("strides", self.strides, num_stages),
            ("encoder_blocks", self.encoder_blocks, num_stages),
            ("decoder_blocks", self.decoder_blocks, max(0, num_stages - 1)),
        ):
            if len(values) != expected:
                yield f"{name} has {len(values)} entries, expected {expected}"
        for name, stages in (("kernel_sizes", self.kernel_sizes), ("strides", self.strides)):
            for stage, numbers in enumerate(stages):
                if len(numbers) != self.dimensions:
                    yield f"{name}[{stage}] is {numbers}, expected {self.dimensions} numbers"
        if self.about_weights > MAX_WEIGHTS:
            yield f"features {self.features} make {self.about_weights:.1e} weights, up to {MAX_WEIGHTS:.0e} can be"

    @property
    def about_weights(self) -> float:
        """Weights of the encoder's convolutions, had all of them full kernels: for orders of magnitude."""
        return sum(
            2.0 * blocks * width**2 * math.prod(kernel)
            for blocks, width, kernel in zip(self.encoder_blocks, self.features, self.kernel_sizes, strict=False)
        )


OptimizerName = Literal["sgd", "adamw", "muon"]
"""What steps are made of a gradient; see :mod:`medseg3d.training.optimizers`."""
ScheduleName = Literal["poly", "cosine", "cosine_restarts", "cyclical"]
"""How the learning rate runs; the formulas stand in :mod:`medseg3d.training.schedule`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan(Checked):
    """How a configuration is trained; nnU-Net 2.8.1's values unless the planner's file says otherwise."""

    epochs: Steps = 1000
    """How long training takes; `train --epochs` replaces it."""
    iterations_per_epoch: Steps = 250
    """Steps of an epoch, whatever the number of cases."""
    validation_iterations: Steps = 50
    """Batches of validation patches at the end of an epoch."""
    optimizer: OptimizerName = "sgd"
    """`sgd` with Nesterov momentum, `adamw`, or `muon`: orthogonalized steps for kernels, `adamw` for the rest."""
    learning_rate: NotNegative = 0.01
    """The highest rate; `schedule` says how it runs."""
    momentum: Share = 0.99
    """Of `sgd` and `muon`: the share of a step that goes on in the next; `muon` is used with 0.95."""
    weight_decay: NotNegative = 3e-5
    """Weight decay of the optimizer."""
    schedule: ScheduleName = "poly"
    """How the learning rate falls."""
    poly_exponent: NotNegative = 0.9
    """Of `poly`: the rate falls as (1 - progress) ** exponent."""
    warmup: ShareBelowOne = 0.0
    """Share of the run in which the learning rate rises first."""
    cycles: Steps = 1
    """How often `cosine_restarts` and `cyclical` begin anew."""
    layer_learning_rates: dict[Name, NotNegative] = field(default_factory=dict)
    """Beginnings of parameters' names with a factor on their learning rate: `encoder = 0.1`."""
    gradient_clip: NotNegative = 12.0
    """The longest gradient; longer ones are shortened to it."""
    loss: Name = "dice_ce"
    """What training minimizes; see [losses](#losses)."""
    loss_options: dict[Name, float] = field(default_factory=dict)
    """Numbers of the loss where they should differ from its defaults."""
    foreground_oversampling: Share = 0.33
    """Share of the patches that are centered on a labelled voxel."""
    domain_sampling: Literal["round_robin", "proportional", "equal_work"] = "round_robin"
    """A universal network draws its datasets in turn (`round_robin`), in proportion to their cases (`proportional`), or so that each gets
    the same work, small patches more steps (`equal_work`)."""
    unit_gradients: bool = False
    """Gradient normalization: gradients are divided by their running norm, those of each dataset of a universal network by its own. Adam
    then forgets the large ones of the first steps, and no dataset leads by their size."""
    augmentations: dict[Name, dict[Name, float]] = field(default_factory=dict)
    """Further augmentations by name, each with its options, after those that every plan has."""
    balanced_cases: bool = field(default_factory=bool)
    """Every case is drawn as often as any other, in turn, instead of by chance."""
    balanced_classes: bool = field(default_factory=bool)
    """Of patches that are centered on a label the label is drawn first, of all in the dataset, then a case with it: for labels that few
    cases have."""
    hard_cases: Share = field(default_factory=float)
    """Share of the patches whose case is drawn in proportion to 1 - Dice, which is measured on the training cases after every epoch."""
    providers: dict[Name, Provider] = field(default_factory=dict)
    """Which extensions the loss and the augmentations are from, by their names; written by plan, without those that are built in."""
    follows_budget: bool = field(default_factory=bool)
    """Where a run is short, optimizer, schedule, averaging and patches follow the number of its steps; see
    `docs/concepts/training.md`."""
    weight_averaging: ShareBelowOne = field(default_factory=float)
    """Averaged weights are measured beside the last ones, and the better are kept: their mean age, as a share of the run so far (0.1); 0
    for none."""
    patch_growth: ShareBelowOne = field(default_factory=float)
    """Share of the run in which patches grow to their full size, with more of them in a batch while they are small; 0 for full size from
    the first step on."""
    best_on_tiles: bool = field(default_factory=bool)
    """The best epoch is chosen on fixed windows that cover whole validation cases, instead of on patches that are centered on labels."""
    augmentation_reduction: ShareBelowOne = field(default_factory=float)
    """By this share augmentations are drawn less often, mirroring apart."""
    came_later: ClassVar[tuple[str, ...]] = (
        *("augmentations", "balanced_cases", "balanced_classes", "hard_cases", "providers"),
        *("follows_budget", "weight_averaging", "patch_growth", "best_on_tiles", "augmentation_reduction"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration(Checked):
    """One way to look at the dataset: resolution, patch, batch and network.

    ``median_shape`` is the median over cases after cropping and resampling. ``spacing`` in mm. ``mirror_axes`` are the network
    axes (0 is the first axis of the patch) along which training and prediction flip.
    """

    name: Name
    spacing: tuple[Millimeters, ...]
    median_shape: tuple[NotNegative, ...]
    patch_size: tuple[Dimension, ...]
    batch_size: BatchSize
    batch_dice: bool
    network: NetworkPlan
    normalization: tuple[Normalization, ...]
    resampling: Resampling
    training: TrainingPlan
    mirror_axes: tuple[Axis, ...]
    previous_stage: Name | None = None
    is_cropped: bool = False
    """The earlier stage says where to look (a crop cascade); otherwise its label map comes as further channels."""
    data: str = ""
    """The name of the preprocessed data; configurations with equal spacing, normalization and resampling share it."""
    came_later: ClassVar[tuple[str, ...]] = ("is_cropped",)

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    def problems(self) -> Iterator[str]:
        """Lists of one length, a patch that the network can halve, names that stay in their folder, feature maps that fit a memory."""
        dimensions = self.network.dimensions
        for name, values in (("patch_size", self.patch_size), ("spacing", self.spacing)):
            if len(values) != dimensions:
                yield f"{name} is {values}, expected {dimensions} numbers as the network has dimensions"
        if any(axis >= dimensions for axis in self.mirror_axes) or len(set(self.mirror_axes)) < len(self.mirror_axes):
            yield f"mirror_axes are {self.mirror_axes}, expected each axis from 0 to {dimensions - 1} once at most"
        for name, text in (("name", self.name), ("data", self.data), ("previous_stage", self.previous_stage or "")):
            if text.startswith(".") or set(text) & set("/\\:\0\n\r"):
                yield f"{name} is {text!r:.60}, expected a name without / \\ : that begins with no dot"
        if self.is_cropped and (self.previous_stage is None or dimensions != 3):
            yield "is_cropped, but it has no previous_stage that finds the box, or is no 3D configuration"
        if len(self.patch_size) == dimensions:
            yield from self._problems_of_patch()

    def _problems_of_patch(self) -> Iterator[str]:
        network, stride = self.network, total_stride(self.network.strides)
        if network.options.get("padding", "same") == "same" and any(n % s for n, s in zip(self.patch_size, stride, strict=True)):
            yield f"patch_size is {self.patch_size}, expected multiples of the network's total stride {stride}"
        numbers = float(math.prod(self.patch_size)) * max(network.features[0], network.in_channels, network.num_classes)
        if numbers > MAX_FEATURE_MAP:
            yield f"patch_size {self.patch_size} makes feature maps of {numbers:.1e} numbers, up to {MAX_FEATURE_MAP:.0e} can be"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Checked):
    """Everything that was decided for a dataset; ``plan.json``.

    ``frame`` says which axes of a file become S, A and R, where ``orientation`` is canonical.
    """

    dataset: str
    planner: str
    orientation: Literal["canonical", "as_stored"]
    axis_order: AxisOrder
    channels: tuple[str, ...]
    modality_reason: str
    labels: Labels
    num_training: Counted
    gpu_memory_gb: NotNegative
    configurations: dict[Name, Configuration]
    recommended: str
    recommended_reason: str
    fingerprint_digest: str
    notes: tuple[str, ...] = ()
    left_right_doubt: str = ""
    """Why mirroring from left to right may not be safe; empty where it is, or where pairs of labels forbid it anyway."""
    given_names: dict[int, str] = field(default_factory=dict)
    """Names of label values that the user gave beside the dataset's own (``--labels``)."""
    frame: Frame = CANONICAL_FRAME
    inherits: str = ""
    """The model whose network, spacing and patch it has; empty where the dataset decided them."""
    images: ImageProfile | None = None
    """What the training images look like; None in plans of earlier versions and of other programs."""
    came_later: ClassVar[tuple[str, ...]] = ("inherits",)

    @property
    def reading_frame(self) -> Frame | None:
        """The frame to read cases in; None where their axes stay as they are stored."""
        return None if self.orientation == "as_stored" else self.frame

    def problems(self) -> Iterator[str]:
        """What configurations, channels, labels and axes say of each other."""
        if sorted(self.axis_order) != [0, 1, 2]:
            yield f"axis_order is {self.axis_order}, expected the axes 0, 1, 2 in some order"
        if self.recommended not in self.configurations:
            yield f"recommended is {self.recommended!r:.60}, expected one of the configurations ({', '.join(self.configurations)[:200]})"
        yield from _problems_of_labels(self.labels)
        yield from _problems_of_frame(self.frame)
        for name, each in self.configurations.items():
            yield from (f"configurations.{name}: {problem}" for problem in self._problems_of(name, each))

    def _problems_of(self, name: str, each: Configuration) -> Iterator[str]:
        if each.name != name:
            yield f"its name is {each.name!r}"
        if len(each.normalization) != len(self.channels):
            yield f"normalization has {len(each.normalization)} entries, expected {len(self.channels)}, one per channel"
        if each.network.num_classes != self.labels.num_outputs:
            yield f"network.num_classes is {each.network.num_classes}, expected {self.labels.num_outputs} as there are labels"
        least = len(self.channels)
        if each.network.in_channels < least or (each.network.in_channels > least and each.previous_stage is None):
            yield f"network.in_channels is {each.network.in_channels}, expected {least} as there are channels"
        earlier, stage = [name], each.previous_stage
        while stage in self.configurations:
            if stage in earlier:
                yield f"previous_stage leads back to {stage}"
                return
            earlier.append(stage)
            stage = self.configurations[stage].previous_stage

    def configuration(self, name: str | None) -> Configuration:
        """A configuration by name, the recommended one for None; raises :class:`PlanMismatchError` for an unknown name."""
        wanted = name or self.recommended
        if wanted not in self.configurations:
            hint = ON_CASCADES if wanted in OF_CASCADES else "Name one of these with -c."
            raise PlanMismatchError(f"The plan has no configuration {wanted!r}; it has {', '.join(self.configurations)}. {hint}")
        return self.configurations[wanted]

    def stages_of(self, name: str) -> tuple[str, ...]:
        """A configuration and the earlier stages that it needs, the last stage first."""
        stages = [name]
        while (previous := self.configuration(stages[-1]).previous_stage) is not None:
            stages.append(previous)
        return tuple(stages)


def total_stride(strides: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """The product of the strides of all stages, per axis: a patch must be divisible by it.

    >>> total_stride(((1, 1, 1), (1, 2, 2), (2, 2, 2)))
    (2, 4, 4)
    """
    result = [1] * len(strides[0])
    for stride in strides:
        result = [r * s for r, s in zip(result, stride, strict=True)]
    return tuple(result)


def _problems_of_labels(labels: Labels) -> Iterator[str]:
    count = len(labels.values)
    if count < 2 or len(labels.names) != count:
        yield f"labels has {len(labels.names)} names and {count} values, expected as many of both, two at least"
    if len(set(labels.values)) < count or any(abs(value) >= 2**63 for value in labels.values):
        yield "labels.values: expected whole numbers of 64 bits, each once"
    if any(not 0 < index < count for pair in labels.pairs for index in pair) or any(left == right for left, right in labels.pairs):
        yield f"labels.pairs are {labels.pairs!r:.100}, expected pairs of two indices from 1 to {count - 1}"
    if labels.regions and (len(labels.regions) != count - 1 or not all(labels.regions)):
        yield f"labels.regions has {len(labels.regions)} entries, expected {count - 1}, each with a value at least"
    elif labels.ignore in labels.annotated_values:
        yield f"labels.ignore is {labels.ignore}, expected another value than those of the labels {labels.annotated_values!r:.100}"
    if any(not lacking or not set(lacking) <= set(labels.foreground) for lacking in labels.unannotated):
        yield f"labels.unannotated is {labels.unannotated!r:.100}, expected sets of indices from 1 to {count - 1}"


def _problems_of_frame(frame: Frame) -> Iterator[str]:
    """Directions are unit vectors at right angles, but for rounding."""
    products = [sum(a * b for a, b in zip(first, second, strict=True)) for first in frame.directions for second in frame.directions]
    is_frame = all(abs(found - expected) < 0.01 for found, expected in zip(products, (1, 0, 0, 0, 1, 0, 0, 0, 1), strict=True))
    if not is_frame or frame.slice_axis not in (None, 0, 1, 2) or not 0 <= frame.max_slice_angle <= 180:
        yield f"frame is {frame!r:.200}, expected three unit vectors at right angles, an axis from 0 to 2 and an angle"
