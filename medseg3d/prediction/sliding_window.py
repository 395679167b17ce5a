"""Logits of a whole volume from a network that sees windows: overlapping windows, Gaussian weights, mirroring, folds averaged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import product

import numpy as np
import torch

from medseg3d.devices import Device
from medseg3d.errors import NotFiniteError
from medseg3d.patches.sampling import reflected
from medseg3d.prediction.mirroring import mean_over_flips

logger = logging.getLogger(__name__)

SIGMA_SHARE = 1 / 8
"""Width of the Gaussian as a share of the window (nnU-Net 2.8.1, ``compute_gaussian``)."""
WINDOW_BATCH_VOXELS = 2 * 128**3
"""Windows go through the network together up to this many voxels: enough to fill a device, little enough for 8 GB."""


def window_starts(size: int, window: int, step: float) -> tuple[int, ...]:
    """Starts of windows along one axis, evenly spread, at most ``step`` windows apart (nnU-Net 2.8.1).

    >>> window_starts(110, 64, 0.5)
    (0, 23, 46)
    >>> window_starts(64, 64, 0.5)
    (0,)
    """
    if size <= window:
        return (0,)
    num_steps = int(np.ceil((size - window) / (window * step))) + 1
    distance = (size - window) / (num_steps - 1)
    return tuple(round(distance * i) for i in range(num_steps))


@lru_cache(maxsize=8)
def importance_map(window: tuple[int, ...]) -> torch.Tensor:
    """Gaussian weights of a window, float32, 1 in the middle, never 0 (nnU-Net 2.8.1 uses the same width)."""
    weights = torch.ones((), dtype=torch.float64)
    for size in window:
        distance = torch.arange(size, dtype=torch.float64) - size // 2
        weights = weights[..., None] * torch.exp(-0.5 * (distance / (size * SIGMA_SHARE)) ** 2)
    weights = (weights / weights.max()).float()
    smallest: torch.Tensor = weights[weights > 0].min()
    return weights.clamp_min(max(float(smallest), 1e-6))


def predict_logits(
    networks: Sequence[torch.nn.Module],
    image: torch.Tensor,
    *,
    case: str,
    window: Sequence[int],
    device: Device,
    output: Sequence[int] | None = None,
    step: float = 0.5,
    mirror_axes: Sequence[int] = (),
) -> torch.Tensor:
    """Logits ``(K, n0, n1, n2)`` float32, the mean over ``networks`` (folds) and mirrorings.

    ``image`` is ``(C, n0, n1, n2)`` float32 in network order; it is not changed. A ``window`` of two entries belongs to a 2D
    network, which sees the slices along axis 0 one by one. Images smaller than the window are padded with 0 on both sides.
    ``output`` is the middle part of the window that the networks give logits for, all of it if None; then what they see beyond
    the image is its mirror image (overlap-tile, Ronneberger et al. 2015).
    Where the device's memory does not hold the logits of the volume, they are added up in main memory and returned there.
    Raises :class:`NotFiniteError` naming the case when a logit is NaN or infinite, and ``MemoryError`` where the device cannot
    even hold the windows.
    """
    predict = partial(
        _predict_logits,
        networks,
        image,
        case=case,
        window=tuple(window),
        output=tuple(output or window),
        device=device,
        step=step,
        mirror_axes=mirror_axes,
    )
    try:
        return predict(results=device.device)
    except torch.OutOfMemoryError:
        logger.warning("%s: the logits do not fit the memory of %s; adding them up in main memory.", case, device.device)
    torch.cuda.empty_cache()  # outside the handler, whose traceback still holds the tensors
    try:
        return predict(results=torch.device("cpu"))
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"{case}: not even one batch of windows fits the memory of {device.device}; use --device cpu.") from error


def _predict_logits(
    networks: Sequence[torch.nn.Module],
    image: torch.Tensor,
    *,
    case: str,
    window: tuple[int, ...],
    output: tuple[int, ...],
    device: Device,
    step: float,
    mirror_axes: Sequence[int],
    results: torch.device,
) -> torch.Tensor:
    """The logits, added up on the device ``results``."""
    is_2d = len(window) == 2
    size = (1, *window) if is_2d else window
    given = (1, *output) if is_2d else output
    margin = tuple((n - g) // 2 for n, g in zip(size, given, strict=True))
    padded, inner = _padded(image, given) if not any(margin) else _reflected(image, given, margin)
    covered = tuple(n - 2 * m for n, m in zip(padded.shape[1:], margin, strict=True))
    starts = list(
        product(
            range(covered[0]) if is_2d else window_starts(covered[0], given[0], step),
            window_starts(covered[1], given[1], step),
            window_starts(covered[2], given[2], step),
        )
    )
    weights = importance_map(output).to(results)
    if is_2d:
        weights = weights[None]
    per_batch = max(1, WINDOW_BATCH_VOXELS // int(np.prod(size)) // 4)
    total: torch.Tensor | None = None
    weight_sum = torch.zeros(covered, device=results)
    with torch.inference_mode():
        for first in range(0, len(starts), per_batch):
            group = starts[first : first + per_batch]
            boxes = [tuple(slice(s, s + n) for s, n in zip(start, size, strict=True)) for start in group]
            batch = torch.stack([padded[(slice(None), *box)] for box in boxes]).to(device.device)
            if is_2d:
                batch = batch[:, :, 0]
            logits = _mean_logits(networks, batch, device, mirror_axes)
            if not torch.isfinite(logits).all():
                raise NotFiniteError(f"{case}: the network gave NaN or infinite values for this image.")
            if is_2d:
                logits = logits[:, :, None]
            if total is None:
                total = torch.zeros((logits.shape[1], *covered), device=results)
            for start, window_logits in zip(group, logits, strict=True):
                box = tuple(slice(s, s + n) for s, n in zip(start, given, strict=True))
                total[(slice(None), *box)] += window_logits.to(results) * weights
                weight_sum[box] += weights
        if total is None:
            raise NotFiniteError(f"{case}: the image is empty.")
        return total.div_(weight_sum)[(slice(None), *inner)]


def _mean_logits(networks: Sequence[torch.nn.Module], batch: torch.Tensor, device: Device, mirror_axes: Sequence[int]) -> torch.Tensor:
    total = torch.zeros((), device=device.device)
    for network in networks:
        with device.autocast():
            logits = mean_over_flips(network, batch, mirror_axes)
        total = total + logits
    return total / len(networks)


def _padded(image: torch.Tensor, size: Sequence[int]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """The image with zeros around it where it is smaller than the window, and where it lies inside."""
    missing = [max(0, n - have) for n, have in zip(size, image.shape[1:], strict=True)]
    inner = tuple(slice(m // 2, m // 2 + have) for m, have in zip(missing, image.shape[1:], strict=True))
    if not any(missing):
        return image, inner
    padded = image.new_zeros((image.shape[0], *(have + m for m, have in zip(missing, image.shape[1:], strict=True))))
    padded[(slice(None), *inner)] = image
    return padded, inner


def _reflected(image: torch.Tensor, given: Sequence[int], margin: Sequence[int]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """The image, mirrored at its borders to at least ``given`` voxels and ``margin`` more on either side; where it lies in ``given``."""
    missing = [max(0, n - have) for n, have in zip(given, image.shape[1:], strict=True)]
    inner = tuple(slice(m // 2, m // 2 + have) for m, have in zip(missing, image.shape[1:], strict=True))
    for axis, (more, m) in enumerate(zip(missing, margin, strict=True), start=1):
        have = image.shape[axis]
        image = image.index_select(axis, torch.from_numpy(reflected(-(more // 2) - m, have + more + 2 * m, have)))
    return image, inner
