"""What is printed comes through: characters that an output cannot show, warnings that repeat, progress where there is no terminal."""

from __future__ import annotations

import codecs
import io
import logging
import shutil
import textwrap
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self, TextIO

from medseg3d.events import Event
from medseg3d.pace import Pace
from medseg3d.wording import duration

SECONDS_BETWEEN_LINES = 60.0
"""Of a stage that goes on, where the output is a file: a night of training is some hundred lines."""
MAX_REMEMBERED = 10_000
"""Warnings, in a server that runs for months."""
ERRORS = "medseg3d"
"""The name under which Python knows :func:`shown_otherwise`."""
PLAIN = {
    "→": "->",
    "×": "x",
    "…": "...",
    "–": "-",
    "—": "-",
    "−": "-",
    "·": "-",
    "•": "-",
    "³": "3",
    "²": "2",
    "≥": ">=",
    "≤": "<=",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "─": "-",
    "━": "-",
    "│": "|",
    "┃": "|",
}


def make_printable(*streams: object) -> None:
    """Let text streams print whatever comes, instead of ending in a ``UnicodeEncodeError``."""
    codecs.register_error(ERRORS, shown_otherwise)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def shown_otherwise(error: UnicodeError) -> tuple[str, int]:
    r"""What stands for the characters that an encoding lacks: plain ones that look alike, else their number; an error handler of codecs.

    A name that is no UTF-8 comes with surrogates, one for each odd byte, and shows these bytes.

    >>> codecs.register_error("medseg3d", shown_otherwise)
    >>> "2×3 → Müller \udcfc".encode("ascii", "medseg3d").decode()
    '2x3 -> M\\xfcller \\xfc'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_plain(character) for character in error.object[error.start : error.end]), error.end


def _plain(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return f"\\x{ord(character) - 0xDC00:02x}"
    return PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode("ascii")


def is_terminal(stream: TextIO | None) -> bool:
    """A person sees the stream. One that is closed (``<&-``, a daemon) is None or refuses to say."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def wrapped(text: str, stream: TextIO | None) -> str:
    """Lines that end between words at the width of a terminal; for a file the text as it is."""
    if not is_terminal(stream):
        return text
    width = shutil.get_terminal_size().columns
    fill = partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False)
    return "\n".join(fill(line, subsequent_indent="    " if line.startswith("  - ") else "") for line in text.split("\n"))


class Once(logging.Filter):
    """Lets each warning through once: a dataset that is opened by five stages says what is odd about it in the first."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be printed."""
        if record.levelno != logging.WARNING:
            return True
        text = record.getMessage()
        if text in self._said:
            return False
        if len(self._said) < MAX_REMEMBERED:
            self._said.add(text)
        return True


class ProgressLines:
    """Progress for a log file: a line where a stage begins, and one a minute while it goes on, also while nothing is heard of it.

    A context manager around the work. ``write`` takes a line; ``clock`` gives seconds.
    """

    def __init__(
        self, write: Callable[[str], object], *, clock: Callable[[], float] = time.monotonic, seconds: float = SECONDS_BETWEEN_LINES
    ) -> None:
        self._write, self._clock, self._seconds = write, clock, seconds
        self._lock = threading.Lock()
        self._event: Event | None = None
        self._stage = ""
        self._pace = Pace(clock=clock)
        self._began = self._last = self._last_of_whole = clock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep_telling, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def listen(self, event: Event) -> None:
        """Hear how far a stage has come. The epochs of a training are one stage, and so are the cases of a prediction."""
        with self._lock:
            self._pace.listen(event)
            if event.message is not None:
                self._last = self._clock()  # the message is a line itself
                self._tell_whole()
            if not event.total:
                return
            stage = event.stage.partition(", ")[0]
            if stage != self._stage:
                self._stage, self._began = stage, self._clock()
                self._write(f"{stage} …")
                self._last = self._began
            self._event = event
        self.tell()

    def tell(self) -> None:
        """Write a line where the last one is a minute old."""
        with self._lock:
            now, event = self._clock(), self._event
            if event is not None and now - self._last >= self._seconds:
                self._last = now
                left = self._pace.stage_left
                more = "" if left is None or left < 1 or event.done >= event.total else f", about {duration(left)} left"
                self._write(f"{event}, after {duration(now - self._began)}{more}")
                self._tell_whole()

    def _tell_whole(self) -> None:
        """Once a minute at most, between the lines of epochs as well: how much of all is done; at its end nothing, as more may follow."""
        now, left, share = self._clock(), self._pace.all_left, self._pace.overall
        if left is not None and share is not None and share < 1 and now - self._last_of_whole >= self._seconds:
            self._last_of_whole = now
            self._write(f"{100 * share:.0f} % of all done" + ("" if left < 1 else f", about {duration(left)} left"))

    def _keep_telling(self) -> None:
        while not self._end.wait(self._seconds / 4):
            self.tell()
