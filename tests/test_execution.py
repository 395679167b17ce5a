"""How much memory is free: the machine's, or what is left of the limits of the groups that a process is in."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg3d.execution import free_memory

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
