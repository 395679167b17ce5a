"""What a server that was killed leaves behind is removed by the next one; what belongs to another stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medseg3d.serving.job_folder import LOCK, PREFIX, UNFINISHED, job_folder, remove_abandoned

SERVER = """
import sys, time
from pathlib import Path
from medseg3d.serving.job_folder import job_folder
with job_folder(Path(sys.argv[1])) as folder:
    (folder / "patient.nii.gz").write_bytes(b"image")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_a_folder_ends_with_its_block(tmp_path: Path) -> None:
    with job_folder(tmp_path) as folder:
        (folder / "a").mkdir()
        assert folder.parent.name.startswith(PREFIX)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(
    "F",
    "`kill -9` of a server leaves patients' images in the folder for temporary files",
    "removed when the next server starts; folders of servers that run stay",
)
def test_what_a_killed_server_left_is_removed_by_the_next_and_a_living_one_keeps_its_own(tmp_path: Path) -> None:
    servers = [subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, encoding="utf-8") for _ in range(2)]
    try:
        folders = [Path(server.stdout.readline().strip()) for server in servers if server.stdout is not None]
        servers[0].kill()
        servers[0].wait()
        assert all((folder / "patient.nii.gz").exists() for folder in folders)
        with job_folder(tmp_path) as own:
            assert sorted(tmp_path.iterdir()) == sorted([folders[1].parent, own.parent])
            assert (folders[1] / "patient.nii.gz").exists()
    finally:
        for server in servers:
            server.kill()
            server.communicate()


def test_only_folders_of_servers_are_removed(tmp_path: Path) -> None:
    kept = [tmp_path / "other", tmp_path / f"{PREFIX}young", tmp_path / f"{UNFINISHED}young"]
    old = tmp_path / f"{PREFIX}old"
    for folder in (*kept, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    (tmp_path / f"{PREFIX}file").write_text("x", encoding="utf-8")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / LOCK).touch()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "target", target_is_directory=True)
    remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*(folder.name for folder in kept), f"{PREFIX}file", f"{PREFIX}link", "target"]
    )
