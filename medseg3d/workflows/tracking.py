"""What experiment trackers keep of trainings: a listener of events goes in, one that also writes to them comes out.

A tracker is an entry of :data:`TRACKERS`. All write into the work folder and reach no server, unless the user's own settings of the tracker
name one. Their packages are imported when they are used.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from medseg3d.errors import InputError
from medseg3d.events import Event, Listener
from medseg3d.extensions import Registry
from medseg3d.files import write_text

logger = logging.getLogger(__name__)

NUMBERS = "tracking.json"
"""Beside a fold's weights: the numbers that trackers gave to its training, so that a continued one goes on under them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """A training as trackers see it. ``facts`` are command, versions, seed, digests and plan; ``number`` is what the tracker called it
    before, where it goes on; ``home`` is the work folder and ``folder`` that of the fold."""

    name: str
    group: str
    facts: Mapping[str, Any]
    folder: Path
    home: Path
    number: str | None = None


class Tracking(Protocol):
    """A training that is being written down; ``number`` is how the tracker finds it again."""

    number: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""

    def finish(self, *, is_whole: bool) -> None:
        """The training has come to its end, or was stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracker:
    """How a tracker begins. ``package`` is the module that it needs, ``install`` what pip calls it."""

    meaning: str
    package: str
    install: str
    begin: Callable[[Any, Tracked], Tracking]


@contextmanager
def tracked(names: str | Sequence[str] | None, on: Listener) -> Iterator[Listener]:
    """A listener that passes everything on, and writes trainings to the trackers of these names.

    For None that is TensorBoard where it is installed. Raises :class:`InputError` for a name that nobody knows, and for a package that is
    not installed. A tracker that fails later costs its curves, with a warning; the training goes on.
    """
    if names is None:
        names = ["tensorboard"] if find_spec("tensorboard") is not None else []
    chosen = {name: TRACKERS.find(name, error=InputError) for name in ([names] if isinstance(names, str) else names)}
    modules = {name: _imported(name, tracker) for name, tracker in chosen.items()}
    running: dict[str, Tracking] = {}

    def listen(event: Event) -> None:
        if event.facts is not None:
            for name, tracker in chosen.items():
                with _guarded(name, running):
                    running[name] = _begun(name, tracker, modules[name], event.facts)
        if event.values is not None:
            values = {name: float(value) for name, value in event.values.items() if math.isfinite(value)}
            for name, tracking in list(running.items()):
                with _guarded(name, running):
                    tracking.log(values, event.step)
        on(event)

    is_whole = False
    try:
        yield listen
        is_whole = True
    finally:
        for name, tracking in list(running.items()):
            with _guarded(name, running):
                tracking.finish(is_whole=is_whole)


def _imported(name: str, tracker: Tracker) -> Any:
    try:
        return import_module(tracker.package)
    except ImportError:
        raise InputError(f"--track {name} needs the Python package {tracker.install}: pip install {tracker.install}.") from None


def _begun(name: str, tracker: Tracker, module: Any, facts: Mapping[str, Any]) -> Tracking:
    """Begin, or go on under the number of before."""
    file = Path(facts["folder"]) / NUMBERS
    numbers: dict[str, str] = {}
    with suppress(OSError, ValueError):
        numbers = dict(json.loads(file.read_text(encoding="utf-8")))
    told = {key: value for key, value in facts.items() if key not in ("folder", "work")}
    training = Tracked(
        name=f"{facts['configuration']} fold {facts['fold']}",
        group=str(facts["dataset"]),
        facts=told,
        folder=Path(facts["folder"]),
        home=Path(facts["work"]),
        number=numbers.get(name) if facts["goes_on"] else None,
    )
    tracking = tracker.begin(module, training)
    write_text(file, json.dumps({**numbers, name: tracking.number}, indent=2) + "\n")
    return tracking


@contextmanager
def _guarded(name: str, running: dict[str, Tracking]) -> Iterator[None]:
    """The code of others may raise whatever it likes."""
    try:
        yield
    except Exception as error:
        running.pop(name, None)
        logger.warning("--track %s: failed, and hears nothing more of this training (%s: %s).", name, type(error).__name__, error)


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Facts without levels, for trackers that keep names and values.

    >>> flat({"seed": 0, "plan": {"patch": [8, 16]}})
    {'seed': 0, 'plan.patch': '[8, 16]'}
    """
    found: dict[str, str | int | float | bool] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = value if isinstance(value, str | int | float | bool) else json.dumps(value)
    return found


class _TensorBoard:
    number = "tensorboard"

    def __init__(self, module: Any, training: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(training.folder / "tensorboard"))
        self._writer.add_text("facts", "```\n" + json.dumps(training.facts, indent=2) + "\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, *, is_whole: bool) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, module: Any, training: Tracked) -> None:
        kept_in = None  # where the server, or the store of files, keeps what is no number
        if not module.is_tracking_uri_set():
            store, kept_in = _mlflow_store(training.home.absolute())
            module.set_tracking_uri(store)
        self._client: Any = module.MlflowClient()
        if training.number is not None:
            self.number = training.number
            self._client.update_run(self.number, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(training.group)
        kept = self._client.create_experiment(training.group, kept_in) if experiment is None else experiment.experiment_id
        self.number = self._client.create_run(kept, run_name=training.name).info.run_id
        for name, value in flat({key: value for key, value in training.facts.items() if key != "plan"}).items():
            self._client.log_param(self.number, _plain_name(name), str(value)[:LONGEST_PARAMETER])
        self._client.log_dict(self.number, dict(training.facts), "facts.json")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self.number, _plain_name(name), value, step=step)

    def finish(self, *, is_whole: bool) -> None:
        self._client.set_terminated(self.number, status="FINISHED" if is_whole else "KILLED")


def _mlflow_store(home: Path) -> tuple[str, str | None]:
    """A database in the work folder, and where its files lie; files alone, which MLflow would rather not write any more, where it cannot
    make a database."""
    place = (home / "mlruns").as_uri()
    if find_spec("sqlalchemy") is not None:
        return f"sqlite:///{home / 'mlflow.db'}", place
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return place, None


LONGEST_PARAMETER = 500
"""Characters that every store of MLflow keeps of a value."""


def _plain_name(name: str) -> str:
    """Names of labels may hold any character; MLflow takes few."""
    return re.sub(r"[^\w./ -]", "_", name)


class _WeightsAndBiases:
    def __init__(self, module: Any, training: Tracked) -> None:
        self._run: Any = module.init(
            project=training.group,
            name=training.name,
            id=training.number,
            resume="allow",
            dir=str(training.home),
            config=dict(training.facts),
            mode=None if "WANDB_MODE" in os.environ else "offline",
            settings={"silent": True},
        )
        self.number = str(self._run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, *, is_whole: bool) -> None:
        self._run.finish(exit_code=0 if is_whole else 1)


class _Aim:
    def __init__(self, module: Any, training: Tracked) -> None:
        self._run: Any = module.Run(repo=str(training.home), experiment=training.group, run_hash=training.number)
        self._run.name = training.name
        self._run["facts"] = json.loads(json.dumps(training.facts))
        self.number = str(self._run.hash)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._run.track(value, name=name, step=step)

    def finish(self, *, is_whole: bool) -> None:
        self._run.close()


TRACKERS = Registry(
    "trackers",
    Tracker,
    {
        "tensorboard": Tracker(meaning="TensorBoard: FOLD/tensorboard", package="tensorboard", install="tensorboard", begin=_TensorBoard),
        "mlflow": Tracker(
            meaning="MLflow: WORK/mlflow.db and WORK/mlruns, or the server that MLFLOW_TRACKING_URI names",
            package="mlflow",
            install="mlflow",
            begin=_MLflow,
        ),
        "wandb": Tracker(
            meaning="Weights & Biases: WORK/wandb, online where WANDB_MODE says so",
            package="wandb",
            install="wandb",
            begin=_WeightsAndBiases,
        ),
        "aim": Tracker(meaning="Aim: WORK/.aim", package="aim", install="aim", begin=_Aim),
    },
)
"""The trackers by their name, and those of extensions."""
