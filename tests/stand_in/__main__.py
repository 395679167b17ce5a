"""Commands of medseg3d in a process where ``--device standin`` is a GPU.

``python -m stand_in PRECISION COMMAND … + COMMAND …`` with the precision that the GPU is to have: float16, bfloat16 or float32.
Fails where nothing ran on it.
"""

from __future__ import annotations

import sys
from itertools import groupby

import torch

from medseg3d import devices
from medseg3d.commandline.cli import main
from stand_in.device import NAME, OPERATIONS, register

CPU = "cpu"
"""In place of a precision: float32, and nothing may run on the stand-in."""
COMPUTE_CAPABILITY = {"float16": (7, 5), "bfloat16": (9, 0), "float32": (9, 0), CPU: (9, 0)}


def pretend(precision: str) -> None:
    """Have the package take the stand-in for its GPU; what torch.cuda says of memory is synthetic."""
    register()
    devices.GPU_TYPES = (NAME,)
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda device=None: COMPUTE_CAPABILITY[precision]
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.mem_get_info = lambda device=None: (2**32, 2**33)
    torch.cuda.memory_reserved = torch.cuda.memory_allocated = lambda device=None: 0
    torch.Tensor.pin_memory = torch.Tensor.clone
    if precision in ("float32", CPU):
        choose = devices.choose_device
        devices.choose_device = lambda name="auto", precision="auto": choose(name).in_float32()


if __name__ == "__main__":
    pretend(sys.argv[1])
    for is_end, words in groupby(sys.argv[2:], lambda word: word == "+"):
        code = 0 if is_end else main(list(words))
        if code:
            sys.exit(code)
    if bool(OPERATIONS[0]) == (sys.argv[1] == CPU):
        sys.exit(f"{OPERATIONS[0]} operations ran on the stand-in")
