"""Which process made a file, and whether it still runs: the process at hand → a few letters for a name, and back."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

NO_START = 0
"""Where the system does not tell when a process began."""
ENDED = ("Z", "X", "x")
"""States of a process that has ended, and whose parent has not asked for its exit code yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process for good: a number alone is given to another one later.

    ``host`` stands for the machine, its boot and the container; ``start`` is when it began, in ticks since the boot.
    """

    host: str
    pid: int
    start: int

    def __str__(self) -> str:
        """As it stands in names of files: ``9f3a21bc-3fae2-9d8f7``."""
        return f"{self.host}-{self.pid:x}-{self.start:x}"

    @property
    def is_alive(self) -> bool | None:
        """Whether it still runs; None where that cannot be seen from here, as it belongs to another host or container."""
        if self.host != host_identity() or not hasattr(os, "getpgid"):  # on Windows asking would end it
            return None
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass  # it is there, and another user's
        found = _stat(self.pid)
        if found is None:
            return True
        state, start = found
        return state not in ENDED and self.start in (NO_START, start)


PROCESS = re.compile(r"(?P<host>[0-9a-f]{8})-(?P<pid>[0-9a-f]{1,16})-(?P<start>[0-9a-f]{1,16})")
"""What ``str`` of a :class:`Process` gives."""


def parse_process(text: str) -> Process | None:
    """The process that a text names; None for any other text."""
    match = PROCESS.fullmatch(text)
    if match is None:
        return None
    return Process(host=match["host"], pid=int(match["pid"], 16), start=int(match["start"], 16))


def is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether this process was started to train with others, by ``torchrun`` for instance: the environment says so."""
    return environment.get("WORLD_SIZE", "1") != "1" and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys()


def this_process() -> Process:
    """The process at hand; another one after a fork."""
    return _process(os.getpid())


@lru_cache(maxsize=2)
def _process(pid: int) -> Process:
    found = _stat(pid)
    return Process(host=host_identity(), pid=pid, start=NO_START if found is None else found[1])


@lru_cache(maxsize=1)
def host_identity() -> str:
    """Eight digits for this machine since it was switched on, and for the container that the process runs in.

    Two machines may have one name, and a container numbers its processes anew.
    """
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        parts.append("")  # macOS and Windows have no such files
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()


def _stat(pid: int) -> tuple[str, int] | None:
    """State and start of a process; None where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return (fields[0], int(fields[19])) if len(fields) > 19 else None
