"""What lies in a work folder, and what is said where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medseg3d.errors import InputError
from medseg3d.models.checkpoints import FORMAT_VERSION, save_tensors
from medseg3d.records import read_json, write_record
from medseg3d.training.folds import Split, Splits, read_folds, write_splits
from medseg3d.work_folder import WorkFolder


@pytest.mark.fault("D", "a damaged plan.json", "one message says to bring it back from a copy or to delete it and plan again")
@pytest.mark.parametrize("content", ["", "{", '{"format": "medseg3d/plan", "format_version": 1, "dataset": 3}', '{"format": "other"}'])
def test_a_damaged_plan_says_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"plan\.json: .*delete it and run medseg3d plan"):
        WorkFolder(tmp_path).read_plan()


@pytest.mark.fault("D", "a damaged splits.json", "one message says to bring it back from a copy or to delete it and plan again")
@pytest.mark.parametrize("content", ["", "[1, 2", '{"format": "medseg3d/splits", "format_version": 1, "folds": [{"train": 3}]}'])
def test_damaged_folds_say_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "splits.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"splits\.json: .*delete it and run medseg3d plan"):
        read_folds(tmp_path / "splits.json")


def test_folds_come_back(tmp_path: Path) -> None:
    splits = (Split(train=("a",), validation=("b",)),)
    assert read_folds(write_splits(tmp_path / "splits.json", splits)) == Splits(folds=splits)


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    """A fold whose training has ended."""
    found = WorkFolder(tmp_path)
    state = {"is_finished": True, "plan_digest": "abc"}
    fold = found.fold("3d", "0")
    save_tensors(fold / "last.safetensors", {"a": torch.ones(2)}, {"format_version": FORMAT_VERSION, "state": state})
    save_tensors(fold / "weights.safetensors", {"a": torch.ones(2)}, {"format_version": FORMAT_VERSION})
    write_record(fold / "training.json", state, "training", is_sealed=True)
    return found


@pytest.mark.fault("A7", "a changed byte in training.json", "found; what last.safetensors holds is used, or one message says what to do")
def test_any_changed_byte_of_the_state_of_a_training_is_found(work: WorkFolder, record_property) -> None:
    file = work.fold("3d", "0") / "training.json"
    whole = file.read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 0x10
        file.write_bytes(content)
        with pytest.raises(InputError):
            read_json(file)
    record_property("tries", len(whole))
    assert work.finished_folds("3d") == ("0",)
    (work.fold("3d", "0") / "last.safetensors").unlink()
    with pytest.raises(InputError, match=r"training\.json: .*Delete it"):
        work.finished_folds("3d")


def test_a_state_of_before_there_were_seals_is_read(work: WorkFolder) -> None:
    write_record(work.fold("3d", "0") / "training.json", {"is_finished": False}, "training")
    assert work.finished_folds("3d") == ()
