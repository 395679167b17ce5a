"""One tensor of another model, or of another dataset's, made to fit a tensor of ours; None where it cannot be.

Rows of labels and columns of channels go by name, kernels of images become those of volumes, and what stands in for a channel that the
other model does not have is the mean of those that it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BACKGROUND = "background"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A tensor of our shape, and in words what was done to it: nothing where it is as it was."""

    tensor: Tensor
    change: str = ""


def inflated(kernel: Tensor, size: int, *, overlaps: bool = True) -> Tensor:
    """A kernel of images ``(out, in, k0, k1)``, or a flat one ``(out, in, 1, k0, k1)``, as one of ``size`` slices: repeated, and divided.

    On a volume that is the same in all slices it gives what the image gave (I3D: Carreira & Zisserman 2017), so that all that a network
    knows of images holds for volumes before it sees any. The new axis is the first one, across the slices. A transposed convolution
    whose kernel is its stride, where nothing ``overlaps``, meets each voxel once and is not divided.
    """
    flat = kernel if kernel.ndim == 5 else kernel.unsqueeze(2)
    repeated = flat.repeat_interleave(size, 2)
    return repeated / size if overlaps else repeated


def with_channels(tensor: Tensor, axis: int, theirs: Sequence[str], ours: Sequence[str]) -> Fitted:
    """The entries of channels along an axis, by name.

    A channel that they do not have gets the mean of theirs, times theirs/ours: an image that is the same in all channels gives the same
    responses as before, as a grey image in a network of colors does.
    """
    known = _places(theirs)
    mean = tensor.mean(axis) * (len(theirs) / len(ours))
    places = [known.get(_plain(name)) for name in ours]
    made = torch.stack([mean if place is None else tensor.select(axis, place) for place in places], axis)
    averaged = [name for name, place in zip(ours, places, strict=True) if place is None]
    if not averaged:
        return Fitted(tensor=made, change=f"channels {', '.join(ours)} taken by name")
    return Fitted(tensor=made, change=f"channels {', '.join(averaged)} averaged over {', '.join(theirs)}")


def with_labels(tensor: Tensor, axis: int, theirs: Sequence[str], ours: Sequence[str], fresh: Tensor) -> Fitted | None:
    """The entries of labels along an axis, by name; those that they do not have stay ``fresh``. None where no label is shared.

    The background alone does not count as shared: its entry means nothing without the labels that it is told from.
    """
    known = _places(theirs)
    places = [known.get(_plain(name)) for name in ours]
    if all(place is None or _plain(name) == BACKGROUND for place, name in zip(places, ours, strict=True)):
        return None
    rows = [fresh.select(axis, row) if place is None else tensor.select(axis, place) for row, place in enumerate(places)]
    shared = ", ".join(name for name, place in zip(ours, places, strict=True) if place is not None)
    new = ", ".join(name for name, place in zip(ours, places, strict=True) if place is None)
    made = torch.stack([row.to(fresh.dtype) for row in rows], axis)
    return Fitted(tensor=made, change=f"labels {shared} taken by name" + (f", {new} fresh" if new else ""))


def is_same(theirs: Sequence[str], ours: Sequence[str]) -> bool:
    """The same names in the same order, whatever their case."""
    return list(map(_plain, theirs)) == list(map(_plain, ours))


def _places(names: Sequence[str]) -> dict[str, int]:
    """By name; a name that stands there twice says nothing."""
    plain = list(map(_plain, names))
    return {name: place for place, name in enumerate(plain) if plain.count(name) == 1}


def _plain(name: str) -> str:
    return name.strip().lower()


def reshaped(tensor: Tensor, shape: Sequence[int], *, is_kernel: bool, overlaps: bool = True) -> Fitted | None:
    """A kernel of images or of slices for volumes, positions on another grid; None where neither gives the shape."""
    if tuple(tensor.shape) == tuple(shape):
        return Fitted(tensor=tensor)
    is_flat = tensor.ndim == 4 or (tensor.ndim == 5 and tensor.shape[2] == 1)
    if is_kernel and is_flat and len(shape) == 5 and (*tensor.shape[:2], *tensor.shape[-2:]) == (*shape[:2], *shape[3:]):
        return Fitted(tensor=inflated(tensor, shape[2], overlaps=overlaps), change=f"inflated to {shape[2]} slices")
    if not is_kernel and tensor.ndim >= 4 and len(shape) >= 4 and tuple(tensor.shape[:2]) == tuple(shape[:2]):
        return Fitted(tensor=_on_grid(tensor, shape), change="positions interpolated")
    return None


def _on_grid(positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Learned positions ``(1, width, …)`` linearly on another grid; those of an image are the same in every slice."""
    if positions.ndim == 4 and len(shape) == 5:
        return _on_grid(positions, (*shape[:2], *shape[3:])).unsqueeze(2).repeat_interleave(shape[2], 2)
    mode = "bilinear" if positions.ndim == 4 else "trilinear"
    return F.interpolate(positions.float(), tuple(shape[2:]), mode=mode, align_corners=False).to(positions.dtype)
