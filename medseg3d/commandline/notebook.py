"""Bars in a notebook: what a listener hears, drawn with ipywidgets; lines of text where there is no notebook."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from medseg3d.commandline.terminal import ProgressLines
from medseg3d.events import Event
from medseg3d.pace import Pace
from medseg3d.wording import duration

FRACTION = 1000
"""Steps of the bar of all work."""


class ProgressBars:
    """A listener for notebooks: ``medseg3d.run("Hippocampus/", on=medseg3d.ProgressBars())``.

    Two bars stand below the cell, one of the step at hand and one of all work, each with the time that is left, and the last
    messages below them. Without ipywidgets, and outside of a notebook, it is a line where a step begins and one a minute, on standard
    error. The listener can be given to several calls, one after the other.
    """

    def __init__(self, *, messages: int = 5) -> None:
        self._pace = Pace()
        self._messages: list[str] = []
        self._most = messages
        self._widgets: Any = None
        self._lines: ProgressLines | None = None
        if not _is_notebook():
            self._lines = ProgressLines(lambda line: sys.stderr.write(f"{line}\n"))

    def __call__(self, event: Event) -> None:
        """Draw an event."""
        if self._lines is not None:
            if event.message is not None:
                sys.stderr.write(f"{event.message}\n")
            self._lines.listen(event)
            return
        if self._widgets is None:
            self._widgets = _Widgets()
        self._pace.listen(event)
        if event.message is not None:
            self._messages = [*self._messages, event.message][-self._most :]
            self._widgets.tell(self._messages)
        if event.total:
            left = None if self._pace.overall is not None else self._pace.stage_left
            self._widgets.draw_stage(event, left)
            self._widgets.draw_whole(self._pace.overall, self._pace.all_left)


class _Widgets:
    """The widgets below a cell, shown when they are made."""

    def __init__(self) -> None:
        import ipywidgets
        from IPython.display import display

        layout = ipywidgets.Layout(width="100%")
        self.stage, self.stage_text = ipywidgets.IntProgress(layout=layout), ipywidgets.Label()
        self.whole, self.whole_text = ipywidgets.IntProgress(max=FRACTION, bar_style="info", layout=layout), ipywidgets.Label()
        self.messages = ipywidgets.HTML()
        self._whole_box = ipywidgets.VBox([self.whole_text, self.whole])
        self._whole_box.layout.display = "none"
        self.box = ipywidgets.VBox([self.stage_text, self.stage, self._whole_box, self.messages])
        display(self.box)

    def draw_stage(self, event: Event, left: float | None) -> None:
        """The step at hand."""
        self.stage.max, self.stage.value = event.total, event.done
        self.stage_text.value = f"{event.stage}: {event.done} of {event.total}{_left(left)}"

    def draw_whole(self, share: float | None, left: float | None) -> None:
        """All work; hidden where nothing is known of it."""
        self._whole_box.layout.display = "none" if share is None else ""
        if share is not None:
            self.whole.value = round(share * FRACTION)
            self.whole_text.value = f"all together: {100 * share:.0f} %{_left(left)}"

    def tell(self, messages: list[str]) -> None:
        """The last messages, the newest below."""
        from html import escape

        self.messages.value = "<br>".join(f"<code>{escape(message)}</code>" for message in messages)


def _left(seconds: float | None) -> str:
    """
    >>> _left(7500.0), _left(None)
    (', about 2 h 5 min left', '')
    """
    return "" if seconds is None else f", about {duration(seconds)} left"


def _is_notebook() -> bool:
    """A kernel runs the code, and ipywidgets is installed."""
    shell = sys.modules.get("IPython")
    running = None if shell is None else shell.get_ipython()
    return running is not None and type(running).__name__ == "ZMQInteractiveShell" and importlib.util.find_spec("ipywidgets") is not None
