"""Logits of a volume from a network that sees windows: overlapping windows, Gaussian weights, mirroring, folds averaged.

An image goes in, slabs of finished logits come out, in order along axis 0: windows are visited so that rows are finished as early as
possible, and only the rows that windows still add to are held. The memory does not depend on the number of slices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from numbers import Integral, Real

import numpy as np
import torch

from medseg3d.devices import RESAMPLING_ON_GPU, Device, free_bytes, give_back_memory, is_gpu, is_out_of_memory
from medseg3d.errors import InputError, NotFiniteError
from medseg3d.patches.sampling import reflected
from medseg3d.prediction.empty_windows import Skipper, Skipping, Survey
from medseg3d.prediction.mirroring import flipped_logits

logger = logging.getLogger(__name__)

SIGMA_SHARE = 1 / 8
"""Width of the Gaussian as a share of the window (nnU-Net 2.8.1, ``compute_gaussian``)."""
WINDOW_BATCH_VOXELS = 128**3 // 2
"""Windows go through the network together up to this many voxels: enough to fill a device, little enough for 8 GB."""
CPU_BATCH_VOXELS = 2**16
"""The same on a CPU, whose caches hold one window at a time: more at once are slower."""


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
    return tuple(dict.fromkeys(round(distance * i) for i in range(num_steps)))


LARGEST_HALF = 60000.0
"""Larger logits are not added up in half precision, whose largest number is 65504."""
SHARE_FOR_SUMS = 0.25
"""Of the free memory: sums that take more in float32 are kept in half precision."""


@lru_cache(maxsize=64)
def axis_weights(size: int, window: int, starts: tuple[int, ...]) -> dict[int, torch.Tensor]:
    """What each voxel of a window counts along an axis of ``size`` voxels, by the window's start, float32; windows sum to 1 everywhere.

    Gaussians of the width of nnU-Net 2.8.1's. Divided by their sum beforehand, so that sums never exceed the largest logit, and
    half precision holds them.
    """
    distance = torch.arange(window, dtype=torch.float64) - window // 2
    gaussian = torch.exp(-0.5 * (distance / (window * SIGMA_SHARE)) ** 2)
    total = torch.zeros(size, dtype=torch.float64)
    for start in starts:
        total[start : start + window] += gaussian
    return {start: (gaussian / total[start : start + window]).float() for start in starts}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingWindow:
    """Apply a network to volumes larger than it sees: ``SlidingWindow(window=(64, 96, 96))(network, image)``.

    ``window`` is in the axes of the image; two numbers belong to a 2D network, which sees the slices along axis 0 one by one.
    Neighboring windows share ``overlap`` of their length, 0 to below 1, and are weighted by Gaussians. ``mirror_axes`` (0 is the first of
    the window) are those of test-time augmentation. ``output`` is the middle part of the window that an unpadded network gives logits
    for. :class:`~medseg3d.plan.Configuration` has these as ``patch_size`` and ``mirror_axes``.
    """

    window: tuple[int, ...]
    overlap: float = 0.5
    mirror_axes: tuple[int, ...] = ()
    output: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.overlap, Real) or not 0 <= self.overlap < 1:
            raise InputError(f"SlidingWindow: overlap is {self.overlap}, expected a share of the window from 0 to below 1.")
        if not _are_whole(self.window, low=1) or len(self.window) not in (2, 3):
            raise InputError(f"SlidingWindow: window is {self.window}, expected two or three whole numbers above 0.")
        if not _are_whole(self.mirror_axes, low=0) or max(self.mirror_axes, default=0) >= len(self.window):
            raise InputError(f"SlidingWindow: mirror_axes are {self.mirror_axes}, expected axes of the window, 0 the first.")
        if self.output is not None and not (
            _are_whole(self.output, low=1)
            and len(self.output) == len(self.window)
            and all(n <= g for n, g in zip(self.output, self.window, strict=True))
        ):
            raise InputError(f"SlidingWindow: output is {self.output}, expected a middle part of the window {self.window}.")

    def __call__(self, network: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
        """Logits ``(class, n0, n1, n2)`` float32 in main memory, of an image ``(channel, n0, n1, n2)`` float32.

        Computed where the network's weights are, in evaluation mode; the network is left in the mode it was in. Raises
        :class:`NotFiniteError` for NaN or infinite logits.
        """
        if not isinstance(image, torch.Tensor) or not image.is_floating_point() or image.ndim != 4 or not image.numel():
            found = f"{type(image).__name__} {getattr(image, 'dtype', '')} {tuple(getattr(image, 'shape', ()))}"
            raise InputError(f"SlidingWindow: the image is {found}, expected a float32 tensor (channel, n0, n1, n2).")
        weights = next(network.parameters(), image)
        was_training = network.training
        slabs = stream_logits(
            [network.eval()],
            image,
            case="image",
            window=self.window,
            output=self.output,
            step=1 - self.overlap,
            mirror_axes=self.mirror_axes,
            device=Device(device=weights.device, precision="float32"),
        )
        try:
            return torch.cat([copied_to_host(slab) for slab in slabs], 1).float()
        finally:
            network.train(was_training)


def _are_whole(numbers: object, *, low: int) -> bool:
    """Several whole numbers of at least ``low``."""
    return isinstance(numbers, Sequence) and all(isinstance(n, Integral) and int(n) >= low for n in numbers)


def copied_to_host(slab: torch.Tensor) -> torch.Tensor:
    """A copy in main memory, channel by channel: a GPU copies what does not lie in one piece there first."""
    copy = torch.empty(slab.shape, dtype=slab.dtype)
    for target, channel in zip(copy, slab, strict=True):
        target.copy_(channel)
    return copy


OnWindows = Callable[[int, int], None]
"""Hears how many windows are done, and of how many."""


def stream_logits(
    networks: Sequence[torch.nn.Module],
    image: torch.Tensor,
    *,
    case: str,
    window: Sequence[int],
    device: Device,
    output: Sequence[int] | None = None,
    step: float = 0.5,
    mirror_axes: Sequence[int] = (),
    with_unmirrored: bool = False,
    windows_at_once: int | None = None,
    max_bytes: int | None = None,
    skipping: Skipping | None = None,
    survey: Survey | None = None,
    on_windows: OnWindows | None = None,
) -> Iterator[torch.Tensor]:
    """Logits ``(K, rows, n1, n2)``, the mean over ``networks`` (folds) and mirrorings, slab by slab along axis 0.

    A slab is valid until the next one is asked for. ``image`` is ``(C, n0, n1, n2)`` float32 in network order; it is not changed. A
    ``window`` of two entries belongs to a 2D network, which sees the slices along axis 0 one by one. Images smaller than the
    window are padded with 0 on both sides. ``output`` is the middle part of the window that the networks give logits for, all of it
    if None; then what they see beyond the image is its mirror image (overlap-tile, Ronneberger et al. 2015).
    ``with_unmirrored`` appends the logits without mirroring: 2 K channels. ``skipping`` says which windows are left out, and ``survey``
    counts windows that could be. ``windows_at_once``, a power of two, go through the networks together, as many as suit the device if None.
    ``on_windows(done, all)`` is called after each batch of windows.

    The sums are float32, or float16 where they would take more than ``max_bytes`` (default: a quarter of the free memory); where
    a sum could overflow there, float32 again. Where the device runs out of memory, fewer windows go through the network at once, then
    the sums move to main memory, then the networks. Raises :class:`NotFiniteError` naming the case when a logit is NaN or
    infinite, and ``MemoryError`` where main memory does not suffice either; other errors surface as they are.
    """
    tiles = _tiles(image, tuple(window), tuple(output or window), step)
    place = _Place(list(networks), device, windows_at_once or _windows_at_once(device, tiles.size))
    sums: _Sums | None = None
    # an image without one bright window is not what the level was found on
    skipper = None if skipping is None or float(tiles.padded.max()) < skipping.level else Skipper(skipping)
    index = 0
    try:
        while index < len(tiles.starts):
            starts = tiles.starts[index : index + place.per_batch]
            if sums is not None and starts[0][0] > sums.low:
                yield from tiles.inside(sums.low, sums.finish(starts[0][0]))
            try:
                compute = partial(_window_logits, place, tiles, mirror_axes, with_unmirrored, case)
                logits = compute(starts) if skipper is None else skipper.logits(tiles.brightest(starts), starts, compute)
                seen = None if survey is None else survey.seen(tiles.brightest(starts), logits.chunk(2 if with_unmirrored else 1, 1))
                sums = sums or _Sums.for_tiles(tiles, logits, place, max_bytes)
                logits = sums.fitting(logits)
                weights = sums.weights(starts, logits)
            except RuntimeError as error:  # torch's own memory errors are of this kind
                if not is_out_of_memory(error):
                    raise
            else:
                sums.add(starts, logits, weights)
                if survey is not None and seen is not None:
                    survey.add(case, seen)
                index += len(starts)
                place.has_waited = False
                if on_windows is not None:
                    on_windows(index, len(tiles.starts))
                continue
            place.fall_back(sums, case)  # outside of the handler, whose traceback still holds the tensors
        if sums is None:
            raise NotFiniteError(f"{case}: the image is empty.")
        yield from tiles.inside(sums.low, sums.finish(tiles.padded_size[0]))
        if skipper is not None:
            logger.info("%s: %d of %d windows left out as empty.", case, skipper.num_skipped, len(tiles.starts))
    finally:
        place.restore_networks()


def _windows_at_once(device: Device, size: tuple[int, ...]) -> int:
    """A power of two, so that halves of a batch are batches of the next fallback."""
    voxels = CPU_BATCH_VOXELS if device.device.type == "cpu" else WINDOW_BATCH_VOXELS
    return 1 << max(0, (voxels // int(np.prod(size))).bit_length() - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiles:
    """Where the windows lie: the padded image, ``size`` (what a window sees), ``output_size`` (of its logits), and all ``starts`` in order.

    ``padded_size`` is the grid of all outputs; ``valid_region`` is where the image lies in it. ``weights`` are those of each axis.
    """

    padded: torch.Tensor
    size: tuple[int, ...]
    output_size: tuple[int, ...]
    starts: list[tuple[int, ...]]
    padded_size: tuple[int, ...]
    valid_region: tuple[slice, ...]
    weights: tuple[dict[int, torch.Tensor], ...]
    is_2d: bool

    def inside(self, low: int, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """The part of finished rows, the first of which is ``low``, that belongs to the image; nothing where none does."""
        wanted, second, third = self.valid_region
        first, last = max(low, wanted.start), min(low + rows.shape[1], wanted.stop)
        if first < last:
            yield rows[:, first - low : last - low, second, third]

    def brightest(self, starts: Sequence[tuple[int, ...]]) -> list[float]:
        """The largest value of each of these windows, of all channels."""
        return [float(self.padded[(slice(None), *self.box(start))].max()) for start in starts]

    def box(self, start: tuple[int, ...]) -> tuple[slice, ...]:
        """Where the window that starts there lies in the padded image."""
        return tuple(slice(s, s + n) for s, n in zip(start, self.size, strict=True))

    def most_rows(self, per_batch: int) -> int:
        """Rows that must be held at once."""
        batches = (self.starts[i : i + per_batch] for i in range(len(self.starts)))
        return max(batch[-1][0] + self.output_size[0] - batch[0][0] for batch in batches)


def _tiles(image: torch.Tensor, window: tuple[int, ...], output: tuple[int, ...], step: float) -> _Tiles:
    is_2d = len(window) == 2
    size = (1, *window) if is_2d else window
    output_size = (1, *output) if is_2d else output
    margin = tuple((n - g) // 2 for n, g in zip(size, output_size, strict=True))
    padded, valid_region = _padded(image, output_size) if not any(margin) else _reflected(image, output_size, margin)
    padded_size = tuple(n - 2 * m for n, m in zip(padded.shape[1:], margin, strict=True))
    starts = tuple(window_starts(n, g, step) for n, g in zip(padded_size, output_size, strict=True))
    if is_2d:
        starts = (tuple(range(padded_size[0])), *starts[1:])
    weights = tuple(axis_weights(*each) for each in zip(padded_size, output_size, starts, strict=True))
    return _Tiles(
        padded=padded,
        size=size,
        output_size=output_size,
        starts=list(product(*starts)),
        padded_size=padded_size,
        valid_region=valid_region,
        weights=weights,
        is_2d=is_2d,
    )


class _Place:
    """Where the networks and the sums are, and how many windows (a power of two) go through at once; it only ever gets more modest."""

    def __init__(self, networks: list[torch.nn.Module], device: Device, per_batch: int) -> None:
        self.networks, self.device, self.results, self.per_batch = networks, device, device.device, per_batch
        self._home = device.device
        self.has_waited = False

    def fall_back(self, sums: _Sums | None, case: str) -> None:
        """The next out-of-memory fallback; raises ``MemoryError`` after the last one.

        First of all it waits for the image that may be resampled there right now.
        """
        give_back_memory(self._home)
        if is_gpu(self._home) and not self.has_waited:
            with RESAMPLING_ON_GPU:
                self.has_waited = True
            give_back_memory(self._home)
        elif self.per_batch > 1:
            self.per_batch //= 2
            logger.info("%s: %s is out of memory; %d windows at once from here on.", case, self._home, self.per_batch)
        elif self.results.type != "cpu":
            self.results = torch.device("cpu")
            if sums is not None:
                sums.move(self.results)
            logger.warning("%s: the logits do not fit the memory of %s; adding them up in main memory.", case, self._home)
        elif self.device.device.type != "cpu":
            self.device = Device(device=torch.device("cpu"), precision="float32")
            for network in self.networks:
                network.to("cpu")
            logger.warning("%s: not even one window fits the memory of %s; going on without it, which is slow.", case, self._home)
        else:
            raise MemoryError(f"{case}: main memory does not hold one window and its logits. Close other programs.")

    def restore_networks(self) -> None:
        """Bring the networks back to where they were."""
        if self.device.device != self._home:
            for network in self.networks:
                network.to(self._home)


class _Sums:
    """Weighted sums of logits for the rows from ``low`` on that windows still add to."""

    def __init__(self, tiles: _Tiles, num_channels: int, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.low = 0
        self._finished = 0
        self._tiles = tiles
        self.values = torch.zeros((num_channels, rows, *tiles.padded_size[1:]), dtype=dtype, device=device)

    @staticmethod
    def for_tiles(tiles: _Tiles, logits: torch.Tensor, place: _Place, max_bytes: int | None) -> _Sums:
        """Sums of the precision that the memory allows."""
        rows = min(tiles.most_rows(place.per_batch), tiles.padded_size[0])
        allowed = max_bytes if max_bytes is not None else SHARE_FOR_SUMS * free_bytes(place.results)
        needed = 4 * logits.shape[1] * rows * tiles.padded_size[1] * tiles.padded_size[2]
        return _Sums(tiles, logits.shape[1], rows, torch.float32 if needed <= allowed else torch.float16, place.results)

    def fitting(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits where they are added up; where half precision could overflow, all goes on in float32."""
        if self.values.dtype == torch.float16 and float(logits.abs().max()) > LARGEST_HALF:
            self.values = self.values.float()
        return logits.to(self.values.device)

    def move(self, device: torch.device) -> None:
        """Go on on another device."""
        self.values = self.values.to(device)

    def weights(self, starts: Sequence[tuple[int, ...]], logits: torch.Tensor) -> list[torch.Tensor]:
        """The weights of windows, where their :meth:`fitting` logits are, and one more tensor of that size where sums are rounded.

        What adding takes in memory is taken here, before anything is added.
        """
        made = []
        with torch.inference_mode():
            for start in starts:
                first, second, third = (axis[place].to(logits.device) for axis, place in zip(self._tiles.weights, start, strict=True))
                made.append(first[:, None, None] * second[:, None] * third)
            return made if self.values.dtype == logits.dtype else [*made, torch.empty_like(made[0])]

    def add(self, starts: Sequence[tuple[int, ...]], logits: torch.Tensor, weights: Sequence[torch.Tensor]) -> None:
        """Add the :meth:`fitting` logits ``(B, K, …)`` of windows with their :meth:`weights`."""
        self._drop_finished()
        with torch.inference_mode():
            for start, window, weight in zip(starts, logits, weights, strict=False):  # after the weights a scratch tensor may follow
                box = tuple(slice(s, s + n) for s, n in zip((start[0] - self.low, *start[1:]), self._tiles.output_size, strict=True))
                sums = self.values[(slice(None), *box)]
                if sums.dtype == window.dtype:
                    sums.addcmul_(window, weight)
                else:  # weighted before it is rounded
                    for channel, total in zip(window, sums, strict=True):
                        total += torch.mul(channel, weight, out=weights[-1])

    def finish(self, stop: int) -> torch.Tensor:
        """The rows from ``low`` to ``stop``, to which nothing more is added; valid until the next call of ``add``."""
        self._finished = stop - self.low
        self.low = stop
        return self.values[:, : self._finished]

    def _drop_finished(self) -> None:
        """Move the rows that are not finished to the front; no two copies of them are made."""
        rows, self._finished = self._finished, 0
        if not rows:
            return
        total = self.values.shape[1]
        for place in range(0, total - rows, rows):  # blocks of as many rows as are dropped never overlap
            count = min(rows, total - rows - place)
            self.values.narrow(1, place, count).copy_(self.values.narrow(1, place + rows, count))
        self.values.narrow(1, total - rows, rows).zero_()


def _window_logits(
    place: _Place, tiles: _Tiles, mirror_axes: Sequence[int], with_unmirrored: bool, case: str, starts: Sequence[tuple[int, ...]]
) -> torch.Tensor:
    """Float32 logits ``(B, K, …)`` of windows, with an axis of one slice for a 2D network."""
    batch = torch.stack([tiles.padded[(slice(None), *tiles.box(start))] for start in starts]).to(place.device.device)
    if tiles.is_2d:
        batch = batch[:, :, 0]
    total: torch.Tensor | None = None
    plain: torch.Tensor | None = None
    with torch.inference_mode(), place.device.autocast():
        for network in place.networks:
            for number, logits in enumerate(flipped_logits(network, batch, mirror_axes)):
                if number == 0 and with_unmirrored:
                    plain = logits.clone() if plain is None else plain.add_(logits)
                total = logits if total is None else total.add_(logits)
        if total is None:
            raise ValueError("no networks")
        if (count := len(place.networks) * 2 ** len(mirror_axes)) > 1:
            total /= count
        if plain is not None:
            total = torch.cat((total, plain / len(place.networks)), 1)
    if not torch.isfinite(total.sum()) and not torch.isfinite(total).all():  # a sum takes no memory, and mostly settles it
        raise NotFiniteError(f"{case}: the network gave NaN or infinite values for this image.")
    return total[:, :, None] if tiles.is_2d else total


def _padded(image: torch.Tensor, size: Sequence[int]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """The image with zeros around it where it is smaller than the window, and where it lies inside."""
    missing = [max(0, n - have) for n, have in zip(size, image.shape[1:], strict=True)]
    valid_region = tuple(slice(m // 2, m // 2 + have) for m, have in zip(missing, image.shape[1:], strict=True))
    if not any(missing):
        return image, valid_region
    padded = image.new_zeros((image.shape[0], *(have + m for m, have in zip(missing, image.shape[1:], strict=True))))
    padded[(slice(None), *valid_region)] = image
    return padded, valid_region


def _reflected(image: torch.Tensor, output_size: Sequence[int], margin: Sequence[int]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """The image, mirrored at its borders to at least ``output_size`` voxels and ``margin`` more on either side; where it lies in those."""
    missing = [max(0, n - have) for n, have in zip(output_size, image.shape[1:], strict=True)]
    valid_region = tuple(slice(m // 2, m // 2 + have) for m, have in zip(missing, image.shape[1:], strict=True))
    for axis, (more, m) in enumerate(zip(missing, margin, strict=True), start=1):
        have = image.shape[axis]
        image = image.index_select(axis, torch.from_numpy(reflected(-(more // 2) - m, have + more + 2 * m, have)))
    return image, valid_region
