"""What two processes may not do at once in a work folder or a folder of outputs, and what the second one is told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medseg3d.events import Event, Listener, silent
from medseg3d.files import remove_leftovers
from medseg3d.locks import FOREVER, Lock, locked, remove_stale_locks
from medseg3d.work_folder import WorkFolder

PATIENCE = 5.0
"""Seconds in which a process that finds its fold finished already gives it back."""
MAX_NAME_BYTES = 100


@contextmanager
def fold_lock(fold: Path, doing: str) -> Iterator[Lock]:
    """The folder of a fold, for its training and its validation; raises :class:`BusyError` where another process works on it.

    What a process that was killed has left there is removed.
    """
    advice = "Wait until it ends or stop it, then run the same command again; both together would mix their files."
    try:
        with locked(fold / ".lock", doing, advice=advice, patience=PATIENCE) as lock:
            remove_leftovers(fold, is_recursive=True)
            remove_stale_locks(fold)
            yield lock
    finally:
        with suppress(OSError):  # where nothing came of it, no empty folder stays
            fold.rmdir()
            fold.parent.rmdir()


@contextmanager
def selection_lock(folder: WorkFolder, on: Listener = silent) -> Iterator[None]:
    """The choice among all configurations; the second process waits, and finds everything measured."""

    def say(sentence: str) -> None:
        on(Event(stage="select", message=sentence))

    with locked(folder.root / ".selection.lock", "is being selected from", advice="", patience=FOREVER, say=say):
        tidy(folder.root)
        for pair in (folder.root / "models").glob("*+*"):
            remove_leftovers(pair, is_recursive=True)
        yield


def added_folders(fold: Path) -> Path:
    """Where the trainings lie, a folder for each, of the domains that joined a fold of a common network."""
    return fold / "added"


@contextmanager
def adding_lock(fold: Path, name: str) -> Iterator[Lock]:
    """The folder in which a domain is added to a fold of a common network, which nobody trains meanwhile.

    Several may be added at once. A training of the common network takes the locks of all of them before it changes anything.
    """
    with fold_lock(added_folders(fold) / name, "is being trained") as lock:
        with fold_lock(fold, "is being added to"):
            pass  # nobody trains it now
        yield lock


@contextmanager
def joining_lock(fold: Path) -> Iterator[None]:
    """The common network of a fold, while a domain that was added is put into it; the second process waits."""
    with locked(fold / ".joining.lock", "is being given another domain", advice="", patience=FOREVER):
        yield


@contextmanager
def planning_lock(folder: WorkFolder, on: Listener = silent) -> Iterator[None]:
    """The fingerprint, plan and folds of a work folder; the second process waits, and finds the cases measured."""

    def say(sentence: str) -> None:
        on(Event(stage="plan", message=sentence))

    with locked(folder.root / ".plan.lock", "is being planned", advice="", patience=FOREVER, say=say):
        tidy(folder.root)
        yield


@contextmanager
def correcting_lock(folder: WorkFolder) -> Iterator[None]:
    """A round of corrections in a work folder; raises :class:`BusyError` where another process is at one."""
    advice = "Wait until it ends or stop it, then run the same command again; a round that was stopped goes on."
    with locked(folder.root / ".correct.lock", "is learning from corrections", advice=advice):
        yield


def refuse_busy_folds(folder: WorkFolder, doing: str) -> None:
    """Raise :class:`BusyError` where another process trains or validates any fold of a work folder, finished or not."""
    for fold in sorted((folder.root / "models").glob("*/fold_*")):
        with fold_lock(fold, doing):
            pass


def tidy(folder: Path) -> None:
    """Delete what processes that were killed have left in a folder: temporary files, and locks."""
    remove_leftovers(folder)
    remove_stale_locks(folder)


@contextmanager
def case_lock(folder: WorkFolder, name: str) -> Iterator[None]:
    """A case in all stores; the second process waits, and finds the case made."""
    with locked(folder.root / "preprocessed" / lock_name(name), f"{name} is being preprocessed", advice="", patience=FOREVER):
        yield


@contextmanager
def record_lock(record: Path) -> Iterator[None]:
    """A record that several processes add to, each for a moment."""
    with locked(record.with_name(lock_name(record.name)), "is being written", advice="", patience=FOREVER):
        yield


def lock_name(name: str) -> str:
    """The name of a lock for a case or a file, whose own name may be as long as the file system takes it.

    >>> lock_name("predictions.json")
    '.predictions.json.lock'
    """
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) > MAX_NAME_BYTES:
        name = hashlib.blake2b(encoded, digest_size=16).hexdigest()
    return f".{name}.lock"
