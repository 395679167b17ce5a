"""A training step of a depthwise 3D convolution on a CPU: ours beside torch's, in turns, same weights and input.

Out: a Markdown table of forward plus backward seconds (fastest of five), ratios, and the largest relative difference of the gradients.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measuring import markdown_table

from medseg3d.devices import use_all_cores
from medseg3d.networks.convolutions import convolution

SHAPES = ((16, (28, 64, 80)), (32, (28, 64, 80)), (64, (14, 32, 40)), (256, (4, 8, 10)))
"""Channels and size: stages of a 3D U2-Net on the demo's patch."""
REPEATS = 5


def main() -> int:
    """All shapes, in float32 and in bf16."""
    use_all_cores()
    torch.manual_seed(0)
    rows = []
    for channels, size in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            conv = convolution(channels, channels, (3, 3, 3), (1, 1, 1), groups=channels).to(dtype)
            x = torch.randn(2, channels, *size, dtype=dtype).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
            direction = torch.randn_like(x)
            variables = (x, *conv.parameters())

            def ours(conv: torch.nn.Module = conv, x: torch.Tensor = x) -> torch.Tensor:
                found: torch.Tensor = conv(x)
                return found

            def theirs(conv: torch.nn.Module = conv, x: torch.Tensor = x, channels: int = channels) -> torch.Tensor:
                return F.conv3d(x, conv.weight, conv.bias, padding=1, groups=channels)  # type: ignore[arg-type]

            (ours_s, own), (torch_s, other) = (step(f, variables, direction) for f in (ours, theirs))
            difference = max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(own, other, strict=True))
            name = f"{channels} × {'×'.join(map(str, size))}, {str(dtype).removeprefix('torch.')}"
            rows.append((name, f"{ours_s:.4f}", f"{torch_s:.4f}", f"{torch_s / ours_s:.1f}×", f"{difference:.0e}"))
    print(markdown_table(("channels × size, type", "ours s", "torch s", "ratio", "difference"), rows))
    return 0


def step(
    run: Callable[[], torch.Tensor], variables: tuple[torch.Tensor, ...], direction: torch.Tensor
) -> tuple[float, tuple[torch.Tensor, ...]]:
    """The fastest forward and backward pass, and the gradients."""
    best, gradients = float("inf"), ()
    for _ in range(REPEATS):
        began = time.perf_counter()
        gradients = torch.autograd.grad(run(), variables, direction)
        best = min(best, time.perf_counter() - began)
    return best, gradients


if __name__ == "__main__":
    sys.exit(main())
