"""The records of a plan: what was decided for a dataset, for each configuration and for its network.

All lists over axes are in *network order* (coarsest spacing first), as ``Plan.axis_order`` says; a 2D configuration has lists
of two, the slice plane (network axes 1 and 2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from medseg3d.axes import AxisOrder
from medseg3d.errors import PlanMismatchError
from medseg3d.frame import CANONICAL_FRAME, Frame
from medseg3d.image_profile import ImageProfile
from medseg3d.labels import Labels

Option = bool | int | float | str | tuple[int, ...] | None
"""What a network option may be; TOML and JSON can hold it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """Spline orders: in general, and along a coarse axis that is resampled apart (ratio of spacings above the threshold)."""

    image_order: int = 3
    image_coarse_order: int = 0
    label_order: int = 1
    label_coarse_order: int = 0
    logits_order: int = 1
    logits_coarse_order: int = 0
    separate_threshold: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    """All that a family needs to build its network; one entry per stage, the finest first.

    ``encoder_blocks``: convolutions (plain) or residual blocks per encoder stage; ``decoder_blocks``: convolutions per decoder
    stage, finest last as the decoder runs coarse to fine (one entry fewer). ``options`` are the family's own.
    """

    family: str
    dimensions: Literal[2, 3]
    in_channels: int
    num_classes: int
    features: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    deep_supervision: bool = True
    options: dict[str, Option] = field(default_factory=dict)


LossName = Literal[
    "dice_ce",
    "dice",
    "dice_squared",
    "generalized_dice",
    "dice_focal",
    "tversky",
    "focal_tversky",
    "lovasz",
    "weighted_ce",
    "ohem",
    "boundary",
    "cldice",
    "surface",
]
"""What training minimizes; the formulas stand in :mod:`medseg3d.training.loss_functions`."""

ScheduleName = Literal["poly", "cosine", "cosine_restarts", "cyclical"]
"""How the learning rate runs; the formulas stand in :mod:`medseg3d.training.schedule`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How a configuration is trained; nnU-Net 2.8.1's values unless the planner's file says otherwise.

    ``loss_options`` are numbers of the loss (``alpha`` and ``beta`` of Tversky, …). ``warmup`` is the share of the run in which
    the learning rate rises linearly, ``cycles`` how often ``cosine_restarts`` and ``cyclical`` begin anew.
    ``layer_learning_rates`` maps the beginning of parameters' names to a factor on their learning rate. ``domain_sampling``
    says how a universal network draws its next dataset: in turn, in proportion to the number of training cases, or so that each
    gets the same work. With ``unit_gradients`` gradients are divided by their running norm, each dataset's by its own.
    """

    epochs: int = 1000
    iterations_per_epoch: int = 250
    validation_iterations: int = 50
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.99
    weight_decay: float = 3e-5
    schedule: ScheduleName = "poly"
    poly_exponent: float = 0.9
    warmup: float = 0.0
    cycles: int = 1
    layer_learning_rates: dict[str, float] = field(default_factory=dict)
    gradient_clip: float = 12.0
    loss: LossName = "dice_ce"
    loss_options: dict[str, float] = field(default_factory=dict)
    foreground_oversampling: float = 0.33
    domain_sampling: Literal["round_robin", "proportional", "equal_work"] = "round_robin"
    unit_gradients: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to look at the dataset: resolution, patch, batch and network.

    ``median_shape`` is the median over cases after cropping and resampling. ``spacing`` in mm. ``mirror_axes`` are the network
    axes (0 is the first axis of the patch) along which training and prediction flip.
    """

    name: str
    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    batch_dice: bool
    network: NetworkPlan
    normalization: tuple[Normalization, ...]
    resampling: Resampling
    training: TrainingPlan
    mirror_axes: tuple[int, ...]
    previous_stage: str | None = None
    data: str = ""
    """The name of the preprocessed data; configurations with equal spacing, normalization and resampling share it."""

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.patch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
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
    num_training: int
    gpu_memory_gb: float
    configurations: dict[str, Configuration]
    recommended: str
    recommended_reason: str
    fingerprint_digest: str
    notes: tuple[str, ...] = ()
    left_right_doubt: str = ""
    """Why mirroring from left to right may not be safe; empty where it is, or where pairs of labels forbid it anyway."""
    given_names: dict[int, str] = field(default_factory=dict)
    """Names of label values that the user gave beside the dataset's own (``--labels``)."""
    frame: Frame = CANONICAL_FRAME
    images: ImageProfile | None = None
    """What the training images look like; None in plans of earlier versions and of other programs."""

    @property
    def reading_frame(self) -> Frame | None:
        """The frame to read cases in; None where their axes stay as they are stored."""
        return None if self.orientation == "as_stored" else self.frame

    def configuration(self, name: str | None) -> Configuration:
        """A configuration by name, the recommended one for None; raises :class:`PlanMismatchError` for an unknown name."""
        wanted = name or self.recommended
        if wanted not in self.configurations:
            raise PlanMismatchError(f"The plan has no configuration {wanted!r}; it has {', '.join(self.configurations)}.")
        return self.configurations[wanted]


def total_stride(strides: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """The product of the strides of all stages, per axis: a patch must be divisible by it.

    >>> total_stride(((1, 1, 1), (1, 2, 2), (2, 2, 2)))
    (2, 4, 4)
    """
    result = [1] * len(strides[0])
    for stride in strides:
        result = [r * s for r, s in zip(result, stride, strict=True)]
    return tuple(result)
