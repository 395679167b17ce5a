"""One of the processes that train a network together: ``python -m medseg3d.workflows.team_member [--extension FILE]… REQUEST.json``.

Started by :mod:`medseg3d.workflows.processes`. It writes a line of JSON for each event, message of the log and failure: the events are
those of the first process, and of all failures the first one is told. Where whoever started it ends, so does this process.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from medseg3d.devices import GPU_TYPES, choose_device
from medseg3d.errors import MedsegError
from medseg3d.evaluation.metrics import Evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.extensions import use_arguments
from medseg3d.options import TrainOptions
from medseg3d.records import from_plain, read_json, to_plain
from medseg3d.signals import Stopped, ending_on_signals
from medseg3d.team import is_loss_of_others, joined_team, speaks_first
from medseg3d.workflows.processes import Report, Request
from medseg3d.workflows.train import network_fold, train_in_team

ENDED_WITH_ANOTHER = 4
"""The exit code of a process that ended for want of another, which has said why."""


def main(arguments: list[str]) -> int:
    """Take part in a training; returns an exit code as that of the command line."""
    (file,) = use_arguments(arguments)
    request = from_plain(read_json(Path(file)), Request, file)
    rank = int(os.environ["RANK"])
    logging.getLogger("medseg3d").addHandler(_ToParent())
    logging.getLogger("medseg3d").setLevel(logging.INFO if rank == 0 else logging.ERROR)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    options = replace(request.options, devices=None, device=request.devices[rank])
    sys.excepthook = _only_first
    with ending_on_signals(lambda number: None):
        try:
            take_part(request.dataset, request.work, options, os.environ, _to_parent if rank == 0 else silent)
        except MedsegError as error:
            if speaks_first():
                _write(Report(message=str(error), exit_code=error.exit_code))
            return error.exit_code
        except Stopped as error:
            return 128 + error.signal_number
        except RuntimeError as error:
            if not is_loss_of_others(error):
                raise
            return ENDED_WITH_ANOTHER
    return 0


def take_part(
    root: Path, work: Path | None, options: TrainOptions, environment: Mapping[str, str], on: Listener
) -> dict[str | None, Evaluation | None]:
    """Train as one of the processes that the environment tells of, as ``torchrun`` does: on the GPU of its number where a GPU is meant."""
    import torch

    place = environment.get("LOCAL_RANK", environment["RANK"])
    if options.device in ("auto", *GPU_TYPES) and torch.cuda.is_available():
        options = replace(options, device=f"{GPU_TYPES[0]}:{place}")
    device = choose_device(options.device)  # says what is wrong before the others are waited for
    with joined_team(environment, gpu=device.device if device.is_gpu else None) as team:
        return train_in_team(network_fold(root, work, options), options, team, on)


def _end_with_parent() -> None:
    """The other end of standard input is held by whoever started this process."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _only_first(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if speaks_first():
        sys.__excepthook__(kind, error, trace)


class _ToParent(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Let the parent log it."""
        _write(Report(level=record.levelno, message=record.getMessage()))


def _to_parent(event: Event) -> None:
    _write(Report(event=event))


def _write(report: Report) -> None:
    sys.stdout.write(json.dumps(to_plain(report)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
