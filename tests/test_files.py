"""What cannot be written is one message, and a missing source is not taken for it."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from medseg3d.errors import InputError, StorageError
from medseg3d.files import check_writable, copy_file, remove_leftovers, remove_tree, replacing, write_text
from medseg3d.models.checkpoints import load_tensors, save_tensors
from medseg3d.processes import this_process
from medseg3d.records import read_json
from tests.test_processes import ended_process


@pytest.mark.parametrize("place", ["/proc/out", "slice.png", "slice.png/x", "name" * 100])
def test_a_folder_that_cannot_be_made_is_named_with_neutral_advice(tmp_path: Path, place: str) -> None:
    (tmp_path / "slice.png").write_bytes(b"")
    for attempt in (check_writable, lambda folder: write_text(folder / "x.json", "{}")):
        with pytest.raises(StorageError, match=r"cannot be written \(.*\)\. Choose another folder, or change its permissions\.$") as error:
            attempt(tmp_path / place)
        assert place in str(error.value)


def test_a_folder_that_can_be_written_stays_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "new/folder")
    assert list((tmp_path / "new/folder").iterdir()) == []


def test_a_source_that_is_missing_is_no_question_of_where_to_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "out/x"):
        (tmp_path / "elsewhere/lost").read_bytes()


def test_a_json_file_below_a_file_or_that_is_a_folder_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "slice.png").write_bytes(b"")
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "slice.png/timings.json")
    with pytest.raises(InputError, match=r"cannot be read \(it is a folder\)"):
        read_json(tmp_path)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_weights_have_the_mode_of_any_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        save_tensors(tmp_path / "w.safetensors", {"a": torch.ones(2)}, {"format_version": 2})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o666 & ~mask
    assert load_tensors(tmp_path / "w.safetensors")[0]["a"].sum() == 2
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_lasting_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    settled = []
    monkeypatch.setattr(
        "os.fsync", lambda number: settled.append((stat.S_ISDIR((s := os.fstat(number)).st_mode) or s.st_size, path.exists()))
    )
    with replacing(path, is_lasting=True) as temporary:
        temporary.write_bytes(b"123")
    assert settled == [(3, False), (True, True)], "the file before its name, then the folder with the name"
    with replacing(path) as temporary:
        temporary.write_bytes(b"1234")
    assert len(settled) == 2
    assert path.read_bytes() == b"1234"


def failing(number: int) -> Callable[..., None]:
    """A system call that answers with an error."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.fault("C", "fsync answers EINVAL, ENOTSUP or ENOSYS, as network shares do", "the file is written and renamed as without it")
def test_a_share_that_knows_no_fsync_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("os.fsync", failing(number))
    with replacing(tmp_path / "weights", is_lasting=True) as temporary:
        temporary.write_bytes(b"123")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize(("number", "message"), [(errno.EIO, "the disk or the share failed"), (errno.ENOSPC, "the disk is full")])
@pytest.mark.fault("C", "fsync reports a broken or a full disk", "one message; the old file stays and nothing is left over")
def test_a_disk_that_fails_at_fsync_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str) -> None:
    (tmp_path / "weights").write_bytes(b"old")
    monkeypatch.setattr("os.fsync", failing(number))
    with pytest.raises(StorageError, match=message), replacing(tmp_path / "weights", is_lasting=True) as temporary:
        temporary.write_bytes(b"123")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("weights", b"old")]


@pytest.mark.fault("C", "a share refuses to set times and permissions", "the copy is made without them")
def test_a_copy_is_made_where_times_and_modes_cannot_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"1")
    for name in ("chmod", "utime"):
        monkeypatch.setattr(os, name, failing(errno.EPERM))
    assert copy_file(tmp_path / "a", tmp_path / "b").read_bytes() == b"1"


@pytest.mark.fault("C", "temporary files that a killed process has left", "deleted at the next start, those of running processes stay")
def test_only_what_ended_processes_left_is_removed(tmp_path: Path) -> None:
    gone, here = ended_process(), this_process()
    away = replace(here, host="00000000")
    for process in (gone, here, away):
        (tmp_path / f".{process}-00000000.tmp.plan.json").write_bytes(b"")
        (tmp_path / f".{process}-00000000.tmp.case").mkdir()
        (tmp_path / f".{process}-00000000.tmp.case" / "image").write_bytes(b"")
    for name in (".0a1b2c3d.tmp.old.json", "plan.json", ".tmp.notes", f".{gone}-00000000.tmpnotes"):
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / ".0a1b2c3d.tmp.old.json", (0, 0))
    remove_leftovers(tmp_path)
    expected = [f".{process}-00000000.tmp.{name}" for process in (here, away) for name in ("plan.json", "case")]
    assert {path.name for path in tmp_path.iterdir()} == {*expected, "plan.json", ".tmp.notes", f".{gone}-00000000.tmpnotes"}
    for path in tmp_path.glob(f".{away}*"):
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path, name="case")
    assert {path.name for path in tmp_path.glob(f".{away}*")} == {f".{away}-00000000.tmp.plan.json"}


def test_a_long_name_is_written_as_long_as_the_file_system_takes_it(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 122 + ".nii.gz")
    with replacing(path) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"1")
    assert path.read_bytes() == b"1"


def test_a_folder_that_is_removed_is_gone_at_once(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    remove_tree(tmp_path / "a")
    remove_tree(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_tensors_have_the_bytes_that_the_library_gives(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 4), "a": torch.randn(2).bfloat16(), "ä": torch.tensor(3), "z": torch.tensor([True]),
               "e": torch.zeros(0, 3), "t": torch.randn(4, 5).T}  # fmt: skip
    save_tensors(tmp_path / "w.safetensors", dict(tensors), {"format_version": 2, "name": 'ö"'})
    ours = (tmp_path / "w.safetensors").read_bytes()
    head = 8 + int.from_bytes(ours[:8], "little")
    theirs = save({name: tensor.contiguous() for name, tensor in tensors.items()}, json.loads(ours[8:head])["__metadata__"])
    assert (ours[:8], ours[head:]) == (theirs[:8], theirs[head:])
    assert json.loads(ours[8:head]) == json.loads(theirs[8:head]), "the order of the metadata is that of a hash table"
