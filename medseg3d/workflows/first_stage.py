"""What the second stage of a cascade learns from: label maps of its first stage, each by a network that has not seen the case.

The validation of the first stage's folds holds them. They are brought once to the grid of the stored cases, and made again when a fold of
the first stage is trained again.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medseg3d.axes import to_network_order
from medseg3d.data.cropping import nonzero_mask
from medseg3d.data.dataset import Case
from medseg3d.data.reading import label_values, read_case, read_label_maps
from medseg3d.domain import Domain
from medseg3d.errors import CaseFailure, InputError, PlanMismatchError
from medseg3d.evaluation.metrics import Evaluation, read_evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.execution import run_cases
from medseg3d.frame import grid_of, orientation_in
from medseg3d.geometry import AS_STORED, to_canonical
from medseg3d.images import read_header, read_image
from medseg3d.options import ValidateOptions
from medseg3d.plan import Configuration, Plan
from medseg3d.preprocessing.boxed_case import stored_box
from medseg3d.preprocessing.chunked_array import ChunkedArray
from medseg3d.preprocessing.preprocess_case import Restoration, previous_stage_labels
from medseg3d.preprocessing.previous_maps import PreviousMaps
from medseg3d.preprocessing.store import Store
from medseg3d.provenance import METRICS, weights_digest
from medseg3d.training.folds import read_folds
from medseg3d.validation.box import Box, BoxChoice, BoxRule, FoundBoxes, boxes_of, choose_box_rule, find_box, grown
from medseg3d.wording import counted, listed
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.origins import raw_cases, validation_age
from medseg3d.workflows.preprocess import bytes_to_preprocess
from medseg3d.workflows.validate import validate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstStage:
    """What the first stage says of the named cases, and by ``CONFIGURATION/FOLD`` the weights that it was said with.

    Either ``maps``, by case the label map on the grid of the stored case, or of a crop cascade ``boxes``, by case (start, stop) per axis of
    that grid, and the ``choice`` by which they were found.
    """

    cases: frozenset[str]
    weights: Mapping[str, str]
    maps: Mapping[str, ChunkedArray] | None = None
    boxes: Mapping[str, Box] | None = None
    choice: BoxChoice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Where the out-of-fold label map of a case lies, and the digest of the weights that made it."""

    path: Path
    weights: str


def first_stage(
    domain: Domain, configuration: Configuration, names: Sequence[str], *, device: str = "auto", on: Listener = silent
) -> FirstStage | None:
    """What the earlier stage of ``configuration`` says of the named cases; None where it has none.

    Folds of the first stage that are not validated, or validated with other weights, are validated now. Cases without such a label map
    are left out with a warning. Raises :class:`InputError` that names the folds to train first, :class:`PlanMismatchError` where the
    plan does not count the channels of the first stage.
    """
    if configuration.previous_stage is None:
        return None
    folder = domain.folder
    plan = folder.read_plan()
    _check_planned(configuration, plan, folder)
    found, weights = _out_of_fold(domain, plan, configuration, names, device, on)
    if configuration.is_cropped:
        return _boxes(domain, plan, configuration, names, found, weights, on)
    store = Store(folder.store(configuration.data))
    maps = PreviousMaps(folder.previous_maps(configuration.name), patch_size=configuration.patch_size)
    wanted = {name: _digest(store.checked(name).digest, found[name].weights) for name in names if name in found and name in store}
    lacking = [name for name, digest in wanted.items() if not maps.is_current(name, digest)]
    failures = {failure.case for failure in _make(domain, plan, configuration, lacking, found, wanted, maps, on)}
    usable = [name for name in wanted if name not in failures]
    _warn_of_left_out(configuration, sorted(set(names) - set(usable)))
    return FirstStage(cases=frozenset(usable), weights=weights, maps={name: maps.read(name) for name in usable})


def _warn_of_left_out(configuration: Configuration, left_out: Sequence[str]) -> None:
    if left_out:
        logger.warning(
            "%s: %s left out of the training, as there is no label map of %s.",
            configuration.name,
            f"{listed(left_out, most=5)} {'is' if len(left_out) == 1 else 'are'}",
            configuration.previous_stage,
        )


def _boxes(
    domain: Domain,
    plan: Plan,
    configuration: Configuration,
    names: Sequence[str],
    found: Mapping[str, _Found],
    weights: Mapping[str, str],
    on: Listener,
) -> FirstStage:
    """The boxes of the named cases, by the rule that cuts no foreground voxel of any of them."""
    store, stage = Store(domain.folder.store(configuration.data)), plan.configuration(configuration.previous_stage)
    raw = raw_cases(domain.dataset, plan)
    cases = [raw[name] for name in names if name in found and name in store and name in raw]
    on(Event(stage="first stage", message=f"Finding the boxes of {counted(len(cases), 'case')} in the label maps of {stage.name}"))

    def measure(case: Case) -> FoundBoxes:
        if case.label is None:
            raise InputError(f"{case.name}: has no label map to compare with.")
        predicted, reference, spacing = read_label_maps(found[case.name].path, case.label, case.name, soft=case.soft)
        return boxes_of(predicted != plan.labels.values[0], np.isin(reference, plan.labels.annotated_values[1:]), spacing)

    done = run_cases(measure, cases, name_of=lambda case: case.name, stage="first stage", bytes_of=_bytes_of_label_maps)
    measured = {}
    for case in done:
        if case.failure is not None:
            logger.error("%s", case.failure)
        elif case.result is not None:
            measured[case.item.name] = case.result
    if not measured:
        raise InputError(
            f"{domain.dataset}: no label map could be compared with what {stage.name} finds, so {configuration.name} has no box to "
            "train in. Name the folder of the dataset."
        )
    choice = choose_box_rule(measured, extra_mm=max(stage.spacing))
    on(Event(stage="first stage", message=_in_words(choice, stage.name)))
    boxes = {name: _stored_box(plan, configuration, choice.rule, found[name].path, store.checked(name).restoration) for name in measured}
    _warn_of_left_out(configuration, sorted(set(names) - set(boxes)))
    return FirstStage(cases=frozenset(boxes), weights=weights, boxes=boxes, choice=choice)


def _in_words(choice: BoxChoice, stage: str) -> str:
    objects = {0.0: "all that it finds", 1.0: "the largest object that it finds"}.get(choice.rule.min_share, "all objects but specks")
    nothing = f"; it finds nothing in {listed(choice.not_found, most=3)}, seen whole" if choice.not_found else ""
    return (
        f"{stage}: a margin of {choice.rule.margin_mm:.3g} mm around {objects} "
        f"cuts no foreground voxel of {counted(choice.num_cases, 'validation case')} ({choice.worst} needs {choice.needed_mm:.3g} mm); the "
        f"boxes are {choice.mean_share:.1%} of the volume{nothing}"
    )


def _stored_box(plan: Plan, configuration: Configuration, rule: BoxRule, path: Path, restoration: Restoration) -> Box:
    """As prediction finds it, on the grid of the stored case; the whole case where nothing was found."""
    image = read_image(path)
    orientation = AS_STORED if plan.reading_frame is None else orientation_in(plan.reading_frame, grid_of(image.header.geometry))
    values = to_network_order(to_canonical(label_values(path, image.array), orientation), plan.axis_order)
    box = find_box(values != plan.labels.values[0], rule, restoration.spacing)
    whole = restoration.resampled_shape
    limits = ((0, whole[0]), (0, whole[1]), (0, whole[2]))
    return limits if box is None else grown(stored_box(box, restoration), configuration.patch_size, limits)


def _bytes_of_label_maps(case: Case) -> int:
    """Both label maps, their masks, and the components of one."""
    try:
        return 16 * math.prod(read_header(case.channels[0].path, files=case.channels[0].files).geometry.shape)
    except InputError:
        return 0


def _check_planned(configuration: Configuration, plan: Plan, folder: WorkFolder) -> None:
    """The plans of older versions, which could not train a cascade, do not count the channels of the first stage."""
    expected = len(plan.channels) + (0 if configuration.is_cropped else len(plan.labels.foreground))
    if configuration.network.in_channels != expected:
        raise PlanMismatchError(
            f"{folder.plan}: the network of {configuration.name} has {configuration.network.in_channels} input channels, expected "
            f"{expected}, as each label of {configuration.previous_stage} is one. An older version planned it: run medseg3d plan again; "
            "trained folds of other configurations stay."
        )


def _out_of_fold(
    domain: Domain, plan: Plan, configuration: Configuration, names: Sequence[str], device: str, on: Listener
) -> tuple[dict[str, _Found], dict[str, str]]:
    """By case its label map by the fold that validated it; and the weights of all these folds."""
    folder, stage = domain.folder, plan.configuration(configuration.previous_stage)
    fold_of: dict[str, str] = {}
    finished = folder.finished_folds(stage.name)
    for number, split in enumerate(read_folds(folder.splits).folds):
        for name in split.validation:
            if name not in fold_of or fold_of[name] not in finished:
                fold_of[name] = str(number)
    needed = sorted({fold_of[name] for name in names if name in fold_of}, key=int)
    missing = [fold for fold in needed if fold not in finished]
    if missing:
        raise InputError(
            f"{folder.root}: {configuration.name} learns from label maps of {stage.name}, each by a network that has not seen the case, "
            f"but fold {listed(missing, most=20)} of {stage.name} is not trained. Run medseg3d train -c {stage.name} --fold {missing[0]} "
            f"first, or medseg3d run -c {configuration.name}, which trains both."
        )
    found, weights = {}, {}
    for fold in needed:
        evaluation = _validated(domain, plan, stage.name, fold, device, on)
        digest = weights_digest(folder.weights(stage.name, fold))
        weights[f"{stage.name}/{fold}"] = digest
        failed = {failure.case for failure in evaluation.failures}
        for name in (name for name in names if fold_of.get(name) == fold and name not in failed):
            found[name] = _Found(path=folder.validation(stage.name, fold) / f"{name}.nii.gz", weights=digest)
    return found, weights


def _validated(domain: Domain, plan: Plan, stage: str, fold: str, device: str, on: Listener) -> Evaluation:
    """The validation of a fold; a current one is read without its lock, as several machines may train second stages at once."""
    metrics = domain.folder.validation(stage, fold) / METRICS
    if metrics.exists() and validation_age(domain.dataset, domain.folder, plan, [stage], fold) is None:
        with suppress(InputError):  # a damaged one is made again
            return read_evaluation(metrics)
    options = ValidateOptions(configuration=stage, fold=fold, device=device, keep_finished=True)
    return validate(domain.dataset, domain.folder.root, options, on)


def _digest(stored: str, weights: str) -> str:
    return hashlib.blake2b(f"{stored} {weights}".encode(), digest_size=16).hexdigest()


def _make(
    domain: Domain,
    plan: Plan,
    configuration: Configuration,
    names: Sequence[str],
    found: Mapping[str, _Found],
    digests: Mapping[str, str],
    maps: PreviousMaps,
    on: Listener,
) -> Iterator[CaseFailure]:
    """Bring label maps to the grid of the stored cases; gives the cases for which that failed."""
    if not names:
        return
    stage = configuration.previous_stage
    on(Event(stage="first stage", message=f"Resampling the label maps of {stage} of {counted(len(names), 'case')}"))
    raw = raw_cases(domain.dataset, plan)
    absent = [name for name in names if name not in raw]
    if absent:
        raise InputError(
            f"{domain.dataset}: the images of {listed(absent, most=5)} are not there, which it takes to resample the label maps of "
            f"{stage}. Name the folder of the dataset."
        )
    store = Store(domain.folder.store(configuration.data))

    def work(case: Case) -> None:
        read = read_case(replace(case, label=found[case.name].path, soft=()), frame=plan.reading_frame)
        restoration = store.checked(case.name).restoration
        box = tuple(slice(start, stop) for start, stop in restoration.box)
        inside = nonzero_mask(to_network_order(read.image, plan.axis_order))[box]
        if read.labels is None:
            raise InputError(f"{case.name}: {found[case.name].path} holds no label map.")
        indices = plan.labels.encode(read.labels, str(found[case.name].path))
        maps.write(case.name, previous_stage_labels(indices, inside, restoration), digests[case.name])

    done = run_cases(
        work,
        [raw[name] for name in names],
        name_of=lambda case: case.name,
        stage="first stage",
        bytes_of=lambda case: bytes_to_preprocess(case, plan, [configuration]),
    )
    for number, case in enumerate(done, 1):
        on(Event(stage="first stage", done=number, total=len(names)))
        if case.failure is not None:
            logger.error("%s", case.failure)
            yield case.failure
