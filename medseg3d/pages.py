"""The pages of the documentation, as they come with the package: a name goes in, a file or one section of it comes out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from medseg3d.errors import InputError


def docs_folder() -> Path | None:
    """Where the pages lie: data of ``medseg3d.docs`` in an installed package, beside the package in a checkout; None where they are not."""
    package = Path(__file__).resolve().parent
    return next((folder for folder in (package / "docs", package.parent / "docs") if (folder / "start.md").is_file()), None)


def pages() -> Mapping[str, Path]:
    """Every page by its short name, the name of its file (``predict`` is ``how-to/predict.md``), or of its folder for an ``index.md``.

    The first one is where to start; those of a folder stand together, what to do before why it is so.
    """
    folder = docs_folder()
    found = {} if folder is None else {_short(path): path for path in sorted(folder.rglob("*.md"), key=_place_in_list)}
    planners = None if folder is None else folder.parent / "planners/README.md"
    return found | ({"planners": planners} if planners is not None and planners.is_file() else {})


def _place_in_list(path: Path) -> tuple[int, str]:
    """Pages that lie in no such folder come last."""
    order = ("start.md", "how-to", "concepts", "gallery", "reference")
    kind = path.name if path.name in order else path.parent.name
    return order.index(kind) if kind in order else len(order), path.stem


def _short(path: Path) -> str:
    """The name of a file, or of its folder for the first page of one."""
    return path.parent.name if path.stem == "index" else path.stem


def page_of(name: str) -> Path:
    """A page by its name, with or without its folder; raises :class:`InputError`, with the name that was probably meant."""
    short = name.partition("#")[0].removesuffix(".md").rpartition("/")[2]
    found = pages()
    if not found:
        raise InputError("The documentation is not part of this installation. Install the package from its wheel or sdist.")
    if short not in found:
        nearest = get_close_matches(short, found, n=1)
        meant = f" Did you mean {nearest[0]}?" if nearest else f" The pages are {', '.join(sorted(found))}."
        raise InputError(f"There is no page {name!r}.{meant}")
    return found[short]


def section_of(text: str, anchor: str) -> str:
    """The part of a page under a heading, which is known by its text in lower case with dashes; raises :class:`InputError`.

    >>> section_of("# A\\n\\n## The disk\\n\\nfull\\n\\n## Other", "the-disk")
    '## The disk\\n\\nfull'
    """
    lines = text.splitlines()
    is_code, level, start = False, 0, None
    for number, line in enumerate(lines):
        is_code ^= line.startswith("```")
        heading = None if is_code else re.match(r"(#+) (.+)$", line)
        if heading is None:
            continue
        if start is not None and len(heading[1]) <= level:
            return "\n".join(lines[start:number]).strip()
        if start is None and anchor_of(heading[2]) == anchor:
            level, start = len(heading[1]), number
    if start is None:
        raise InputError(f"The page has no section {anchor!r}.")
    return "\n".join(lines[start:]).strip()


def anchor_of(heading: str) -> str:
    """How a link names a heading.

    >>> anchor_of("The disk: full, or read-only?")
    'the-disk-full-or-read-only'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
