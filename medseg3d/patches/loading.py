"""Read training batches ahead of time, in a background thread, in an order that depends on the seed alone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from medseg3d.patches.augmentation import AugmentationDraw, AugmentationPolicy, Batch, SpatialCrop, augment, crop_box, draw_augmentation
from medseg3d.patches.case_choice import CaseChoice, choose_case
from medseg3d.patches.sampling import Patch, PatchBox, PatchSource, generator, is_forced, place_patch, read_labels, read_patch


class BatchReader:
    """Batches made ahead of time by threads, in order; counts the seconds that the consumer waited."""

    def __init__(self, *, prefetch: int, num_threads: int) -> None:
        self.prefetch, self.num_threads = max(1, prefetch), max(1, num_threads)
        self.waited_seconds = 0.0

    def read(self, make: Callable[[int], Batch], first: int, last: int) -> Generator[Batch, None, None]:
        """``make(first)`` … ``make(last - 1)``; an error is raised at the batch that it belongs to. Leaving early ends the threads."""
        self.waited_seconds = 0.0
        upcoming = iter(range(first, last))
        pending: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="patches")
        try:
            for _ in range(first, last):
                while len(pending) < self.prefetch and (following := next(upcoming, None)) is not None:
                    pending.append(pool.submit(make, following))
                asked = time.perf_counter()
                batch = pending.popleft().result()
                # the place that this batch leaves is filled before the consumer computes
                if (following := next(upcoming, None)) is not None:
                    pending.append(pool.submit(make, following))
                self.waited_seconds += time.perf_counter() - asked
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def augmented_ahead(batch: Batch, policy: AugmentationPolicy, device: torch.device) -> Batch:
    """The batch with its augmentation made on the thread that calls, where that gives the same bits: on a CPU with a thread for each
    process, and without parts of others, which may draw from torch's own numbers.

    Processes that share a batch wait for each other in every step: what is made ahead of time evens out that some samples take long.
    """
    if device.type != "cpu" or torch.get_num_threads() > 1 or policy.further:
        return batch
    return replace(batch, augmented=augment(batch, policy, device))


TURNS = 100
"""Added to the stream of a loader for the order in which cases take turns: random numbers of their own."""


class PatchLoader:
    """Batches of patches from stored cases.

    Batch ``iteration`` of ``epoch`` is a function of ``(seed, stream, epoch, iteration)`` and the cases alone: threads,
    prefetching and where a run was resumed change nothing. ``margin`` voxels on either side of a patch, per axis of it, are
    context that the network gives no logits for: the patch is placed by what lies within them, and the volume goes on beyond its
    borders as its mirror image. ``stream`` keeps loaders of one run apart (0 training, 1
    validation). Of a batch that processes share, only ``samples`` are made; each is what it is in the whole batch.
    With ``policy`` None there is no augmentation. ``previous`` holds, by case, the label map of a cascade's first stage on
    the grid of the case. ``choice`` says which cases are drawn. The cases must allow slicing from ``num_threads`` threads.
    """

    def __init__(
        self,
        cases: Sequence[PatchSource],
        *,
        patch_size: Sequence[int],
        batch_size: int,
        seed: int,
        stream: int = 0,
        foreground_share: float = 0.33,
        margin: Sequence[int] = (),
        policy: AugmentationPolicy | None = None,
        previous: Mapping[str, Any] | None = None,
        prefetch: int = 3,
        num_threads: int = 1,
        pin_memory: bool = False,
        samples: range | None = None,
        choice: CaseChoice = CaseChoice(),  # noqa: B008  # it is frozen
    ) -> None:
        self.cases = tuple(cases)
        self.choice = choice
        self._names = tuple(case.name for case in self.cases)
        self.patch_size = tuple(patch_size)
        self.batch_size = batch_size
        self.seed = seed
        self.stream = stream
        self.foreground_share = foreground_share
        self.margin = (*(0,) * (3 - len(margin)), *margin)
        self.policy = policy
        self.previous = previous
        self.reader = BatchReader(prefetch=prefetch, num_threads=num_threads)
        self.pin_memory = pin_memory
        self.samples = range(batch_size) if samples is None else samples

    def batches(self, epoch: int, num_iterations: int, *, first: int = 0) -> Generator[Batch, None, None]:
        """The batches ``first`` … ``num_iterations - 1`` of an epoch, in order.

        An error while reading is raised here, at the batch that it belongs to. Leaving the loop early ends the threads.
        """
        return self.reader.read(lambda iteration: self.make_batch(epoch, iteration), first, num_iterations)

    def make_batch(self, epoch: int, iteration: int) -> Batch:
        """One batch, made on the calling thread."""
        patches: list[Patch | None] = []
        firsts: list[np.ndarray | None] = []
        draws: list[AugmentationDraw] = []
        crops: list[SpatialCrop | None] = []
        names: list[str] = []
        for sample in self.samples:
            rng = generator(self.seed, self.stream, epoch, iteration, sample)
            forced = is_forced(sample, batch_size=self.batch_size, iteration=iteration, share=self.foreground_share)
            chosen, label = self._choose(epoch, iteration * self.batch_size + sample, rng, is_forced=forced)
            case = self.cases[chosen]
            shape = tuple(case.labels.shape)
            annotated = {} if case.annotated is None else {0: case.annotated}
            wanted = case.foreground if label is None or not forced else {label: case.foreground[label]}
            box = self._place(shape, (forced and wanted) or annotated, rng)
            draw = draw_augmentation(self.policy, rng) if self.policy else AugmentationDraw()
            names.append(case.name)
            draws.append(draw)
            if draw.matrix is None:
                patches.append(self._read(case, box))
                firsts.append(self._read_previous(case, box))
                crops.append(None)
            else:
                larger, center = crop_box(box, draw.matrix, None if any(self.margin) else shape)
                crop, first = self._read(case, larger), self._read_previous(case, larger)
                crops.append(
                    SpatialCrop(
                        image=self._tensor(self._in_patch_axes(crop.image)),
                        labels=self._tensor(self._in_patch_axes(crop.labels)),
                        center=center,
                        previous=None if first is None else self._tensor(self._in_patch_axes(first)),
                    )
                )
                patches.append(None)
                firsts.append(None)
        num_channels = int(self.cases[0].image.shape[0])
        image = np.zeros((len(self.samples), num_channels, *self.patch_size), np.float32)
        labels = np.zeros((len(self.samples), *self.patch_size), np.int16)
        for sample, patch in enumerate(patches):
            if patch is not None:
                image[sample] = self._in_patch_axes(patch.image)
                labels[sample] = self._in_patch_axes(patch.labels)
        return Batch(
            image=self._tensor(image),
            labels=self._tensor(labels),
            names=tuple(names),
            draws=tuple(draws) if self.policy else (),
            crops=tuple(crops) if self.policy else (),
            previous=self._joined(firsts),
        )

    def batch_of(self, places: Sequence[tuple[int, PatchBox]]) -> Batch:
        """The patches at some boxes, each of the case at a place among all, as they are; the boxes hold the margin."""
        patches = [self._read(self.cases[case], box) for case, box in places]
        return Batch(
            image=self._tensor(np.stack([self._in_patch_axes(patch.image) for patch in patches])),
            labels=self._tensor(np.stack([self._in_patch_axes(patch.labels) for patch in patches])),
            names=tuple(self.cases[case].name for case, _ in places),
            previous=self._joined([self._read_previous(self.cases[case], box) for case, box in places]),
        )

    def _joined(self, firsts: Sequence[np.ndarray | None]) -> torch.Tensor | None:
        """The first stage's label maps of a batch; empty where a crop holds them."""
        if self.previous is None:
            return None
        previous = np.zeros((len(firsts), *self.patch_size), np.int16)
        for sample, first in enumerate(firsts):
            if first is not None:
                previous[sample] = self._in_patch_axes(first)
        return self._tensor(previous)

    def _choose(self, epoch: int, place: int, rng: np.random.Generator, *, is_forced: bool) -> tuple[int, int | None]:
        """A case, and the label that its patch is centered on where that is drawn first."""
        choice, seed = self.choice, (self.seed, self.stream + TURNS, epoch)
        owners = self._owners if is_forced and choice.is_by_label else {}
        return choose_case(choice, self._names, rng, place=place, turn_seed=seed, owners=owners)

    @cached_property
    def _owners(self) -> dict[int, list[int]]:
        """By label the cases that have it."""
        found: dict[int, list[int]] = {}
        for place, case in enumerate(self.cases):
            for label, voxels in case.foreground.items():
                if len(voxels):
                    found.setdefault(label, []).append(place)
        return found

    def _place(self, shape: tuple[int, ...], foreground: Mapping[int, np.ndarray] | None, rng: np.random.Generator) -> PatchBox:
        """A box for a patch; its inner part, within the margin, lies as if the margin were not there."""
        inner = [n - 2 * m for n, m in zip(self.patch_size, self.margin[-len(self.patch_size) :], strict=True)]
        box = place_patch(shape, inner, foreground=foreground, rng=rng)
        start = tuple(s - m for s, m in zip(box.start, self.margin, strict=True))
        return PatchBox(start=start, size=tuple(n + 2 * m for n, m in zip(box.size, self.margin, strict=True)))

    def _read(self, case: PatchSource, box: PatchBox) -> Patch:
        is_masked = self.policy is not None and bool(self.policy.masked_channels)
        return read_patch(case.image, case.labels, box, outside=case.outside, mark_outside=is_masked, is_reflected=any(self.margin))

    def _read_previous(self, case: PatchSource, box: PatchBox) -> np.ndarray | None:
        return None if self.previous is None else read_labels(self.previous[case.name], box, is_reflected=any(self.margin))

    def _in_patch_axes(self, array: np.ndarray) -> np.ndarray:
        """Without the slice axis where the patch is 2D."""
        return array.squeeze(-3) if len(self.patch_size) == 2 else array

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.pin_memory else tensor
