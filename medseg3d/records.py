"""Records to and from JSON and TOML: frozen dataclasses, checked by pydantic at the door, trusted inside.

Every JSON file says what it is: ``format`` (``medseg3d/plan``), ``format_version`` and ``made_by`` stand beside the record's
fields. Files that nobody should edit are sealed: the checksum of their text stands at their end, and is checked when they are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from medseg3d.errors import InputError
from medseg3d.files import write_text
from medseg3d.parsing import parse_json, parse_toml, read_text
from medseg3d.version import __version__

T = TypeVar("T")
FORMAT_VERSION = 1
"""Raised when a reader of the old files would misread the new ones."""


SEALED = "is_sealed"
CHECKSUM = re.compile(r'"checksum": "([0-9a-f]{32})"')


def write_record(path: Path, record: object, kind: str, *, is_sealed: bool = False) -> Path:
    """Write a record as indented JSON, whole or not at all; ``kind`` names the file's format, for instance ``plan``."""
    head: dict[str, object] = {"format": f"medseg3d/{kind}", "format_version": FORMAT_VERSION, "made_by": f"medseg3d {__version__}"}
    body = to_plain(record)
    if not isinstance(body, dict):
        body = {"records": body}
    if is_sealed:
        head[SEALED] = True
        body = {**body, "checksum": "0" * 32}
    text = json.dumps({**head, **body}, indent=2, allow_nan=False) + "\n"
    return write_text(path, _with_checksum(text, _checksum(text)) if is_sealed else text)


def read_record(path: Path, record_type: type[T], kind: str) -> T:
    """Read what :func:`write_record` wrote; raises :class:`InputError` naming the file and the field that is wrong."""
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != f"medseg3d/{kind}":
        raise InputError(f'{path}: not a medseg3d {kind} file (its "format" is not "medseg3d/{kind}").')
    if document.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {document.get('format_version')}, this medseg3d reads {FORMAT_VERSION}. "
            "Make the file again with this version."
        )
    body = {key: value for key, value in document.items() if key not in ("format", "format_version", "made_by", SEALED, "checksum")}
    return from_plain(body, record_type, str(path))


def to_plain(record: object) -> Any:
    """A record as dicts, lists, strings and numbers only."""
    return _adapter_of(type(record)).dump_python(record, mode="json")


def from_plain(plain: object, record_type: type[T], source: str) -> T:
    """A record from plain values; raises :class:`InputError` that names ``source`` and every wrong field."""
    from pydantic import ValidationError

    try:
        result: T = _adapter_of(record_type).validate_python(plain)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(f'{part!s:.60}' for part in e['loc'])}: {e['msg']:.300}" for e in error.errors()[:5])
        raise InputError(f"{source}: {wrong}.") from error
    return result


def read_json(path: Path) -> Any:
    """Plain JSON; raises :class:`InputError` where the file is missing, broken, or sealed with another content."""
    text = read_text(path)
    document = parse_json(text, str(path))
    if _is_sealed(document) and CHECKSUM.findall(text)[-1:] != [_checksum(text)]:
        raise InputError(f"{path}: damaged, or changed by hand: its content does not have the checksum that it was written with.")
    return document


def _is_sealed(document: object) -> bool:
    """A damaged letter can take one of the two signs away, not both."""
    if not isinstance(document, dict):
        return False
    return SEALED in document or ("checksum" in document and str(document.get("format")).startswith("medseg3d/"))


def _with_checksum(text: str, checksum: str) -> str:
    """The last one in the text is its own."""
    *_, place = CHECKSUM.finditer(text)
    return text[: place.start(1)] + checksum + text[place.end(1) :]


def _checksum(text: str) -> str:
    """Of the text with zeros in its own place."""
    zeros = _with_checksum(text, "0" * 32) if CHECKSUM.search(text) else text
    return hashlib.blake2b(zeros.replace("\r\n", "\n").encode(), digest_size=16).hexdigest()


def read_toml(path: Path) -> dict[str, Any]:
    """Plain TOML; raises :class:`InputError` where the file is missing or broken."""
    return parse_toml(read_text(path), str(path))


def _adapter_of(record_type: Any) -> Any:
    return _adapter(record_type)


@cache  # building the checks of a nested record takes milliseconds
def _adapter(record_type: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(record_type)
