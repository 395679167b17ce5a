"""The widget of napari: a layer's axes (z, y, x) come back as they went, by a model and by a server alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.integrations.stand_ins import INTEGRATIONS, ScriptedServer, load, module


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    magicgui = module("magicgui", magic_factory=lambda **options: lambda function: function)
    return load(INTEGRATIONS / "napari" / "napari_medseg3d" / "__init__.py", {"magicgui": magicgui}, monkeypatch)


def test_a_layer_is_segmented_as_its_file_is(plugin: Any, trained: Path) -> None:
    import medseg3d

    image = nibabel.load(trained / "imagesTs" / "ball_6_0000.nii.gz")
    layer = np.asarray(image.dataobj).transpose(2, 1, 0)
    values, names = plugin.segment(layer, (1.5, 1, 1), {"affine": image.affine}, str(trained))
    np.testing.assert_array_equal(values.transpose(2, 1, 0), medseg3d.load_model(trained).predict(image))
    assert names == {3: "shell", 7: "core"}


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


def test_what_the_manifest_names_is_there(plugin: Any) -> None:
    text = (INTEGRATIONS / "napari" / "napari_medseg3d" / "napari.yaml").read_text(encoding="utf-8")
    assert "python_name: napari_medseg3d:segment_widget" in text
    assert callable(plugin.segment_widget)
