"""Records to and from JSON and TOML: frozen dataclasses, checked by pydantic at the door, trusted inside.

Every JSON file says what it is: ``format`` (``medseg3d/plan``), ``format_version`` and ``made_by`` stand beside the record's
fields. Files that nobody should edit are sealed: the checksum of their text stands at their end, and is checked when they are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from medseg3d.errors import InputError
from medseg3d.files import write_text
from medseg3d.parsing import parse_json, parse_toml, read_text
from medseg3d.version import __version__

T = TypeVar("T")
FORMAT_VERSION = 1
"""Raised when a reader of the old files would misread the new ones."""


MAX_PROBLEMS = 5
"""Named in a message."""
SEALED = "is_sealed"
CHECKSUM = re.compile(r'"checksum": "([0-9a-f]{32})"')


class Checked:
    """A record whose numbers are finite and whose fields must fit each other; what does not fails where the record is read.

    Fields that ``came_later`` are written only where they hold something: files and digests of records that do not use them stay.
    """

    __slots__ = ()
    __pydantic_config__: ClassVar[Any] = {"allow_inf_nan": False}
    came_later: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> Iterator[str]:
        """What is wrong, each with what was found and what is allowed."""
        return iter(())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        # the reference moves to what is made of it: where a record occurs twice in another, pydantic takes what has it
        schema = dict(handler.resolve_ref_schema(handler(source)))
        reference = schema.pop("ref", None)
        if not source.came_later:
            return core_schema.no_info_after_validator_function(_checked, schema, ref=reference)
        written = core_schema.wrap_serializer_function_ser_schema(partial(_without_empty, source.came_later), schema=schema)
        return core_schema.no_info_after_validator_function(_checked, schema, ref=reference, serialization=written)


def _without_empty(names: tuple[str, ...], record: Any, write: Any) -> Any:
    return {name: value for name, value in write(record).items() if value or name not in names}


def _checked(record: Any) -> Any:
    if problems := "; ".join(islice(record.problems(), MAX_PROBLEMS)):
        raise ValueError(problems)
    return record


def write_record(path: Path, record: object, kind: str, *, is_sealed: bool = False) -> Path:
    """Write a record as indented JSON, atomically; ``kind`` names the file's format, for instance ``plan``."""
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
        raise InputError(f"{source}: {'; '.join(map(_finding, error.errors()[:5]))}.") from error
    return result


def _finding(error: Any) -> str:
    """The field, what is wrong with it, and the value that was found, each in so many letters."""
    place, message, found = ".".join(f"{part!s:.60}" for part in error["loc"]), error["msg"].removeprefix("Value error, "), error["input"]
    message = message.replace("Input should be", "expected")
    if error["type"] == "finite_number":
        return f"{place}: {place.rpartition('.')[2] or 'the value'} is {found}; expected a finite number"
    is_short = isinstance(found, bool | int | float | str) and error["type"] != "value_error"
    return f"{place}: " * bool(place) + f"{message:.300}" + (f", found {_shortened(found)}" if is_short else "")


def _shortened(found: object) -> str:
    text = f"a number of {found.bit_length()} bits" if isinstance(found, int) and found.bit_length() > 200 else repr(found)
    return text if len(text) <= 60 else f"{text[:60]}…"


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
