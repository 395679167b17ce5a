"""The numbers that planning follows: a planner file in TOML goes in, a checked record comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from medseg3d.errors import InputError, PlanError
from medseg3d.plan import Option, Resampling, TrainingPlan
from medseg3d.planning.loss_rules import check_augmentations, loss_options
from medseg3d.planning.memory import FEATURE_MAPS
from medseg3d.ranges import (
    BatchSize,
    Blocks,
    Counted,
    Dimension,
    Elements,
    Features,
    Gigabytes,
    Kernel,
    Multiplier,
    NotNegative,
    Positive,
)
from medseg3d.records import Checked, from_plain, read_toml


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacingRule(Checked):
    """Which spacing all cases are resampled to; see :func:`medseg3d.planning.spacing.target_spacing`.

    ``resolution_multiplier`` is the rho of MobileNets: that many times the voxels along each axis, strides derived again.
    """

    percentile: float
    coarse_percentile: float
    anisotropy_threshold: NotNegative
    single_slice_first: bool
    resolution_multiplier: Multiplier


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRule(Checked):
    """How large a patch starts and how far it may be pooled."""

    initial_edge_3d: Dimension
    initial_edge_2d: Dimension
    min_feature_map_edge: Dimension
    lone_axis_factor: Dimension


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRule(Checked):
    """The family and its widths and depths; the last entry of ``encoder_blocks`` and ``decoder_blocks`` repeats.

    ``width_multiplier`` is the alpha of MobileNets, a factor on all features. ``max_stages`` is a cap on the depth, 0 for none.
    ``options`` are handed to the family as they are.
    """

    family: str
    base_features: Features
    max_features_3d: Features
    max_features_2d: Features
    width_multiplier: Multiplier
    max_stages: int
    kernel_edge: Kernel
    encoder_blocks: tuple[Blocks, ...]
    decoder_blocks: tuple[Blocks, ...]
    deep_supervision: bool
    options: dict[str, Option] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRule(Checked):
    """How many feature-map elements fit; see :func:`medseg3d.planning.memory.feature_map_elements`.

    ``reference_3d`` elements are what a batch of ``reference_batch_3d`` patches may hold, per patch, on a GPU of
    ``reference_gpu_memory_gb``; likewise in 2D. ``fit`` says which batch has to fit while the patch is being shrunk.
    """

    gpu_memory_gb: Gigabytes
    reference_gpu_memory_gb: Gigabytes
    reference_3d: Elements
    reference_2d: Elements
    reference_batch_3d: BatchSize
    reference_batch_2d: BatchSize
    fit: Literal["min_batch", "reference_batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRule(Checked):
    """Bounds of the batch size; ``max_dataset_share`` is the share of all training voxels in one batch."""

    min_size: BatchSize
    max_dataset_share: Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class LowresRule(Checked):
    """When a second configuration at lower resolution is planned, and how its spacing is searched."""

    patch_share: float
    spacing_step: Positive
    min_volume_ratio: NotNegative
    coarse_axis_ratio: NotNegative


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizationRule(Checked):
    """When the voxels outside the non-zero region are left out of z-scores."""

    mask_below_relative_size: NotNegative


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendRule(Checked):
    """When 2D is recommended although 3D is possible: both conditions must hold."""

    thick_slice_ratio: NotNegative
    few_slices: Counted


@dataclass(frozen=True, slots=True, kw_only=True)
class MirroringRule:
    """Whether images are mirrored from left to right where that is in doubt; with pairs of left and right labels they never are.

    ``where_safe``: not where labels could be left and right of the same and nobody has said what they are. ``unless_pairs``: always.
    """

    left_right: Literal["where_safe", "unless_pairs"] = "where_safe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner(Checked):
    """All numbers that :func:`medseg3d.planning.make_plan.make_plan` uses; what each means stands in planners/README.md."""

    name: str
    description: str
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
    _check(planner, path)
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
        raise PlanError(f"There is no planner {name!r}. The presets are {', '.join(planner_names())}; a file of your own ends in .toml.")
    path = Path(name)
    if beside is not None and not path.is_absolute():
        path = beside.parent / path
    if not path.is_file():
        raise PlanError(f"{path}: no such planner file. The presets, named without .toml, are {', '.join(planner_names())}.")
    return path


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
    known = [f.name for f in fields(record) if f.name != "name"] + ([] if table else ["extends"])
    for key, value in numbers.items():
        if key not in known:
            where = f"[{table}]" if table else "the file"
            raise PlanError(f"{path}: unknown key {key!r} in {where}. It may hold {', '.join(sorted(known))}.")
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


def _family_problems(network: NetworkRule) -> Iterator[str]:
    """What is wrong with the family and its options; those of the closed formula are known without torch."""
    if network.family in FEATURE_MAPS and not network.options:
        return
    from medseg3d.networks.build import NETWORKS

    try:
        NETWORKS.find(network.family).completed_options(network.options)
    except PlanError as error:
        yield f"network.family: {str(error).removesuffix('.')}"


def _check(planner: Planner, path: Path) -> None:
    """Refuse what planning could not work with: endless searches, empty networks, families without a memory formula."""
    network, memory, lowres, batch = planner.network, planner.memory, planner.lowres, planner.batch
    wrong = [
        sentence
        for sentence, is_wrong in (
            *((problem, True) for problem in _family_problems(network)),
            (
                "network.base_features and max_features must be at least 1",
                min(network.base_features, network.max_features_2d, network.max_features_3d) < 1,
            ),
            (
                "network.width_multiplier and spacing.resolution_multiplier must be above 0",
                min(network.width_multiplier, planner.spacing.resolution_multiplier) <= 0,
            ),
            ("network.max_stages must be at least 2, or 0 for no cap", network.max_stages < 0 or network.max_stages == 1),
            ("network.kernel_edge must be odd and positive", network.kernel_edge < 1 or network.kernel_edge % 2 == 0),
            (
                "network.encoder_blocks and decoder_blocks must hold at least one number, each at least 1",
                min(network.encoder_blocks, default=0) < 1 or min(network.decoder_blocks, default=0) < 1,
            ),
            (
                "memory.* must be above 0",
                min(
                    memory.gpu_memory_gb,
                    memory.reference_gpu_memory_gb,
                    memory.reference_3d,
                    memory.reference_2d,
                    memory.reference_batch_3d,
                    memory.reference_batch_2d,
                )
                <= 0,
            ),
            ("training.warmup must be at least 0 and below 1", not 0 <= planner.training.warmup < 1),
            ("training.cycles must be at least 1", planner.training.cycles < 1),
            (
                "training.layer_learning_rates must not be negative",
                min(planner.training.layer_learning_rates.values(), default=0.0) < 0,
            ),
            ("batch.min_size must be at least 1", batch.min_size < 1),
            ("batch.max_dataset_share must be above 0", batch.max_dataset_share <= 0),
            ("lowres.spacing_step must be above 1", lowres.spacing_step <= 1),
            ("lowres.patch_share must lie between 0 and 1", not 0 <= lowres.patch_share < 1),
            (
                "spacing.percentile and coarse_percentile must lie between 0 and 100",
                not (0 <= planner.spacing.percentile <= 100 and 0 <= planner.spacing.coarse_percentile <= 100),
            ),
            (
                "patch.* must be at least 1",
                min(
                    planner.patch.initial_edge_3d,
                    planner.patch.initial_edge_2d,
                    planner.patch.min_feature_map_edge,
                    planner.patch.lone_axis_factor,
                )
                < 1,
            ),
        )
        if is_wrong
    ]
    for key, check in (("loss", loss_options), ("augmentations", check_augmentations)):
        try:
            check(planner.training)
        except PlanError as error:
            wrong.append(f"training.{key}: {str(error).removesuffix('.')}")
    if wrong:
        raise PlanError(f"{path}: {'; '.join(wrong)}.")
