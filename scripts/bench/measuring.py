"""Run a command and measure it from outside: seconds of wall clock and the peak memory of all its processes together.

In: a command line. Out: :class:`Measured`. Memory is sampled from ``/proc`` (Linux), so nothing is added to the measured program.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.05
"""Least time between two samples of memory: short against the allocations that matter."""
MAX_SAMPLING_SHARE = 0.01
"""Sampling walks the page tables of the measured program and locks them meanwhile: at most this share of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One finished command; ``cpu_seconds`` are those of all its cores, its own processes included."""

    command: tuple[str, ...]
    seconds: float
    peak_mib: float | None
    exit_code: int
    cpu_seconds: float = 0.0


class CommandFailedError(RuntimeError):
    """A measured command ended with an exit code that was not expected; the message holds the end of its output."""


def run_measured(
    command: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    accepted: Sequence[int] = (0,),
) -> Measured:
    """Run ``command`` with ``environment`` added to ours, its output appended to ``log``.

    The peak is the larger of two: the greatest sampled sum over all processes of the command's session, each counted by its
    proportional share (PSS: a page that n processes share counts once), and the kernel's own high-water mark of the largest
    single process, taken when the command ends, which no sampling can miss. Raises :class:`CommandFailedError` for an exit
    code outside ``accepted``.
    """
    words = tuple(str(word) for word in command)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {' '.join(words)}\n")
        output.flush()
        start = time.perf_counter()
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            cwd=folder,
            start_new_session=True,
        )
        sampler = _Sampler(process.pid)
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            exit_code = process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            seconds = time.perf_counter() - start
            sampler.stop()
    if exit_code not in accepted:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise CommandFailedError(f"{' '.join(words)}\nended with exit code {exit_code}; the end of {log}:\n{tail}")
    largest = usage.ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
    peak = max(largest, sampler.peak_mib or 0)
    return Measured(command=words, seconds=seconds, peak_mib=peak, exit_code=exit_code, cpu_seconds=usage.ru_utime + usage.ru_stime)


class _Sampler(threading.Thread):
    """Samples the memory of all processes of one session until it is stopped."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.session = session
        self.largest_sum_kib = 0
        self.largest_single_kib = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        pause = SAMPLE_SECONDS
        while not self.stopped.wait(pause):
            began, total = time.perf_counter(), 0
            for pid in _processes_of(self.session):
                total += _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")
                self.largest_single_kib = max(self.largest_single_kib, _kib(Path(f"/proc/{pid}/status"), "VmHWM:"))
            self.largest_sum_kib = max(self.largest_sum_kib, total)
            pause = max(SAMPLE_SECONDS, (time.perf_counter() - began) / MAX_SAMPLING_SHARE)

    def stop(self) -> None:
        self.stopped.set()
        self.join()

    @property
    def peak_mib(self) -> float | None:
        peak = max(self.largest_sum_kib, self.largest_single_kib)
        return peak / 1024 if peak else None


def _processes_of(session: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit():
            try:
                if os.getsid(int(entry)) == session:
                    found.append(int(entry))
            except OSError:  # the process ended meanwhile
                continue
    return found


def _kib(path: Path, key: str) -> int:
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith(key):
                return int(line.split()[1])
    except OSError:  # the process ended meanwhile, or its memory is not ours to read
        pass
    return 0


def median_seconds(runs: Sequence[Measured]) -> float:
    """The median wall clock of some runs."""
    return statistics.median(run.seconds for run in runs)


def peak_mib(runs: Sequence[Measured]) -> float:
    """The largest peak of some runs; NaN where none was measured."""
    return max((run.peak_mib for run in runs if run.peak_mib is not None), default=float("nan"))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write_json(path: Path, document: object) -> Path:
    """An indented JSON file, complete or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def machine() -> dict[str, object]:
    """What a reader needs beside a number: cores, memory and load of the machine when it was measured."""
    facts: dict[str, object] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    if hasattr(os, "getloadavg"):
        facts["load_average_1min"] = os.getloadavg()[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        facts["memory_gib"] = round(_kib(meminfo, "MemTotal:") / 2**20, 1)
    return facts
