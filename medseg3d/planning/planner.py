"""The numbers that planning follows: a planner file in TOML goes in, a checked record comes out."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from annotated_types import Len

from medseg3d.errors import InputError, PlanError
from medseg3d.plan import Option, Resampling, TrainingPlan
from medseg3d.planning.loss_rules import check_augmentations, loss_options
from medseg3d.planning.memory import has_formula
from medseg3d.ranges import (
    AboveOne,
    BatchSize,
    Blocks,
    Counted,
    Dimension,
    Elements,
    Features,
    Gigabytes,
    Kernel,
    Multiplier,
    Name,
    NotNegative,
    Percentile,
    Positive,
    PositiveShare,
    Share,
    ShareBelowOne,
)
from medseg3d.records import Checked, from_plain, read_toml


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacingRule(Checked):
    """Which spacing all cases are resampled to; see :func:`medseg3d.planning.spacing.target_spacing`."""

    percentile: Percentile
    """Percentile of the cases' spacings, axis by axis, that all cases are resampled to."""
    coarse_percentile: Percentile
    """Percentile for the coarsest axis where slices are thick and few."""
    anisotropy_threshold: NotNegative
    """Slices are thick when the coarsest spacing exceeds this many times the next one; few when that axis has fewer than 1/threshold of
    the voxels of the others."""
    single_slice_first: bool
    """The axis along which the cases have a single slice comes first (and only 2D is planned), even if another axis is coarser."""
    resolution_multiplier: Multiplier
    """ρ of MobileNets: the target spacing is divided by it, and patch, strides and memory are derived for the new size."""
    voxel_share: PositiveShare = field(default_factory=lambda: 1.0)  # came later: files that give every number may leave it out
    """Share of a case's voxels that is kept: the target spacing is coarsened, along axes that are finer than the coarsest by more than
    `lowres.coarse_axis_ratio` first, so that thick slices stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRule(Checked):
    """How large a patch starts and how far it may be pooled."""

    initial_edge_3d: Dimension
    """The patch starts as a box of equal edges in mm with edge^3 voxels, cut to the median case."""
    initial_edge_2d: Dimension
    """In 2D it starts with edge^2 pixels."""
    min_feature_map_edge: Dimension
    """An axis is halved while it has at least twice this many voxels."""
    lone_axis_factor: Dimension
    """Where one axis alone could be halved, it must have this many times `min_feature_map_edge` voxels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRule(Checked):
    """The family and its widths and depths."""

    family: Name
    """The architecture, one of these or one that an extension adds."""
    base_features: Features
    """Channels of the first stage; doubled per stage."""
    max_features_3d: Features
    """Cap on the channels in 3D."""
    max_features_2d: Features
    """Cap on the channels in 2D."""
    width_multiplier: Multiplier
    """α of MobileNets: a factor on the features of every stage, after the cap."""
    max_stages: Counted
    """Cap on the number of stages, 0 for none."""
    kernel_edge: Kernel
    """Edge of the kernels, odd; 1 along axes that are still too coarse."""
    encoder_blocks: Annotated[tuple[Blocks, ...], Len(1)]
    """Convolutions (plain) or residual blocks per encoder stage, finest first; the last number repeats."""
    decoder_blocks: Annotated[tuple[Blocks, ...], Len(1)]
    """Convolutions per decoder stage, coarsest first; the first number repeats in deeper networks, and drops out in shallower ones."""
    deep_supervision: bool
    """Losses at every decoder stage."""
    options: dict[str, Option] = field(default_factory=dict)
    """Further options of the family, handed on as they are."""
    features: tuple[Features, ...] = field(default_factory=tuple)
    """Channels of every stage, finest first, the last number repeats, instead of doubling `base_features`: for the weights of another
    library, whose widths are given."""
    finest_blocks: Counted = field(default_factory=lambda: 0)
    """Blocks of the finest stage at most, on the way down and on the way up; 0: as the lists say. U-Nets count their memory by the
    lists, so that patches stay as they are."""
    came_later: ClassVar[tuple[str, ...]] = ("features", "finest_blocks")

    def problems(self) -> Iterator[str]:
        """What a range cannot say."""
        if self.kernel_edge % 2 == 0:
            yield f"kernel_edge is {self.kernel_edge}, expected an odd number"
        if self.max_stages == 1:
            yield "max_stages is 1, expected at least 2, or 0 for no cap"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRule(Checked):
    """How many feature-map elements fit; see :func:`medseg3d.planning.memory.feature_map_elements`."""

    gpu_memory_gb: Gigabytes
    """The memory to plan for; `--gpu-memory` replaces it."""
    reference_gpu_memory_gb: Gigabytes
    """The memory that the references hold for; they scale in proportion."""
    reference_3d: Elements
    """Feature-map elements per 3D patch at which the reference batch fills the reference memory."""
    reference_2d: Elements
    """Feature-map elements per 2D patch at which the reference batch fills it."""
    reference_batch_3d: BatchSize
    """The reference batch in 3D."""
    reference_batch_2d: BatchSize
    """The reference batch in 2D."""
    fit: Literal["min_batch", "reference_batch"]
    """`min_batch`: the patch shrinks until `batch.min_size` patches fit; `reference_batch`: until the reference batch fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRule(Checked):
    """Bounds of the batch size."""

    min_size: BatchSize
    """Smallest batch."""
    max_dataset_share: Positive
    """Largest share of all training voxels in one batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowresRule(Checked):
    """When a second configuration at lower resolution is planned, and how its spacing is searched."""

    patch_share: ShareBelowOne
    """`3d_lowres` is planned where the full-resolution patch covers less of a median case."""
    spacing_step: AboveOne
    """Factor of the spacing per step of its search."""
    min_volume_ratio: NotNegative
    """`3d_lowres` is dropped unless its cases have this many times fewer voxels."""
    coarse_axis_ratio: NotNegative
    """Axes finer than 1/ratio of the coarsest are coarsened alone first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CropRule(Checked):
    """When a crop cascade is proposed, and how coarse its detector is; see :func:`medseg3d.planning.crop.planned_crop`."""

    foreground_share: Share = 0.0
    """`3d_crop_fullres` is proposed where the foreground is a smaller share of a median case …"""
    box_share: Share = 0.0
    """… or its box a smaller share of the volume; 0 for both: never."""
    most_box_share: Share = 0.5
    """Not where the box is this share of the volume or more: too little would be left out."""
    patch_share: Share = 0.5
    """Not where a patch of `3d_fullres` covers this share of a median case: few windows are left to save."""
    detector_edge: Dimension = 4
    """Voxels that the foreground's box has at least along each axis in `3d_detect`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizationRule(Checked):
    """When the voxels outside the non-zero region are left out of z-scores."""

    mask_below_relative_size: NotNegative
    """Z-scores leave out the zeros where cropping kept less than this share of the median image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendRule(Checked):
    """When 2D is recommended although 3D is possible: both conditions must hold."""

    thick_slice_ratio: NotNegative
    """2d is recommended where slices are more than this many times as thick as the pixels are wide …"""
    few_slices: Counted
    """… and a case has fewer slices than this."""
    cascades: bool = field(default_factory=bool)
    """A cascade that is planned is recommended in the place of `3d_fullres`, the crop cascade first: `run` then trains it by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRule(Checked):
    """How far steps are made cheaper where a training is given little time; see :func:`medseg3d.planning.fit_to_time.fitted_to_time`."""

    least_steps: Counted = 0
    """A training of the time that `plan` or `run` is given shall have so many steps of the smallest batch, on the device at hand; half of
    them at half the width, as a narrower network learns sooner all that it can. 0: the time changes nothing."""
    finest_blocks: Counted = field(default_factory=lambda: 0)
    """Where fewer fit, the finest stage, in which half of the work is, has so many blocks before anything else changes; 0: it stays."""
    least_features: Features = 16
    """Channels of the first stage at least."""
    least_patch: PositiveShare = 1.0
    """Share of the memory for patches at least."""
    least_resolution: PositiveShare = 1.0
    """Factor on the resolution along axes of equal edges at least; its cube is the share of the voxels, see `spacing.voxel_share`."""
    least_label_edge: NotNegative = field(default_factory=lambda: 10.0)
    """Voxels along an edge of the smallest label at least (of a cube of the volume of one of its pieces); where a label is long and thin,
    voxels stay."""
    least_label_thickness: NotNegative = field(default_factory=lambda: 3.0)
    """Voxels that the thinnest label is thick at least, as a sheet or a wall is, in the mean; thick slices, which stay, do not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted(Checked):
    """What makes steps cheaper than a planner's so that a training of some hours has enough of them; `plan` decides it.

    ``width``, ``patch`` and ``resolution`` are factors.
    """

    hours: Positive
    """Of one training."""
    device: str
    steps: Counted
    """About so many fit into the hours."""
    finest_blocks: Counted = field(default_factory=lambda: 0)
    """`network.finest_blocks`."""
    width: Multiplier = 1.0
    patch: Multiplier = 1.0
    resolution: Multiplier = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MirroringRule:
    """Whether images are mirrored from left to right where that is in doubt; with pairs of left and right labels they never are."""

    left_right: Literal["where_safe", "unless_pairs"] = "where_safe"
    """`where_safe`: no mirroring from left to right where labels without names could be left and right of the same; `unless_pairs`: only
    pairs of left and right labels forbid it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner(Checked):
    """All numbers that :func:`medseg3d.planning.make_plan.make_plan` uses; planners/README.md lists them."""

    name: str
    description: str
    """One line about the planner."""
    spacing: SpacingRule
    patch: PatchRule
    network: NetworkRule
    memory: MemoryRule
    batch: BatchRule
    lowres: LowresRule
    normalization: NormalizationRule
    resampling: Resampling
    recommend: RecommendRule
    training: TrainingPlan
    mirroring: MirroringRule = field(default_factory=MirroringRule)
    crop: CropRule = field(default_factory=CropRule)
    time: TimeRule = field(default_factory=TimeRule)
    fitted: Fitted | None = field(default_factory=lambda: None)
    came_later: ClassVar[tuple[str, ...]] = ("fitted",)


def load_planner(name_or_path: str | Path) -> Planner:
    """A planner by the name of a preset, or from a TOML file of the user's.

    A file may say ``extends = "default"`` (a preset, or a path relative to the file) and give only what differs. Raises
    :class:`PlanError` for an unknown preset, an unknown or missing key, or a value that cannot be planned with.
    """
    path = _find(name_or_path, beside=None)
    numbers = _read(path, seen=())
    numbers["name"] = path.stem
    numbers.setdefault("description", "")
    missing = list(_missing_keys(numbers, Planner))
    if missing:
        raise PlanError(
            f'{path}: missing {", ".join(missing)}. A planner file gives every number, or says extends = "default" and gives '
            "only those that differ."
        )
    try:
        planner = from_plain(numbers, Planner, str(path))
    except InputError as error:
        raise PlanError(str(error)) from error
    _check_parts(planner, path)
    return planner


def planner_names() -> tuple[str, ...]:
    """The presets that come with the package."""
    return tuple(sorted({path.stem for folder in _preset_folders() for path in folder.glob("*.toml")}))


def _preset_folders() -> tuple[Path, ...]:
    package = Path(__file__).resolve().parent.parent
    # An installed package carries them as data of medseg3d.planners; in a checkout they stand beside the package.
    candidates = (package / "planners", package.parent / "planners")
    return tuple(folder for folder in candidates if (folder / "default.toml").is_file())[:1]


def _find(name_or_path: str | Path, beside: Path | None) -> Path:
    name = str(name_or_path)
    if not name.endswith(".toml"):
        for folder in _preset_folders():
            if "/" not in name and (folder / f"{name}.toml").is_file():
                return folder / f"{name}.toml"
        raise PlanError(
            f"There is no planner {name!r}.{_meant(name, planner_names())} The presets are {', '.join(planner_names())}; a file of your "
            "own ends in .toml."
        )
    path = Path(name)
    if beside is not None and not path.is_absolute():
        path = beside.parent / path
    if not path.is_file():
        raise PlanError(f"{path}: no such planner file. The presets, named without .toml, are {', '.join(planner_names())}.")
    return path


def _meant(word: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's tables laid over those of the planner that it extends."""
    if path.resolve() in seen:
        raise PlanError(f"{path}: extends itself, by way of {', '.join(other.name for other in seen)}.")
    try:
        numbers = read_toml(path)
    except InputError as error:
        raise PlanError(str(error)) from error
    parent = numbers.pop("extends", None)
    _refuse_unknown_keys(numbers, Planner, path)
    if parent is None:
        return numbers
    if not isinstance(parent, str):
        raise PlanError(f"{path}: extends must be the name of a preset or of a TOML file, found {parent!r}.")
    return _laid_over(_read(_find(parent, beside=path), (*seen, path.resolve())), numbers)


WRITTEN_BY_PLAN = ("name", "fitted")
"""No keys of a planner file."""
OPTIONS_OF = {"family": "options", "loss": "loss_options"}
"""Options belong to a choice: a file that chooses another family or loss does not inherit them."""


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for choice, options in OPTIONS_OF.items():
        if choice in over and over[choice] != under.get(choice):
            merged.pop(options, None)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _laid_over(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def _refuse_unknown_keys(numbers: Mapping[str, Any], record: type, path: Path, table: str = "") -> None:
    types = get_type_hints(record)
    known = [f.name for f in fields(record) if f.name not in WRITTEN_BY_PLAN] + ([] if table else ["extends"])
    for key, value in numbers.items():
        if key not in known:
            where = f"[{table}]" if table else "the file"
            raise PlanError(f"{path}: unknown key {key!r} in {where}.{_meant(key, known)} It may hold {', '.join(sorted(known))}.")
        if is_dataclass(types[key]):
            if not isinstance(value, dict):
                raise PlanError(f"{path}: {key} must be a table ([{key}]), found {value!r}.")
            _refuse_unknown_keys(value, types[key], path, key)


def _missing_keys(numbers: Mapping[str, Any], record: type) -> Iterator[str]:
    """Every key of a planner has to be written down, also those that the plan's records have defaults for."""
    types = get_type_hints(record)
    for f in fields(record):
        if f.name not in numbers:
            if f.default_factory is MISSING:  # tables of options, and those that came later, may be left out
                yield f.name
        elif is_dataclass(types[f.name]):
            yield from (f"{f.name}.{key}" for key in _missing_keys(numbers[f.name], types[f.name]))


def _check_parts(planner: Planner, path: Path) -> None:
    """Refuse a network, a loss or an augmentation that is not known, and wrong options of theirs."""
    wrong = []
    for key, check in (
        ("network.family", lambda: _check_family(planner.network)),
        ("training.loss", lambda: loss_options(planner.training)),
        ("training.augmentations", lambda: check_augmentations(planner.training)),
    ):
        try:
            check()
        except PlanError as error:
            said, section = str(error).removesuffix("."), key.partition(".")[0]
            wrong.append(said if said.startswith(f"{section}.") else f"{key}: {said}")
    if wrong:
        raise PlanError(f"{path}: {'; '.join(wrong)}.")


def _check_family(network: NetworkRule) -> None:
    if not has_formula(network.family, network.options):  # those of the closed formula are known without torch
        from medseg3d.networks.build import NETWORKS

        NETWORKS.find(network.family).completed_options(network.options)
