"""Scripts that let a shell complete commands, options, their values and files: ``eval "$(medseg3d completion bash)"``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from medseg3d.commandline.arguments import Command
from medseg3d.options import Field, fields_of


def completion(shell: str, commands: Mapping[str, Command[Any]]) -> str:
    """The script for a shell, one of ``SHELLS``."""
    return SHELLS[shell](commands)


def _bash(commands: Mapping[str, Command[Any]]) -> str:
    options, values, files = [], [], []
    for name, command in commands.items():
        fields = fields_of(command.record)
        flags = [flag for field in fields if field.is_flag for flag in field.option.flags.split()]
        options.append(f'        {name}) options="{" ".join(["-h", "--help", *flags])}" ;;')
        for field in fields:
            if not field.is_flag or field.type is bool:
                continue
            pattern = "|".join(f'"{name} {flag}"' for flag in field.option.flags.split())
            if words := _words(field):
                values.append(f'        {pattern}) _medseg3d_words "{" ".join(words)}"; return ;;')
            elif field.type is not Path and not _takes_file(field):
                files.append(pattern)
        arguments = [field for field in fields if not field.is_flag and _words(field)]
        values += [f'        "{name} {name}") _medseg3d_words "{" ".join(_words(field))}"; return ;;' for field in arguments]
    nothing = f"        {'|'.join(files)}) return ;;"
    return BASH.format(verbs=" ".join(commands), options="\n".join(options), values="\n".join([*values, nothing]))


def _zsh(commands: Mapping[str, Command[Any]]) -> str:
    verbs = "\n".join(f"        {_quoted(f'{name}:{command.help}')}" for name, command in commands.items())
    cases = "\n".join(
        f"        {name}) _arguments {' '.join(_zsh_specs(fields_of(command.record)))} ;;" for name, command in commands.items()
    )
    return ZSH.format(verbs=verbs, cases=cases)


def _zsh_specs(fields: Iterable[Field]) -> Iterable[str]:
    """A word for every option, as ``_arguments`` of zsh takes them."""
    yield _quoted("(- *)-h[show help]")
    yield _quoted("(- *)--help[show help]")
    for field in fields:
        option, flags = field.option, field.option.flags.split()
        message = _plain(option.metavar or field.name)
        if words := _words(field):
            action = f"({' '.join(words)})"
        else:
            action = "_files" if field.type is Path or _takes_file(field) else " "
        if not field.is_flag:
            yield _quoted(f"{'*' if option.several else ''}:{message}:{action}")
            continue
        alone = "*" if option.several == "again" else f"({' '.join(flags)})"
        value = "" if field.type is bool else f":{message}:{action}"
        for flag in flags:
            yield _quoted(f"{alone}{flag}[{_plain(option.help)}]{value}")


def _fish(commands: Mapping[str, Command[Any]]) -> str:
    lines = []
    for name, command in commands.items():
        lines.append(f"complete -c medseg3d -n __medseg3d_no_verb -a {name} -d {_fish_quoted(command.help)}")
        lines.append(f"complete -c medseg3d -n '__medseg3d_verb {name}' -s h -l help -d 'show help'")
        lines += [f"complete -c medseg3d -n '__medseg3d_verb {name}' {_fish_spec(field)}" for field in fields_of(command.record)]
    return FISH.format(lines="\n".join(lines))


def _fish_spec(field: Field) -> str:
    """The words of ``complete`` of fish for an option or an argument."""
    words, takes_file = _words(field), field.type is Path or _takes_file(field)
    flags = [f"-s {flag[1:]}" if len(flag) == 2 else f"-l {flag[2:]}" for flag in field.option.flags.split()] if field.is_flag else []
    if field.type is bool:
        value = []
    elif words:
        value = ["-x" if flags else "-f", "-a", _fish_quoted(" ".join(words))]
    else:
        value = ["-r", "-F"] if takes_file and flags else ["-F"] if takes_file else ["-x"] if flags else ["-f"]
    return " ".join([*flags, *value, "-d", _fish_quoted(field.option.help)])


def _fish_quoted(text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{quoted}'"


def _words(field: Field) -> tuple[str, ...]:
    """What an option may be, where these are few words."""
    named = (field.option.metavar or "").split("|")
    return field.choices or (tuple(named) if len(named) > 1 and all(re.fullmatch("[a-z]+", word) for word in named) else ())


def _takes_file(field: Field) -> bool:
    return "FILE" in (field.option.metavar or "")


def _plain(text: str) -> str:
    """Without what means something to ``_arguments``."""
    return re.sub(r"([\[\]:\\])", r"\\\1", text)


def _quoted(text: str) -> str:
    quoted = text.replace("'", "'\\''")
    return f"'{quoted}'"


BASH = """\
# Completion of medseg3d for bash: eval "$(medseg3d completion bash)"
_medseg3d_words() {{
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "${{COMP_WORDS[COMP_CWORD]}}")
}}

_medseg3d() {{
    local verb=${{COMP_WORDS[1]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} word=${{COMP_WORDS[COMP_CWORD]}} options=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        _medseg3d_words "{verbs} --help --version"
        return
    fi
    case "$verb" in
{options}
    esac
    if [[ $word == -* ]]; then
        _medseg3d_words "$options"
        return
    fi
    case "$verb $before" in
{values}
    esac
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
}}

complete -o filenames -F _medseg3d medseg3d
"""

ZSH = """\
#compdef medseg3d
# Completion of medseg3d for zsh, after compinit: eval "$(medseg3d completion zsh)"
_medseg3d() {{
    local state line
    local -a verbs
    verbs=(
{verbs}
    )
    _arguments -C '(- *)--help[show help]' '(- *)--version[show the version]' '1: :->verb' '*:: :->rest'
    case $state in
        verb) _describe command verbs; return ;;
    esac
    case $line[1] in
{cases}
    esac
}}

compdef _medseg3d medseg3d
"""

FISH = """\
# Completion of medseg3d for fish: medseg3d completion fish > ~/.config/fish/completions/medseg3d.fish
function __medseg3d_no_verb
    test (count (commandline -opc)) -eq 1
end

function __medseg3d_verb
    set -l words (commandline -opc)
    test (count $words) -gt 1; and test $words[2] = $argv[1]
end

complete -c medseg3d -f
complete -c medseg3d -n __medseg3d_no_verb -l help -d 'show help'
complete -c medseg3d -n __medseg3d_no_verb -l version -d 'show the version'
{lines}
"""

SHELLS: dict[str, Callable[[Mapping[str, Command[Any]]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
"""The shells by name."""
