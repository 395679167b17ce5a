"""The module of 3D Slicer against a stand-in of Slicer and of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.integrations.stand_ins import INTEGRATIONS, Node, ScriptedServer, load, slicer_modules

FOLDER = INTEGRATIONS / "slicer" / "Medseg3D"


@pytest.fixture
def slicer(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Node]]:
    modules, scene = slicer_modules()
    monkeypatch.syspath_prepend(str(FOLDER))
    return load(FOLDER / "Medseg3D.py", modules, monkeypatch), scene


@pytest.fixture
def volume() -> Node:
    return Node("ball_6_0000", np.arange(60, dtype=np.int16).reshape(5, 4, 3))


@pytest.fixture
def label_map(tmp_path: Path) -> Path:
    values = np.zeros((5, 4, 3), np.uint8)
    values[1, 1, 1] = 7
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "result.nii.gz")
    return tmp_path / "result.nii.gz"


def test_a_volume_becomes_segments_under_their_names(slicer: Any, volume: Node, label_map: Path) -> None:
    module, scene = slicer
    logic, server = module.Medseg3DLogic(), ScriptedServer(label_map, ["queued", "running", "done"])
    assert logic.start("", "", volume, server) == "ball_6_0000: sent."
    np.testing.assert_array_equal(server.sent[0], volume.array)
    assert [logic.look(), logic.look()] == ["ball_6_0000: queued, place 2", "ball_6_0000: running"]
    assert logic.is_running
    assert logic.look() == "ball_6_0000: done. looks odd."
    (segmentation,) = scene
    assert [segment.name for segment in segmentation.segments] == ["core", "shell"], "an absent label is there, and empty"
    assert (logic.is_running, server.deleted) == (False, ["job"])


def test_a_failure_says_why_and_leaves_no_job(slicer: Any, volume: Node, label_map: Path) -> None:
    module, scene = slicer
    logic, server = module.Medseg3DLogic(), ScriptedServer(label_map, ["failed"], "the image is empty.")
    logic.start("", "", volume, server)
    with pytest.raises(module.ServerError, match="the image is empty"):
        logic.look()
    assert (scene, logic.is_running, server.deleted) == ([], False, ["job"])


def test_one_volume_at_a_time(slicer: Any, volume: Node, label_map: Path) -> None:
    module, _ = slicer
    logic, server = module.Medseg3DLogic(), ScriptedServer(label_map)
    with pytest.raises(ValueError, match="Choose a volume first"):
        logic.start("", "", None, server)
    logic.start("", "", volume, server)
    with pytest.raises(ValueError, match="A volume is being segmented"):
        logic.start("", "", volume, server)
    logic.stop()
    assert server.deleted == ["job"]


def test_a_correction_is_saved_under_the_name_of_its_case(slicer: Any, volume: Node, label_map: Path, tmp_path: Path) -> None:
    module, _ = slicer
    logic = module.Medseg3DLogic()
    with pytest.raises(ValueError, match="has no segmentation"):
        logic.save_correction(volume, str(tmp_path))
    logic.start("", "", volume, ScriptedServer(label_map))
    logic.look()
    logic.save_correction(volume, str(tmp_path / "corrections"))
    assert (tmp_path / "corrections" / "ball_6.seg.nrrd").read_text(encoding="utf-8").split() == ["core", "shell"]
    logic.save_correction(volume, str(tmp_path / "corrections"))
    with pytest.raises(ValueError, match="is there already, perhaps of another patient"):
        module.Medseg3DLogic().save_correction(volume, str(tmp_path / "corrections"))


def test_the_widget_shows_what_went_wrong(slicer: Any) -> None:
    module, _ = slicer
    widget = module.Medseg3DWidget()
    widget.setup()
    widget.volume.currentNode.return_value = None
    widget.onSegment()
    assert widget.status.text == "Choose a volume first."
    assert (widget.segment.enabled, widget.stop.enabled) == (True, False)
    widget.cleanup()
    assert module.Medseg3D(type("Parent", (), {})()).parent.title == "medseg3d"


@pytest.mark.parametrize(("volume", "case"), [("liver_007_0000", "liver_007"), ("patient_0012", "patient_0012"), ("CT: 2/3", "CT_ 2_3")])
def test_a_case_is_called_as_its_volume_without_the_first_channel(slicer: Any, volume: str, case: str) -> None:
    assert slicer[0].case_name(volume) == case
