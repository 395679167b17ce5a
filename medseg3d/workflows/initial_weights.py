"""What ``train --init`` names, a model of any kind or a file of another library's weights → the tensors to begin with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from medseg3d.errors import InputError, StorageError
from medseg3d.files import check_writable
from medseg3d.fingerprint.records import Fingerprint
from medseg3d.models.checkpoints import load_tensors, read_card
from medseg3d.models.pretrained import NAMINGS, is_foreign, read_foreign
from medseg3d.models.sources import source_of, what_to_name
from medseg3d.models.trained import common_network
from medseg3d.plan import NetworkPlan, Plan
from medseg3d.provenance import read_origin
from medseg3d.records import read_record
from medseg3d.training.domains import NO_NAME
from medseg3d.training.initial import InitialWeights, Meanings, meanings_of
from medseg3d.wording import counted, listed
from medseg3d.work_folder import DEFAULT_NAME, WorkFolder

logger = logging.getLogger(__name__)
NOTHING: Mapping[str, tuple[str, ...]] = MappingProxyType({})
SHAPES = "shapes"
"""What ``--init`` calls the weights that were learned from generated shapes, unless a model of that name is there."""
SHAPES_FOLDER = Path(__file__).resolve().parent.parent / "data" / "learned_shapes"
"""Where ``medseg3d.commandline.learn_shapes`` puts them: in the package, for all users of a machine."""
SHAPES_AT_HOME = Path("~/.medseg3d/learned_shapes")
"""Where it puts them if the package may not be written."""
LEARN_SHAPES = "python -m medseg3d.commandline.learn_shapes --minutes 60"


def initial_weights(
    place: Path, *, configuration: str, fold: str, plan: Plan | None = None, validation: Mapping[str, tuple[str, ...]] = NOTHING
) -> InitialWeights:
    """The tensors of the model at ``place``: of the same configuration and fold where it has them, otherwise of its own first ones.

    With ``plan``, that of the training, or ``validation``, the digests that its validation cases are known by (of their files, and of their
    images alone, as labels are corrected), there is a warning where the weights may have seen these. Raises :class:`InputError` where
    there is no model.
    """
    if is_shapes(place):
        return _learned_shapes(configuration, plan)
    if is_foreign(place):
        return InitialWeights(source=str(place), tensors=read_foreign(place), is_foreign=True)
    try:
        source = source_of(place)
    except InputError as error:
        raise InputError(f"--init {error}{_or_others(place)}") from None
    held = source.held(place)
    if not held:
        raise InputError(f"--init {place}: nothing is trained there. Name {what_to_name()}.")
    name = configuration if configuration in held else next(iter(held))
    chosen = fold if fold in held[name] else held[name][0]
    if (name, chosen) != (configuration, fold) and sum(map(len, held.values())) > 1:
        logger.warning("%s has no %s, fold %s; beginning with %s, fold %s.", place, configuration, fold, name, chosen)
    common = common_network(place, chosen)
    has_seen = _warn_of_seen(place, (*_folds_at(place, name, chosen), *([] if common is None else [common.parent])), validation, fold)
    if common is not None:
        return InitialWeights(source=str(common), tensors=load_tensors(common)[0], meanings=meanings_of(read_card(common)))
    parts = source.open(place, name, (chosen,))
    theirs = parts.description.plan
    if not has_seen:
        _warn_about_cases(theirs, chosen, fold, plan, place)
    meanings = {NO_NAME: Meanings.of(theirs, theirs.configuration(name).network)}
    return InitialWeights(source=f"{place} ({name}, fold {chosen})", tensors=parts.read(name, chosen), meanings=meanings)


def is_shapes(place: Path) -> bool:
    """Whether a user means the generated shapes: the word, where no file or folder has that name."""
    return str(place) == SHAPES and not place.exists()


def shapes_file(network: NetworkPlan, folder: Path) -> Path:
    """Where the weights for a network of so many dimensions and stages are: coarse stages of deeper ones have no place in it."""
    return folder / f"{network.dimensions}d_{len(network.features)}.safetensors"


def place_for_shapes() -> Path:
    """The folder in which weights learned from shapes are found: in the package where that may be written, otherwise in the home folder."""
    try:
        check_writable(SHAPES_FOLDER)
    except StorageError:
        return _shapes_folders()[-1]
    return SHAPES_FOLDER


def _shapes_folders() -> tuple[Path, ...]:
    try:
        return SHAPES_FOLDER, SHAPES_AT_HOME.expanduser()
    except RuntimeError:  # an account without a home
        return (SHAPES_FOLDER,)


def _learned_shapes(configuration: str, plan: Plan | None) -> InitialWeights:
    """Those for the network of a plan, or others of as many dimensions, of which the finer stages of the encoder fit."""
    network = None if plan is None else plan.configuration(configuration).network
    pattern = "*.safetensors" if network is None else f"{network.dimensions}d_*.safetensors"
    there = [file for folder in _shapes_folders() for file in sorted(folder.glob(pattern))]
    if not there:
        kind = "" if network is None else f" for networks of {network.dimensions} dimensions"
        option = " -c 2d" if network is not None and network.dimensions == 2 else ""
        raise InputError(
            f"--init {SHAPES}: nothing was learned from generated shapes{kind} on this machine yet. Run {LEARN_SHAPES}{option} first, "
            "which makes the weights from a seed and no image."
        )
    wanted = there[-1].name if network is None else shapes_file(network, SHAPES_FOLDER).name
    chosen = next((file for file in there if file.name == wanted), there[-1])
    if chosen.name != wanted:
        found = Path(wanted).stem
        logger.warning("--init %s: no weights for %s; beginning with %s, of which less fits.", SHAPES, found, chosen.stem)
    tensors, meanings = load_tensors(chosen)[0], meanings_of(read_card(chosen))
    return InitialWeights(source=f"generated shapes ({chosen.stem})", tensors=tensors, meanings=meanings)


def _or_others(place: Path) -> str:
    """What else a file may be."""
    return f" Or weights of another library ({', '.join(NAMINGS)}) as .safetensors, .pth or .pt." if place.is_file() else ""


def _folds_at(place: Path, name: str, fold: str) -> tuple[Path, ...]:
    """Where the folder of a trained fold may lie: here, or in the work folder that is here or in a dataset that is."""
    if not place.is_dir():
        return (place.parent,)
    return place, WorkFolder(place).fold(name, fold), WorkFolder(place / DEFAULT_NAME).fold(name, fold)


def image_contents(folder: WorkFolder) -> dict[str, str]:
    """By case a digest of a sample of its image, as planning measured it; none for even images, and where there is no fingerprint."""
    try:
        cases = read_record(folder.fingerprint, Fingerprint, "fingerprint").cases
    except InputError:
        return {}
    return {case.name: case.content for case in cases if case.content}


def _warn_of_seen(source: Path, folders: Sequence[Path], validation: Mapping[str, tuple[str, ...]], fold: str) -> bool:
    """Whether one of the trainings in ``folders`` was of files or of images that this one validates on, by their digests."""
    known: set[str] = set()
    for folder in folders if validation else ():
        origin = read_origin(folder)
        if origin is not None:
            contents = image_contents(WorkFolder(folder.parent.parent.parent))  # of WORK/models/CONFIGURATION/fold_K
            known |= {mark.digest for mark in origin.cases.values()} | {contents.get(name, "") for name in origin.cases}
    seen = sorted(name for name, digests in validation.items() if known.intersection(digests) - {""})
    if seen:
        logger.warning(
            "%s was trained on %s, which fold %s validates on (%s): the Dice on them will be too good. Begin with weights that have not "
            "seen them, such as the same fold of a model of this dataset.",
            source,
            f"{counted(len(seen), 'case')} of {len(validation)}",
            fold,
            listed(seen, most=3),
        )
    return bool(seen)


def _warn_about_cases(theirs: Plan, their_fold: str, fold: str, plan: Plan | None, source: Path) -> None:
    """Another fold of the same data has trained on the cases that this one validates on."""
    is_same_data = plan is not None and plan.fingerprint_digest and plan.fingerprint_digest == theirs.fingerprint_digest
    if is_same_data and their_fold != fold and fold != "all":
        logger.warning(
            "%s was trained on fold %s of the same dataset, so it has seen validation cases of fold %s: the Dice on them will be "
            "too good. Begin with fold %s of it, or with a model of another dataset.",
            source,
            their_fold,
            fold,
            fold,
        )
