"""Predict: images → label maps on their own grids. Files are read and written while the network works."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg3d.dataset import Case, prediction_cases
from medseg3d.errors import CaseFailure, InputError, PlanMismatchError
from medseg3d.events import Event, Listener, silent
from medseg3d.files import check_writable, replacing
from medseg3d.fingerprint import digest_of
from medseg3d.geometry import from_canonical
from medseg3d.images import ending_of, write_label_map
from medseg3d.images.header import FORMATS, REFUSED_ENDINGS
from medseg3d.model import Model, load_model
from medseg3d.reading import RawCase, read_case
from medseg3d.records import read_record, write_record
from medseg3d.work_folder import Folds, work_folder

RECORD = "predictions.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedCase:
    """One output: which model made it from which input (digest of its files), and the seconds of each stage."""

    model: str
    input_digest: str
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """``predictions.json`` beside the outputs: how each was made, by file name, so that the next call knows what to keep."""

    cases: dict[str, PredictedCase] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictResult:
    """Files written, files kept from an earlier call, and cases that failed."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    failures: tuple[CaseFailure, ...]


def predict(
    source: Path | Sequence[Case],
    output: Path,
    *,
    dataset: Path = Path(),
    work: Path | None = None,
    model: Path | None = None,
    configuration: str | None = None,
    folds: Folds = None,
    tta: str = "auto",
    step: float = 0.5,
    probabilities: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    on: Listener = silent,
) -> PredictResult:
    """Predict a folder of images, one image, or cases of a dataset.

    Outputs that the same model made from the same input are kept; others raise :class:`InputError` without ``overwrite``.
    A case that fails is listed, the others go on.
    """
    if not 0 < step <= 1:
        raise InputError(f"--step {step}: expected a number above 0 and up to 1.")
    if isinstance(source, Path) and not source.exists():
        raise InputError(f"{source}: no such file or folder.")
    loaded = load_model(
        model if model is not None else work_folder(dataset, work).root,
        configuration=configuration,
        folds=folds,
        device=device,
        mirroring=tta != "off",
        step=step,
    )
    cases = prediction_cases(source, num_channels=len(loaded.plan.channels)) if isinstance(source, Path) else source
    targets = _targets(cases, source, output)
    identity = f"{loaded.identity};tta={loaded.mirroring};step={step}"
    record_file = next(iter(targets.values())).parent / RECORD
    check_writable(record_file.parent)
    record = read_record(record_file, Predictions, "predictions") if record_file.exists() else Predictions()
    kept, pending = _divide(cases, targets, record, identity, overwrite=overwrite, probabilities=probabilities)
    written, failures = [], []
    outputs = _Outputs(record_file, record, loaded, identity)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        writing: list[Future[None]] = []
        upcoming: Future[tuple[RawCase, str, float]] | None = None
        for index, case in enumerate(pending):
            current = upcoming or reader.submit(_read, case)
            upcoming = reader.submit(_read, pending[index + 1]) if index + 1 < len(pending) else None
            on(Event(stage="predict", done=index, total=len(pending)))
            try:
                raw, digest, seconds_reading = current.result()
                began = time.perf_counter()
                values, chances = _predict_one(loaded, raw, probabilities=probabilities)
            except InputError as error:
                failures.append(CaseFailure(case=case.name, stage="predict", reason=str(error)))
                continue
            except MemoryError as error:
                failures.append(CaseFailure(case=case.name, stage="predict", reason=str(error) or "not enough memory for this image"))
                continue
            seconds = {"read": seconds_reading, "predict": time.perf_counter() - began}
            target = targets[case.name]
            # the writer records what it has written: a run that is stopped here still finishes and records the file at hand
            writing.append(writer.submit(outputs.write, target, values, chances, raw, digest, seconds))
            written.append(target)
            if len(writing) > 1:  # one file is being written while the next image is in the network
                writing.pop(0).result()
        for future in writing:
            future.result()
    if pending:
        on(Event(stage="predict", done=len(pending), total=len(pending)))
    return PredictResult(written=tuple(written), kept=tuple(kept), failures=tuple(failures))


def _predict_one(model: Model, raw: RawCase, *, probabilities: bool) -> tuple[np.ndarray, np.ndarray | None]:
    indices, chances = model.predict_indices(raw, with_probabilities=probabilities)
    return from_canonical(model.plan.labels.decode(indices), raw.orientation), chances


def _read(case: Case) -> tuple[RawCase, str, float]:
    began = time.perf_counter()
    return read_case(case, with_label=False), digest_of(case), time.perf_counter() - began


class _Outputs:
    """Writes label maps (and probabilities) and records each in ``predictions.json`` once it is whole; used by one thread."""

    def __init__(self, record_file: Path, record: Predictions, model: Model, identity: str) -> None:
        self.record_file, self.model, self.identity = record_file, model, identity
        self.cases = dict(record.cases)

    def write(
        self, target: Path, values: np.ndarray, chances: np.ndarray | None, raw: RawCase, digest: str, seconds: dict[str, float]
    ) -> None:
        """Write the outputs of one case; probabilities of an earlier model do not stay beside a new label map."""
        began = time.perf_counter()
        _probability_file(target).unlink(missing_ok=True)
        write_label_map(target, values, raw.header)
        if chances is not None:
            with replacing(_probability_file(target)) as temporary, temporary.open("wb") as stream:
                np.savez_compressed(
                    stream,
                    probabilities=from_canonical(chances, raw.orientation).astype(np.float16),
                    values=np.asarray(self.model.plan.labels.values),
                )
        spent = {**seconds, "write": time.perf_counter() - began}
        self.cases[target.name] = PredictedCase(model=self.identity, input_digest=digest, seconds=spent)
        write_record(self.record_file, Predictions(cases=self.cases), "predictions")


def _probability_file(target: Path) -> Path:
    return target.with_name(target.name.removesuffix(".gz").removesuffix(".nii") + ".npz")


def _targets(cases: Sequence[Case], source: Path | Sequence[Case], output: Path) -> dict[str, Path]:
    ending = "" if output.is_dir() else ending_of(output)
    if ending in (".nii.gz", ".nii"):
        if len(cases) != 1:
            raise InputError(f"{output}: names one file, but the input holds {len(cases)} cases. Name an output folder.")
        return {cases[0].name: output}
    if ending in FORMATS or ending in REFUSED_ENDINGS:
        raise InputError(f"{output}: label maps are written as NIfTI, not as {ending}. Name a file that ends with .nii.gz, or a folder.")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; name a folder, or a file that ends with .nii.gz.")
    if isinstance(source, Path) and source.is_dir() and output.exists() and output.resolve() == source.resolve():
        raise InputError(f"{output}: the output folder is the input folder; the images would be overwritten. Name another one.")
    return {case.name: output / f"{case.name}.nii.gz" for case in cases}


def _divide(
    cases: Sequence[Case],
    targets: dict[str, Path],
    record: Predictions,
    identity: str,
    *,
    overwrite: bool,
    probabilities: bool,
) -> tuple[list[Path], list[Case]]:
    kept, pending, foreign = [], [], []
    for case in cases:
        target, entry = targets[case.name], record.cases.get(targets[case.name].name)
        inputs = {channel.path.resolve() for channel in case.channels}
        if target.resolve() in inputs:
            raise InputError(f"{target}: the output would overwrite the input image. Name another output.")
        complete = target.exists() and (not probabilities or _probability_file(target).exists())
        if complete and entry is not None and entry.model == identity and entry.input_digest == digest_of(case):
            kept.append(target)
        elif target.exists() and not overwrite and (entry is None or entry.model != identity):
            foreign.append(target)
        else:
            pending.append(case)
    if foreign:
        raise PlanMismatchError(
            f"{len(foreign)} outputs exist that another model or another program made ({foreign[0]} …). "
            "Name another output folder, or give --overwrite to replace them."
        )
    return kept, pending
