"""Where a network runs and which precision is fast there; :mod:`medseg3d.precision` checks its numbers.

Goes in: a device name (``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``). Comes out: a :class:`Device` that says which
autocast type is fast there.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch

from medseg3d.errors import InputError
from medseg3d.execution import available_cores, free_memory
from medseg3d.wording import counted

logger = logging.getLogger(__name__)
Precision = Literal["float32", "bfloat16", "float16"]

RESAMPLING_ON_GPU = threading.Lock()
"""Held while an image is resampled on a GPU: whoever lacks memory there waits for its end before doing with less."""
GPU_TYPES = ("cuda",)
"""As torch names them; ROCm has the same name."""
SPEED_RUNS = 5
"""The first makes kernels; the fastest counts."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt."""
KEPT_BLOCK, KEPT_BYTES = 2**28, 2**29
"""Feature maps of a window fit; images of a gigabyte go back to the system."""
NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "not enough memory",
    "unable to find an engine",  # cuDNN, whose workspace does not fit; torch keeps the memory error to itself
    "valid cuDNN algorithm",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What torch and the libraries below it say where memory is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A torch device and the precision that networks use on it."""

    device: torch.device
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        """The autocast type."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.precision]

    @property
    def is_gpu(self) -> bool:
        """Whether work is queued there, and memory of its own fills up."""
        return is_gpu(self.device)

    @property
    def for_resampling(self) -> str | None:
        """The device's name where it resamples images faster than NumPy does: on a GPU."""
        return str(self.device) if self.is_gpu else None

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Mixed precision on this device; nothing in float32."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.precision != "float32"):
            yield

    def in_float32(self) -> Device:
        """The same device without mixed precision."""
        return replace(self, precision="float32")


def choose_device(name: str = "auto", precision: str = "auto") -> Device:
    """The device by name with its fast precision, or with ``float32``; ``auto`` takes CUDA, or else the CPU; MPS only by name.

    bf16 where the device has bf16 units, fp16 on older CUDA devices, otherwise float32. Whoever asks for float32 gets it in convolutions on
    a GPU as well, in this whole process: there torch rounds to the 10 bits of TF32 by default. Raises :class:`InputError` where the
    named device is missing.
    """
    if precision not in ("auto", "float32"):
        raise InputError(f"precision {precision!r}: expected auto or float32.")
    if precision == "float32":
        chosen = choose_device(name).in_float32()
        if chosen.is_gpu:
            torch.backends.cudnn.allow_tf32 = False
        return chosen
    if name == "auto":
        name = GPU_TYPES[0] if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"--device {name}: not a device. Say auto, cpu, cuda, cuda:1 or mps.") from error
    if device.type not in (*GPU_TYPES, "mps", "cpu"):
        raise InputError(f"--device {name}: networks do not run there. Say auto, cpu, cuda, cuda:1 or mps.")
    if is_gpu(device):
        if not torch.cuda.is_available():
            raise InputError("--device cuda: this PyTorch sees no CUDA device. Use --device cpu, or install PyTorch with CUDA.")
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"--device {name}: this machine has {counted(torch.cuda.device_count(), 'CUDA device')}, the first is cuda:0.")
        native = torch.cuda.get_device_capability(device)[0] >= 8  # bf16 is emulated, and slow, below compute capability 8
        return Device(device=device, precision="bfloat16" if native else "float16")
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("--device mps: this machine has no Metal device. Use --device cpu.")
        return Device(device=device, precision="float32")
    return Device(device=device, precision="bfloat16" if _cpu_has_bf16_units() else "float32")


@contextmanager
def deterministic_algorithms(is_wanted: bool) -> Iterator[None]:
    """Let torch take algorithms that give the same bits every time, and refuse others; on a CPU all of those used here are so.

    What cannot be done so is a ``RuntimeError`` of torch that names the operation; see :func:`is_not_deterministic`.
    """
    if not is_wanted or not torch.cuda.is_available():
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix product comes
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def is_not_deterministic(error: RuntimeError) -> bool:
    """Whether torch refuses an operation because :func:`deterministic_algorithms` was asked for."""
    return "deterministic" in str(error)


def several_devices(text: str) -> tuple[str, ...]:
    """The devices that ``--devices`` names, one a process; raises :class:`InputError` for what is not there.

    >>> several_devices("cpu:2")
    ('cpu', 'cpu')
    """
    kind, _, numbers = text.partition(":")
    expected = "Say how many GPUs, which ones, as cuda:0,2, or how many processes on the CPU, as cpu:2."
    if kind.isdigit() and not numbers:
        kind, numbers = GPU_TYPES[0], ",".join(map(str, range(int(kind))))
    chosen = numbers.split(",")
    if kind not in (*GPU_TYPES, "cpu") or not all(number.isdigit() for number in chosen) or (kind == "cpu" and len(chosen) > 1):
        raise InputError(f"--devices {text}: names no devices. {expected}")
    if kind == "cpu":
        chosen = [""] * int(numbers)
    elif not torch.cuda.is_available() or max(map(int, chosen)) >= torch.cuda.device_count():
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise InputError(f"--devices {text}: this machine has {counted(there, 'CUDA device')} that PyTorch sees. {expected}")
    if not chosen or (len(set(chosen)) < len(chosen) and kind != "cpu"):
        raise InputError(f"--devices {text}: expected one device or more, and each of them once. {expected}")
    return tuple(f"{kind}:{number}" if number else kind for number in chosen)


WITHOUT_BF16 = ("sse41", "avx", "avx2", "avx2_vnni", "avx512_core", "avx512_core_vnni")
"""Instruction sets that oneDNN's own variable ONEDNN_MAX_CPU_ISA can name, in which bf16 is emulated, many times slower than float32."""


def _cpu_has_bf16_units() -> bool:
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").lower() in WITHOUT_BF16:
        return False
    # Private in torch, so each name is looked up: a torch without it simply means float32.
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_amx_fp16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def is_gpu(device: torch.device) -> bool:
    """Whether work is queued on the device, and memory of its own fills up."""
    return device.type in GPU_TYPES


def wait_for(device: torch.device) -> None:
    """Return when all that was queued on the device is done; at once on a CPU."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def give_back_memory(device: torch.device) -> None:
    """Let go of what torch keeps on a GPU for its next tensors."""
    if is_gpu(device):
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, with what torch keeps there for its next tensors; otherwise the free main memory."""
    if not is_gpu(device):
        return free_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch says that a device has no memory left; for main memory it has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and any(word in str(error) for word in NO_MEMORY))


def measure_speed(device: Device) -> tuple[float, float]:
    """Multiply-adds of a 3D convolution, and bytes of feature maps that a norm and an activation pass, per second; takes a second."""
    use_all_cores()
    channels, edge = 32, 48
    conv = torch.nn.Conv3d(channels, channels, 3, padding=1, device=device.device)
    x = torch.randn(1, channels, edge, edge, edge, device=device.device).contiguous(memory_format=torch.channels_last_3d)
    norm = torch.nn.InstanceNorm3d(channels, affine=True, device=device.device)

    def seconds(run: Callable[[], object]) -> float:
        best = float("inf")
        with torch.no_grad(), device.autocast():
            for _ in range(SPEED_RUNS):
                began = time.perf_counter()
                run()
                wait_for(device.device)
                best = min(best, time.perf_counter() - began)
        return best

    stored = x.to(device.dtype)
    multiply_adds = x.numel() * channels * 27 / seconds(lambda: conv(x))
    moved = 4 * stored.numel() * stored.element_size() / seconds(lambda: torch.nn.functional.leaky_relu(norm(stored), 0.01))
    return multiply_adds, moved


def use_all_cores() -> None:
    """Give torch every core that the process may use, and let it keep the memory of feature maps from one to the next.

    Other work sets the thread count of shared libraries for a while; sums over another number of threads are other bits.
    """
    torch.set_num_threads(available_cores())
    _keep_freed_memory()


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Tell glibc to keep blocks of up to :data:`KEPT_BLOCK` bytes when they are freed, :data:`KEPT_BYTES` in all.

    Otherwise the pages of each feature map go back to the system and must come again, cleared, for the next one. What the user has set
    for the allocator stands.
    """
    if not sys.platform.startswith("linux") or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with suppress(OSError, AttributeError):  # another C library
        set_option = ctypes.CDLL(None).mallopt
        set_option(M_MMAP_THRESHOLD, KEPT_BLOCK)
        set_option(M_TRIM_THRESHOLD, KEPT_BYTES)
