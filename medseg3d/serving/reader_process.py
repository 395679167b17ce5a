"""The process that reads foreign files for a server: requests come as lines of JSON on standard input, answers go to standard output.

A file that crashes native code, takes all memory or never ends takes this process with it, and nothing else. The first line is the
model's plan. A request is ``{"do": "case", …}`` or ``{"do": "read", …}``; an answer has ``result`` or ``error``, and the ``warnings`` that
were logged. Voxels go through a file of numpy.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from medseg3d.data.dataset import Case
from medseg3d.data.reading import RawCase, read_to_predict
from medseg3d.errors import MedsegError, StorageError
from medseg3d.extensions import use_arguments
from medseg3d.files import storage_errors
from medseg3d.images import read_header
from medseg3d.plan import Plan
from medseg3d.records import from_plain, to_plain
from medseg3d.serving.cases import uploaded_case

MIN_BYTES_PER_VOXEL = 8
"""Of an image in float32 and what its file holds; an image for which not even this is free would take the server down."""
ARRAYS = ("image", "labels", "soft")
"""The fields of a case that are no JSON."""


def main() -> int:
    """Answer until standard input ends, as it does when the server is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server decides when to end, also where a terminal sends it to both
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what native code prints does not come between
    plan = from_plain(json.loads(sys.stdin.readline()), Plan, "the server's plan")
    use_arguments(sys.argv[1:])
    _load_readers()
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line), plan)) + "\n")
        answers.flush()
    return 0


def _load_readers() -> None:
    """Before the first file comes."""
    import isal.igzip  # noqa: F401
    import nibabel  # noqa: F401


def _answer(request: dict[str, Any], plan: Plan) -> dict[str, Any]:
    limit(bytes_more=request["max_bytes"], seconds_more=request["max_seconds"])
    warnings = _Warnings()
    package = logging.getLogger("medseg3d")
    package.addHandler(warnings)
    package.propagate = False
    try:
        answer = {"result": WORK[request["do"]](request, plan)}
    except MemoryError as error:
        answer = {"error": {"kind": "memory", "message": str(error)}}
    except StorageError as error:
        answer = {"error": {"kind": "storage", "message": str(error)}}
    except MedsegError as error:
        answer = {"error": {"kind": "input", "message": str(error)}}
    except Exception:  # told to the server, which logs it
        answer = {"error": {"kind": "defect", "message": traceback.format_exc()}}
    finally:
        package.removeHandler(warnings)
    return {**answer, "warnings": warnings.texts}


def _case(request: dict[str, Any], plan: Plan) -> Any:
    files = [Path(file) for file in request["files"]]
    tempfile.tempdir = str(files[0].parent)  # what is left over goes with the job
    found = uploaded_case(
        files,
        num_channels=len(plan.channels),
        max_unpacked_bytes=request["max_unpacked_bytes"],
        channels=plan.channels,
    )
    return to_plain(found)


def _read(request: dict[str, Any], plan: Plan) -> Any:
    case = from_plain(request["case"], Case, "the server's request")
    _check_memory(case, request["free_bytes"])
    target = Path(request["array"])
    tempfile.tempdir = str(target.parent)  # what is left over goes with the job
    raw = read_to_predict(case, plan)
    with storage_errors(target), target.open("xb") as file:
        np.save(file, raw.image, allow_pickle=False)
    return {name: to_plain(getattr(raw, name)) for name in RawCase.__dataclass_fields__ if name not in ARRAYS}


WORK: dict[str, Callable[[dict[str, Any], Plan], Any]] = {"case": _case, "read": _read}


def _check_memory(case: Case, free_bytes: int) -> None:
    """A header may claim any size; a folder of DICOM files lies on the disk already, slice by slice."""
    path = case.channels[0].path
    if path.is_dir():
        return
    shape = read_header(path).geometry.shape
    if MIN_BYTES_PER_VOXEL * len(case.channels) * prod(shape) > free_bytes:
        raise MemoryError(f"{case.name}: an image of {' x '.join(map(str, shape))} voxels does not fit the server's memory.")


def limit(*, bytes_more: int, seconds_more: float) -> None:
    """Let this process take no more than this beside what it has, where the system can do that."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + seconds_more) + 1
    for which, wanted in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_DATA, _data_bytes() + bytes_more)):
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _data_bytes() -> int:
    """What the system counts for RLIMIT_DATA."""
    status = Path("/proc/self/status")
    found = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmData:")] if status.exists() else []
    return int(found[0].split()[1]) * 1024 if found else 0


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:
            self.texts.append(record.getMessage())


if __name__ == "__main__":
    sys.exit(main())
