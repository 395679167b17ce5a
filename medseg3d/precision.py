"""Does mixed precision, or another kernel, compute a network right here? A network and a batch go in, a device's precision comes out.

Numbers are compared with those of float32, never looked through for NaN alone: of the whole network in the mean, as rounding adds up
over its layers, and of each convolution voxel by voxel, where rounding is small and a kernel that is wrong stands out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from medseg3d.devices import Device

logger = logging.getLogger(__name__)

MAX_RELATIVE_DEVIATION = 0.05
"""Half precision is refused when the outputs of the first batch differ from float32 by more than this share of their standard deviation:
bf16 keeps 8 bits (0.4 %) a number, and a healthy network loses about 1 % over its layers."""
ROUNDINGS = 10
"""Mixed precision rounds after every operation, not once: a hundred independent roundings have ten times the effect of one."""
OF_CONVOLUTION = {"float32": (1e-3, 1e-3), "bfloat16": (0.1, 0.03), "float16": (0.1, 0.03)}
"""By how much a convolution's number may differ: shares of the root mean square of all of them, and of the number itself. Rounding alone
is 0.003 in bf16 and 3e-5 in float32 (Winograd), six times that in the worst of 1e8 voxels."""
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Results = Callable[[nn.Module, tuple[Tensor, ...]], list[Tensor]]
"""What is compared of a module that gets these arguments."""


def checked_precision(
    network: nn.Module, batch: Tensor, device: Device, *, is_trained: bool = True, used: nn.Module | None = None
) -> Device:
    """The device as it is when mixed precision gives the float32 result on this batch, otherwise in float32, with a warning.

    ``used`` is a converted network whose convolutions are known to be right; without it those of ``network`` are compared one by one on
    a CPU. Deep networks with fresh weights amplify any rounding (a factor of 1.1 for each of a hundred norms), so that one that is not
    trained yet may deviate as much as it does in float32 arithmetic with weights and image rounded to half precision.
    """
    if device.precision == "float32":
        return device
    was_training = network.training
    network.eval()
    try:
        problem = _problem(network, batch, device, is_trained=is_trained, used=used)
    finally:
        network.train(was_training)
    if problem is None:
        return device
    logger.warning("%s %s; using float32.", device.precision, problem)
    return device.in_float32()


def _problem(network: nn.Module, batch: Tensor, device: Device, *, is_trained: bool, used: nn.Module | None) -> str | None:
    if used is None and device.device.type == "cpu" and (wrong := wrong_convolution(network, batch, device)) is not None:
        return f"is computed wrong on this CPU: {wrong}"
    with torch.inference_mode():
        exact = network(batch).float()
        with device.autocast():
            rounded = (used or network)(batch).float()
        deviation = relative_deviation(rounded, exact)
        allowed = MAX_RELATIVE_DEVIATION
        if math.isfinite(deviation) and deviation > allowed and not is_trained:
            copy = deepcopy(network)
            for parameter in copy.parameters():
                parameter.copy_(parameter.to(device.dtype))
            allowed = max(allowed, ROUNDINGS * relative_deviation(copy(batch.to(device.dtype).float()).float(), exact))
    if deviation <= allowed:
        return None
    return f"{_off(deviation)} from float32 on the first batch"


def relative_deviation(found: Tensor, exact: Tensor) -> float:
    """The mean difference in units of the exact values' standard deviation."""
    return float((exact - found).abs().mean() / exact.std().clamp_min(1e-6))


def _off(deviation: float) -> str:
    """How far numbers are off; kernels that are wrong can be wrong by any amount."""
    if not math.isfinite(deviation):
        return "is not finite, far"
    return f"deviates by {100 * deviation:.1f} %" if deviation < 100 else f"deviates by {deviation:.1g} times the standard deviation"


def wrong_convolution(network: nn.Module, batch: Tensor, device: Device, *, used: nn.Module | None = None) -> str | None:
    """The first convolution whose numbers are not those of float32 but for rounding, and how far off it is; None where all are right.

    The network runs in float32. What each convolution gets there, it also gets in the device's precision, as the module of the same name
    in ``used`` does; where the numbers differ by more than rounding of products explains, noise of the same size decides, in which no sum
    is a small difference of large ones.
    """
    with torch.inference_mode():
        return _first_wrong(network, batch, device, used or network, _outputs)


def wrong_gradient(network: nn.Module, batch: Tensor, device: Device) -> str | None:
    """As :func:`wrong_convolution` of the gradients of each convolution: of its input, weights and bias, on noise."""
    with torch.no_grad():
        return _first_wrong(network, batch, device, network, _gradients)


def _outputs(module: nn.Module, arguments: tuple[Tensor, ...]) -> list[Tensor]:
    return [module.forward(*arguments)]


def _gradients(module: nn.Module, arguments: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.enable_grad():
        x = arguments[0].detach().clone().requires_grad_()
        out = module.forward(x, *arguments[1:])
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return [out.detach(), *torch.autograd.grad(out, [x, *parameters], direction.to(out.device, out.dtype))]


def _first_wrong(network: nn.Module, batch: Tensor, device: Device, used: nn.Module, results: Results) -> str | None:
    """Visit the convolutions in the order in which a float32 pass calls them."""
    wrong: list[str] = []
    is_busy = False

    def compare(name: str, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal is_busy
        if wrong or is_busy:
            return
        is_busy = True
        other, known = used.get_submodule(name), [output] if results is _outputs else None
        found = _distance(module, other, arguments, device, results, known)
        if found is not None:
            found = _distance(module, other, (_noise_like(arguments[0]), *arguments[1:]), device, results)
        if found is not None:
            wrong.append(f"{name} {_off(found)} from float32")
        is_busy = False

    with ExitStack() as hooks:
        for name, module in _convolutions(network):
            hook = module.register_forward_hook(partial(compare, name))
            hooks.callback(hook.remove)
        network(batch)
    return wrong[0] if wrong else None


def _convolutions(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that convolve, by name; one that reads the weights of those inside it is visited as well."""
    for name, module in network.named_modules():
        if isinstance(module, CONVOLUTIONS) or getattr(module, "reads_weights_itself", False):
            yield name, module


def _distance(
    module: nn.Module,
    other: nn.Module,
    arguments: tuple[Tensor, ...],
    device: Device,
    results: Results,
    known: list[Tensor] | None = None,
) -> float | None:
    """How far the worst number is off, in units of all numbers' root mean square; None where rounding explains it."""
    exact = results(module, arguments) if known is None else known
    with device.autocast():
        found = results(other, arguments)
    distances = [_beyond_rounding(a, b, OF_CONVOLUTION[device.precision]) for a, b in zip(found, exact, strict=True)]
    return max((d for d in distances if d is not None), default=None, key=lambda d: math.inf if math.isnan(d) else d)


def _beyond_rounding(found: Tensor, exact: Tensor, allowed: tuple[float, float]) -> float | None:
    of_all, of_one = allowed
    scale = float(torch.linalg.vector_norm(exact) / math.sqrt(exact.numel()))
    worst: float | None = None
    for part, wanted in zip(_parts(found), _parts(exact), strict=True):  # part by part, as feature maps can be large
        difference = (part.float() - wanted).abs()
        if not bool((difference <= of_all * scale + of_one * wanted.abs()).all()):
            distance = float(difference.max()) / max(scale, 1e-30)
            worst = distance if worst is None or not distance <= worst else worst
    return worst


def _parts(x: Tensor) -> Sequence[Tensor]:
    return x.unbind(2) if x.ndim > 3 else (x,)


def _noise_like(x: Tensor) -> Tensor:
    """Noise of the size and layout of a tensor, the same in every process."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return torch.empty_like(x).copy_(noise)
