"""The plugin of napari: a layer's axes (z, y, x) come back as they went, by a model, a server and a file alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medseg3d.images import READERS
from tests.integrations.stand_ins import INTEGRATIONS, ScriptedServer, load, module

FOLDER = INTEGRATIONS / "napari" / "napari_medseg3d"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    return load(FOLDER / "segment.py", {}, monkeypatch)


@pytest.fixture
def files(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return load(FOLDER / "files.py", {"napari_medseg3d": module("napari_medseg3d"), "napari_medseg3d.segment": plugin}, monkeypatch)


def test_a_layer_is_segmented_as_its_file_is(plugin: Any, files: Any, trained: Path) -> None:
    import medseg3d

    path = trained / "imagesTs" / "ball_6_0000.nii.gz"
    ((layer, properties, kind),) = files.get_reader(str(path))(str(path))
    assert (properties["name"], kind) == ("ball_6_0000", "image")
    values, names = plugin.segment(layer, properties["scale"], properties["metadata"], str(trained))
    np.testing.assert_array_equal(values.transpose(2, 1, 0), medseg3d.load_model(trained).predict(nibabel.load(path)))
    assert names == {3: "shell", 7: "core"}


@pytest.mark.parametrize("code", ["RAS", "LPS", "ASL", "PIR"])
def test_a_label_map_lies_on_the_grid_of_its_image(files: Any, tmp_path: Path, code: str) -> None:
    orientation = nibabel.orientations.axcodes2ornt(code)
    affine = np.diag([1.0, 2, 3, 1]) @ nibabel.orientations.inv_ornt_aff(orientation, (5, 4, 3))
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), affine)
    nibabel.save(image, tmp_path / "image.nii.gz")
    ((layer, properties, _),) = files.read_layers([str(tmp_path / "image.nii.gz")])
    np.testing.assert_array_equal(layer.transpose(2, 1, 0), image.dataobj)
    assert files.write_labels(str(tmp_path / "labels.nii.gz"), layer.astype(np.int64), properties) == [str(tmp_path / "labels.nii.gz")]
    written = nibabel.load(tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(written.affine, affine)
    np.testing.assert_array_equal(written.dataobj, image.dataobj)
    assert written.get_data_dtype() == np.uint8


def test_the_view_has_the_head_up_and_the_right_on_the_left(files: Any, tmp_path: Path) -> None:
    for code, signs in (("RAS", [-1, -1, -1]), ("LPI", [1, 1, 1]), ("LAS", [-1, -1, 1])):
        orientation = nibabel.orientations.axcodes2ornt(code)
        affine = np.diag([1.0, 1, 1, 1]) @ nibabel.orientations.inv_ornt_aff(orientation, (5, 4, 3))
        nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), affine), tmp_path / "image.nii")
        ((_, properties, _),) = files.read_layers(str(tmp_path / "image.nii"))
        np.testing.assert_array_equal(properties["scale"], signs)


def test_what_is_no_image_is_left_to_other_readers(files: Any, tmp_path: Path) -> None:
    assert files.get_reader(str(tmp_path / "picture.png")) is None
    with pytest.raises(ValueError, match="The layer has 2 axes"):
        files.write_labels(str(tmp_path / "labels.nii.gz"), np.zeros((3, 3), int), {})


def test_without_an_affine_the_axes_count_as_dicoms(plugin: Any) -> None:
    np.testing.assert_array_equal(plugin.affine_of((5, 1, 2), {}), np.diag([-2.0, -1, 5, 1]))
    with pytest.raises(ValueError, match="The layer has 2 axes"):
        plugin.segment(np.zeros((3, 3)), (1, 1), {}, "model")


def test_a_layer_goes_to_a_server(plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((5, 4, 3), np.uint8)
    values[1, 2, 0] = 7
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "result.nii.gz")
    server = ScriptedServer(tmp_path / "result.nii.gz")
    monkeypatch.setattr(plugin, "server_at", lambda address: server)
    layer = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    found, names = plugin.segment(layer, (5, 1, 1), {}, "http://127.0.0.1:8000")
    np.testing.assert_array_equal(server.sent[0], layer.transpose(2, 1, 0))
    assert found.shape == layer.shape
    assert found[0, 2, 1] == 7
    assert names == {3: "shell", 7: "core"}


def test_what_the_manifest_names_is_there(plugin: Any, files: Any) -> None:
    text = (FOLDER / "napari.yaml").read_text(encoding="utf-8")
    named = re.findall(r"python_name: napari_medseg3d\.(\w+):(\w+)", text)
    assert [
        name for file, name in named if not re.search(rf"^def {name}\(", (FOLDER / f"{file}.py").read_text(encoding="utf-8"), re.M)
    ] == []
    assert len(named) == 3
    (patterns,) = re.findall(r"filename_patterns: \[(.*)\]", text)
    assert {each.strip().strip('"')[1:] for each in patterns.split(",")} <= set(READERS)
