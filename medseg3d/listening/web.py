"""A DICOMweb server: its client, what can go wrong with it, and the studies that it has and we have not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from medseg3d.errors import ImageReadError
from medseg3d.listening.night import SendError
from medseg3d.listening.rules import Receive, Rule
from medseg3d.listening.spool import Spool, digest_of_uid

if TYPE_CHECKING:
    from dicomweb_client.api import DICOMwebClient


def client_for(url: str, user: str, password: str) -> DICOMwebClient:
    """A client, which says who it is where a user is named."""
    import requests
    from dicomweb_client.api import DICOMwebClient

    session = requests.Session()
    if user:
        session.auth = (user, password)
    return DICOMwebClient(url.rstrip("/"), session=session)


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

    def look(self) -> int:
        """Fetch what is new; how many instances came. Raises :class:`SendError` where the server cannot be asked."""
        url = str(self.receive.dicomweb)
        today = date.today()
        when = f"{today - timedelta(days=self.receive.days - 1):%Y%m%d}-{today:%Y%m%d}"
        came = 0
        with web_errors(url):
            client = client_for(url, self.receive.user, self.receive.password)
            for modality in sorted({rule.modality for rule in self.rules}):
                filters = {"StudyDate": when, **({"Modality": modality} if modality else {})}
                for found in client.search_for_series(search_filters=filters, fields=["NumberOfSeriesRelatedInstances"]):
                    study, series = _text(found, "0020000D"), _text(found, "0020000E")
                    count = int(_text(found, "00201209") or 0)
                    if self._counts.get(series) != count and not self._is_here(study, series, count):
                        came += self._fetch(client, study, series)
                        self._counts[series] = count
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
            dataset.save_as(stream, enforce_file_format=True)
            try:
                self.spool.add(stream.getvalue())
            except ImageReadError:
                continue
            came += 1
        return came


def _text(found: Any, tag: str) -> str:
    """A value of DICOM's JSON, or of a data set."""
    values = found.get(tag, {}).get("Value", [""])
    return str(values[0]) if values else ""
