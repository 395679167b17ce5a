"""Codes of structures: the name of a label in, SNOMED CT out, or what a user's ``codes.csv`` says, or a private code."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from medseg3d.data.side_names import words_of
from medseg3d.errors import InputError
from medseg3d.parsing import read_table

Kind = Literal["anatomy", "tissue", "lesion"]
SNOMED, PRIVATE = "SCT", "99MEDSEG3D"
"""Coding schemes as DICOM calls them; those of one's own begin with 99."""
STRUCTURES = Path(__file__).with_name("structures.csv")
"""Names that datasets give their labels, with the codes and meanings of DICOM's own tables (part 16)."""
COLUMNS = ("name", "code", "scheme", "meaning")
MAX_NAME = 64
"""Characters of a long string (LO)."""
MAX_CODE = 16
"""Characters of a short string (SH)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A code of a coding scheme, and what it means."""

    value: str
    scheme: str = SNOMED
    meaning: str


CATEGORIES: dict[Kind, Code] = {
    "anatomy": Code(value="91723000", meaning="Anatomical Structure"),
    "tissue": Code(value="85756007", meaning="Tissue"),
    "lesion": Code(value="49755003", meaning="Morphologically Abnormal Structure"),
}
"""DICOM's CID 7150."""
SIDE_CODES = {"left": Code(value="7771000", meaning="Left"), "right": Code(value="24028007", meaning="Right")}
SIDE_WORDS = {
    **dict.fromkeys(("left", "l", "lt", "lh"), "left"),
    **dict.fromkeys(("right", "r", "rt", "rh"), "right"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What a label is: its kind, its code, the side of the body, and of a lesion the organ that it is in, where the name tells."""

    kind: Kind
    code: Code
    side: Code | None = None
    region: Code | None = None

    @property
    def category(self) -> Code:
        """The kind as a code."""
        return CATEGORIES[self.kind]

    @property
    def is_private(self) -> bool:
        """No table knows it."""
        return self.code.scheme == PRIVATE


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTable:
    """The codes of a user, by spoken name; all other names are looked up in the package's table."""

    own: Mapping[str, Structure] = field(default_factory=dict)

    def structure(self, name: str) -> Structure:
        """The structure that a label's name means.

        >>> CodeTable().structure("left_kidney").side.meaning, CodeTable().structure("liver tumor").region.meaning
        ('Left', 'Liver')
        >>> CodeTable().structure("label_3").is_private
        True
        """
        return self.own.get(_spoken(name)) or _known(name) or _private(name)


NO_CODES = CodeTable()


def read_codes(path: Path) -> CodeTable:
    """A table with the columns name, code, scheme and meaning, and if wanted kind (anatomy, tissue, lesion) and side (left, right).

    Raises :class:`InputError` that names the file and the row that is wrong.
    """
    rows = [row for row in read_table(path) if any(row)]
    head = [cell.lower() for cell in rows[0]] if rows else []
    if missing := [column for column in COLUMNS if column not in head]:
        raise InputError(
            f"{path}: the column {missing[0]} is missing; expected a first line {','.join(COLUMNS)}, and if wanted kind and side behind it."
        )
    found = {}
    for number, row in enumerate(rows[1:], 2):
        cells = dict(zip(head, [*row, *[""] * len(head)], strict=False))
        found[_spoken(cells["name"])] = _structure_of(cells, f"{path}, row {number}")
    return CodeTable(own=found)


def _structure_of(cells: Mapping[str, str], where: str) -> Structure:
    for column in COLUMNS:
        if not cells[column]:
            raise InputError(f"{where}: {column} is empty; a code needs a name, a value, its scheme (such as SCT) and a meaning.")
    for column, most in (("code", MAX_CODE), ("scheme", MAX_CODE), ("meaning", MAX_NAME)):
        if len(cells[column]) > most or "\\" in cells[column]:
            raise InputError(f"{where}: {column} is {cells[column][:80]!r}; expected at most {most} characters and no backslash.")
    kind, side = cells.get("kind") or "anatomy", cells.get("side", "").lower()
    if kind not in get_args(Kind):
        raise InputError(f"{where}: kind is {kind!r}; expected one of {', '.join(get_args(Kind))}.")
    if side and side not in SIDE_CODES:
        raise InputError(f"{where}: side is {side!r}; expected left, right or nothing.")
    code = Code(value=cells["code"], scheme=cells["scheme"], meaning=cells["meaning"])
    return Structure(kind=kind, code=code, side=SIDE_CODES.get(side))  # type: ignore[arg-type]  # checked above


def _spoken(name: str) -> str:
    return " ".join(words_of(name))


def _known(name: str) -> Structure | None:
    """The structure of a name by the package's table: as it is, without its side, without numbers, or a lesion in an organ."""
    words = words_of(name)
    table = _table()
    if whole := table.get(" ".join(words)):  # "left ventricle" is no ventricle on the left
        return whole
    sides = [SIDE_WORDS[word] for word in words if word in SIDE_WORDS]
    side = SIDE_CODES[sides[0]] if len(sides) == 1 else None
    rest = [word for word in words if word not in SIDE_WORDS] if side else list(words)
    for reading in (rest, [word for word in rest if not word.isdecimal()]):
        if found := table.get(" ".join(reading)):
            return replace(found, side=side)
    return _lesion(rest, side)


def _lesion(words: list[str], side: Code | None) -> Structure | None:
    """``liver tumor`` and ``tumor of liver``: what it is, and where."""
    for place in range(1, len(words)):
        for lesion, organ in ((words[place:], words[:place]), (words[:place], words[place:])):
            organ = [word for word in organ if word not in ("of", "in", "the")]
            what, where = _table().get(" ".join(lesion)), _table().get(" ".join(organ))
            if what is not None and where is not None and what.kind == "lesion" and where.kind == "anatomy":
                return Structure(kind="lesion", code=what.code, side=side, region=where.code)
    return None


def _private(name: str) -> Structure:
    digest = hashlib.blake2b(_spoken(name).encode(), digest_size=5).hexdigest()
    meaning = re.sub(r"[\\\s]+", " ", name).strip()[:MAX_NAME] or "label"
    return Structure(kind="anatomy", code=Code(value=f"L{digest}", scheme=PRIVATE, meaning=meaning))


@cache
def _table() -> dict[str, Structure]:
    _, *rows = read_table(STRUCTURES)
    found = {}
    for value, meaning, kind, names in rows:
        structure = Structure(kind=kind, code=Code(value=value, meaning=meaning))  # type: ignore[arg-type]
        found.update(dict.fromkeys(names.split(";"), structure))
    return found
