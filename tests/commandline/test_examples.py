"""Each command has examples that can be typed, and a page that is in the package; so has each kind of error."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from medseg3d import errors
from medseg3d.commandline.arguments import build_parser, taken
from medseg3d.commandline.cli import main
from medseg3d.commandline.examples import USAGES
from medseg3d.commandline.verbs import COMMANDS
from medseg3d.errors import InputError, MedsegError
from medseg3d.pages import anchor_of, docs_folder, page_of, pages, section_of

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MedsegError)]


def test_every_command_has_examples_and_a_page() -> None:
    assert list(USAGES) == list(COMMANDS)
    folder = docs_folder()
    assert folder is not None
    assert [usage.page for usage in USAGES.values() if not (folder / usage.page).is_file()] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_can_be_typed(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for line in USAGES[name].lines:
        (command,) = re.findall(r"medseg3d [^#>)]*", line)
        words = shlex.split(command)[1:]
        assert words[0] == name
        taken(COMMANDS[name].record, build_parser(COMMANDS).parse_args(words))
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert USAGES[name].lines[0].partition("  # ")[0] in shown
    assert f"more: medseg3d docs {page_of(USAGES[name].page).stem}" in shown


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
def test_every_error_names_a_section_that_is_there(kind: type[MedsegError]) -> None:
    if kind.page:
        name, _, anchor = kind.page.partition("#")
        assert len(section_of(page_of(name).read_text(encoding="utf-8"), anchor).splitlines()) > 2
    else:
        assert kind in (MedsegError, errors.InterruptedBySignalError)


def test_a_message_ends_with_the_page_and_the_command_that_shows_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", str(tmp_path)]) == 2
    message, more = capsys.readouterr().err.strip().rsplit("\n", 1)
    assert message.startswith(f"medseg3d: {tmp_path}: not a dataset.")
    found = re.fullmatch(r"More about this: medseg3d docs (\S+)  \((.+)\)", more)
    assert found is not None
    assert main(["docs", found[1]]) == 0
    assert capsys.readouterr().out.startswith("## The dataset\n")
    assert page_of(found[1]).samefile(found[2])
    assert main(["plan", str(tmp_path), "-q"]) == 2
    assert "More about" not in capsys.readouterr().err


def test_wrong_input_of_a_command_names_the_page_about_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["predict", str(tmp_path), "-i", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "More about this: medseg3d docs predict " in capsys.readouterr().err


@pytest.mark.parametrize(("typed", "expected"), [(["help"], "COMMAND"), (["help", "predict"], "examples:"), (["version"], "medseg3d ")])
def test_help_and_version_are_also_words(typed: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(typed)
    assert left.value.code == 0
    assert expected in capsys.readouterr().out


def test_a_folder_in_the_place_of_a_command_is_what_to_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for typed, meant in (
        (str(tmp_path), f"Did you mean: medseg3d run {tmp_path}?"),
        ("rnu", "Did you mean run?"),
        ("xyz", "The commands are run,"),
    ):
        with pytest.raises(SystemExit) as left:
            main([typed])
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert meant in said
        assert len(said.splitlines()) == 2, "the error is not buried below a list of options"


def test_a_dataset_that_is_not_trained_says_what_to_do(tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_source)]) == 2
    assert f"Train one first: medseg3d run {tiny_source}." in capsys.readouterr().err


def test_the_pages_are_listed_and_found_by_name_and_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(f"^{name} +\\S", listed, re.MULTILINE) for name in pages())
    for asked in ("predict", "how-to/predict.md", "predict.md"):
        assert main(["docs", asked]) == 0
        assert capsys.readouterr().out.startswith("# Predict\n")
    assert main(["docs", "doctor"]) == 0
    assert capsys.readouterr().out.startswith("# Repair bad data\n")
    assert main(["docs", "predicct"]) == 2
    assert "Did you mean predict?" in capsys.readouterr().err


def test_a_section_ends_where_the_next_of_its_level_begins() -> None:
    text = "# A\n\n## One\n\n```sh\n# no heading\n```\n\n### Part\n\nx\n\n## Two\n\ny\n"
    assert section_of(text, "one") == "## One\n\n```sh\n# no heading\n```\n\n### Part\n\nx"
    assert section_of(text, "two") == "## Two\n\ny"
    with pytest.raises(InputError, match="no section 'three'"):
        section_of(text, "three")


@pytest.mark.parametrize("path", pages().values(), ids=list(pages()))
def test_anchors_of_a_page_are_those_of_its_headings(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for heading in re.findall(r"^## (.+)$", text, flags=re.MULTILINE)[:3]:
        assert section_of(text, anchor_of(heading)).startswith(f"## {heading}")
