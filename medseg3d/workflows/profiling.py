"""``--profile``: some steps of a training are watched; a trace for a browser and the operations that take most time come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medseg3d.events import Event, Listener
from medseg3d.files import storage, write_text

SKIPPED, WARMED, WATCHED = 2, 1, 3
"""Steps: the first ones make kernels and fill caches, the profiler's own first step is slow, and a few say where the time goes."""
SHOWN = 10
TRACE, TABLE = "trace.json.gz", "operations.csv"


@contextmanager
def profiled(is_wanted: bool, target: Path, on: Listener) -> Iterator[Callable[[], None]]:
    """Call what is yielded after every step; ``target`` then holds ``trace.json.gz`` (chrome://tracing, Perfetto) and ``operations.csv``.

    Of a training that ends before, the steps that there were.
    """
    if not is_wanted:
        yield lambda: None
        return
    import torch
    from torch.profiler import ProfilerActivity, profile, schedule

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

    def write(found: Any) -> None:
        storage().make_folder(target)
        found.export_chrome_trace(str(target / TRACE))
        rows = _operations(found, on_gpu=on_gpu)
        lines = ["operation,seconds,share,calls", *(f'"{name}",{seconds:.6f},{share:.4f},{calls}' for name, seconds, share, calls in rows)]
        write_text(target / TABLE, "\n".join(lines) + "\n")
        on(Event(stage="profile", message=f"Profile of {WATCHED} steps ({target / TRACE}); the operations that took most time:"))
        for name, seconds, share, calls in rows[:SHOWN]:
            on(Event(stage="profile", message=f"  {100 * share:5.1f} %  {seconds:8.3f} s  {calls:6d} x  {name}"))

    steps = schedule(wait=SKIPPED, warmup=WARMED, active=WATCHED, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write) as profiler:
        yield profiler.step


def _operations(found: Any, *, on_gpu: bool) -> list[tuple[str, float, float, int]]:
    """Name, own seconds, share of all and calls of each operation, the most expensive first; on a GPU the seconds are its."""
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    averages = [event for event in found.key_averages() if getattr(event, key) > 0 and not event.key.startswith("ProfilerStep")]
    total = sum(getattr(event, key) for event in averages) or 1.0
    rows = [(event.key, getattr(event, key) / 1e6, getattr(event, key) / total, int(event.count)) for event in averages]
    return sorted(rows, key=lambda row: -row[1])
