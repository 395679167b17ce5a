"""Bars on a terminal: one of the stage at hand, and one of all work where a stage is a part of it; each says how long is left."""

from __future__ import annotations

import rich.console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from medseg3d.events import Event
from medseg3d.pace import Pace
from medseg3d.wording import duration

WIDE_TERMINAL, LONG_BAR, SHORT_BAR = 100, 30, 10
"""Columns: with the longest name of a stage, its numbers and the time that is left, a line with a short bar has 80."""
WHOLE = "all together"


class Bars:
    """What a listener hears, drawn on a terminal and removed at the end."""

    def __init__(self, console: rich.console.Console, *, is_shown: bool) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=LONG_BAR if console.width >= WIDE_TERMINAL else SHORT_BAR),
            TextColumn("{task.fields[count]}", markup=False, justify="right", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            expand=True,
            disable=not is_shown,
        )
        self._pace = Pace()
        self._stage: tuple[str, TaskID] | None = None
        self._whole: TaskID | None = None

    def start(self) -> None:
        """Begin to draw."""
        self._bars.start()

    def stop(self) -> None:
        """Remove the bars."""
        self._bars.stop()

    def listen(self, event: Event) -> None:
        """Move the bar of the event's stage."""
        self._pace.listen(event)
        if not event.total:
            return
        if self._stage is None or self._stage[0] != event.stage:
            if self._stage is not None:
                self._bars.remove_task(self._stage[1])
            self._stage = (event.stage, self._bars.add_task(event.stage, total=event.total, count="", left=""))
        self._draw_whole()
        left = "" if self._pace.overall is not None else _left(self._pace.stage_left)  # an epoch's end is not what people wait for
        self._bars.update(self._stage[1], completed=event.done, total=event.total, count=f"{event.done}/{event.total}", left=left)

    def _draw_whole(self) -> None:
        share = self._pace.overall
        if share is None:
            if self._whole is not None:
                self._bars.remove_task(self._whole)
                self._whole = None
            return
        if self._whole is None:
            self._whole = self._bars.add_task(WHOLE, total=1.0, count="", left="")
        self._bars.update(self._whole, completed=share, count=percent(share), left=_left(self._pace.all_left))


def percent(share: float) -> str:
    """A share as people read it, with a digit more where little is done.

    >>> percent(0.0032), percent(0.5)
    ('0.3 %', '50 %')
    """
    return f"{100 * share:.1f} %" if share < SMALL_SHARE else f"{100 * share:.0f} %"


SMALL_SHARE = 0.1


def _left(seconds: float | None) -> str:
    """
    >>> _left(125.0), _left(None)
    ('2 min left', '')
    """
    return "" if seconds is None else f"{duration(seconds)} left"
