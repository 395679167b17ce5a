"""How long work will go on: events go in, as they are told to a listener, and the seconds that are left come out."""

from __future__ import annotations

import time
from collections.abc import Callable

from medseg3d.events import Event

LEAST_SECONDS = 2.0
"""Watched before anything is said: a first case or step also loads libraries."""
MOST_MARKS = 64
"""Times that are remembered of a stage; when there are more, every other one is forgotten."""


class Meter:
    """The pace of one work, from the shares of it that are done and when; the later half of the time counts, as first steps are slow."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = []

    def note(self, now: float, share: float) -> None:
        """The share ``share`` (0 to 1) is done at the second ``now``; a smaller one than before begins anew."""
        if self._marks and share < self._marks[-1][1]:
            self._marks = []
        self._marks.append((now, share))
        if len(self._marks) > MOST_MARKS:
            self._marks = [*self._marks[:-1:2], self._marks[-1]]

    def left(self, now: float) -> float | None:
        """Seconds to the end; None where too little is known.

        >>> meter = Meter()
        >>> for second in range(11):
        ...     meter.note(second, second / 40)
        >>> meter.left(10)
        30.0
        """
        if len(self._marks) < 2 or self._marks[-1][0] - self._marks[0][0] < LEAST_SECONDS:
            return None
        last, done = self._marks[-1]
        middle = (self._marks[0][0] + last) / 2
        since, before = max((mark for mark in self._marks if mark[0] <= middle), default=self._marks[0])
        if done <= before:
            return None
        whole = (1 - done) * (last - since) / (done - before)
        return max(0.0, whole - (now - last))


class Pace:
    """What is left of the stage that is heard of, and of the whole work; a listener. ``clock`` gives seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage = ""
        self._of_stage, self._of_all = Meter(), Meter()
        self.overall: float | None = None
        """The share of the whole work that is done; None where the stage at hand says nothing of it."""

    def listen(self, event: Event) -> None:
        """Hear how far a stage has come."""
        now = self._clock()
        if event.total:
            if event.stage != self._stage:
                self._stage, self._of_stage = event.stage, Meter()
            self._of_stage.note(now, min(1.0, event.done / event.total))
            self.overall = None if event.overall is None else min(1.0, event.overall)
            if self.overall is not None:
                self._of_all.note(now, self.overall)

    @property
    def stage_left(self) -> float | None:
        """Seconds until the stage is done; None where they are not known yet."""
        return self._of_stage.left(self._clock())

    @property
    def all_left(self) -> float | None:
        """Seconds until the whole work is done; None where they are not known."""
        return None if self.overall is None else self._of_all.left(self._clock())
