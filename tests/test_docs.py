"""The pages of the documentation: links lead somewhere, and the site shows every page. ``scripts/docs`` builds it."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from medseg3d.commandline.arguments import build_parser, taken
from medseg3d.commandline.verbs import COMMANDS
from medseg3d.errors import InputError

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "planners/README.md")] + list(ROOT.glob("docs/**/*.md"))
)
NOTEBOOKS = sorted(ROOT.glob("docs/**/*.ipynb"))


def without_code(page: Path) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The places of a page that a link can name, as GitHub calls them: the headings in lower case with dashes."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def typed_commands(page: Path) -> Iterator[list[str]]:
    """The words of every ``medseg3d VERB …`` in a block of a page that is to be typed."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.findall(r"(?:^|[\s;&])medseg3d ([^#;&>`]*)", line):
                words = shlex.split(command)
                if words and words[0] in COMMANDS:
                    yield words


def test_every_command_of_a_page_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    parser, wrong, number = build_parser(COMMANDS), [], 0
    for page in PAGES:
        for words in typed_commands(page):
            number += 1
            try:
                taken(COMMANDS[words[0]].record, parser.parse_args(words))
            except (SystemExit, InputError):
                wrong.append(f"{page.name}: medseg3d {' '.join(words)}: {capsys.readouterr().err}")
    assert wrong == []
    assert number > 100


def test_the_site_shows_every_page() -> None:
    tree = ast.parse((ROOT / "docs/conf.py").read_text(encoding="utf-8"))
    (navigation,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "NAVIGATION"
    )
    shown = [page for pages in navigation.values() for page in pages]
    assert sorted(shown) == sorted(
        page.relative_to(ROOT).with_suffix("").as_posix() for page in [*PAGES, *NOTEBOOKS] if page != ROOT / "README.md"
    )
