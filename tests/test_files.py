"""What cannot be written is one message, and a missing source is not taken for it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from medseg3d.checkpoints import load_tensors, save_tensors
from medseg3d.errors import InputError, StorageError
from medseg3d.files import check_writable, replacing, write_text
from medseg3d.records import read_json


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
    monkeypatch.setattr("os.fsync", lambda number: settled.append((os.fstat(number).st_size, path.exists())))
    with replacing(path, is_lasting=True) as temporary:
        temporary.write_bytes(b"123")
    assert settled == [(3, False)]
    with replacing(path) as temporary:
        temporary.write_bytes(b"1234")
    assert len(settled) == 1
    assert path.read_bytes() == b"1234"
