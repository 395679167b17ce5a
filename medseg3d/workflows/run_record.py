"""What a training was: command, options, versions, machine, seed, and digests of plan and data, written beside its weights."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medseg3d.errors import InputError
from medseg3d.extensions import extension_arguments
from medseg3d.options import TrainOptions, arguments_of
from medseg3d.records import read_record, to_plain, write_record
from medseg3d.version import __version__
from medseg3d.workflows.initial_weights import is_shapes

RECORD = "run.json"
PACKAGES = ("torch", "numpy", "scipy", "monai", "nibabel", "SimpleITK", "blosc2")
"""Whose version may change a bit of weights or predictions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What may change the last digits: versions, the CPU and its instructions, threads, processes, and the device."""

    versions: dict[str, str]
    system: str
    cpu: str
    threads: int
    processes: int
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The contents of ``run.json``. ``environments`` has an entry for each time that the training was begun or gone on with, and
    ``data`` the digest of each training case."""

    command: str
    dataset: str
    options: TrainOptions
    seed: int
    plan_digest: str
    data: dict[str, str] = field(default_factory=dict)
    environments: tuple[Environment, ...] = ()
    begun: str = ""

    @property
    def data_digest(self) -> str:
        """One digest of all training cases."""
        return hashlib.blake2b(json.dumps(sorted(self.data.items())).encode(), digest_size=8).hexdigest()


def note_run(target: Path, record: RunRecord, environment: Environment, *, goes_on: bool) -> RunRecord:
    """Write ``run.json`` into the folder of a training. Where it goes on, what it was begun with stays, but for a length that is given
    anew, and the environment is added."""
    earlier = read_run(target) if goes_on else None
    if earlier is None:
        written = replace(record, environments=(environment,), begun=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    else:
        given = {name: value for name in LENGTHS if (value := getattr(record.options, name)) is not None}
        options = replace(earlier.options, **given)
        written = replace(earlier, dataset=record.dataset, options=options, environments=(*earlier.environments, environment))
    write_record(target / RECORD, written, "run")
    return written


def from_anywhere(options: TrainOptions) -> TrainOptions:
    """The options with the path of ``init`` as it is named from any folder, so that the training can be made again from there."""
    if options.init is None or is_shapes(options.init):
        return options
    return replace(options, init=options.init.absolute())


LENGTHS = ("epochs", "iterations", "hours")
"""What a training that goes on may be given anew."""


def read_run(target: Path) -> RunRecord | None:
    """What is written of a training; None where nothing is, or it cannot be read."""
    try:
        return read_record(target / RECORD, RunRecord, "run")
    except InputError:
        return None


def train_command(dataset: Path, work: Path, options: TrainOptions) -> str:
    """The line that trains a fold in this way."""
    words = ["medseg3d", "train", str(dataset), "-w", str(work), *arguments_of(options, TrainOptions)]
    return shlex.join([*words, *([] if "--fold" in words else ["--fold", options.fold]), *extension_arguments()])


def facts_of(record: RunRecord, *, work: Path, folder: Path, plan: Mapping[str, Any], goes_on: bool) -> dict[str, Any]:
    """What trackers are told of a training."""
    options = {name: value for name, value in to_plain(record.options).items() if value is not None}
    return {
        "dataset": plan["dataset"],
        "configuration": folder.parent.name,
        "fold": record.options.fold,
        "folder": str(folder),
        "work": str(work),
        "goes_on": goes_on,
        "command": record.command,
        "seed": record.seed,
        "plan_digest": record.plan_digest,
        "data_digest": record.data_digest,
        "options": options,
        "environment": to_plain(record.environments[-1]),
        "plan": dict(plan),
    }


def this_environment(*, device: str, processes: int) -> Environment:
    """Of this process."""
    import torch

    return Environment(
        versions={"medseg3d": __version__, "python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        system=platform.platform(),
        cpu=f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        threads=torch.get_num_threads(),
        processes=processes,
        device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
