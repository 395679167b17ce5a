"""A DICOMweb server: its client, what can go wrong with it, and the studies that it has and we have not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from medseg3d.errors import ImageReadError
from medseg3d.listening.night import SendError
from medseg3d.listening.rules import Receive, Rule
from medseg3d.listening.spool import Spool, digest_of_uid

if TYPE_CHECKING:
    from dicomweb_client.api import DICOMwebClient


CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
"""The second also between two pieces of an answer."""
FIRST_PAUSE, LONGEST_PAUSE = 60.0, 3600.0
"""Seconds until a series that could not be fetched is asked for again: twice as long each time."""


def client_for(url: str, user: str, password: str) -> DICOMwebClient:
    """A client, which says who it is where a user is named."""
    import requests
    from dicomweb_client.api import DICOMwebClient

    session = requests.Session()
    session.request = partial(session.request, timeout=(CONNECT_SECONDS, READ_SECONDS))  # a server that says nothing is no server
    if user:
        session.auth = (user, password)
    client = DICOMwebClient(url.rstrip("/"), session=session)
    client.set_http_retry_params(retry=False)  # we try again ourselves, and do other work meanwhile
    return client


@contextmanager
def web_errors(url: str) -> Iterator[None]:
    """A server that is not there, or answers otherwise than it should, is a :class:`SendError`."""
    import requests

    try:
        yield
    except requests.HTTPError as error:  # its own text holds UIDs
        raise SendError(f"{url}: answered with status {error.response.status_code if error.response is not None else 'unknown'}.") from None
    except requests.RequestException as error:
        raise SendError(f"{url}: cannot be asked ({type(error).__name__}).") from None
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise SendError(f"{url}: its answer is no DICOMweb ({type(error).__name__}).") from error


@dataclass(slots=True)
class WebInbox:
    """Looks for new series of the modalities that rules ask for, and fetches their instances."""

    spool: Spool
    receive: Receive
    rules: tuple[Rule, ...]
    _counts: dict[str, int] = field(default_factory=dict)
    _pauses: dict[str, tuple[float, int]] = field(default_factory=dict)

    def look(self, now: float) -> tuple[int, int]:
        """Fetch what is new; how many instances came, and how many series could not be fetched, which are asked for again later.

        Raises :class:`SendError` where the server cannot be asked.
        """
        url, came, failed = str(self.receive.dicomweb), 0, 0
        today = date.today()
        when = f"{today - timedelta(days=self.receive.days - 1):%Y%m%d}-{today:%Y%m%d}"
        with web_errors(url):
            client = client_for(url, self.receive.user, self.receive.password)
            items = []
            for modality in sorted({rule.modality for rule in self.rules}):
                filters = {"StudyDate": when, **({"Modality": modality} if modality else {})}
                items += client.search_for_series(search_filters=filters, fields=["NumberOfSeriesRelatedInstances"])
        for item in items:
            study, series = _text(item, "0020000D"), _text(item, "0020000E")
            until, times = self._pauses.get(series, (0.0, 0))
            if not study or not series or until > now:
                continue
            try:
                with web_errors(url):
                    came += self._fetch_new(client, study, series, _text(item, "00201209"))
            except SendError:
                failed += 1
                self._pauses[series] = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(times, 20)), times + 1
        return came, failed

    def _fetch_new(self, client: Any, study: str, series: str, told: str) -> int:
        """Instances of a series that has others than at the last look; a server that does not count them is asked for their list."""
        count = int(told) if told.isdecimal() and int(told) else len(client.search_for_instances(study, series))
        came = 0
        if self._counts.get(series) != count and not self._is_here(study, series, count):
            came = self._fetch(client, study, series)
        self._counts[series] = count
        self._pauses.pop(series, None)
        return came

    def _is_here(self, study: str, series: str, count: int) -> bool:
        """Whether all instances of a series lie in the spool, from before a restart."""
        folder = self.spool.received / digest_of_uid(study) / digest_of_uid(series)
        return count > 0 and folder.is_dir() and sum(1 for _ in folder.glob("*.dcm")) >= count

    def _fetch(self, client: Any, study: str, series: str) -> int:
        """All instances of a series; those that are there, or were there and are done, are kept once."""
        came = 0
        for dataset in client.iter_series(study, series):
            stream = io.BytesIO()
            try:
                dataset.save_as(stream, enforce_file_format=True)
                self.spool.add(stream.getvalue())
            except (ImageReadError, ValueError, TypeError, AttributeError):  # an instance that nobody can write costs itself
                continue
            came += 1
        return came


def _text(found: Any, tag: str) -> str:
    """A value of DICOM's JSON; empty where the item is odd."""
    entry = found.get(tag) if isinstance(found, dict) else None
    values = entry.get("Value") if isinstance(entry, dict) else None
    return str(values[0]) if isinstance(values, list) and values else ""
