"""The folder in which a listener keeps what it received and what became of it: every step is one file that is renamed into its place.

``received/STUDY/SERIES/INSTANCE.dcm``, ``jobs/JOB.json`` and ``results/JOB/``. All names are digests of UIDs, so that no path and no line
of the log holds what a patient could be found by. A process that is killed leaves a valid state: an instance is there or was not answered
for.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medseg3d.errors import ImageReadError, InputError
from medseg3d.files import remove_file, remove_leftovers, remove_tree, storage, storage_errors, temporary_for
from medseg3d.images.dicom_file import pixel_bytes, read_dicom_file
from medseg3d.images.opening import reading
from medseg3d.records import Checked, read_record, write_record

State = Literal["waiting", "predicted", "sent", "failed", "replaced"]
ENDED: tuple[State, ...] = ("sent", "failed", "replaced")
KIND = "listen-job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Checked):
    """One series for one rule. ``instances`` are the names of its files in the folder of its study.

    ``files`` are the results; ``sent`` tells which of them arrived where. ``next_try``, ``since`` (its making) and ``ended`` are in seconds
    since 1970. ``counts`` are the instances of each channel, one after the other, empty for one channel; ``content`` is what the
    instances were when they were predicted, empty in records of older versions.
    """

    id: str
    study: str
    rule: str
    instances: tuple[str, ...]
    state: State = "waiting"
    files: tuple[str, ...] = ()
    sent: dict[str, tuple[str, ...]] = field(default_factory=dict)
    attempts: int = 0
    next_try: float = 0.0
    since: float = 0.0
    ended: float = 0.0
    reason: str = ""
    counts: tuple[int, ...] = ()
    content: str = ""

    @property
    def has_ended(self) -> bool:
        """Nothing more is done of it."""
        return self.state in ENDED

    @property
    def label(self) -> str:
        """What the log calls it."""
        return f"study {self.study[:8]}, rule {self.rule}"


@dataclass(frozen=True, slots=True)
class Spool:
    """The folder."""

    root: Path

    @property
    def received(self) -> Path:
        """Studies as they came."""
        return self.root / "received"

    @property
    def incoming(self) -> Path:
        """Instances that are being written."""
        return self.root / "incoming"

    @property
    def jobs(self) -> Path:
        """What became of them."""
        return self.root / "jobs"

    def results(self, job: Job) -> Path:
        """What a job made."""
        return self.root / "results" / job.id

    def prepare(self) -> None:
        """Make the folders, for this user only, and remove what a process that was killed had not finished; by whoever has the lock."""
        storage().make_folder(self.root)
        with suppress(PermissionError):  # a share that knows no modes
            self.root.chmod(0o700)
        for folder in (self.received, self.incoming, self.jobs, self.root / "results"):
            storage().make_folder(folder)
            remove_leftovers(folder, is_recursive=True)
        for path in self.incoming.iterdir():
            remove_file(path)

    # ---- instances

    def add(self, content: bytes) -> Path:
        """Keep an instance: it is on the disk when this returns. One that is there already is left as it is, unless it says something else.

        Raises :class:`ImageReadError` for what does not tell its study, series and instance, and :class:`StorageError`.
        """
        with storage_errors(self.incoming), temporary_for(self.incoming / "instance.dcm") as temporary:
            storage().write(temporary, content)
            place = self.place_of(temporary)
            if place.exists() and _is_same_object(temporary, place):
                os.utime(place.parent)  # it counts as come: a study that is sent again is not removed meanwhile
            else:
                storage().sync(temporary)
                storage().make_folder(place.parent)
                storage().replace(temporary, place)
                storage().sync(place.parent)
        return place

    def place_of(self, path: Path) -> Path:
        """Where an instance lies or would lie."""
        with reading(path):
            file = read_dicom_file(path)
        uids = [file.text(tag) for tag in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
        if not all(uids):
            raise ImageReadError("a DICOM object that does not tell its study, series and instance")
        study, series, instance = map(digest_of_uid, uids)
        return self.received / study / series / f"{instance}.dcm"

    def content_of(self, job: Job) -> str:
        """A digest of which files the instances of a job are; another one where an instance came again with other content."""
        digest = hashlib.blake2b(digest_size=8)
        for name in job.instances:
            try:
                status = (self.received / job.study / name).stat()
            except OSError:
                return ""
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def studies(self) -> list[Path]:
        """Folders of studies that lie here."""
        return sorted(path for path in self.received.iterdir() if path.is_dir())

    # ---- jobs

    def all_jobs(self) -> tuple[list[Job], list[str]]:
        """In the order of their making, and the names of damaged records, which are put aside."""
        found, damaged = [], []
        for path in sorted(self.jobs.glob("[!.]*.json")):
            try:
                found.append(self.read(path))
            except InputError:
                storage().replace(path, path.with_suffix(".damaged"))
                damaged.append(path.name)
        return sorted(found, key=lambda job: (job.since, job.id)), damaged

    def read(self, path: Path) -> Job:
        """One of them."""
        return read_record(path, Job, KIND)

    def write(self, job: Job) -> Job:
        """Keep a job's state, on the disk when this returns."""
        path = self._path(job.id)
        with storage_errors(path), temporary_for(path) as temporary:
            write_record(temporary, job, KIND)
            storage().sync(temporary)
            storage().replace(temporary, path)
            storage().sync(path.parent)
        return job

    def forget(self, job: Job) -> None:
        """Remove the record of a job."""
        remove_file(self._path(job.id))

    def remove_results(self, job: Job) -> None:
        """Remove what a job made."""
        remove_tree(self.results(job))

    def remove_study(self, study: Path) -> None:
        """Remove what was received of a study."""
        remove_tree(study)

    def _path(self, job: str) -> Path:
        return self.jobs / f"{job}.json"


def _is_same_object(first: Path, second: Path) -> bool:
    """Whether two files of one instance say the same: byte for byte, or, where they are encoded otherwise, in all that we read of a
    header."""
    if first.read_bytes() == second.read_bytes():
        return True
    try:
        one, other = read_dicom_file(first), read_dicom_file(second)
        if one.damage or other.damage or one.tags != other.tags:
            return False
        return one.syntax != other.syntax or one.pixels is None or pixel_bytes(one) == pixel_bytes(other)
    except ImageReadError:
        return False


def digest_of_uid(uid: str) -> str:
    """A short name that tells nothing of the patient."""
    return hashlib.blake2b(uid.encode(), digest_size=8).hexdigest()


def job_id(study: str, rule: str, rule_digest: str, instances: Sequence[str]) -> str:
    """The same for the same slices and the same rule: a study that is sent twice is predicted once."""
    content = "\n".join((rule, rule_digest, *sorted(instances)))
    return f"{study[:8]}-{hashlib.blake2b(content.encode(), digest_size=6).hexdigest()}"


def last_change(study: Path) -> float:
    """When the last instance of a study came, in seconds since 1970."""
    try:  # a file that is renamed into a folder changes the folder
        return max(folder.stat().st_mtime for folder in (study, *(path for path in study.iterdir() if path.is_dir())))
    except FileNotFoundError:  # removed meanwhile
        return time.time()


def check_spool(root: Path) -> Spool:
    """A folder that is a spool, or becomes one; raises :class:`InputError` for one that holds something else."""
    if root.is_dir() and any(path.name not in KNOWN and not path.name.startswith(".") for path in root.iterdir()):
        raise InputError(f"{root}: holds other files; name a folder of its own for what the listener keeps.")
    return Spool(root)


KNOWN = ("received", "incoming", "jobs", "results", "listen.log", "taken.txt")
