"""Networks on OpenVINO's kernels for processors: a torch network and its window go in, a network with the same numbers comes out.

OpenVINO arranges the weights once and joins convolutions with what follows them.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence

import torch

from medseg3d.devices import Device
from medseg3d.errors import InputError
from medseg3d.execution import available_cores

HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""Precision of a device → OpenVINO's name of it."""


def check_openvino(device: Device) -> None:
    """Raise :class:`InputError` where OpenVINO is not installed, or another device is meant than the processor."""
    if importlib.util.find_spec("openvino") is None:
        raise InputError("--backend openvino needs OpenVINO: pip install 'medseg3d[cpu]'.")
    if device.device.type != "cpu":
        raise InputError(f"--backend openvino runs on the processor, not on {device.device}. Add --device cpu.")


class OpenVinoNetwork(torch.nn.Module):
    """Logits ``(B, K, *window)`` float32 of windows ``(B, C, *window)``, one window after the other; for prediction only."""

    def __init__(self, network: torch.nn.Module, in_channels: int, window: Sequence[int], device: Device) -> None:
        super().__init__()
        check_openvino(device)
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": HINTS[device.precision], "INFERENCE_NUM_THREADS": available_cores()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the converters, about their own future
            program = torch.export.export(network.eval(), (torch.zeros(1, in_channels, *window),))
            converted = openvino.convert_model(program)
        self._request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, *window)`` → ``(B, K, *window)``."""
        windows = x.float().contiguous().numpy()
        return torch.stack([torch.from_numpy(self._request.infer([window[None]])[0][0].copy()) for window in windows])
