"""The MONAI Label app against a stand-in of MONAI Label and of the server."""

from __future__ import annotations

import json
import subprocess
import types
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from tests.integrations.stand_ins import INTEGRATIONS, ScriptedServer, load, monailabel_modules


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Any:
    return load(INTEGRATIONS / "monailabel" / "medseg3d_app" / "main.py", monailabel_modules(), monkeypatch)


@pytest.fixture
def server(tmp_path: Path) -> ScriptedServer:
    values = np.zeros((5, 4, 3), np.uint8)
    values[1, 1, 1] = 7
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "image.nii.gz")
    return ScriptedServer(tmp_path / "image.nii.gz")


@pytest.fixture
def app(main: Any, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(main, "Server", lambda address, token: asked.append((address, token)) or server)
    monkeypatch.setenv("MEDSEG3D_TOKEN", "secret")
    made = main.Medseg3DApp("", str(tmp_path), {"server": "http://there:8000", "dataset": str(tmp_path / "Balls")})
    assert asked == [("http://there:8000", "secret")]
    return made


def test_the_app_is_what_the_server_serves(app: Any) -> None:
    assert app.labels == {"shell": 3, "core": 7}
    assert (list(app.infers), list(app.strategies), list(app.trainers)) == (["Balls"], ["proposals"], ["correct"])
    assert app.infers["Balls"].is_valid()


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_an_image_is_predicted_by_the_server(app: Any, server: ScriptedServer, tmp_path: Path, ending: str) -> None:
    file, document = app.infers["Balls"]({"image": str(tmp_path / "image.nii.gz"), "result_extension": ending})
    assert file.endswith(ending)
    assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)).max() == 7
    assert document["label_names"] == {"shell": 3, "core": 7}
    assert len(server.sent) == 1
    Path(file).unlink()


def test_the_next_image_is_the_first_proposed_that_nobody_annotated(app: Any, tmp_path: Path) -> None:
    datastore = types.SimpleNamespace(get_unlabeled_images=lambda: ["a", "b_0000", "c"])
    strategy = app.strategies["proposals"]
    assert strategy({}, datastore) == "a", "without proposals the first one"
    strategy.file.parent.mkdir(parents=True)
    strategy.file.write_text(json.dumps({"proposed": [{"case": "done"}, {"case": "b"}, {"case": "c"}]}), encoding="utf-8")
    assert strategy({}, datastore) == "b_0000"
    assert strategy({}, types.SimpleNamespace(get_unlabeled_images=list)) is None


def test_learning_is_a_command_that_exists(app: Any, main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medseg3d.commandline.arguments import build_parser, taken
    from medseg3d.commandline.verbs import COMMANDS

    task = app.trainers["correct"]
    words = task.command({"epochs": 5, "hours": 0.0})
    options = taken(COMMANDS["correct"].record, build_parser(COMMANDS).parse_args(words[3:]))
    assert (options.corrections, options.images, options.epochs) == (tmp_path / "labels/final", tmp_path, 5)
    answers = [(0, '{"number": 1}'), (3, '{"number": 2, "left_out": ["a"]}'), (2, '{"message": "nothing new"}'), (1, "")]

    def run(words: list[str], **keywords: object) -> subprocess.CompletedProcess[str]:
        code, text = answers.pop(0)
        return subprocess.CompletedProcess(words, code, text, "a traceback")

    monkeypatch.setattr(main.subprocess, "run", run)
    assert task({}, None) == {"number": 1} == task.stats()
    assert task({}, None)["number"] == 2, "a round that went on without a case is one"
    with pytest.raises(RuntimeError, match="nothing new"):
        task({}, None)
    with pytest.raises(RuntimeError, match="a traceback"):
        task({}, None)


def test_without_a_dataset_there_is_only_prediction(
    main: Any, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "Server", lambda address, token: server)
    assert main.Medseg3DApp("", str(tmp_path), {}).trainers == {}
