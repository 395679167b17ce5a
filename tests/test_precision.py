"""A kernel that is wrong is found by its numbers, in training and prediction; rounding is not taken for one."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.devices import Device, choose_device
from medseg3d.networks.build import build_network
from medseg3d.plan import Configuration, NetworkPlan, Normalization, Resampling, TrainingPlan
from medseg3d.precision import checked_precision, wrong_convolution, wrong_gradient
from medseg3d.training import probe

STYLED = ("plain_unet", "residual_unet", "classic_unet", "vnet", "u2net")
"""Families that build every plan; those of MONAI have tests of their own."""

pytestmark = pytest.mark.skipif(choose_device("cpu").precision != "bfloat16", reason="bf16 is not used on this CPU")

HALF = Device(device=torch.device("cpu"), precision="bfloat16")
PLAN = NetworkPlan(
    family="plain_unet",
    dimensions=3,
    in_channels=1,
    num_classes=3,
    features=(8, 12),
    kernel_sizes=((3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (2, 2, 2)),
    encoder_blocks=(2, 2),
    decoder_blocks=(2,),
)
SIZE = (4, 8, 8)
CONFIGURATION = Configuration(
    name="3d_fullres",
    spacing=(1.0, 1.0, 1.0),
    median_shape=(4.0, 8.0, 8.0),
    patch_size=SIZE,
    batch_size=2,
    batch_dice=False,
    network=PLAN,
    normalization=(Normalization(scheme="zscore"),),
    resampling=Resampling(),
    training=TrainingPlan(),
    mirror_axes=(),
)
BOTTLENECK = (2, 4, 4)


def with_changed_voxel(value: float) -> Callable[[Tensor], Tensor]:
    def change(result: Tensor) -> Tensor:
        result = result.clone()
        result[0, 1, 0, 2, 1] = value
        return result

    return change


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "garbage of 1e35 in a voxel": with_changed_voxel(1e35),
    "infinity in a voxel": with_changed_voxel(torch.inf),
    "NaN in a voxel": with_changed_voxel(torch.nan),
    "a voxel four deviations off": with_changed_voxel(6.0),
    "another sign": lambda result: -result,
    "a fifth too large": lambda result: result * 1.2,
    "a channel of zeros": lambda result: result * torch.tensor([1.0] * (result.shape[1] - 1) + [0.0]).view(1, -1, 1, 1, 1),
    "nothing but zeros": torch.zeros_like,
}


@pytest.fixture
def break_bf16(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor], Tensor]], None]:
    """Make torch's bf16 3D convolution wrong at the bottleneck alone."""

    def with_change(change: Callable[[Tensor], Tensor]) -> None:
        right = F.conv3d

        def conv3d(x: Tensor, *others: Any, **named: Any) -> Tensor:
            result = right(x, *others, **named)
            is_meant = result.dtype == torch.bfloat16 and tuple(result.shape[2:]) == BOTTLENECK
            return change(result).to(result.dtype) if is_meant else result

        monkeypatch.setattr(F, "conv3d", conv3d)

    return with_change


@pytest.mark.fault(
    "A", "a bf16 kernel gives wrong numbers", "found by comparing each convolution with float32; float32 is used, with a warning"
)
@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_convolution_means_float32(
    wrong: str, is_trained: bool, break_bf16: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network = build_network(PLAN).eval()
    batch = torch.randn(1, 1, *SIZE)
    assert checked_precision(network, batch, HALF, is_trained=is_trained).precision == "bfloat16"
    break_bf16(WRONG[wrong])
    with caplog.at_level(logging.WARNING):
        assert checked_precision(network, batch, HALF, is_trained=is_trained).precision == "float32"
    assert "bfloat16 is computed wrong on this CPU: encoder.1.0.conv" in caplog.text
    assert network(batch).isfinite().all()


def test_a_converted_network_is_compared_with_float32_as_a_whole(caplog: pytest.LogCaptureFixture) -> None:
    network = build_network(PLAN).eval()
    batch = torch.randn(1, 1, *SIZE)
    assert checked_precision(network, batch, HALF, used=build_network(PLAN).eval()).precision == "float32"
    assert "from float32 on the first batch; using float32" in caplog.text


class Halved(torch.autograd.Function):
    """Right forwards, half as large backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient / 2


def test_a_wrong_gradient_is_named(break_bf16: Callable[..., None]) -> None:
    torch.manual_seed(0)
    network = build_network(PLAN)
    batch = torch.randn(1, 1, *SIZE)
    assert wrong_gradient(network, batch, HALF) is None
    break_bf16(Halved.apply)
    assert wrong_convolution(network, batch, HALF) is None
    found = wrong_gradient(network, batch, HALF)
    assert found is not None
    assert found.startswith("encoder.1.0.conv deviates by")


WITH_WRONG_GRADIENTS = """#!{python}
import sys
import torch
import torch.nn.functional as F

right = F.conv3d
def conv3d(x, weight, *others):
    is_meant = torch.is_autocast_enabled("cpu") and weight.shape[0] == 12
    return right(x, 2 * weight - weight.detach() if is_meant else weight, *others)  # the same weights, twice their gradient
F.conv3d = conv3d

from medseg3d.training import probe
sys.exit(probe.main(sys.argv[3:]))
"""


@pytest.mark.fault("A", "a bf16 kernel gives wrong gradients", "found before training begins; training in float32, with a warning")
def test_training_goes_on_in_float32_where_a_gradient_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    python = tmp_path / "python"
    python.write_text(WITH_WRONG_GRADIENTS.format(python=sys.executable), encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(probe.sys, "executable", str(python))
    assert probe.trusted_precision(HALF, CONFIGURATION, 2).precision == "float32"
    assert "A training step in bfloat16 is wrong on this CPU: encoder.1.0.conv deviates by" in caplog.text


@pytest.mark.parametrize("family", STYLED)
@pytest.mark.parametrize("channels", [1, 3])
def test_rounding_is_not_taken_for_a_wrong_kernel(family: str, channels: int) -> None:
    torch.manual_seed(0)
    network = build_network(replace(PLAN, family=family, in_channels=channels)).eval()
    noise = torch.randn(1, channels, *SIZE)
    for batch in (noise, noise / 100 + 1000, torch.zeros_like(noise), noise.exp() ** 4):
        assert wrong_convolution(network, batch, HALF) is None
    assert wrong_gradient(network, noise, HALF) is None


def test_a_layer_in_float32_may_differ_in_its_last_digits_only() -> None:
    network = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1))
    exact = replace(HALF, precision="float32")
    batch = torch.randn(1, 4, *SIZE)
    other = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1))
    with torch.no_grad():
        for own, parameter in zip(other.parameters(), network.parameters(), strict=True):
            own.copy_(parameter * (1 + 1e-5))
        assert wrong_convolution(network, batch, exact, used=other) is None
        other[0].weight.mul_(1.01)
    found = wrong_convolution(network, batch, exact, used=other)
    assert found is not None
    assert json.dumps(found)
