"""What the validation of a fold says of windows that hold nothing: how dark they are, and how often that was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EMPTY_WINDOWS = "windows.json"
"""Beside the metrics of a validation."""
SAFE_AGREEMENT = 0.9999
"""Of the voxels of windows that would have been left out in validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyWindows:
    """Below which ``level`` of the normalized image the brightest voxel of a window tells that there is nothing in it.

    None where no label was found, or in too few cases. Of all ``windows``, ``empty`` lie below the level that the other cases alone
    would give, and ``agreement`` is the share of their voxels that the network called background as well (None where there are none).
    """

    level: float | None
    windows: int
    empty: int
    agreement: float | None

    @property
    def is_safe(self) -> bool:
        """Whether windows may be left out: validation held such windows, and leaving them out would have been right."""
        return self.level is not None and self.agreement is not None and self.agreement >= SAFE_AGREEMENT

    def __str__(self) -> str:
        """What was found, as a part of a sentence."""
        text = f"{self.empty} of {self.windows} windows in validation"
        return (
            text if self.agreement is None else f"{text}, where the networks called {100 * self.agreement:.3f} % of the voxels background"
        )


def combined(folds: Sequence[EmptyWindows | None]) -> EmptyWindows | None:
    """Of several folds: the lowest level, and none where one fold has none; all windows together."""
    known = [each for each in folds if each is not None]
    if not known or len(known) < len(folds):
        return None
    levels = [each.level for each in known if each.level is not None]
    empty = sum(each.empty for each in known)
    right = sum((each.agreement or 0.0) * each.empty for each in known)  # windows of a configuration have one size
    return EmptyWindows(
        level=min(levels) if len(levels) == len(known) else None,
        windows=sum(each.windows for each in known),
        empty=empty,
        agreement=right / empty if empty else None,
    )
