"""How many cases run at once, within which memory: the machine's, or what is left of the limits of the groups that a process is in."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.errors import StorageError
from medseg3d.execution import DEFAULT_MEMORY_SHARE, Done, free_memory, memory_budget, run_cases, total_memory

GB = 2**30


def system(root: Path, *, cgroup: str, files: dict[str, str]) -> Path:
    """A system with 64 GB available."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {99 * 2**20} kB\nMemAvailable: {64 * 2**20} kB\n", encoding="ascii")
    (root / "proc/self/cgroup").write_text(cgroup, encoding="ascii")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


CASES = {
    "no limit": ("0::/\n", {"memory.max": "max\n", "memory.current": "5\n"}, 64),
    "version 2, in a container": ("0::/\n", {"memory.max": f"{8 * GB}\n", "memory.current": f"{3 * GB}\n"}, 5),
    "version 2, cached files": (
        "0::/\n",
        {"memory.max": f"{8 * GB}", "memory.current": f"{7 * GB}", "memory.stat": f"anon 1\ninactive_file {4 * GB}\n"},
        5,
    ),
    "version 2, the limit of a group above": (
        "0::/slurm/job_7/step_0\n",
        {
            "slurm/job_7/memory.max": f"{16 * GB}",
            "slurm/job_7/memory.current": f"{6 * GB}",
            "slurm/job_7/step_0/memory.max": "max",
            "slurm/job_7/step_0/memory.current": f"{6 * GB}",
        },
        10,
    ),
    "version 2, memory.high": ("0::/\n", {"memory.max": "max", "memory.high": f"{4 * GB}", "memory.current": f"{1 * GB}"}, 3),
    "version 1, on the host": (
        "11:cpu,cpuacct:/x\n9:memory:/slurm/uid_1/job_7\n0::/\n",
        {
            "memory/slurm/uid_1/job_7/memory.limit_in_bytes": f"{12 * GB}",
            "memory/slurm/uid_1/job_7/memory.usage_in_bytes": f"{11 * GB}",
            "memory/slurm/uid_1/job_7/memory.stat": f"inactive_file 1\ntotal_inactive_file {3 * GB}\n",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": f"{90 * GB}",
        },
        4,
    ),
    "version 1, in a container that sees the host's path": (
        "9:memory:/docker/abc\n",
        {"memory/memory.limit_in_bytes": f"{6 * GB}", "memory/memory.usage_in_bytes": f"{4 * GB}"},
        2,
    ),
    "version 1 beside version 2": (
        "9:memory:/job\n0::/user\n",
        {"memory/job/memory.limit_in_bytes": f"{6 * GB}", "memory/job/memory.usage_in_bytes": f"{1 * GB}", "unified/user/cgroup.procs": ""},
        5,
    ),
    "more is used than allowed": ("0::/\n", {"memory.max": f"{1 * GB}", "memory.current": f"{2 * GB}"}, 0),
}


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.fault(
    "C", "limits of memory by control groups, version 1 and 2, nested", "the least that is left counts, cached files as free"
)
def test_limits_of_control_groups_are_kept(tmp_path: Path, name: str) -> None:
    cgroup, files, expected_gb = CASES[name]
    assert free_memory(system(tmp_path, cgroup=cgroup, files=files)) == expected_gb * GB


def test_a_system_that_tells_nothing_has_a_little(tmp_path: Path) -> None:
    assert free_memory(tmp_path) == 4 * GB


def test_the_budget_is_what_was_asked_for_or_a_share_of_what_is_free() -> None:
    assert memory_budget(1.5) == 3 * 2**29
    assert 0 <= memory_budget(None) <= DEFAULT_MEMORY_SHARE * (total_memory() or 4 * GB)


class Crowd:
    """Work whose cases wait for each other, and which notes how many run at once and what they take together."""

    def __init__(self, together: int) -> None:
        self.gate = threading.Barrier(together)
        self.lock = threading.Lock()
        self.running: list[int] = []
        self.seen: list[list[int]] = []

    def __call__(self, cost: int) -> int:
        with self.lock:
            self.running.append(cost)
            self.seen.append(sorted(self.running))
        self.gate.wait(30)
        with self.lock:
            self.running.remove(cost)
        return 10 * cost


def run(work, costs, **options) -> list[Done]:
    return list(run_cases(work, costs, name_of=str, stage="try", bytes_of=lambda cost: cost, **options))


def test_as_many_cases_run_at_once_as_there_are_workers() -> None:
    crowd = Crowd(together=3)
    done = run(crowd, [1] * 6, num_workers=3, max_bytes=100)
    assert [found.result for found in done] == [10] * 6
    assert max(map(len, crowd.seen)) == 3


def test_cases_that_would_not_fit_together_wait_and_one_that_never_fits_runs_alone() -> None:
    crowd = Crowd(together=1)
    done = run(crowd, [6, 6, 20, 3, 3], num_workers=4, max_bytes=10)
    assert sorted(found.item for found in done) == [3, 3, 6, 6, 20]
    assert all(sum(together) <= 10 or len(together) == 1 for together in crowd.seen)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 4), st.integers(1, 40))
def test_every_case_is_done_once_within_the_budget(costs: list[int], workers: int, budget: int) -> None:
    crowd = Crowd(together=1)
    assert sorted(found.item for found in run(crowd, costs, num_workers=workers, max_bytes=budget)) == sorted(costs)
    assert all(len(together) <= workers and (sum(together) <= budget or len(together) == 1) for together in crowd.seen)


def test_results_come_as_they_are_done() -> None:
    first_is_out = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert first_is_out.wait(30)
        return number

    results = run_cases(work, [0, 1], name_of=str, stage="try", num_workers=2)
    assert next(results).item == 1
    first_is_out.set()
    assert next(results).item == 0


def test_a_broken_disk_stops_the_work_and_what_has_not_begun_does_not_begin() -> None:
    begun = []

    def work(number: int) -> None:
        begun.append(number)
        raise StorageError("full")

    with pytest.raises(StorageError, match="full"):
        run(work, range(50), num_workers=1, max_bytes=1000)
    assert begun == [0]


def test_an_executor_that_was_given_goes_on_serving() -> None:
    with ThreadPoolExecutor(1) as executor:
        assert [found.result for found in run(abs, [-1, -2], executor=executor, num_workers=2, max_bytes=10)] == [1, 2]
        assert executor.submit(abs, -3).result() == 3
