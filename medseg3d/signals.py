"""How a command ends when SIGINT, SIGTERM or SIGHUP comes: tidily where that is quick, and within ten seconds in any case.

The first signal raises :class:`Stopped` in the main thread; what is being written is removed on the way. Where worker threads or native
code hold that up, a thread of its own ends the process after :data:`GRACE_SECONDS`, and at once when a second signal comes. That is
safe, as whatever has been written by then is a valid state.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from medseg3d.files import remove_own_temporaries
from medseg3d.locks import release_all

logger = logging.getLogger(__name__)

GRACE_SECONDS = 6.0
"""Batch systems and containers kill ten seconds after SIGTERM; what is left is for the last words."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
STOPPED = "Stopped. Run the same command again to go on where it stopped."


class Stopped(KeyboardInterrupt):
    """A signal stopped the work; as SIGINT, and so not caught by what handles errors."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal_number)


def tell(number: int) -> None:
    """Say on standard error that the work was stopped."""
    sys.stderr.write(f"\n{STOPPED}\n")
    sys.stderr.flush()


@contextmanager
def ending_on_signals(say: Callable[[int], None] = tell) -> Iterator[None]:
    """Let signals end the process as described above. Only the main thread can listen; signals that are ignored stay so (``nohup``).

    ``say`` gets the signal where the process ends before the block does, and may run in another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = _Ending(say)
    previous = {number: signal.signal(number, ending.ask) for number in listened()}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=ending.watch, args=(reading,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # ends the thread, where no signal came
        for number, handler in previous.items():
            signal.signal(number, handler)


def listened() -> tuple[signal.Signals, ...]:
    """The signals that end a command here."""
    return tuple(number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN)


class _Ending:
    """What the handler in the main thread and the watching thread know: which signal came first."""

    def __init__(self, say: Callable[[int], None]) -> None:
        self._is_asked, self._say = False, say

    def ask(self, number: int, frame: object) -> None:
        """Run by Python in the main thread, between two of its steps; native code holds it up."""
        if self._is_asked:
            return  # the other thread ends the process
        self._is_asked = True
        raise Stopped(number)

    def watch(self, reading: int) -> None:
        """Run in a thread of its own, which hears of each signal at once."""
        heard: list[int] = []
        while number := os.read(reading, 1):
            if number[0] not in SIGNALS:
                continue
            heard.append(number[0])
            if len(heard) > 1:
                end_now(heard[-1], self._say)
            elif heard[0] != signal.SIGINT:
                timer = threading.Timer(GRACE_SECONDS, _end_with_last_words, (heard[0], self._say))
                timer.daemon = True
                timer.start()
        os.close(reading)


class StopRequest:
    """Set by a signal; the loop saves its state after the step at hand and ends."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def set(self, signal_number: int) -> None:
        """Ask the loop to stop."""
        self.signal_number = signal_number

    @property
    def is_set(self) -> bool:
        """A signal came."""
        return self.signal_number is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGINT, SIGTERM and SIGHUP ask the loop to save and end; a second one ends at once. Only the main thread can listen."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.is_set:
            raise Stopped(number)
        logger.warning("Stopping after this step …")
        stop.set(number)

    previous = {number: signal.signal(number, ask) for number in listened()}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_last_words: list[Callable[[], None]] = []


@contextmanager
def last_words(speak: Callable[[], None]) -> Iterator[None]:
    """Call ``speak`` from another thread where the process must end before the block does."""
    _last_words.append(speak)
    try:
        yield
    finally:
        _last_words.remove(speak)


def _end_with_last_words(number: int, say: Callable[[int], None]) -> None:
    try:
        for speak in list(_last_words):
            speak()
    finally:
        end_now(number, say)


def end_now(number: int, say: Callable[[int], None] = tell) -> None:
    """End the process with the exit code of a signal; only what it has not finished is removed."""
    remove_own_temporaries()
    release_all()
    say(number)
    os._exit(128 + number)
