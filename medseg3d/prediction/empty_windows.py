"""Windows that hold nothing are found and left out: counted while validation cases are predicted, skipped where a user asks for it.

A window is told by its brightest voxel. In: windows and the logits that networks give for them. Out: the level of
:class:`~medseg3d.empty_windows.EmptyWindows`, or logits in the network's place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medseg3d.empty_windows import EmptyWindows

MARGIN = 1.0
"""In units of the normalized image, mostly its standard deviation: a window must be so far below the darkest one with a label."""
MIN_CASES = 3
"""With fewer cases the darkest window with a label is not known well enough."""


def finds_something(logits: torch.Tensor, *, is_regions: bool) -> torch.Tensor:
    """Where the logits ``(K, …)`` of a window say anything but background, bool."""
    return (logits > 0).any(0) if is_regions else logits.argmax(0) > 0


class Survey:
    """Counts windows while cases are predicted; ``is_regions`` where each output is a region of its own."""

    def __init__(self, *, is_regions: bool) -> None:
        self.is_regions = is_regions
        self._windows: dict[str, list[tuple[float, int, int]]] = {}

    def add(self, case: str, brightest: Sequence[float], logits: torch.Tensor) -> None:
        """Windows of a case with their logits ``(B, K, …)``."""
        rows = self._windows.setdefault(case, [])
        for value, window in zip(brightest, logits, strict=True):
            rows.append((value, int(finds_something(window, is_regions=self.is_regions).sum()), window[0].numel()))

    def result(self) -> EmptyWindows:
        """The level of all cases; and what the levels without the case in question would have done to it."""
        cases = [np.array(rows) for rows in self._windows.values()]
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

    def logits(self, brightest: Sequence[float], compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Logits ``(B, K, …)`` of windows: computed, unless all of them are empty and known to be."""
        is_empty = self._is_safe and max(brightest) < self._skipping.level
        if is_empty and self._logits is not None:
            self.num_skipped += len(brightest)
            return self._logits.expand(len(brightest), *self._logits.shape[1:])
        logits = compute()
        if is_empty:
            self._is_safe = not any(bool(finds_something(window, is_regions=self._skipping.is_regions).any()) for window in logits)
            self._logits = logits[:1].mean(tuple(range(2, logits.dim())), keepdim=True).expand(1, *logits.shape[1:])
        return logits
