"""Records to and from JSON and TOML: frozen dataclasses, checked by pydantic at the door, trusted inside.

Every JSON file says what it is: ``format`` (``medseg3d/plan``), ``format_version`` and ``made_by`` stand beside the record's
fields.
"""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from medseg3d.errors import InputError
from medseg3d.files import unreadable, write_text
from medseg3d.version import __version__

T = TypeVar("T")
FORMAT_VERSION = 1
"""Raised when a reader of the old files would misread the new ones."""


def write_record(path: Path, record: object, kind: str) -> Path:
    """Write a record as indented JSON, whole or not at all; ``kind`` names the file's format, for instance ``plan``."""
    head = {"format": f"medseg3d/{kind}", "format_version": FORMAT_VERSION, "made_by": f"medseg3d {__version__}"}
    body = to_plain(record)
    if not isinstance(body, dict):
        body = {"records": body}
    return write_text(path, json.dumps({**head, **body}, indent=2, allow_nan=False) + "\n")


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
    body = {key: value for key, value in document.items() if key not in ("format", "format_version", "made_by")}
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
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise InputError(f"{source}: {wrong}.") from error
    return result


def read_json(path: Path) -> Any:
    """Plain JSON; raises :class:`InputError` where the file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Plain TOML; raises :class:`InputError` where the file is missing or broken."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML ({error}).") from error


def _adapter_of(record_type: Any) -> Any:
    return _adapter(record_type)


@cache  # building the checks of a nested record takes milliseconds
def _adapter(record_type: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(record_type)
