"""Listen: DICOM studies come in by network, folder or DICOMweb, are predicted by rules, and the results go on, until a signal comes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.dicom_objects.outputs import ENDINGS, outputs_of, require_dicom
from medseg3d.errors import CaseFailure, InputError, StorageError
from medseg3d.events import Event, Listener, silent
from medseg3d.execution import memory_budget
from medseg3d.listening.night import FIRST_PAUSE, LONGEST_PAUSE, Night, SendError
from medseg3d.listening.receive import receiving
from medseg3d.listening.rules import ListenRules, Rule, read_rules
from medseg3d.listening.send import send
from medseg3d.listening.spool import Job, Spool, check_spool
from medseg3d.listening.tls import sending_context
from medseg3d.listening.watch import WatchedFolder
from medseg3d.listening.web import WebInbox
from medseg3d.locks import locked
from medseg3d.models.model import Model
from medseg3d.options import DicomOptions, ListenOptions
from medseg3d.signals import StopRequest, stop_on_signals
from medseg3d.wording import counted
from medseg3d.workflows.load import model_for
from medseg3d.workflows.predict_cases import predict_cases
from medseg3d.workflows.prediction_record import RECORD, RecordFile

NO_OPTIONS = ListenOptions()
PAUSE = 0.5
"""Seconds between two looks, where there is nothing to do."""
FOLDER_SECONDS = 2.0
"""Between two looks into the watched folder, each of which asks for the time of every file."""
BUSY = "Only one listener works on a spool. Stop the other one, or name another --spool."
LOG = "listen.log"


def listen(rules_file: Path, options: ListenOptions = NO_OPTIONS, on: Listener = silent) -> None:
    """Work by the rules of a TOML file until SIGINT or SIGTERM, or with ``once`` until nothing is left to do.

    What was killed goes on where it was. Raises :class:`InputError` where the file, a model or the port is wrong.
    """
    _require()
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # what it says of failures, our own messages say with what to do
    rules = read_rules(rules_file)
    spool = check_spool(options.spool or rules_file.resolve().parent / "spool")
    with locked(spool.root / ".lock", "is listening", advice=BUSY), stop_on_signals() as stop, _log(spool, on) as say:
        spool.prepare()
        predictor = _Predictor(options=options)
        for rule in rules.rule:
            predictor.model(rule)
        for destination in rules.destination:
            sending_context(destination)
        night = Night(spool=spool, rules=rules, predict=predictor.predict, send=partial(send, ae_title=rules.receive.ae_title), say=say)
        with receiving(rules.receive, spool) as port:
            say(_greeting(rules, port))
            inboxes, failures = _Inboxes(rules=rules, spool=spool, say=say), 0
            while not stop.is_set:
                came = inboxes.look(time.time())
                try:
                    has_worked = night.step(time.time())
                    failures = 0
                except StorageError as error:  # the night waits for room on the disk
                    has_worked, failures = False, failures + 1
                    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 20))
                    say(f"{error} The next attempt in {pause:.0f} s.")
                    _wait(pause, stop)
                if has_worked or came:
                    continue
                if options.once and inboxes.have_looked and night.is_done():
                    break
                time.sleep(PAUSE)
        say("Stopped.")


def _wait(seconds: float, stop: StopRequest) -> None:
    """Until then, or until a signal comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop.is_set:
        time.sleep(PAUSE)


@dataclass(slots=True)
class _Inboxes:
    """The watched folder and the DICOMweb server, each looked at in its time."""

    rules: ListenRules
    spool: Spool
    say: Callable[[str], None]
    have_looked: bool = False
    _folder: WatchedFolder | None = field(init=False, default=None)
    _web: WebInbox | None = field(init=False, default=None)
    _next_web: float = field(init=False, default=0.0)
    _next_folder: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        receive = self.rules.receive
        if receive.folder is not None:
            self._folder = WatchedFolder(receive.folder, self.spool)
        if receive.dicomweb is not None:
            self._web = WebInbox(self.spool, receive, self.rules.rule)

    def look(self, now: float) -> int:
        """How many instances came."""
        came = 0
        try:
            if self._folder is not None and now >= self._next_folder:
                self._next_folder = now + FOLDER_SECONDS
                came = self._folder.look(now)
        except StorageError as error:
            self.say(f"the watched folder cannot be taken in: {error}")
        if self._web is not None and now >= self._next_web:
            self._next_web = now + self.rules.receive.poll_seconds
            try:
                found, failed = self._web.look(now)
                came += found
                if failed:
                    self.say(f"{failed} series could not be fetched from {self.rules.receive.dicomweb}; asked for again later")
            except (SendError, StorageError) as error:
                self.say(f"{error} It is asked again in {self.rules.receive.poll_seconds:.0f} s.")
        self.have_looked = self._folder is None or self._folder.is_whole
        if came:
            self.say(f"{counted(came, 'instance')} came")
        return came


@dataclass(slots=True)
class _Predictor:
    """The models of the rules, each loaded once."""

    options: ListenOptions
    _models: dict[Path, Model] = field(default_factory=dict)

    def model(self, rule: Rule) -> Model:
        """The model of a rule; raises :class:`InputError` where the rule's channels are not those of the model."""
        if rule.model not in self._models:
            self._models[rule.model] = model_for(rule.model, self.options)
        model = self._models[rule.model]
        wanted, named = model.plan.channels, [channel.name for channel in rule.channel]
        if (named or len(wanted) > 1) and sorted(named) != sorted(wanted):
            raise InputError(
                f"rule {rule.name!r}: the model {rule.model} takes the channels {', '.join(wanted)}, and the rule names "
                f"{', '.join(named) or 'none'}. Give it a [[rule.channel]] for each of them, with its name and what its series is told by."
            )
        return model

    def predict(self, job: Job, rule: Rule, paths: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
        """Write the results of a job; raises :class:`InputError` with the reason where there are none."""
        wanted = DicomOptions(output_type=rule.outputs, segmentation_type=rule.segmentation_type, codes=rule.codes)
        outputs = outputs_of(wanted, beside=(rule.model, rule.model.parent))
        case = Case(name=job.id, channels=_channels(job, rule, paths, self.model(rule)))
        target = folder / f"result{ENDINGS[outputs.main]}"
        outcomes = predict_cases(
            self.model(rule).for_one_image(),
            [case],
            {case.name: target},
            record=RecordFile(folder / RECORD),
            probabilities=None,
            budget=memory_budget(None),
            outputs=outputs,
        )
        for _, outcome in outcomes:
            if isinstance(outcome, CaseFailure):
                is_memory = "memory" in outcome.reason  # it may be free again in a while
                raise MemoryError(outcome.reason) if is_memory else InputError(outcome.reason)
        return (target, *outputs.beside(target).values())


def _channels(job: Job, rule: Rule, paths: tuple[Path, ...], model: Model) -> tuple[ChannelFile, ...]:
    """The slices of each channel in the model's order; ``paths`` has them in that of the rule, one series after the other."""
    counts, rest, found = job.counts or (len(paths),), paths, []
    for count in counts:
        found.append(ChannelFile(path=rest[0].parent, files=rest[:count]))
        rest = rest[count:]
    if len(found) == 1:
        return tuple(found)
    named = dict(zip((channel.name for channel in rule.channel), found, strict=True))
    return tuple(named[name] for name in model.plan.channels)


@contextmanager
def _log(spool: Spool, on: Listener) -> Iterator[Callable[[str], None]]:
    """Write lines with their time into the spool's log, and tell whoever listens. A log that cannot be written stops nothing."""

    def say(text: str) -> None:
        on(Event(stage="listen", message=text))
        try:
            with (spool.root / LOG).open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now().isoformat(timespec='seconds')} {text}\n")
        except OSError as error:
            on(Event(stage="listen", message=f"{spool.root / LOG} cannot be written ({error.strerror})"))

    yield say


def _greeting(rules: ListenRules, port: int | None) -> str:
    receive = rules.receive
    places = [] if port is None else [f"as {receive.ae_title} on {receive.host}, port {port}"]
    places += [] if receive.folder is None else [f"to the folder {receive.folder}"]
    places += [] if receive.dicomweb is None else [f"to {receive.dicomweb}"]
    return f"Listening {' and '.join(places)}, by {counted(len(rules.rule), 'rule')}. Stop with Ctrl+C."


def _require() -> None:
    require_dicom("Listening")
    try:
        import dicomweb_client  # noqa: F401
        import pynetdicom  # noqa: F401
    except ImportError as error:
        raise InputError(f"Listening needs pynetdicom and dicomweb-client ({error}): pip install 'medseg3d[dicom]'") from error
