"""Which device and which precision, on machines that are not this one."""

from __future__ import annotations

import pytest
import torch

from medseg3d.devices import choose_device
from medseg3d.errors import InputError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """PyTorch says that there is a GPU of compute capability 9."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    return monkeypatch


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_a_gpu_is_taken_with_the_half_precision_that_it_has(gpu: pytest.MonkeyPatch, capability: tuple[int, int], precision: str) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    chosen = choose_device()
    assert (chosen.device.type, chosen.precision, chosen.is_gpu, chosen.for_resampling) == ("cuda", precision, True, "cuda")
    assert torch.backends.cudnn.allow_tf32


def test_float32_on_a_gpu_is_not_tf32(gpu: pytest.MonkeyPatch) -> None:
    assert choose_device("cuda:1", "float32").precision == "float32"
    assert not torch.backends.cudnn.allow_tf32


def test_a_gpu_beyond_the_last_is_refused(gpu: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="2 CUDA devices, the first is cuda:0"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["meta", "xpu", "nonsense", "cpu:x"])
def test_devices_that_networks_do_not_run_on_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="cuda:1 or mps"):
        choose_device(name)


def test_a_gpu_that_is_not_there_is_refused_and_auto_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device().device.type == "cpu"
    with pytest.raises(InputError, match="sees no CUDA device"):
        choose_device("cuda")
    with pytest.raises(InputError, match="expected auto or float32"):
        choose_device("cpu", "bfloat16")


@pytest.mark.parametrize("limit", ["AVX2", "AVX512_CORE", "avx512_core_vnni"])
def test_bfloat16_is_left_alone_where_onednn_may_not_use_its_units(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert choose_device("cpu").precision == "float32"
