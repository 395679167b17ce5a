"""Predict: images → label maps on their own grids. What the same model made from the same input is kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg3d.data.dataset import Case
from medseg3d.data.digests import digest_of
from medseg3d.data.prediction_cases import find_prediction_cases
from medseg3d.dicom_objects.outputs import ENDINGS, Outputs, outputs_of
from medseg3d.errors import CaseFailure, InputError, PlanMismatchError
from medseg3d.events import Event, Listener, silent
from medseg3d.execution import memory_budget
from medseg3d.files import check_writable
from medseg3d.fingerprint.familiarity import CHECK, REFUSED, in_words
from medseg3d.images import case_name, ending_of
from medseg3d.images.header import REFUSED_ENDINGS
from medseg3d.images.readers import READERS, writable
from medseg3d.options import PredictOptions
from medseg3d.prediction.probability_file import check_nnunet_labels, has_probabilities
from medseg3d.structures.records import Structures
from medseg3d.wording import counted, listed
from medseg3d.workflows.cluster import predict_there
from medseg3d.workflows.load import predicting_model
from medseg3d.workflows.local_processes import local_processes
from medseg3d.workflows.predict_cases import predict_cases
from medseg3d.workflows.predicted_structures import check_measurable, measure_predicted
from medseg3d.workflows.prediction_record import (
    PredictedCase,
    Predictions,
    RecordFile,
    is_as_recorded,
    record_name,
    recorded,
    recorded_names,
)
from medseg3d.workflows.workers import cluster_workers

logger = logging.getLogger(__name__)
Outcome = tuple[Case, PredictedCase | CaseFailure]
NO_OPTIONS = PredictOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictResult:
    """Files written, files kept from an earlier call, cases that failed, by file name how each was made, and the model's identity.

    ``structures`` are the numbers of the structures in them, where ``statistics`` were asked for; ``beside`` the files of further output
    types, by file.
    """

    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    failures: tuple[CaseFailure, ...]
    cases: dict[str, PredictedCase] = field(default_factory=dict)
    model: str = ""
    structures: Structures | None = None
    beside: dict[Path, tuple[Path, ...]] = field(default_factory=dict)


def predict(
    source: Path | Sequence[Case],
    output: Path,
    options: PredictOptions = NO_OPTIONS,
    *,
    dataset: Path = Path(),
    work: Path | None = None,
    model: Path | None = None,
    executor: Executor | None = None,
    on: Listener = silent,
) -> PredictResult:
    """Predict a folder of images, one image, or cases of a dataset, by ``model``, else by what ``work`` or ``dataset`` holds.

    Outputs that the same model made from the same input are kept; others raise :class:`InputError` without ``overwrite``.
    A case that fails is listed, the others go on. The next image is read ahead where both fit ``max_ram_gb``. With an ``executor``
    (``dask.distributed.Client.get_executor()``) every case is predicted wherever it runs, from and into the same folders.
    """
    if isinstance(source, Path) and not source.exists():
        raise InputError(f"{source}: no such file or folder. Expected a folder of images, or one image.")
    place = next(place for place in (model, work, dataset) if place is not None)
    if executor is not None:
        return _predict(source, output, options, place, executor, on)
    with cluster_workers(options.cluster) as workers, local_processes(options.jobs) as processes:
        return _predict(source, output, options, place, processes if workers is None else workers.networks, on)


def _predict(
    source: Path | Sequence[Case], output: Path, options: PredictOptions, place: Path, executor: Executor | None, on: Listener
) -> PredictResult:
    outputs = outputs_of(options, output, beside=(place, place.parent))
    loaded = predicting_model(place, options)
    if (options.jobs or 1) > 1 and loaded.device.is_gpu:
        raise InputError(
            f"--jobs {options.jobs}: they would share one GPU, which a single process fills. For several GPUs start one predict "
            "for each: --part 1/2 --device cuda:0, --part 2/2 --device cuda:1. For the CPU add --device cpu."
        )
    if options.wanted_probabilities == "nnunet":
        check_nnunet_labels(loaded.plan.labels)
    cases, unusable = _cases_of(source, loaded.plan.channels, options.series_description)
    targets = _targets(cases, source, output, outputs)
    if options.statistics:
        check_measurable(targets)
    identity = loaded.identity + outputs.identity
    folder = next(iter(targets.values())).parent
    check_writable(folder)
    earlier = recorded(folder)
    kept, pending = _divide(_part(cases, options.part), targets, earlier, identity, options, outputs)
    record = RecordFile(folder / record_name(options.part), recorded_names(loaded.plan.labels))
    told = _Progress([case.name for case in pending], on)
    if executor is None:
        budget = memory_budget(options.max_ram_gb)
        made = predict_cases(
            loaded,
            pending,
            targets,
            record=record,
            probabilities=options.wanted_probabilities,
            budget=budget,
            outputs=outputs,
            on_windows=told.windows,
        )
    else:
        if options.jobs is not None:  # they share the memory
            options = replace(options, max_ram_gb=memory_budget(options.max_ram_gb) / 2**30 / options.jobs)
        there = predict_there(place, options, loaded.identity, pending, targets, executor=executor, record=record, outputs=outputs)
        made = _with_warnings(there)
    _warn_of_changed(kept, earlier)
    doubtful = _doubtful(kept, earlier, strict=options.strict)
    outcomes = list(told.counted(made))
    made_now = {targets[case.name].name: result for case, result in outcomes if isinstance(result, PredictedCase)}
    failures = (*unusable, *doubtful.values(), *(result for _, result in outcomes if isinstance(result, CaseFailure)))
    present = [case for case in cases if targets[case.name].name in made_now or targets[case.name] in set(kept) - doubtful.keys()]
    structures = measure_predicted(present, targets, loaded.plan, options, on) if options.statistics else None
    return PredictResult(
        written=tuple(folder / name for name in made_now),
        kept=tuple(target for target in kept if target not in doubtful),
        failures=(*failures, *(structures.failures if structures is not None else ())),
        cases=made_now,
        model=loaded.identity,
        structures=structures,
        beside={targets[case.name]: tuple(outputs.beside(targets[case.name]).values()) for case in present} if outputs.has_dicom else {},
    )


class _Progress:
    """Tells of every case that is done, and on a CPU of the windows of the one at hand."""

    def __init__(self, names: Sequence[str], on: Listener) -> None:
        self._names, self._on, self._share = names, on, 0.0

    def windows(self, place: int, done: int, total: int) -> None:
        """Hear of the case at a place."""
        self._share = max(self._share, (place + done / total) / len(self._names))
        self._on(Event(stage=f"predict, {self._names[place]}", done=done, total=total, overall=self._share))

    def counted(self, made: Iterator[Outcome]) -> Iterator[Outcome]:
        """The outcomes as they come; a case is written while the next one is in the network, so the share may be ahead."""
        total = len(self._names)
        self._on(Event(stage="predict", total=total, overall=0.0 if total else None))
        for done, outcome in enumerate(made, 1):
            yield outcome
            self._share = max(self._share, done / total)
            self._on(Event(stage="predict", done=done, total=total, overall=self._share))


def _with_warnings(made: Iterator[Outcome]) -> Iterator[Outcome]:
    """Say here what the model's warnings were where another machine predicted."""
    for case, result in made:
        if isinstance(result, PredictedCase) and result.warnings:
            logger.warning("%s %s", in_words(case.name, result.warnings), CHECK)
        for note in result.notes if isinstance(result, PredictedCase) else ():
            logger.warning("%s: %s.", case.name, note)
        yield case, result


def _doubtful(kept: Sequence[Path], earlier: Predictions, *, strict: bool) -> dict[Path, CaseFailure]:
    """Outputs of an earlier call with a warning, which is told again; failures where the call is strict now."""
    found = {}
    for target in kept:
        warnings, name = earlier.cases[target.name].warnings, case_name(target)
        if warnings and strict:
            reason = f"{in_words(name, warnings)} {REFUSED} {target} is there from an earlier call."
            found[target] = CaseFailure(case=name, stage="predict", reason=reason)
        elif warnings:
            logger.warning("%s %s", in_words(name, warnings), CHECK)
    return found


def _warn_of_changed(kept: Sequence[Path], earlier: Predictions) -> None:
    changed = [target for target in kept if not is_as_recorded(target, earlier.cases[target.name])]
    if changed:
        logger.warning(
            "%s kept, but changed since predicted: %s. If nobody corrected that by hand, predict again with --overwrite.",
            f"{counted(len(changed), 'output')} {'is' if len(changed) == 1 else 'are'}",
            listed([target.name for target in changed]),
        )


def _cases_of(
    source: Path | Sequence[Case], channels: Sequence[str], series_description: str | None
) -> tuple[tuple[Case, ...], tuple[CaseFailure, ...]]:
    if not isinstance(source, Path):
        return tuple(source), ()
    channel = channels[0] if len(channels) == 1 else ""
    return find_prediction_cases(source, num_channels=len(channels), channel=channel, series_description=series_description)


def _part(cases: Sequence[Case], part: tuple[int, int] | None) -> Sequence[Case]:
    if part is None:
        return cases
    number, total = part
    return cases[number - 1 :: total]


def _targets(cases: Sequence[Case], source: Path | Sequence[Case], output: Path, outputs: Outputs) -> dict[str, Path]:
    ending = "" if output.is_dir() else ending_of(output)
    reader = READERS.get(ending)
    if (reader is not None and reader.write is not None) or (outputs.main != "nifti" and ending.endswith(".dcm")):
        if len(cases) != 1:
            raise InputError(f"{output}: names one file, but the input holds {len(cases)} cases. Name an output folder.")
        return {cases[0].name: output}
    if reader is not None or ending in REFUSED_ENDINGS:
        raise InputError(f"{output}: label maps are not written as {ending}. Name a file that ends with {writable()} or .dcm, or a folder.")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; name a folder, or a file that ends with .nii.gz or .dcm.")
    if isinstance(source, Path) and source.is_dir() and output.exists() and output.resolve() == source.resolve():
        raise InputError(f"{output}: the output folder is the input folder; the images would be overwritten. Name another one.")
    return {case.name: output / f"{case.name}{ENDINGS[outputs.main]}" for case in cases}


def _divide(
    cases: Sequence[Case],
    targets: dict[str, Path],
    record: Predictions,
    identity: str,
    options: PredictOptions,
    outputs: Outputs,
) -> tuple[list[Path], list[Case]]:
    kept, pending, foreign = [], [], []
    for case in cases:
        target, entry = targets[case.name], record.cases.get(targets[case.name].name)
        inputs = {channel.path.resolve() for channel in case.channels}
        if target.resolve() in inputs:
            raise InputError(f"{target}: the output would overwrite the input image. Name another output.")
        complete = outputs.are_there(target) and has_probabilities(target, options.wanted_probabilities)
        is_made_so = entry is not None and outputs.beside_identity in ("", entry.beside)
        if complete and is_made_so and entry is not None and entry.model == identity and _is_of(case, entry.input_digest):
            kept.append(target)
        elif target.exists() and not options.overwrite and (entry is None or entry.model != identity):
            foreign.append(target)
        else:
            pending.append(case)
    if foreign:
        raise PlanMismatchError(
            f"{counted(len(foreign), 'output')} exist that another model, another version of an extension, other settings or another "
            f"program made ({foreign[0]} …). "
            "Name another output folder, or give --overwrite to replace them."
        )
    return kept, pending


def _is_of(case: Case, digest: str) -> bool:
    """Whether a record is of these inputs; of inputs that cannot be read it is none, and reading will say what is wrong."""
    try:
        return digest_of(case) == digest
    except InputError:
        return False
