"""Where case-wise work runs, and how much memory it may take.

Work goes in as a function and items, results come out one by one in the order in which they finish. Threads are the
default: the heavy calls release the interpreter lock. Any ``concurrent.futures.Executor`` can take their place
(``dask.distributed.Client.get_executor()``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any, Generic, TypeVar

from medseg3d.boundary import CaseBoundary
from medseg3d.errors import CaseFailure, InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

DEFAULT_MEMORY_SHARE = 0.6
"""Share of the free memory that work may take when ``--max-ram`` is not given: the rest is for the file cache and the desktop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Generic[Item, Result]):
    """One finished item: its result, or the failure of a case that the others need not suffer from."""

    item: Item
    result: Result | None
    failure: CaseFailure | None


def run_cases(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    name_of: Callable[[Item], str],
    stage: str,
    bytes_of: Callable[[Item], int] | None = None,
    num_workers: int | None = None,
    max_bytes: int | None = None,
    executor: Executor | None = None,
) -> Iterator[Done[Item, Result]]:
    """Run ``work`` over all items, at most ``num_workers`` at once and within ``max_bytes`` of predicted memory.

    ``bytes_of`` predicts the peak of one item; an item larger than the budget runs alone. An ``executor`` runs ``num_workers`` at once,
    whatever they take: the memory is that of other machines. What goes wrong with one item becomes its
    failure (:class:`~medseg3d.boundary.CaseBoundary`); a :class:`StorageError` and what else concerns all of them stops the work.
    """
    workers = workers_for(num_workers)
    budget = max_bytes or memory_budget(None)
    bytes_of = bytes_of if executor is None else None
    boundary = CaseBoundary(stage)
    pending = list(items)
    running: dict[Future[Result], tuple[Item, int]] = {}
    pool = executor or ThreadPoolExecutor(workers, thread_name_prefix=stage)
    try:
        while pending or running:
            while pending and len(running) < workers:
                cost = bytes_of(pending[0]) if bytes_of else 0
                if running and sum(c for _, c in running.values()) + cost > budget:
                    break
                item = pending.pop(0)
                running[pool.submit(work, item)] = (item, cost)
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                item, _ = running.pop(future)
                result = None
                with boundary.around(name_of(item)) as attempt:
                    result = future.result()
                yield Done(item=item, result=result, failure=attempt.failure)
        boundary.finish()
    finally:
        for future in running:
            future.cancel()
        if executor is None:
            pool.shutdown(wait=True, cancel_futures=True)


def workers_for(num_workers: int | None) -> int:
    """As many as are wanted, the available cores for None; raises :class:`InputError` for less than one."""
    if num_workers is not None and not (isinstance(num_workers, Integral) and num_workers >= 1):
        raise InputError(f"num_workers is {num_workers}, expected a whole number of at least 1.")
    return num_workers or available_cores()


def available_cores() -> int:
    """The CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity call
        return os.cpu_count() or 1


def memory_budget(max_ram_gb: float | None) -> int:
    """Bytes that case-wise work may take: ``max_ram_gb``, or a share of what is free (container limits count)."""
    if max_ram_gb is not None:
        return int(max_ram_gb * 2**30)
    return int(free_memory() * DEFAULT_MEMORY_SHARE)


def total_memory() -> int | None:
    """Bytes of memory and swap of this machine; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
    return sum(int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal") if name in lines)


def free_memory(root: Path = Path("/")) -> int:
    """Free bytes of this machine or container; 4 GiB where the system does not tell. ``root`` is where its folders lie."""
    free = 4 * 2**30
    meminfo = root / "proc/meminfo"
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    return min([free, *(max(0, limit - used) for limit, used in _group_limits(root))])


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of memory of each control group that this process is in, of version 2 and of version 1; what files cache is free."""
    groups = root / "sys/fs/cgroup"
    for folder in _group_folders(root, "", (groups, groups / "unified")):
        used = _number(folder / "memory.current")
        cached = _number(folder / "memory.stat", "inactive_file")
        for limit in (_number(folder / "memory.max"), _number(folder / "memory.high")):
            if limit is not None and used is not None:
                yield limit, used - (cached or 0)
    for folder in _group_folders(root, "memory", (groups / "memory",)):
        limit, used = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.usage_in_bytes")
        cached = _number(folder / "memory.stat", "total_inactive_file")
        if limit is not None and used is not None:
            yield limit, used - (cached or 0)


def _group_folders(root: Path, controller: str, mounts: Sequence[Path]) -> Iterator[Path]:
    """The folders of this process's group and of all above it: any of them may have a limit.

    In a container the group's path may be that of the host, and its folder is the mounted one then.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    paths = ["/"]
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller in controllers.split(","):
            paths.append(path)
    found = (folder for mount in mounts for path in paths for folder in _upwards(mount, path))
    yield from (folder for folder in dict.fromkeys(found) if folder.is_dir())


def _upwards(mount: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part and part != ".."]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _number(file: Path, key: str | None = None) -> int | None:
    """The number in a file of the system, or after a key in it; None where there is none, as for no limit."""
    try:
        text = file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    if key is not None:
        text = next((line.removeprefix(f"{key} ") for line in text.splitlines() if line.startswith(f"{key} ")), "")
    return int(text) if text.strip().isdigit() else None


def reset_peak_memory() -> None:
    """Let :func:`peak_memory` begin anew; does nothing where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory() -> int | None:
    """The most bytes of main memory that this process held since :func:`reset_peak_memory`; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = [line for line in status.read_text(encoding="ascii", errors="replace").splitlines() if line.startswith("VmHWM:")]
    return int(found[0].split()[1]) * 1024 if found else None


@contextmanager
def single_threaded_libraries() -> Iterator[None]:
    """One BLAS/OpenMP thread per worker while cases run side by side, so that n workers do not start n x n threads."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """One thread per NumPy matrix product; torch's threads are left alone."""
    with _blas().limit(limits=1, user_api="blas"):
        yield


@lru_cache(maxsize=1)
def _blas() -> Any:
    """The loaded libraries: looking for them takes milliseconds."""
    import numpy  # noqa: F401  # brings its BLAS
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
