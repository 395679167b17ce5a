"""From valid bytes to damaged ones: drawn from a generator, so that a seed and a number give the same input again."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable
from random import Random

Mutation = Callable[[bytes, Random], bytes]
MAX_BYTES = 1 << 25
"""Of a damaged file: a long line twenty thousand times would be 4 GB."""

NUMBERS = (
    "-1",
    "0",
    "1",
    "2",
    "16",
    "100",
    "255",
    "65536",
    "-2147483648",
    "1099511627776",
    "9" * 5000,
    "1e308",
    "-1e30",
    "1e-320",
    "nan",
    "inf",
    "0.5",
    "",
    "x",
)
WORDS = (
    "",
    "\0",
    "é",
    "\ufeff",
    "%s%n",
    "../../etc/passwd",
    "/dev/zero",
    "A" * 300,
    "B" * 200_000,
    "[" * 50_000,
    '"',
    "null",
    "true",
    "LIST",
    "none",
)
NIFTI_FIELDS = (
    ("<i", 0), ("<h", 40), ("<h", 42), ("<h", 44), ("<h", 46), ("<h", 48), ("<h", 50), ("<h", 70), ("<h", 72), ("<f", 76), ("<f", 80),
    ("<f", 84), ("<f", 88), ("<f", 108), ("<f", 112), ("<f", 116), ("<b", 123), ("<h", 252), ("<h", 254), ("<f", 256), ("<f", 268),
    ("<f", 280), ("<f", 284), ("<f", 300), ("<f", 320), ("<f", 292), ("<i", 344), ("<i", 348),
)  # fmt: skip
INTEGERS = (0, -1, 1, 2, 3, 4, 7, 8, 16, 127, -128, 512, 1792, 9999, 32767, -32768)
FLOATS = (0.0, -1.0, 1.0, float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e-30, 348.0, 351.5, 3e38, 1e10)


def mutate(content: bytes, kind: str, random: Random) -> bytes:
    """One damaged version; ``kind`` as in :class:`~fuzz.seeds.Seed`."""
    if kind == "nifti_gz" and random.random() < 0.6:  # inside the compressed data, so that the header is met
        return gzip.compress(random.choice(_NIFTI)(gzip.decompress(content), random), 1)
    choices = {"binary": _BINARY, "nifti": _NIFTI, "nifti_gz": _BINARY, "text_header": _TEXT_HEADER, "text": _TEXT}[kind]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice(choices)(content, random)[:MAX_BYTES]
    return content


def flip_bits(content: bytes, random: Random) -> bytes:
    """A few bits, half of the time near the beginning, where headers are."""
    changed = bytearray(content)
    reach = min(len(changed), 600) if random.random() < 0.5 else len(changed)
    for _ in range(random.choice((1, 1, 2, 8))):
        if changed:
            place = random.randrange(8 * max(1, reach))
            changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


def cut(content: bytes, random: Random) -> bytes:
    """The beginning of a file."""
    return content[: random.randrange(len(content) + 1)]


def grow(content: bytes, random: Random) -> bytes:
    """Something behind the end."""
    behind = (b"\0" * 1000, b"some text\n" * 50, random.randbytes(500), content)
    return content + random.choice(behind)


def overwrite(content: bytes, random: Random) -> bytes:
    """A run of other bytes."""
    start = random.randrange(len(content) + 1)
    run = random.choice((b"\0", b"\xff", b"\x7f", random.randbytes(4), struct.pack("<q", 2**40))) * random.choice((1, 4, 64))
    return content[:start] + run + content[start + len(run) :]


def remove(content: bytes, random: Random) -> bytes:
    """A piece from the middle."""
    start = random.randrange(len(content) + 1)
    return content[:start] + content[start + random.choice((1, 3, 100)) :]


def set_nifti_field(content: bytes, random: Random) -> bytes:
    """A field of the header at an extreme."""
    form, place = random.choice(NIFTI_FIELDS)
    value: float = random.choice(FLOATS) if form == "<f" else random.choice(INTEGERS)
    if form == "<b":
        value = max(-128, min(127, int(value)))
    if len(content) < 352:
        return content
    changed = bytearray(content)
    struct.pack_into(form, changed, place, value)
    return bytes(changed)


def change_number(content: bytes, random: Random) -> bytes:
    """One number of a text becomes an extreme one."""
    return _in_text(content, random, lambda text: _replace(text, r"-?\d+(\.\d+)?", random.choice(NUMBERS), random))


def change_word(content: bytes, random: Random) -> bytes:
    """One word of a text becomes a strange one."""
    return _in_text(content, random, lambda text: _replace(text, r"[A-Za-z_]{2,}", random.choice(WORDS), random))


def change_line(content: bytes, random: Random) -> bytes:
    """A line is lost, doubled, made long or put in again and again."""

    def change(text: str) -> str:
        lines = text.split("\n")
        place = random.randrange(len(lines))
        ways = ([], [lines[place]] * 2, [lines[place] + "k" * 100_000], ["k" * 100_000 + ":=v"], [lines[place]] * 20_000, ["", ""])
        return "\n".join([*lines[:place], *random.choice(ways), *lines[place + 1 :]])

    return _in_text(content, random, change)


def encode_otherwise(content: bytes, random: Random) -> bytes:
    """Another encoding of a text, or bytes that are none."""
    text = content.decode("utf-8", "replace")
    ways = (
        text.encode("utf-16"),
        b"\xef\xbb\xbf" + content,
        content.replace(b"\n", b"\r\n"),
        content + b"\xff\xfe\0",
        content[:10] + b"\xe9" + content[10:],
    )
    return random.choice(ways)


def nest(content: bytes, random: Random) -> bytes:
    """Brackets, dots and keys without end."""
    ways = (
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"a" + b".a" * 50_000 + b" = 1\n",
        b"x = " + b"[" * 20_000,
        b'"' + b"x" * 200_000,
        b"1," * 200_000,
    )
    return random.choice(ways)


def _in_text(content: bytes, random: Random, change: Callable[[str], str]) -> bytes:
    """Change the part that is text: all of it, or the header before the voxels."""
    end = next((content.index(mark) + len(mark) for mark in (b"\n\n", b"LOCAL\n") if mark in content[:5000]), len(content))
    return change(content[:end].decode("latin-1")).encode("utf-8") + content[end:]


def _replace(text: str, pattern: str, by: str, random: Random) -> str:
    found = list(re.finditer(pattern, text[:100_000]))
    if not found:
        return text
    place = random.choice(found)
    return text[: place.start()] + by + text[place.end() :]


_BINARY: tuple[Mutation, ...] = (flip_bits, flip_bits, flip_bits, cut, grow, overwrite, overwrite, remove)
_NIFTI: tuple[Mutation, ...] = (set_nifti_field, set_nifti_field, set_nifti_field, flip_bits, cut, grow, overwrite)
_TEXT_HEADER: tuple[Mutation, ...] = (change_number, change_number, change_number, change_word, change_line, flip_bits, cut, grow)
_TEXT: tuple[Mutation, ...] = (
    change_number,
    change_number,
    change_word,
    change_word,
    change_line,
    encode_otherwise,
    nest,
    cut,
    flip_bits,
    remove,
)
