"""What goes wrong with one case stays with that case: errors go in, failures that are listed come out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass

from medseg3d.errors import CaseFailure, DiskReadError, InputError, MedsegError
from medseg3d.extensions import failure_of

logger = logging.getLogger(__name__)


MOST_UNREAD = 2
"""Files in a row at which the disk may fail, as at a bad sector; a third one means that the disk or the share is gone."""


@dataclass(slots=True)
class Attempt:
    """The work on one case; ``failure`` is set where it failed."""

    failure: CaseFailure | None = None


class CaseBoundary:
    """Keeps failures to their cases, for one stage of the work over many cases.

    An :class:`InputError` and a ``MemoryError`` are the case's own. An error that nobody expected is a defect of ours, or
    of an extension: it costs the case, is named as what it is and logged with its traceback (``-v``); where no case succeeds at all,
    :meth:`finish` raises it.
    A :class:`DiskReadError` is the case's own as well, until it is the third in a row. Everything else concerns all cases and is raised at
    once: a full disk, a plan that does not fit, a signal.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._defect: Exception | None = None
        self._has_succeeded = False
        self._unread_in_a_row = 0

    @contextmanager
    def around(self, name: str) -> Iterator[Attempt]:
        """Do the work on the case ``name`` inside; see the ``failure`` of what is yielded afterwards."""
        attempt = Attempt()
        try:
            yield attempt
        except Exception as error:  # the one place where any error of a case ends
            attempt.failure = self._failure(name, error)
        else:
            self._has_succeeded, self._unread_in_a_row = True, 0

    def finish(self) -> None:
        """All cases are through: raise a defect that let none of them succeed."""
        if self._defect is not None and not self._has_succeeded:
            raise self._defect

    def _failure(self, name: str, error: Exception) -> CaseFailure:
        if isinstance(error, MemoryError):
            reason = str(error) or "not enough memory; close other programs, or give --max-ram and --jobs 1"
        elif isinstance(error, InputError):
            reason = str(error)
        elif isinstance(error, DiskReadError):
            self._unread_in_a_row += 1
            if self._unread_in_a_row > MOST_UNREAD:
                raise error
            reason = str(error)
        elif isinstance(error, (MedsegError, OSError, CancelledError)):
            raise error
        else:
            self._defect = self._defect or error
            ours = f"a defect of medseg3d ({type(error).__name__}: {error}). Please report it, with what -v prints"
            reason = failure_of(error) or ours
            logger.info("%s: %s failed", name, self.stage, exc_info=error)
        logger.error("%s: %s failed: %s", name, self.stage, reason)
        return CaseFailure(case=name, stage=self.stage, reason=reason)
