"""OpenVINO gives torch's label maps, or torch goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg3d import load_model
from medseg3d.errors import InputError
from medseg3d.prediction import openvino_backend

IMAGE = np.random.default_rng(0).normal(150, 60, (20, 18, 12))


def test_label_maps_are_those_of_torch(trained: Path) -> None:
    pytest.importorskip("openvino")
    ours = load_model(trained, device="cpu", precision="float32")
    theirs = load_model(trained, device="cpu", precision="float32", backend="openvino")
    expected = ours.predict(IMAGE, np.eye(4))
    assert (theirs.predict(IMAGE, np.eye(4)) == expected).mean() > 0.999
    assert isinstance(theirs._used[0].networks[0], openvino_backend.OpenVinoNetwork)
    assert theirs.identity != ours.identity


def test_torch_goes_on_where_the_first_window_differs(
    trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(torch.nn.Module):
        def __init__(self, network: torch.nn.Module, *_: object) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -self.network(x)

    monkeypatch.setattr(openvino_backend, "OpenVinoNetwork", Wrong)
    monkeypatch.setattr("medseg3d.loading.check_openvino", lambda device: None)  # it need not be installed for this
    model = load_model(trained, device="cpu", precision="float32", backend="openvino")
    expected = load_model(trained, device="cpu", precision="float32").predict(IMAGE, np.eye(4))
    with caplog.at_level("WARNING"):
        assert np.array_equal(model.predict(IMAGE, np.eye(4)), expected)
    assert "OpenVINO deviates by" in caplog.text


def test_what_is_missing_is_said(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"pip install 'medseg3d\[cpu\]'"):
        load_model(trained, device="cpu", backend="openvino").predict(IMAGE, np.eye(4))
