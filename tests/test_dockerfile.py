"""What the Dockerfile copies, installs and starts is there; it is not built here."""

from __future__ import annotations

import configparser
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

from medseg3d.options import ServeOptions

ROOT = Path(__file__).parents[1]
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """Each instruction with its argument, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.partition(" ")[0], re.sub(r"\s+", " ", line.partition(" ")[2])) for line in lines]


def stages() -> dict[str, list[Instruction]]:
    """The instructions of each stage, with those of the stage that it stands on."""
    found: dict[str, list[Instruction]] = {}
    name = ""
    for word, argument in instructions():
        if word == "FROM":
            base, _, name = argument.partition(" AS ")
            found[name] = list(found.get(base, []))
        elif name:
            found[name].append((word, argument))
    return found


@pytest.fixture(scope="module")
def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")]
    sources = [
        source for word, argument in instructions() if word == "COPY" and "--from" not in argument for source in argument.split()[:-1]
    ]
    assert sorted(sources) == sorted(kept)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_copied_folders_are_those_that_the_wheel_is_made_from(settings: configparser.ConfigParser) -> None:
    mapped = [line.split("=")[1].strip() for line in settings["options"]["package_dir"].split("\n") if line]
    folders = {argument.split()[0] for word, argument in instructions() if word == "COPY" and (ROOT / argument.split()[0]).is_dir()}
    assert folders == {"medseg3d", *mapped}
    for file in ("license_files", "long_description"):
        assert any(settings["metadata"][file].removeprefix("file: ") in argument for word, argument in instructions() if word == "COPY")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_the_command_as_a_user_without_privileges(target: str, settings: configparser.ConfigParser) -> None:
    own = stages()[target]
    assert own[-1] == ("USER", "medseg3d")
    users = [argument for word, argument in own if word == "RUN" and "useradd" in argument]
    assert len(users) == 1
    assert "--uid 1000" in users[0]
    (entry,) = [argument for word, argument in own if word == "ENTRYPOINT"]
    assert f"{entry[2:-2]} =" in settings["options.entry_points"]["console_scripts"]
    assert ("EXPOSE", str(ServeOptions().port)) in own
    assert not any(word in ("RUN", "CMD") and "http" in argument for word, argument in own), "an index is an argument of the build"


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_extras_and_the_pin_of_torch_are_there(target: str, settings: configparser.ConfigParser) -> None:
    (install,) = [argument for word, argument in stages()[target] if word == "RUN" and "dist/*.whl" in argument]
    (extras,) = re.findall(r"\.whl\)\[([\w,]+)\]", install)
    assert set(extras.split(",")) <= set(settings["options.extras_require"])
    (pattern,) = re.findall(r"grep '([^']+)'", install)
    pinned = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if re.search(pattern, line)]
    assert len(pinned) == 1


def test_the_page_names_targets_and_commands_that_exist(settings: configparser.ConfigParser) -> None:
    from medseg3d.commandline.arguments import build_parser
    from medseg3d.commandline.verbs import COMMANDS

    page = (ROOT / "docs/how-to/docker.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--target (\w+)", page)) == {"cpu", "cuda"} <= set(stages())
    arguments = {argument.partition("=")[0] for word, argument in instructions() if word == "ARG"}
    assert set(re.findall(r"--build-arg (\w+)=", page)) <= arguments
    runs = re.findall(r"^docker run .* medseg3d:(?:cpu|cuda) (.*)$", page, flags=re.MULTILINE)
    assert len(runs) == 4
    for line in runs:
        build_parser(COMMANDS).parse_args(shlex.split(line))


def test_ignored_files_are_caches_only() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("**/")]
    shipped = [path for folder in ("medseg3d", "planners", "docs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    lost = [path for path in shipped if "__pycache__" not in path.parts and any(fnmatch(path.name, pattern[3:]) for pattern in patterns)]
    assert lost == []
