"""A device for tests that computes on the CPU, and that PyTorch takes for another one: what is on it does not mix with main memory.

It refuses what a GPU refuses: operations with tensors of both places, NumPy views, ``index_select`` by an index of the other place. Values
and gradients are the CPU's, so results can be compared. It says nothing of a GPU's speed, memory or rounding.

Importing this registers it with PyTorch for the life of the process, so tests run it in a process of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
HOST = torch.device("cpu")
OPERATIONS = [0]
"""So many were run there."""
PUTTING = ("aten::index_put_", "aten::_index_put_impl_", "aten::index_put")
BETWEEN_PLACES = ("aten::copy_", "aten::_to_copy", "aten::index.Tensor", *PUTTING)
"""What a GPU also does with a tensor of main memory: copies, and indices in brackets."""
CAST = (
    "conv2d",
    "conv3d",
    "conv_transpose2d.input",
    "conv_transpose3d.input",
    "linear",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "prelu",
)
"""Computed in the type of autocast, as on CUDA."""


class _Backend:
    """What PyTorch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Its random numbers are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Generator(torch.Generator):
    """The CPU's, for either place."""

    def __new__(cls, device: object = None) -> _Generator:
        return super().__new__(cls)


class OnDevice(torch.Tensor):
    """A tensor there; ``held`` are its numbers in main memory."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
            requires_grad=False,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"OnDevice({self.held!r})"


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    OPERATIONS[0] += 1
    name = func.name()
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    if name in PUTTING and isinstance(args[0], OnDevice) and not isinstance(args[2], OnDevice) and args[2].dim():
        raise RuntimeError(f"{name}: the values must be on the same device.")
    if there and name not in BETWEEN_PLACES:
        strangers = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim()]
        if strangers:
            raise RuntimeError(f"{name}: all tensors must be on the same device; {[tuple(t.shape) for t in strangers]} are in main memory.")
    if name == "aten::copy_":
        target, source = (tensor.held if isinstance(tensor, OnDevice) else tensor for tensor in args[:2])
        target.copy_(source)
        return args[0]
    asked = kwargs.get("device")
    stays = bool(there) if asked is None else torch.device(asked).type == NAME
    plain_args, plain = pytree.tree_map_only(OnDevice, lambda tensor: tensor.held, (args, dict(kwargs)))
    if asked is not None and stays:
        plain["device"] = HOST
    plain.pop("pin_memory", None)
    try:
        out = func(*plain_args, **plain)
    except NotImplementedError:  # the CPU lacks some operations in half precision, which GPUs have
        lifted_args, lifted = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.float(), (plain_args, plain))
        out = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(plain_args[0].dtype), func(*lifted_args, **lifted))
    if not stays:
        return out
    known = {id(tensor.held): tensor for tensor in there}  # an operation in place gives its argument back
    is_view = any(each.alias_info is not None for each in func._schema.returns)
    with torch.inference_mode(
        there[0].is_inference() if is_view and there else torch.is_inference_mode_enabled()
    ):  # views are as their base
        return pytree.tree_map_only(torch.Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else OnDevice(tensor), out)


def register() -> None:
    """Make the device known to PyTorch."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    LIBRARIES.append(torch.library.Library("_", "IMPL"))
    LIBRARIES[-1].fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    LIBRARIES[-1].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    LIBRARIES.append(torch.library.Library("aten", "IMPL"))
    for name in CAST:
        LIBRARIES[-1].impl(name, _casting(name), "AutocastPrivateUse1")

    torch.Generator = _Generator
    torch.UntypedStorage.data_ptr = lambda storage: storage._cdata  # there are no addresses in wrappers, but each has a storage
    torch.tensor, torch.as_tensor = _by_way_of_main_memory(torch.tensor), _by_way_of_main_memory(torch.as_tensor)


def _by_way_of_main_memory(make: Any) -> Any:
    """PyTorch fills a new tensor with Python numbers past all that is registered here."""

    def run(data: Any, *, device: Any = None, **kwargs: Any) -> Any:
        made = make(data, **kwargs)
        return made if device is None else made.to(device)

    return run


LIBRARIES: list[torch.library.Library] = []


def _casting(name: str) -> Any:
    packet, _, overload = name.partition(".")
    func = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME)
        cast = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
        args, kwargs = pytree.tree_map_only(torch.Tensor, cast, (args, kwargs))
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return func(*args, **kwargs)

    return run
