"""Processes of this machine that predict cases side by side, each with its share of the cores."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medseg3d.extensions import loaded_extensions, use_extension


@contextmanager
def local_processes(count: int | None) -> Iterator[Executor | None]:
    """``count`` fresh processes; None for one or None. Where the block is left by an error they end at once, with their cases."""
    if count is None or count == 1:
        yield None
        return
    context, before = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    started = context.Value("i", 0)
    extensions = tuple(extension.path for extension in loaded_extensions())
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(started, count, extensions))
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(started: Any, count: int, extensions: tuple[Path, ...]) -> None:
    """In a fresh process: its cores, the extensions, and silence, as the parent says what the results say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the others
    with started.get_lock():
        number = started.value
        started.value += 1
    if hasattr(os, "sched_setaffinity"):  # macOS and Windows let the threads of all compete
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % count :: count] or cores)
    logging.getLogger("medseg3d").setLevel(logging.ERROR)
    for path in extensions:
        use_extension(str(path))
