"""Which networks suit a dataset: what is known of it goes in, an opinion with its reason on every preset comes out.

Nothing is planned or traced here, so that the opinions take no time. They are rules of thumb from what the networks' authors and
comparisons say; training decides (``medseg3d compare``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

from medseg3d.plan import Plan
from medseg3d.planning.loss_rules import ELONGATED
from medseg3d.planning.summary import DatasetSummary

FEW_CASES = 20
"""With fewer training cases a large network can learn them by heart; our judgment, for cross-validation to confirm."""
MANY_CASES = 100
"""Residual encoders gained on the larger sets of nnU-Net's comparison (Isensee et al. 2024), hardly on ACDC; the border is our judgment."""
THICK = 3.0
"""Slices so many times as thick as the pixels are wide look different from their neighbors."""
LEVEL_RATIO = 30.0
"""Volumes of labels that differ by this are edges that differ by three: more than one level of a U-Net apart."""
SMALL_FOREGROUND = 0.01
"""Of the voxels; below it most of what a skip carries is background, which is what attention gates were made to dampen."""
SMALL_CARD_GB = 6.0
"""Below it the default's patch shrinks so far that half the features see more."""
OUTPUT_STRIDE = 8
"""Of context heads and real-time networks: what is smaller than two of their output voxels is interpolated away."""
MEDIUM_CARD_GB, LARGE_CARD_GB = 24.0, 40.0
"""What the larger residual presets were planned for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the opinions depend on. None where it is not known.

    ``thickness`` is the slice spacing over the pixel spacing; ``smallest_edge`` that of a cube of the volume of the smallest label, in
    voxels of the plan; ``thinnest`` how thick the thinnest label is, in the finest voxels of the plan, not known where slices are
    thicker; ``lacks_context``: a patch of full resolution sees little of a case; ``on_gpu`` whether this machine has one; ``real_time``:
    prediction has to be quick.
    """

    cases: int
    labels: int
    gpu_memory_gb: float
    thickness: float
    is_isotropic: bool
    smallest_edge: float | None
    foreground_share: float | None
    label_volume_ratio: float | None
    elongation: float | None
    lacks_context: bool
    on_gpu: bool | None = None
    real_time: bool = False
    thinnest: float | None = None

    @property
    def is_thin(self) -> bool:
        """A label is long and thin."""
        return self.elongation is not None and self.elongation >= ELONGATED

    @property
    def bears_coarse_logits(self) -> bool:
        """Every label is at least two output voxels wide and one thick, as far as is known, and none is long and thin."""
        is_wide = self.smallest_edge is not None and self.smallest_edge >= 2 * OUTPUT_STRIDE
        return is_wide and not self.is_sheet and not self.is_thin

    @property
    def is_sheet(self) -> bool:
        """A label is thinner than an output voxel of networks that predict coarsely."""
        return self.thinnest is not None and self.thinnest < OUTPUT_STRIDE


@dataclass(frozen=True, slots=True)
class Opinion:
    """Whether a preset is worth training on a dataset, and why."""

    is_proposed: bool
    reason: str


Rule = Callable[[Facts], Opinion]


def facts_of(summary: DatasetSummary, plan: Plan, *, gpu_memory_gb: float, on_gpu: bool | None = None, real_time: bool = False) -> Facts:
    """From a fingerprint's summary and the plan of the preset ``default``."""
    shown = plan.configurations.get("3d_fullres", plan.configuration(plan.recommended))
    voxels = prod(shown.median_shape)
    shares = [share for share in (summary.class_shares or ())[1:] if share > 0]
    spacing = shown.spacing
    known = summary.loss_facts
    is_isotropic = len(spacing) == 3 and all(len(set(kernel)) == 1 for kernel in shown.network.kernel_sizes)
    thickness = known.thickness_mm if known is not None and is_isotropic else None  # else it may be that of a slice
    return Facts(
        cases=plan.num_training,
        labels=len(plan.labels.foreground),
        gpu_memory_gb=gpu_memory_gb,
        thickness=spacing[0] / max(spacing[1:]) if len(spacing) == 3 else float("inf"),
        is_isotropic=is_isotropic,
        smallest_edge=(min(shares) * voxels) ** (1 / len(shown.median_shape)) if shares else None,
        foreground_share=None if known is None else known.foreground_share,
        label_volume_ratio=None if known is None else known.label_volume_ratio,
        elongation=None if known is None else known.elongation,
        lacks_context="3d_lowres" in plan.configurations,
        on_gpu=on_gpu,
        real_time=real_time,
        thinnest=None if thickness is None else thickness / min(spacing),
    )


def opinions(facts: Facts) -> Mapping[str, Opinion]:
    """On every preset but the default and the universal one, which others judge."""
    return {preset: rule(facts) for preset, rule in RULES.items()}


def _small(facts: Facts) -> Opinion:
    if facts.on_gpu is False:
        return Opinion(True, "this machine has no GPU, and half the features are a quarter of the work")
    if facts.gpu_memory_gb < SMALL_CARD_GB:
        return Opinion(True, f"{facts.gpu_memory_gb:g} GB are little: half the features leave room for a patch that sees more")
    return Opinion(False, f"{facts.gpu_memory_gb:g} GB hold the whole width")


def _residual(least_gb: float, beyond_gb: float, facts: Facts) -> Opinion:
    if facts.cases < MANY_CASES:
        return Opinion(False, f"gains over the plain U-Net need many cases, and there are {facts.cases}")
    if facts.gpu_memory_gb < least_gb:
        return Opinion(False, f"was planned for {least_gb:g} GB, and there are {facts.gpu_memory_gb:g}")
    if facts.gpu_memory_gb >= beyond_gb:
        return Opinion(False, f"{facts.gpu_memory_gb:g} GB hold the next larger one")
    return Opinion(True, f"{facts.cases} training cases feed a deeper encoder")


def _vnet_batch_norm(facts: Facts) -> Opinion:
    if facts.is_isotropic and facts.labels <= 2:
        return Opinion(True, "isotropic voxels and few large structures, what it was made for")
    return Opinion(False, "thick slices or many labels: kernels of 5 voxels cost more than they see")


def _u2net(facts: Facts) -> Opinion:
    if facts.cases < FEW_CASES:
        return Opinion(True, f"{facts.cases} training cases are few, and it has a hundredth of the parameters to overfit")
    return Opinion(False, f"{facts.cases} training cases can feed a larger network; worth it for small model files")


def _unet_plus_plus(facts: Facts) -> Opinion:
    if facts.real_time:
        return Opinion(True, "validation prunes it to the smallest level that is as good, which predicts several times as fast")
    if facts.is_thin:
        return Opinion(
            True, f"a label is long and thin (elongation {facts.elongation:.1f}), and its nodes at full resolution keep thin structures"
        )
    if facts.label_volume_ratio is not None and facts.label_volume_ratio >= LEVEL_RATIO:
        ratio = f"the largest label is {facts.label_volume_ratio:.0f} times as large as the smallest"
        return Opinion(True, f"{ratio}, and U-Nets of all depths in one suit structures of all sizes")
    return Opinion(False, "labels of one size need one depth; it costs three times the work and memory of a U-Net")


def _attention_unet(facts: Facts) -> Opinion:
    share = facts.foreground_share
    if share is not None and share < SMALL_FOREGROUND:
        return Opinion(True, f"{100 * share:.2g} % of the voxels are labelled, and its gates dampen what else the skips carry")
    return Opinion(False, "gates help where little of an image is labelled")


def _deeplab_v3(facts: Facts) -> Opinion:
    if not facts.bears_coarse_logits:
        return Opinion(False, _too_small(facts))
    if facts.lacks_context:
        return Opinion(
            True, "large structures in cases that a patch sees little of: dilated convolutions see far at an eighth of the resolution"
        )
    return Opinion(False, "a patch sees enough of a case without dilated convolutions")


def _transunet(facts: Facts) -> Opinion:
    if facts.cases >= MANY_CASES and facts.lacks_context:
        return Opinion(True, f"{facts.cases} cases teach attention, which relates what is far apart")
    return Opinion(False, "attention needs many cases, and structures that are told by what is far from them")


def _mednext(facts: Facts) -> Opinion:
    if not facts.is_isotropic:
        return Opinion(False, _not_isotropic(facts))
    if facts.gpu_memory_gb >= MEDIUM_CARD_GB and facts.cases >= MANY_CASES:
        return Opinion(True, f"{facts.cases} cases and {facts.gpu_memory_gb:g} GB: it gained on nnU-Net's U-Nets where both were large")
    return Opinion(
        False, f"takes three times the memory of a U-Net and many cases; there are {facts.cases}, and {facts.gpu_memory_gb:g} GB"
    )


def _swinunetr(facts: Facts) -> Opinion:
    if not facts.is_isotropic:
        return Opinion(False, _not_isotropic(facts))
    if facts.gpu_memory_gb >= MEDIUM_CARD_GB and facts.cases >= MANY_CASES and facts.lacks_context:
        return Opinion(True, f"{facts.cases} cases and {facts.gpu_memory_gb:g} GB teach and hold a transformer")
    return Opinion(False, f"a transformer of 62 million weights needs {MEDIUM_CARD_GB:g} GB, many cases and large ones")


def _segresnet(facts: Facts) -> Opinion:
    if not facts.is_isotropic:
        return Opinion(False, _not_isotropic(facts))
    return Opinion(False, "a residual U-Net as residual_m, in MONAI's form")


def _real_time(idea: str, is_lightest: bool, facts: Facts) -> Opinion:
    if not facts.real_time:
        return Opinion(False, "made for quick prediction; plan --explain --real-time looks for it")
    if not facts.bears_coarse_logits:
        return Opinion(False, _too_small(facts))
    if is_lightest:
        return Opinion(True, f"prediction has to be quick, and every label is at least {2 * OUTPUT_STRIDE} voxels wide: {idea}")
    return Opinion(False, f"{idea}; fast_scnn and espnet take less work")


def _same(reason: str, facts: Facts) -> Opinion:
    """Never proposed, for one reason."""
    return Opinion(False, reason)


def _too_small(facts: Facts) -> str:
    if facts.is_thin:
        return f"predicts at an eighth of the resolution, where a thin label (elongation {facts.elongation:.1f}) is lost"
    if facts.smallest_edge is None:
        return "predicts at an eighth of the resolution, and how large the labels are is not known"
    if facts.is_sheet:
        return f"predicts at an eighth of the resolution, where a label of {facts.thinnest:.1f} voxels of thickness is lost"
    return (
        f"predicts at an eighth of the resolution, and the smallest label is {facts.smallest_edge:.0f} voxels wide, "
        f"below {2 * OUTPUT_STRIDE}"
    )


def _not_isotropic(facts: Facts) -> str:
    return f"halves all axes alike, and slices are {facts.thickness:.1f} times as thick as the pixels are wide"


COMPARISON = partial(_same, "for comparison with published work")
NNUNET = partial(_same, "nnU-Net's own numbers, for comparison")
RULES: Mapping[str, Rule] = {
    "small": _small,
    "residual_m": partial(_residual, 8.0, MEDIUM_CARD_GB),
    "residual_l": partial(_residual, MEDIUM_CARD_GB, LARGE_CARD_GB),
    "residual_xl": partial(_residual, LARGE_CARD_GB, float("inf")),
    "vnet_batch_norm": _vnet_batch_norm,
    "u2net": _u2net,
    "unet_plus_plus": _unet_plus_plus,
    "attention_unet": _attention_unet,
    "deeplab_v3": _deeplab_v3,
    "transunet": _transunet,
    "mednext": _mednext,
    "swinunetr": _swinunetr,
    "segresnet": _segresnet,
    "fast_scnn": partial(_real_time, "the least work of all", True),
    "espnet": partial(_real_time, "half a million parameters", True),
    "icnet": partial(_real_time, "three resolutions of the image", False),
    "bisenet": partial(_real_time, "a path for details and one for context", False),
    "dfanet": partial(_real_time, "one light encoder three times", False),
    "swiftnet": partial(_real_time, "a light ladder on ResNet-18", False),
    "dfnet": partial(_real_time, "an encoder that was searched for speed", False),
    "msfnet": partial(_real_time, "all stages fused, and boundaries", False),
    "pspnet": partial(_same, "context as deeplab_v3 has it, by means over grids"),
    "isnet": partial(_same, "context as deeplab_v3 has it, by attention to classes"),
    "mcibi": partial(_same, "context as deeplab_v3 has it, with a memory of the classes"),
    "dla": partial(_same, "skips that are merged as in unet_plus_plus, without its levels"),
    "dynunet": partial(_same, "the network of default, as MONAI builds it"),
    "monai_attention_unet": partial(_same, "attention_unet in MONAI's form"),
    "unet_plus": partial(_same, "unet_plus_plus with fewer connections, for comparison"),
    "unet_e": partial(_same, "unet_plus_plus without nested connections, for comparison"),
    **dict.fromkeys(("fcn", "segnet", "unet_2015", "unet_3d", "unet_wide", "vnet"), COMPARISON),
    **dict.fromkeys(("nnunet_plain", "nnunet_resenc_m", "nnunet_resenc_l", "nnunet_resenc_xl"), NNUNET),
}
"""By preset; a test holds that none is missing."""
