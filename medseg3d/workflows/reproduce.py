"""Make the run of a work folder again from what is recorded of it, in another folder, and say whether both are the same bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medseg3d.devices import choose_device, use_all_cores
from medseg3d.domain import is_universal
from medseg3d.errors import DamagedCaseError, InputError, UnsupportedError
from medseg3d.events import Event, Listener, silent
from medseg3d.files import copy_file, file_digest
from medseg3d.fingerprint.records import Fingerprint
from medseg3d.models.checkpoints import load_tensors
from medseg3d.options import PreprocessOptions, ReproduceOptions, RunOptions, SelectOptions, TrainOptions
from medseg3d.plan import Plan
from medseg3d.preprocessing.store import Store
from medseg3d.records import read_record
from medseg3d.training.state import TrainingState, read_summary
from medseg3d.validation.selection import Selection
from medseg3d.wording import counted, listed
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.origins import marks_of, raw_cases
from medseg3d.workflows.preprocess import preprocess
from medseg3d.workflows.run import predict_test_set
from medseg3d.workflows.run_record import Environment, RunRecord, read_run, this_environment
from medseg3d.workflows.select import select
from medseg3d.workflows.splits import member_offset
from medseg3d.workflows.train import train

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One thing of both runs: whether it is the same bit for bit, and in what it is not."""

    what: str
    is_same: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """What was compared, what is different about machine and versions, and where the new run lies."""

    compared: tuple[Compared, ...]
    differences: tuple[str, ...]
    folder: Path

    @property
    def is_same(self) -> bool:
        """Everything that was compared is the same."""
        return all(each.is_same for each in self.compared)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedFold:
    """A finished fold: what is recorded of its training, and the options that make it again."""

    name: str
    fold: str
    state: TrainingState
    record: RunRecord | None
    options: TrainOptions
    doubt: str = ""


def reproduce(work: Path, options: ReproduceOptions, on: Listener = silent) -> Reproduction:
    """Preprocess, train, validate, select and predict again by the plan and the options of ``work``, and compare each with what lies there.

    Only finished folds are made again. Raises :class:`InputError` where none is there, the dataset is gone, or the new folder holds
    another run; :class:`UnsupportedError` for a universal network.
    """
    folder = WorkFolder(work)
    if not folder.plan.exists() and work_folder(work, None).plan.exists():  # the dataset's folder: its work folder is meant
        folder = work_folder(work, None)
        work = folder.root
    if is_universal(folder):
        raise UnsupportedError(f"{work}: holds a network of several datasets; making such a run again is not supported yet.")
    plan, folds = folder.read_plan(), recorded_folds(folder, options.device)
    if not folds:
        raise InputError(f"{work}: no fold is trained to its end here, so there is nothing to make again.")
    root = _dataset(work, folds, options)
    again = WorkFolder(options.output or work.absolute().with_name(f"{work.absolute().name}-again"))
    _begin(folder, again)
    compared = [compared_data(folder, root, plan)]
    names = tuple(dict.fromkeys(each.name for each in folds))
    preprocess(root, again.root, PreprocessOptions(configurations=names), on)
    compared += [compared_stores(folder, again, plan, name) for name in names]
    for each in folds:
        on(Event(stage="reproduce", message=f"Training {each.name} fold {each.fold} again."))
        train(root, again.root, each.options, on)
        compared += _compared_fold(folder, again, each)
    device = options.device or folds[0].options.device
    if folder.selection.exists():
        select(root, again.root, SelectOptions(device=device), on)
        compared.append(_compared_selection(folder, again))
    if any(folder.predictions.glob("*.nii.gz")) and folder.selection.exists():
        predict_test_set(root, again, RunOptions(device=device), on)
        compared.append(_compared_maps("predictions", folder.predictions, again.predictions))
    use_all_cores()
    now = this_environment(device=str(choose_device(device).device), processes=folds[0].state.processes)
    return Reproduction(compared=tuple(compared), differences=tuple(differences(folds, now)), folder=again.root)


def recorded_folds(folder: WorkFolder, device: str | None) -> list[RecordedFold]:
    """The finished folds of a work folder, those that others need first, each with the options that make it again."""
    plan = folder.read_plan()
    found = []
    for name in sorted(plan.configurations, key=lambda name: len(plan.stages_of(name))):
        for fold in folder.finished_folds(name):
            state, record = read_summary(folder.fold(name, fold)), read_run(folder.fold(name, fold))
            if state is not None:
                found.append(_recorded(name, fold, state, record, device, offset=member_offset([folder], fold)))
    return found


def _recorded(name: str, fold: str, state: TrainingState, record: RunRecord | None, device: str | None, *, offset: int = 0) -> RecordedFold:
    """``offset`` is what training adds to the seed that it is given, as the state keeps the sum."""
    asked = TrainOptions(configuration=name, fold=fold, seed=state.seed - offset) if record is None else record.options
    doubts = []
    if state.hours is not None:
        doubts.append("it was trained by the clock, which its learning rate followed")
    if record is None:
        doubts.append("it has no run.json, as older versions wrote none")
    elif len(record.environments) > 1 and len({str(each) for each in record.environments}) > 1:
        doubts.append("it was stopped, and went on with other threads, versions or on another machine")
    place = device or asked.device
    return RecordedFold(
        name=name,
        fold=fold,
        state=state,
        record=record,
        options=replace(
            asked,
            configuration=name,
            epochs=state.epoch if state.hours is not None else state.epochs,
            iterations=state.iterations_per_epoch,
            hours=None,
            batch_size=state.batch_sizes[0],
            restart=False,
            track=(),
            profile=False,
            device="auto" if state.processes > 1 else place,
            devices=_processes(state.processes, place),
        ),
        doubt="; ".join(doubts),
    )


def _processes(count: int, device: str) -> str | None:
    if count == 1:
        return None
    return f"cpu:{count}" if device == "cpu" or not torch.cuda.is_available() else str(count)


def _dataset(work: Path, folds: Sequence[RecordedFold], options: ReproduceOptions) -> Path:
    known = [Path(each.record.dataset) for each in folds if each.record is not None]
    place = options.dataset or next(iter(known), work.absolute().parent)
    if not place.is_dir():
        raise InputError(f"{place}: the dataset of this run is not there. Say where it is with --dataset.")
    return place


def _begin(folder: WorkFolder, again: WorkFolder) -> None:
    """The plan and the folds, as they are; a folder that holds them already is gone on with."""
    if again.plan.exists() and again.plan.read_bytes() != folder.plan.read_bytes():
        raise InputError(f"{again.root}: holds another run. Name a new folder with -o.")
    for source, target in (
        (folder.planner, again.planner),
        (folder.fingerprint, again.fingerprint),
        (folder.splits, again.splits),
        (folder.plan, again.plan),
    ):
        if source.exists():
            copy_file(source, target)


def compared_data(folder: WorkFolder, root: Path, plan: Plan) -> Compared:
    """The raw files of today with those that were measured; one that cannot be read is another."""
    measured = {case.name: case.digest for case in read_record(folder.fingerprint, Fingerprint, "fingerprint").cases}
    there = marks_of(raw_cases(root, plan), {})
    changed = [name for name, digest in measured.items() if name not in there or there[name].digest != digest]
    return Compared(
        what="training images and labels", is_same=not changed, detail=f"other files of {listed(changed, most=5)}" if changed else ""
    )


def compared_stores(folder: WorkFolder, again: WorkFolder, plan: Plan, name: str) -> Compared:
    """The preprocessed cases of both; one that is damaged is another."""
    data = plan.configuration(name).data
    old, new = Store(folder.store(data)), Store(again.store(data))
    changed = [case for case in old.names() if (before := _checksums(old, case)) is None or before != _checksums(new, case)]
    return Compared(
        what=f"preprocessed cases of {name}", is_same=not changed, detail=f"others are {listed(changed, most=5)}" if changed else ""
    )


def _checksums(store: Store, case: str) -> dict[str, str] | None:
    """Those of a stored case; None where it is not there, or damaged."""
    try:
        return store.checked(case).checksums if case in store else None
    except DamagedCaseError:
        return None


def _compared_fold(folder: WorkFolder, again: WorkFolder, each: RecordedFold) -> Iterator[Compared]:
    where = f"{each.name} fold {each.fold}"
    detail = _differing_weights(folder.weights(each.name, each.fold), again.weights(each.name, each.fold))
    if detail and each.doubt:
        detail = f"{detail}; {each.doubt}"
    yield Compared(what=f"weights of {where}", is_same=not detail, detail=detail)
    if folder.validation(each.name, each.fold).is_dir():
        yield _compared_maps(f"validation of {where}", folder.validation(each.name, each.fold), again.validation(each.name, each.fold))


def _differing_weights(old: Path, new: Path) -> str:
    """How far the weights of two files are apart; empty where each is the same bit for bit."""
    first, second = load_tensors(old)[0], load_tensors(new)[0]
    if first.keys() != second.keys():
        return "they are those of another network"
    if all(first[name].equal(second[name]) for name in first):
        return ""
    distance = sum(float((first[name].double() - second[name].double()).square().sum()) for name in first) ** 0.5
    size = sum(float(tensor.double().square().sum()) for tensor in first.values()) ** 0.5
    return f"they differ by {distance / max(size, 1e-30):.2g} of their norm"


def _compared_maps(what: str, old: Path, new: Path) -> Compared:
    maps = sorted(old.glob("*.nii.gz"))
    changed = [file.name for file in maps if not (new / file.name).exists() or file_digest(file) != file_digest(new / file.name)]
    detail = f"{len(changed)} of {counted(len(maps), 'label map')} are others" if changed else ""
    return Compared(what=what, is_same=not changed, detail=detail)


def _compared_selection(folder: WorkFolder, again: WorkFolder) -> Compared:
    old, new = (read_record(each.selection, Selection, "selection") for each in (folder, again))
    is_same = (old.configurations, old.postprocessing, old.mirroring) == (new.configurations, new.postprocessing, new.mirroring)
    return Compared(what="selection", is_same=is_same, detail="" if is_same else f"now {' + '.join(new.configurations)}")


def differences(folds: Sequence[RecordedFold], now: Environment) -> Iterator[str]:
    """What is another now than when the folds were trained, each once."""
    said: set[str] = set()
    for each in folds:
        for before in () if each.record is None else each.record.environments:
            pairs = [(name, before.versions.get(name, "not noted"), version) for name, version in now.versions.items()]
            pairs += [(name, str(getattr(before, name)), str(getattr(now, name))) for name in ("system", "cpu", "threads", "device")]
            for name, old, new in pairs:
                sentence = f"{name}: {old} then, {new} now"
                if old != new and sentence not in said:
                    said.add(sentence)
                    yield sentence
