"""Completion in the shells themselves: the script is sourced, and a line is completed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from medseg3d.commandline.completion import completion
from medseg3d.commandline.verbs import COMMANDS
from medseg3d.options import fields_of

LINES = [
    (["tr"], {"train"}),
    (["val"], {"validate"}),
    (["train", "--ep"], {"--epochs"}),
    (["predict", "--over"], {"--overwrite"}),
    (["train", "--tta", "o"], {"on", "off"}),
    (["plan", "--groups", "fi"], {"file name.csv"}),
    (["completion", "z"], {"zsh"}),
]
"""What is typed, and what can be meant."""
BASH = """
source "$1"; shift
COMP_WORDS=(medseg3d "$@"); COMP_CWORD=$#
_medseg3d
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "source $1"
zpty -w -n shell "medseg3d ${*[2,-1]}"$'\\t'
zpty -r shell output '*END*'
print -r -- $output
"""
ZSH_SETUP = """
autoload -U compinit; compinit -u -D; source SCRIPT
compadd() { local -a found; builtin compadd -O found "$@"; print -l -- FOUND:${^found}; builtin compadd "$@" }
print_end() { print END }
comppostfuncs=(print_end)
bindkey '^I' complete-word
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "file name.csv").touch()
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("words", "expected"), LINES)
def test_bash_completes(words: list[str], expected: set[str], place: Path) -> None:
    script = place / "script"
    script.write_text(completion("bash", COMMANDS), encoding="utf-8")
    done = subprocess.run(["bash", "-c", BASH, "bash", str(script), *words], cwd=place, capture_output=True, encoding="utf-8", check=True)
    assert set(done.stdout.splitlines()) == expected
    assert done.stderr == ""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize(("words", "expected"), LINES)
def test_zsh_completes(words: list[str], expected: set[str], place: Path) -> None:
    script, setup = place / "script", place / "setup"
    script.write_text(completion("zsh", COMMANDS), encoding="utf-8")
    setup.write_text(ZSH_SETUP.replace("SCRIPT", str(script)), encoding="utf-8")
    command = ["zsh", "-f", "-c", ZSH, "zsh", str(setup), *words]
    done = subprocess.run(command, cwd=place, capture_output=True, encoding="utf-8", check=True, timeout=60)
    found = {line.partition("FOUND:")[2].strip() for line in done.stdout.splitlines() if "FOUND:" in line}
    assert found == expected


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(("words", "expected"), LINES)
def test_fish_completes(words: list[str], expected: set[str], place: Path) -> None:
    script = place / "script"
    script.write_text(completion("fish", COMMANDS), encoding="utf-8")
    code = 'source $argv[1]; complete -C "$argv[2]"'
    command = ["fish", "--no-config", "-c", code, str(script), " ".join(["medseg3d", *words])]
    done = subprocess.run(command, cwd=place, capture_output=True, encoding="utf-8", check=True, timeout=60)
    assert {line.partition("\t")[0].replace("\\", "") for line in done.stdout.splitlines()} == expected
    assert done.stderr == ""


def test_fish_is_told_of_every_option() -> None:
    lines = completion("fish", COMMANDS).splitlines()
    for name, command in COMMANDS.items():
        own = [line for line in lines if f"'__medseg3d_verb {name}'" in line]
        for field in fields_of(command.record):
            for flag in field.option.flags.split() if field.is_flag else ():
                word = f"-s {flag[1:]} " if len(flag) == 2 else f"-l {flag[2:]} "
                assert any(word in line for line in own), (name, flag)
