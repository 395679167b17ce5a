"""What a listener does, as a TOML file says it: where studies come from, which series which model takes, where results go."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from medseg3d.errors import InputError
from medseg3d.options import OutputType, SegmentationType
from medseg3d.records import Checked, from_plain, read_toml, to_plain

MAX_TITLE = 16
"""Characters of an application entity title."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Table(Checked):
    """A table of the file: a key that it does not know is a slip, and refused."""

    __slots__ = ()
    __pydantic_config__: ClassVar[Any] = {"allow_inf_nan": False, "extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Receive(Table):
    """Where studies come from: at least one of a ``port`` that others send to, a ``folder`` and a ``dicomweb`` server.

    A study is whole when nothing came for ``settle_seconds``. It is kept ``keep_hours`` after its results were sent. ``callers`` are
    the titles that may send, all where it is empty. Of a server the studies of the last ``days`` are looked for every ``poll_seconds``.
    With ``tls_certificate`` (and ``tls_key``) others send by TLS; with ``tls_trusted`` only those that show a certificate which it
    vouches for.
    """

    port: int | None = None
    host: str = "127.0.0.1"
    ae_title: str = "MEDSEG3D"
    callers: tuple[str, ...] = ()
    folder: Path | None = None
    dicomweb: str | None = None
    user: str = ""
    password: str = ""
    days: int = 2
    poll_seconds: float = 30.0
    settle_seconds: float = 30.0
    keep_hours: float = 24.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_trusted: Path | None = None

    def problems(self) -> Iterator[str]:
        """Nothing to listen to, or open to all."""
        if self.tls_certificate is None and (self.tls_key is not None or self.tls_trusted is not None):
            yield "names tls_key or tls_trusted without tls_certificate, so that nothing would be encrypted"
        if self.port is None and self.folder is None and self.dicomweb is None:
            yield "names nothing to listen to; expected port, folder or dicomweb"
        if self.port is not None and not 0 <= self.port <= 65535:
            yield f"port is {self.port}, expected 0 to 65535"
        if not 0 < len(self.ae_title) <= MAX_TITLE:
            yield f"ae_title is {self.ae_title!r}, expected 1 to {MAX_TITLE} characters"
        if self.port is not None and self.host not in LOOPBACK and not self.callers and self.tls_trusted is None:
            yield (
                f"host is {self.host}, which others reach, and DICOM asks for no password: name the AE titles that may send as callers, or "
                "tls_trusted, which vouches for their certificates"
            )
        if self.settle_seconds < 0 or self.poll_seconds <= 0 or self.keep_hours < 0 or self.days < 1:
            yield "settle_seconds, poll_seconds, keep_hours and days cannot be negative"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesFilter(Table):
    """Which series fit. ``description``, ``protocol`` and ``body_part`` are regular expressions that must be found in the header's text, in
    any case; ``exclude`` must not be found in the description."""

    modality: str = ""
    description: str = ""
    exclude: str = ""
    protocol: str = ""
    body_part: str = ""
    min_slices: int = 5
    max_slice_mm: float | None = None

    def problems(self) -> Iterator[str]:
        """Texts that are no expression."""
        for field in ("description", "exclude", "protocol", "body_part"):
            try:
                re.compile(getattr(self, field))
            except re.error as error:
                yield f"{field} is no regular expression ({error})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel(SeriesFilter):
    """One channel of a model that takes several: its ``name`` as the model calls it, and which series of a study it is."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(SeriesFilter):
    """Which series a model takes, what is written of them, and the ``send_to`` names of destinations.

    Of the series of a study that fit, ``at_most`` so many are taken, those with the most slices first; 0 takes all. A model of several
    channels takes one series of a study for each ``channel``, all on one grid; what the rule says itself holds for all of them.
    """

    name: str
    model: Path
    at_most: int = 0
    channel: tuple[Channel, ...] = ()
    came_later: ClassVar[tuple[str, ...]] = ("channel",)
    outputs: tuple[OutputType, ...] = ("dicom-seg",)
    segmentation_type: SegmentationType = "binary"
    codes: Path | None = None
    send_to: tuple[str, ...] = ()

    def problems(self) -> Iterator[str]:
        """A name that is none, and channels that cannot be told apart."""
        yield from SeriesFilter.problems(self)
        if not re.fullmatch(r"[\w .-]{1,40}", self.name):
            yield f"name is {self.name!r}, expected up to 40 letters, digits, blanks, . and -"
        if doubled := sorted({each.name for each in self.channel if [other.name for other in self.channel].count(each.name) > 1}):
            yield f"two channels are called {doubled[0]!r}"
        if not self.outputs:
            yield "outputs is empty; expected one of nifti, dicom-seg, dicom-rtstruct, dicom-sr"

    @property
    def digest(self) -> str:
        """Changes with the rule, so that a study is predicted again by one that was changed."""
        return hashlib.blake2b(repr(to_plain(self)).encode(), digest_size=4).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination(Table):
    """Where results go: another ``ae_title`` at ``host`` and ``port``, a ``dicomweb`` server, or a ``folder``.

    With ``tls`` the host is spoken to by TLS. Its certificate must be one that ``tls_trusted`` vouches for (by default the system), and
    we show ``tls_certificate`` (and ``tls_key``) where it asks for one.
    """

    name: str
    host: str | None = None
    port: int = 104
    ae_title: str = "ANY-SCP"
    dicomweb: str | None = None
    user: str = ""
    password: str = ""
    folder: Path | None = None
    tls: bool = False
    tls_trusted: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    def problems(self) -> Iterator[str]:
        """No place, or several."""
        if self.tls and self.host is None:
            yield f"destination {self.name!r}: tls goes with host; a dicomweb server has it by https://"
        if not self.tls and any(each is not None for each in (self.tls_trusted, self.tls_certificate, self.tls_key)):
            yield f"destination {self.name!r}: names certificates without tls = true, so that nothing would be encrypted"
        if not 0 < len(self.ae_title) <= MAX_TITLE or not 0 < self.port <= 65535:
            yield f"destination {self.name!r}: expected an ae_title of 1 to {MAX_TITLE} characters and a port of 1 to 65535"
        if sum(place is not None for place in (self.host, self.dicomweb, self.folder)) != 1:
            yield f"destination {self.name!r}: expected one of host (with port and ae_title), dicomweb and folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenRules(Table):
    """The file. Results that do not arrive are tried again for ``give_up_hours``, predictions that fail ``attempts`` times."""

    receive: Receive
    rule: tuple[Rule, ...]
    destination: tuple[Destination, ...] = ()
    give_up_hours: float = 72.0
    attempts: int = 3

    def problems(self) -> Iterator[str]:
        """Names that are missing or doubled."""
        if not self.rule:
            yield "no [[rule]]: no series would be predicted"
        for kind, names in (("rule", [each.name for each in self.rule]), ("destination", [each.name for each in self.destination])):
            if doubled := sorted({name for name in names if names.count(name) > 1}):
                yield f"two {kind}s are called {doubled[0]!r}"
        known = {each.name for each in self.destination}
        for rule in self.rule:
            if unknown := [name for name in rule.send_to if name not in known]:
                yield f"rule {rule.name!r} sends to {unknown[0]!r}, and no [[destination]] is called so"

    def rule_named(self, name: str) -> Rule | None:
        """None where the file has changed since."""
        return next((rule for rule in self.rule if rule.name == name), None)

    def destination_named(self, name: str) -> Destination | None:
        """None where the file has changed since."""
        return next((each for each in self.destination if each.name == name), None)


def read_rules(path: Path) -> ListenRules:
    """Read and check the file; its relative paths begin where it lies. Raises :class:`InputError` with what is wrong."""
    if not path.exists():
        raise InputError(f"{path}: no such file. Expected a file of rules; medseg3d docs hospital#every-night-by-itself shows one.")
    rules = from_plain(read_toml(path), ListenRules, str(path))
    root = path.resolve().parent

    def placed(place: Path | None) -> Path | None:
        return None if place is None else root / place.expanduser()

    receive = _with_files(replace(rules.receive, folder=placed(rules.receive.folder)), root)
    each_rule = tuple(replace(rule, model=root / rule.model.expanduser(), codes=placed(rule.codes)) for rule in rules.rule)
    for rule in each_rule:
        for file in (rule.model, rule.codes):
            if file is not None and not file.exists():
                raise InputError(f"{path}: rule {rule.name!r} names {file}, which is not there.")
    destinations = tuple(_with_files(replace(each, folder=placed(each.folder)), root) for each in rules.destination)
    return replace(rules, receive=receive, rule=each_rule, destination=destinations)


End = TypeVar("End", Receive, Destination)


def _with_files(end: End, root: Path) -> End:
    """The certificates of an end, whose relative paths begin in ``root``."""
    names = ("tls_certificate", "tls_key", "tls_trusted")
    return replace(end, **{name: root / path.expanduser() for name in names if (path := getattr(end, name)) is not None})
