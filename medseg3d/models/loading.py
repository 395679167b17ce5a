"""From a path to a model that is ready: its source is opened, and its parts are assembled on a device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from medseg3d.devices import Device, choose_device
from medseg3d.errors import InputError
from medseg3d.extensions import version_of
from medseg3d.models.inference_mode import InferenceMode, in_mode
from medseg3d.models.model import Model
from medseg3d.models.parts import Configurations, MemberDescription, ModelDescription, ModelParts
from medseg3d.models.pruning import chosen_level
from medseg3d.models.sources import open_model
from medseg3d.models.trained import trained_parts
from medseg3d.networks.build import NETWORKS, build_network
from medseg3d.networks.levels import levels_of, set_level
from medseg3d.options import FoldChoice, ModelOptions
from medseg3d.plan import Plan
from medseg3d.prediction.empty_windows import Skipping
from medseg3d.prediction.predict_case import Member
from medseg3d.validation.empty_window_record import EmptyWindows
from medseg3d.work_folder import WorkFolder, fold_names

logger = logging.getLogger(__name__)
SLIDING = InferenceMode()


def load_model(
    path: Path | str,
    *,
    configuration: Configurations = None,
    folds: FoldChoice = None,
    device: str = "auto",
    precision: str = "auto",
    mirroring: bool | None = None,
    step: float = 0.5,
    skip_empty: bool = False,
    level: str | int | None = None,
    scales: Sequence[float] = (),
    flips: Sequence[str] | None = None,
    whole_image: bool = False,
) -> Model:
    """Load a model from any of the :data:`~medseg3d.models.sources.SOURCES`: a work folder, a ``.medseg3d`` file, weights, nnU-Net's.

    A work folder gives its selected configuration (or the recommended one, or ``configuration``, of which several are averaged) with
    all trained folds (or ``folds``), and the selected postprocessing. ``precision`` float32 leaves out the mixed precision of the device.
    ``mirroring`` None mirrors where validation showed a gain, and where nothing is known. ``step`` is the distance of windows as a share
    of the window, up to 1. ``skip_empty`` leaves out windows that validation says are empty. ``level`` says how much of a network that
    can be pruned predicts, a number or ``full``; None takes the level that validation chose. ``scales`` are factors of the image's size
    whose probabilities are averaged, ``flips`` the names of the axes of test-time augmentation (of S, A, R), in the place of
    ``mirroring``; with ``whole_image`` the network sees each image at once. Raises :class:`InputError` where nothing is trained there.
    """
    level = None if level is None else str(level)
    options = ModelOptions(step=step, skip_empty=skip_empty, level=level, scales=scales, flips=flips)  # refuses as the command line
    if mirroring not in (None, True, False):
        raise InputError(f"load_model: mirroring is {mirroring!r}, expected True, False or None.")
    chosen = choose_device(device, precision)
    parts = open_model(Path(path), configuration=configuration, folds=folds)
    mode = InferenceMode(scales=tuple(scales), flips=None if flips is None else tuple(flips), is_whole=whole_image)
    return assemble(parts, chosen, mirroring=mirroring, step=step, skip_empty=skip_empty, level=options.wanted_level, mode=mode)


def load_models(
    work: WorkFolder,
    names: Sequence[str],
    *,
    folds: FoldChoice = None,
    device: str = "auto",
    mirroring: bool | Mapping[str, bool] | None = None,
    level: int | Mapping[str, int] | None = None,
) -> Model:
    """A model of the named configurations of a work folder, averaged, without postprocessing; raises as :func:`load_model`."""
    return assemble(trained_parts(work, names, folds=fold_names(folds)), choose_device(device), mirroring=mirroring, level=level)


def assemble(
    parts: ModelParts,
    device: Device,
    *,
    mirroring: bool | Mapping[str, bool] | None = None,
    step: float = 0.5,
    skip_empty: bool = False,
    level: int | Mapping[str, int] | None = None,
    mode: InferenceMode = SLIDING,
) -> Model:
    """Build the networks on a device and fill them; ``mirroring`` may be given for each configuration, otherwise as :func:`load_model`.

    ``level`` is 0 for the whole network, None for what validation chose; it may be given for each configuration as well.
    """
    description = parts.description
    stages = {stage.configuration: stage for stage in description.stages}
    levels: dict[str, int | None] = {}

    def member(stage: MemberDescription, *, is_last: bool) -> Member:
        name = stage.configuration
        configuration = description.plan.configuration(name)
        networks = []
        for fold in stage.folds:
            tensors = parts.tensors(name, fold)
            network = build_network(configuration.network)
            network.load_state_dict(dict(tensors))
            asked = (level.get(name) if isinstance(level, Mapping) else level) if is_last else None  # earlier stages as they were chosen
            levels[name] = _leveled(network, stage, asked)
            networks.append(network.to(device.device).eval())
        previous = configuration.previous_stage
        if previous is not None and previous not in stages:
            raise InputError(
                f"{parts.path}: {name} is the second stage of a cascade, and its first stage {previous} is not there. Name the work "
                "folder, or a model file with both."
            )
        if configuration.is_cropped and stage.box is None:
            raise InputError(f"{parts.path}: {name} is a crop cascade, and how it finds its box is not there. Name the work folder.")
        wanted = mirroring.get(name) if isinstance(mirroring, Mapping) else mirroring  # a first stage is not among them
        return Member(
            configuration=configuration,
            networks=tuple(networks),
            mirroring=stage.mirroring if wanted is None else wanted,
            previous=None if previous is None else member(stages[previous], is_last=False),
            box=stage.box,
            skipping=_skipping(stage.empty_windows, name, description.plan) if skip_empty and is_last else None,
        )

    members = in_mode([member(stage, is_last=True) for stage in description.members], description.plan, mode)
    pruned = "".join(f";{name} level {chosen}" for name, chosen in levels.items() if chosen)
    identity = parts.identity + _extensions_of(description) + pruned + mode.identity
    return Model(description.plan, members, device, postprocessing=description.postprocessing, step=step, identity=identity)


def _leveled(network: torch.nn.Module, stage: MemberDescription, wanted: int | None) -> int | None:
    """Let the wanted level of a network predict, or the one that validation chose; it, where it is not the whole network."""
    levels = levels_of(network)
    level = chosen_level(levels, stage, wanted)
    if level is not None:
        set_level(network, level)
    return level if levels and level != levels[-1] else None


def _extensions_of(description: ModelDescription) -> str:
    """The extensions that the networks are built by here, which may be of other versions than those that a plan notes; mostly empty."""
    families = sorted({description.plan.configuration(stage.configuration).network.family for stage in description.stages})
    return "".join(f";{family} of {version_of(provider)}" for family in families if (provider := NETWORKS.provider(family)))


def _skipping(found: EmptyWindows | None, name: str, plan: Plan) -> Skipping | None:
    """What is left out, and a word on it."""
    if found is None or found.agreement is None:
        logger.warning("%s: its validation held no windows that were known to be empty, so none is left out.", name)
        return None
    if found.level is None or not found.is_safe:
        logger.warning("%s: no window is left out, as that would not have been safe: dark windows were %s.", name, found)
        return None
    logger.warning("%s: windows darker than %.3g are left out as empty; these were %s.", name, found.level, found)
    return Skipping(level=found.level, is_regions=bool(plan.labels.regions))
