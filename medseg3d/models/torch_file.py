"""Open what ``torch.save`` wrote, which is a pickle, without running what it may carry.

torch's restricted unpickler admits tensors and plain values; to these come numpy's scalars, which checkpoints keep measures in, as
numbers that are made here. Any other name in the file ends the reading.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg3d.errors import InputError
from medseg3d.files import unreadable
from medseg3d.torch_archive import check_archive

_NUMBER = re.compile("b1|[iu][1248]|f[248]")
"""The codes of numpy's numbers of fixed size."""


class _NumberType:
    """Stands in for ``numpy.dtype``, whose own state can make numpy read bytes as pointers; keeps a code and the order of bytes."""

    def __init__(self, code: object, *flags: object) -> None:
        if not isinstance(code, str) or not _NUMBER.fullmatch(code):
            raise ValueError(f"a numpy type {code!r:.20} that is no number")
        self.code, self.byte_order = code, "="

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "=", "|"):
            raise ValueError("a numpy type without an order of bytes")
        self.byte_order = str(order)


def _number(kind: object, raw: object) -> float | int | bool:
    """Stands in for numpy's function that makes a scalar."""
    if not isinstance(kind, _NumberType) or not isinstance(raw, bytes):
        raise ValueError("a numpy scalar that is no number")
    value: float | int | bool = np.frombuffer(raw, kind.byte_order + kind.code, count=1)[0].item()
    return value


SAFE_GLOBALS: list[Any] = [
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]
"""What a file may name beyond torch's own list, and what it gets instead; numpy 2 renamed its module."""

_DAMAGED = (
    RuntimeError,  # of the zip archive
    OSError,  # of a seek beyond its end; the others come from a pickle that ends too early or makes no sense
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)


def load_torch_file(path: Path, advice: str = "Copy or download it again.") -> Any:
    """Tensors and plain values of a file; raises :class:`InputError` where it is missing, damaged, or names what is not admitted.

    ``advice`` is what to do about a damaged one.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, error) from None
    check_archive(path, advice)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(SAFE_GLOBALS):
            warnings.simplefilter("ignore")  # what torch finds odd it refuses soon after
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        refused = re.search(r"GLOBAL ([\w.]*\w)", str(error))
        if refused and isinstance(error, pickle.UnpicklingError):
            raise InputError(
                f"{path}: asks for {refused[1]} while it is read. A checkpoint holds tensors and numbers only, so the file is refused "
                "and nothing in it was run. Get the model from a source that you trust."
            ) from None
        # what torch says of a pickle is advice to load it without checks
        reason = f" ({str(error).partition('. ')[0]:.120})" if isinstance(error, RuntimeError | OSError | ValueError) else ""
        raise InputError(f"{path}: damaged, or not a checkpoint{reason}. Copy or download it again.") from None


def is_dense(value: object) -> bool:
    """A tensor whose numbers lie in memory one after the other, as weights do."""
    return isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
