"""From the bytes of a JSON, TOML or CSV file, whoever wrote it, to plain values; what cannot be read is one :class:`InputError`.

UTF-8 with or without a byte order mark, UTF-16 and UTF-32 are read. Nesting, numbers and fields have limits, as parsers fail on deep or
huge ones in ways of their own.
"""

from __future__ import annotations

import csv
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from medseg3d.errors import InputError
from medseg3d.files import unreadable

MAX_BYTES = 2**30
"""Of a text. The fingerprint of ten thousand cases has a quarter of it."""
MAX_DEPTH = 64
"""Levels of lists and objects within each other; ours have up to ten."""
MAX_TOML = 2**20
"""Characters."""
_KEY = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
DEEP_KEY = re.compile(rf"(?<![\w-]){_KEY}(?:\.[ \t]*+{_KEY}){{{MAX_DEPTH},}}")
DELIMITERS = (";", "\t")
"""Between the columns of a table whose first line holds one; otherwise commas."""


def read_text(path: Path) -> str:
    """A text file; raises :class:`InputError` where it is missing or no text."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: {size / 2**30:.3g} GiB; expected a text of at most {MAX_BYTES / 2**30:g} GiB.")
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    return decoded(raw, str(path))


def decoded(raw: bytes, source: str) -> str:
    """Text of whichever UTF it is written in; raises :class:`InputError` naming ``source``.

    >>> decoded("[1]".encode("utf-16"), "file"), decoded(b"\\xef\\xbb\\xbf[1]", "file")
    ('[1]', '[1]')
    """
    encoding = json.detect_encoding(raw)
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not a text in {encoding.upper()} ({error.reason} at byte {error.start}). Save it as UTF-8.") from None


def parse_json(text: str, source: str) -> Any:
    """Plain values; raises :class:`InputError` naming ``source``."""
    try:
        return _not_too_deep(json.loads(text), source)
    except RecursionError:
        raise _too_deep(source) from None
    except ValueError as error:
        raise InputError(f"{source}: not valid JSON ({_reason(error)}).") from error


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Plain values; raises :class:`InputError` naming ``source``."""
    if len(text) > MAX_TOML:
        raise InputError(f"{source}: {len(text):,} characters; a planner has up to a few thousand. Is this the right file?")
    if DEEP_KEY.search(text):  # Python's parser takes minutes for it
        raise _too_deep(source)
    try:
        document: dict[str, Any] = _not_too_deep(tomllib.loads(text), source)
    except RecursionError:
        raise _too_deep(source) from None
    except ValueError as error:
        raise InputError(f"{source}: not valid TOML ({_reason(error)}).") from error
    return document


def read_table(path: Path) -> list[list[str]]:
    """The rows of a CSV file, cells without the blanks around them; semicolons, tabs or commas stand between them."""
    lines = read_text(path).splitlines()
    delimiter = next((sign for sign in DELIMITERS if lines and sign in lines[0]), ",")
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]
    except csv.Error as error:
        raise InputError(f"{path}: not a table ({error}).") from None


def _not_too_deep(document: Any, source: str) -> Any:
    level = [document]
    for _ in range(MAX_DEPTH + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return document
        level = [value for each in level for value in (each.values() if isinstance(each, dict) else each)]
    raise _too_deep(source)


def _too_deep(source: str) -> InputError:
    return InputError(f"{source}: lists and objects lie within each other more than {MAX_DEPTH} levels deep. Is this the right file?")


def _reason(error: ValueError) -> str:
    """Python's own words, but for its advice to change Python's settings."""
    return "a whole number of more than 4300 digits" if "integer string conversion" in str(error) else f"{error}"[:200]
