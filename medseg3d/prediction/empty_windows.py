"""Windows that hold nothing are found and left out: counted while validation cases are predicted, skipped where a user asks for it.

A window is told by its brightest voxel. In: windows and the logits that networks give for them. Out: the level of
:class:`~medseg3d.validation.empty_window_record.EmptyWindows`, or logits in the network's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medseg3d.validation.empty_window_record import EmptyWindows

Start = tuple[int, ...]

MARGIN = 1.0
"""In units of the normalized image, mostly its standard deviation: a window must be so far below the darkest one with a label."""
MIN_CASES = 5
"""With fewer cases the darkest window with a label is not known well enough."""


def finds_something(logits: torch.Tensor, *, is_regions: bool) -> torch.Tensor:
    """Where the logits ``(K, …)`` of a window say anything but background, bool."""
    return (logits > 0).any(0) if is_regions else logits.argmax(0) > 0


class Survey:
    """Counts windows while cases are predicted; ``is_regions`` where each output is a region of its own.

    Of logits that several levels of a network give behind each other the first ``num_outputs`` count.
    """

    def __init__(self, *, is_regions: bool, num_outputs: int | None = None) -> None:
        self.is_regions, self.num_outputs = is_regions, num_outputs
        self.windows: dict[str, list[tuple[float, int, int]]] = {}

    def seen(self, brightest: Sequence[float], ways: Sequence[torch.Tensor]) -> list[tuple[float, int, int]]:
        """Of each window its brightest voxel, the voxels in which any of the ways found something, and all voxels of its output.

        ``ways`` are logits ``(B, K, …)``: with mirroring, and without.
        """
        rows = []
        for value, *windows in zip(brightest, *ways, strict=True):
            first = slice(self.num_outputs)
            anything = torch.stack([finds_something(window[first], is_regions=self.is_regions) for window in windows]).any(0)
            rows.append((value, int(anything.sum()), anything.numel()))
        return rows

    def add(self, case: str, windows: Sequence[tuple[float, int, int]]) -> None:
        """Windows of a case as :meth:`seen`."""
        self.windows.setdefault(case, []).extend(windows)

    def add_all(self, found: Iterable[Mapping[str, list[tuple[float, int, int]]]]) -> None:
        """The windows of cases that other processes predicted."""
        for windows in found:
            self.windows.update(windows)

    def result(self) -> EmptyWindows:
        """The level of all cases; and what the levels without the case in question would have done to it."""
        cases = [np.array(rows) for rows in self.windows.values()]
        darkest = [float(rows[rows[:, 1] > 0, 0].min(initial=np.inf)) for rows in cases]
        empty, voxels, wrong = 0, 0.0, 0.0
        for index, rows in enumerate(cases):
            level = _level([*darkest[:index], *darkest[index + 1 :]], MIN_CASES - 1)
            below = rows[:0] if level is None else rows[rows[:, 0] < level]
            empty, wrong, voxels = empty + len(below), wrong + below[:, 1].sum(), voxels + below[:, 2].sum()
        return EmptyWindows(
            level=_level(darkest, MIN_CASES),
            windows=sum(len(rows) for rows in cases),
            empty=empty,
            agreement=float(1 - wrong / voxels) if voxels else None,
        )


def _level(darkest: Sequence[float], min_cases: int) -> float | None:
    known = [value for value in darkest if np.isfinite(value)]
    return min(known) - MARGIN if len(known) >= min_cases else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipping:
    """Windows whose brightest voxel stays below ``level`` are left out; ``is_regions`` as for :class:`Survey`."""

    level: float
    is_regions: bool


class Skipper:
    """Spares the empty windows of one image, once the networks have called the first of them empty as well.

    Their logits are its mean, so that neighbouring windows and probabilities are as with them. Where the networks find something in
    it, no window of the image is left out.
    """

    def __init__(self, skipping: Skipping) -> None:
        self._skipping = skipping
        self._is_safe = True
        self._logits: torch.Tensor | None = None
        self.num_skipped = 0

    def logits(
        self, brightest: Sequence[float], starts: Sequence[Start], compute: Callable[[Sequence[Start]], torch.Tensor]
    ) -> torch.Tensor:
        """Logits ``(B, K, …)`` of windows: computed, but for those that are empty and known to be."""
        is_dark = [self._is_safe and value < self._skipping.level for value in brightest]
        if self._logits is None or not any(is_dark):
            logits = compute(starts)
            self._learn([window for window, dark in zip(logits, is_dark, strict=True) if dark])
            return logits
        bright = [index for index, dark in enumerate(is_dark) if not dark]
        logits = known = self._logits.expand(len(starts), *self._logits.shape)
        if bright:
            computed = compute([starts[index] for index in bright])
            logits = known.to(computed.device, copy=True)  # the networks may have moved, for want of memory
            logits[bright] = computed
        self.num_skipped += sum(is_dark)
        return logits

    def _learn(self, windows: Sequence[torch.Tensor]) -> None:
        """From the logits ``(K, …)`` of the first empty windows."""
        if not windows:
            return
        self._is_safe = not any(bool(finds_something(window, is_regions=self._skipping.is_regions).any()) for window in windows)
        self._logits = windows[0].mean(tuple(range(1, windows[0].dim())), keepdim=True).expand_as(windows[0])
