"""One process at a time, whatever became of the one before."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from medseg3d.errors import BusyError, StorageError
from medseg3d.files import Storage, using_storage
from medseg3d.locks import OWNER, STALE_SECONDS, Owner, locked, read_owner
from medseg3d.processes import this_process
from tests.test_processes import ended_process

ADVICE = "Wait for it."


def hold(folder: Path, process: str, *, age: float = 0.0) -> Owner:
    """A lock as a process elsewhere, or one that ended, has left it; touched ``age`` seconds ago."""
    owner = Owner(process=process, token="0badcafe", host="node7", pid=4711, since="2026-01-02T03:04:05", doing="is being trained")
    folder.mkdir(parents=True)
    (folder / OWNER).write_text(json.dumps(asdict(owner)), encoding="utf-8")
    stamp = time.time() - age
    os.utime(folder / OWNER, (stamp, stamp))
    return owner


def elsewhere() -> str:
    return str(replace(this_process(), host="00000000"))


def test_a_lock_is_held_by_this_process_and_leaves_nothing(tmp_path: Path) -> None:
    with locked(tmp_path / "fold/.lock", "is being trained", advice=ADVICE) as lock:
        owner = read_owner(tmp_path / "fold/.lock")
        assert owner == lock.owner
        assert owner is not None
        assert (owner.pid, owner.host) == (os.getpid(), socket.gethostname())
        with locked(tmp_path / "fold/.lock", "is being validated", advice=ADVICE) as again:
            assert again is lock
        lock.check()
    assert list((tmp_path / "fold").iterdir()) == []


@pytest.mark.fault(
    "C", "a fold, case or folder that a running process on another host works on", "exit 2: its process, host and time are named"
)
def test_another_hosts_lock_is_respected_while_it_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(tmp_path / ".lock", elsewhere(), age=STALE_SECONDS - 90)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # our clock runs decades before that of the file server
    with pytest.raises(BusyError) as error, locked(tmp_path / ".lock", "", advice=ADVICE):
        pass
    assert re.search(r"is being trained by process 4711 on node7, since 2026-01-02 03:04:05\. Wait for it\.", str(error.value))
    assert re.search(r"heard of 21\d s ago; where it has ended, .* taken over in 2 min", str(error.value))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.fault(
    "C", "the lock of a process that was killed", "taken over with a message: at once on this host, from another one after 5 minutes"
)
@pytest.mark.parametrize("is_here", [True, False])
def test_a_lock_whose_process_has_ended_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, is_here: bool) -> None:
    process = str(ended_process()) if is_here else elsewhere()
    hold(tmp_path / ".lock", process, age=0.0 if is_here else STALE_SECONDS + 5)
    with locked(tmp_path / ".lock", "is being trained", advice=ADVICE) as lock:
        lock.check()
    assert "process 4711 on node7, since 2026-01-02 03:04:05 is taken over" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}'])
@pytest.mark.fault("C", "a lock whose file a power cut has emptied", "respected until it was not touched for 5 minutes, then taken over")
def test_a_lock_that_cannot_be_read_grows_old_as_any_other(tmp_path: Path, content: bytes) -> None:
    hold(tmp_path / ".lock", elsewhere())
    (tmp_path / ".lock" / OWNER).write_bytes(content)
    with pytest.raises(BusyError, match="held by another process"), locked(tmp_path / ".lock", "", advice=ADVICE):
        pass
    os.utime(tmp_path / ".lock" / OWNER, (0, 0))
    with locked(tmp_path / ".lock", "", advice=ADVICE):
        pass


def test_a_lock_that_was_being_given_back_is_free(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with locked(tmp_path / ".lock", "", advice=ADVICE):
        pass
    assert list(tmp_path.iterdir()) == []


class FailsOnce(Storage):
    """A disk that answers the first removal with an input/output error."""

    has_failed = False

    def remove(self, path: Path) -> None:
        if not self.has_failed:
            self.has_failed = True
            raise OSError(errno.EIO, "Input/output error", str(path))
        super().remove(path)


@pytest.mark.fault("C", "a disk that fails while a lock is given back", "the same process takes it again and goes on")
def test_a_lock_that_could_not_be_given_back_does_not_stop_its_own_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = FailsOnce()
    with using_storage(disk):
        with locked(tmp_path / "lock", "x", advice=""):
            pass
        assert disk.has_failed
        assert (tmp_path / "lock").exists()
        with locked(tmp_path / "lock", "x", advice="", patience=5):
            pass
    assert list(tmp_path.iterdir()) == []
    assert not caplog.records


@pytest.mark.fault("C", "a process that was suspended so long that another took over", "it stops at its next save, and mixes no files")
def test_who_lost_a_lock_is_told_and_does_not_give_back_that_of_another(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock", "", advice=ADVICE) as lock:
        (tmp_path / ".lock").rename(tmp_path / "away")
        hold(tmp_path / ".lock", elsewhere())
        with pytest.raises(BusyError, match="taken over by process 4711 on node7"):
            lock.check()
    assert read_owner(tmp_path / ".lock") is not None


def test_a_lock_that_was_taken_over_while_we_looked_is_put_back(tmp_path: Path) -> None:
    hold(tmp_path / ".lock", str(ended_process()))

    class Late(Storage):
        """Another process takes the stale lock over just before we take it away."""

        def rename(self, source: Path, target: Path) -> None:
            if source == tmp_path / ".lock" and target.name.startswith("."):
                owner = read_owner(source)
                assert owner is not None
                if owner.token == "0badcafe":
                    theirs = replace(owner, token="beef", process=elsewhere())
                    (source / OWNER).write_text(json.dumps(asdict(theirs)), encoding="utf-8")
            super().rename(source, target)

    with using_storage(Late()), pytest.raises(BusyError), locked(tmp_path / ".lock", "", advice=ADVICE):
        pass
    owner = read_owner(tmp_path / ".lock")
    assert owner is not None
    assert owner.token == "beef"


def test_threads_wait_for_each_other(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(5):
            with locked(tmp_path / ".lock", "", advice=ADVICE, patience=60):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


COUNT = """
import sys, time
from pathlib import Path
from medseg3d.locks import locked
folder = Path(sys.argv[1])
while not (folder / "go").exists():
    time.sleep(0.001)
for _ in range(10):
    with locked(folder / ".lock", "is counted", advice="", patience=60):
        number = int((folder / "number").read_text())
        time.sleep(0.002)
        (folder / "number").write_text(str(number + 1))
"""


@pytest.mark.fault(
    "C", "several processes that find the lock of a killed one at the same moment", "one after the other gets it, nothing is lost"
)
def test_processes_that_meet_at_a_stale_lock_take_turns(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    hold(tmp_path / ".lock", str(ended_process()))
    (tmp_path / "number").write_text("0", encoding="ascii")
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)], stderr=subprocess.PIPE) for _ in range(4)]
    time.sleep(0.3)
    (tmp_path / "go").touch()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert (tmp_path / "number").read_text(encoding="ascii") == "40"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["go", "number"]
    record_property("tries", 40)


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError), locked(tmp_path / "file/.lock", "", advice=ADVICE):
        pass
