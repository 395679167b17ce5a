"""What a run was trained with is written down, and what has changed since is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medseg3d.provenance import Origin, is_changed, mark_file, merged, names_digest, weights_of
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.origins import note_training_data


@pytest.mark.fault("A3", "a fold that goes on after files of its cases changed", "the cases are named, and that --restart trains with them")
def test_cases_that_changed_since_a_run_began_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun = {"a": "1-plan", "b": "2-plan"}
    note_training_data(tmp_path, begun, is_restart=False)
    (tmp_path / "last.safetensors").touch()
    note_training_data(tmp_path, {"a": "1-other plan", "b": "2-plan", "new": "5-plan"}, is_restart=False)
    assert not caplog.records
    for _ in range(2):  # it is said as long as it is so
        caplog.clear()
        note_training_data(tmp_path, {**begun, "b": "3-plan"}, is_restart=False)
        assert "other files of b, which have changed" in caplog.text
        assert "--restart" in caplog.text
    caplog.clear()
    note_training_data(tmp_path, {**begun, "b": "3-plan"}, is_restart=True)
    note_training_data(tmp_path, {**begun, "b": "3-plan"}, is_restart=False)
    assert not caplog.records


def test_a_run_of_an_older_version_goes_on_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "last.safetensors").touch()
    note_training_data(tmp_path, {"a": "1-plan"}, is_restart=False)
    assert not caplog.records


def test_a_file_is_the_same_by_its_content_and_not_by_its_time(tmp_path: Path) -> None:
    file = tmp_path / "labelsTr" / "a.nii.gz"
    file.parent.mkdir()
    file.write_bytes(b"abc")
    work = WorkFolder(tmp_path / "work")
    mark = mark_file(file, work)
    assert mark.path == "../labelsTr/a.nii.gz"
    os.utime(file, ns=(1, 1))
    assert not is_changed(mark, work.root)
    file.write_bytes(b"abd")
    os.utime(file, ns=(2, 2))
    assert is_changed(mark, work.root)
    file.unlink()
    assert not is_changed(mark, work.root), "what is not there cannot be compared"


def test_origins_are_joined_and_identities_name_their_weights() -> None:
    first, second = Origin(weights={"2d/0": "a"}, folds={"0": "x"}), Origin(weights={"3d/0": "b"})
    assert merged([first, second]) == Origin(weights={"2d/0": "a", "3d/0": "b"}, folds={"0": "x"})
    digest = "0123456789abcdef" * 2
    assert weights_of(f"2d/all/{digest};Postprocessing(steps=());tta=True;step=0.5") == {"2d/all": digest}
    assert weights_of("another kind of identity") == {}
    assert names_digest(["b", "a"]) == names_digest(["a", "b"]) != names_digest(["ab"])
