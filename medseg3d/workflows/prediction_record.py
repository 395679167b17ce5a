"""``predictions.json``: how each label map of a folder was made, for the next call and for other processes that write there.

An output is announced before it gets its name, with the digest of its content, and recorded afterwards. So a process may be killed at
any moment: the next one tells by the digest whether the announced label map is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from medseg3d.errors import InputError
from medseg3d.files import file_digest
from medseg3d.labels import Labels
from medseg3d.records import Checked, read_record, write_record
from medseg3d.workflows.taking_turns import record_lock, tidy

RECORD = "predictions.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedCase(Checked):
    """One output: which model made it from which input (digest of its files), and the digest of the label map; empty in older records.

    ``finished`` in seconds since 1970. ``seconds`` of the stages read, preprocess, segment (network and resampling), write
    (postprocessing and file); ``peak_mib`` of the process meanwhile, where the system tells it; ``shape`` of the image on the file's
    axes; ``precision`` that the network ran in; ``warnings`` say in what the image is unlike those that the model was trained on.
    """

    model: str
    input_digest: str
    output_digest: str = ""
    finished: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: float | None = None
    shape: tuple[int, ...] = ()
    precision: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What was done otherwise than usual, as where a crop cascade found nothing and saw the whole case."""
    beside: str = ""
    """What the outputs of further types were made with (kind of SEG, codes); empty without any, and in older records."""
    came_later: ClassVar[tuple[str, ...]] = ("beside",)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedCase:
    """An output that is about to get its name: what will be recorded, and the digest of the label map."""

    made: PredictedCase
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions(Checked):
    """``predictions.json`` beside the outputs: how each was made, by file name, so that the next call knows what to keep.

    ``started`` is empty but for moments, and where a process was killed. ``names`` are those of the label values, by the model of a case,
    for who reads the label maps without the model; of models that made none of the outputs there are none.
    """

    cases: dict[str, PredictedCase] = field(default_factory=dict)
    started: dict[str, StartedCase] = field(default_factory=dict)
    names: dict[str, dict[int, str]] = field(default_factory=dict)
    came_later: ClassVar[tuple[str, ...]] = ("names",)


@dataclass(frozen=True, slots=True)
class RecordFile:
    """The record of a folder, which any number of threads and processes add to; ``labels`` are the names of what they predict."""

    path: Path
    labels: Mapping[int, str] = field(default_factory=dict)

    def start(self, target: Path, case: PredictedCase, digest: str) -> None:
        """An output is whole under another name, and will be renamed."""
        started = StartedCase(made=case, digest=digest)
        self._change(lambda before: replace(before, started={**before.started, target.name: started}))

    def add(self, target: Path, case: PredictedCase) -> None:
        """An output is there."""

        def change(before: Predictions) -> Predictions:
            started = {name: entry for name, entry in before.started.items() if name != target.name}
            cases = {**before.cases, target.name: case}
            names = before.names | ({case.model: dict(self.labels)} if self.labels else {})
            made_by = {each.model for each in cases.values()}
            return Predictions(cases=cases, started=started, names={model: names[model] for model in names if model in made_by})

        self._change(change)

    def recover(self) -> None:
        """Record the outputs that a killed process had announced and renamed; forget those that it had not."""
        if self.path.exists() and read_predictions(self.path).started:
            self._change(self._recovered)

    def _recovered(self, before: Predictions) -> Predictions:
        there = {name: entry.made for name, entry in before.started.items() if _has_digest(self.path.with_name(name), entry.digest)}
        waiting = {name: entry for name, entry in before.started.items() if name not in there}
        return replace(before, cases=before.cases | there, started=waiting)

    def _change(self, change: Callable[[Predictions], Predictions]) -> None:
        with record_lock(self.path):
            before = read_predictions(self.path) if self.path.exists() else Predictions()
            write_record(self.path, change(before), "predictions")


def recorded_names(labels: Labels) -> dict[int, str]:
    """What label maps of these labels say of their values; nothing for regions, of which a value is only a part."""
    return {} if labels.regions else dict(zip(labels.values, labels.names, strict=True))


def recorded(folder: Path) -> Predictions:
    """All that is recorded in a folder, by machines that worked on all or on parts: of a file the latest entry.

    What a killed process has left is set right first.
    """
    tidy(folder)
    cases: dict[str, PredictedCase] = {}
    for file in sorted(folder.glob("predictions*.json")):
        RecordFile(file).recover()
        for name, case in read_predictions(file).cases.items():
            if name not in cases or case.finished >= cases[name].finished:
                cases[name] = case
    return Predictions(cases=cases)


def is_as_recorded(target: Path, case: PredictedCase) -> bool:
    """Whether a label map is still the one that was recorded, as far as the record tells."""
    return not case.output_digest or _has_digest(target, case.output_digest)


def record_name(part: tuple[int, int] | None) -> str:
    """Machines that work on parts do not write the same file."""
    return RECORD if part is None else f"predictions-{part[0]}-of-{part[1]}.json"


def read_predictions(file: Path) -> Predictions:
    """A record; raises :class:`InputError` that says what to do with a damaged one."""
    try:
        return read_record(file, Predictions, "predictions")
    except InputError as error:
        raise InputError(
            f"{error} It says how the label maps beside it were made. Delete it, and add --overwrite to predict them again."
        ) from error


def _has_digest(path: Path, digest: str) -> bool:
    try:
        return file_digest(path) == digest
    except OSError:
        return False
