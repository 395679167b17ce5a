"""What long work tells whoever listens: which stage it is in and how far it has come. The command line draws bars from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from medseg3d.errors import CaseFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """``done`` of ``total`` steps of ``stage``; ``message`` is a line worth keeping on the screen.

    ``overall`` is the share, 0 to 1, of the whole work that is done, where ``done`` of ``total`` counts a part of it only: of all epochs
    of a training, and of all trainings of a run. ``facts`` say what a training is, where it begins; ``values`` are numbers worth a
    curve, by name, at the place ``step`` of it. ``failures`` are cases that the work goes on without.
    """

    stage: str
    done: int = 0
    total: int = 0
    message: str | None = None
    facts: Mapping[str, Any] | None = None
    values: Mapping[str, float] | None = None
    step: int = 0
    overall: float | None = None
    failures: tuple[CaseFailure, ...] = ()

    def __str__(self) -> str:
        """One line.

        >>> print(Event(stage="fingerprint", done=3, total=8))
        fingerprint: 3 of 8
        """
        if self.message is not None:
            return self.message
        return f"{self.stage}: {self.done} of {self.total}" if self.total else self.stage


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Nobody listens: the library's default."""
