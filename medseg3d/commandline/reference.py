"""The reference of the command line, a page of Markdown made from the records of options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from medseg3d.commandline.arguments import Command
from medseg3d.commandline.examples import USAGES
from medseg3d.options import Field, Options, OutputOptions, fields_of

DEFAULT = re.compile(r"\s*\(default: (.*?)\)")
"""Where a help text says it, the reference has a column for it."""
HEAD = """\
# The command line

Made from `medseg3d/options` by `scripts/command_line_reference.py`; a test compares.

`medseg3d COMMAND --help` prints the options of a command. In Python a verb takes the same options, under the names of the last column:
`medseg3d.run("Hippocampus/", hours=2)`.

Exit codes: 0 done, 1 a defect of ours, 2 wrong input, 3 done but some cases failed, 130 and 143 stopped by a signal. With `--json` an
error is a document on standard output: `error`, `message`, `exit_code`.

A shell completes commands, options, their values and files after `eval "$(medseg3d completion bash)"` in `~/.bashrc`, or
`eval "$(medseg3d completion zsh)"` after `compinit` in `~/.zshrc`, or
`medseg3d completion fish > ~/.config/fish/completions/medseg3d.fish`.
"""


def reference(commands: Mapping[str, Command[Any]]) -> str:
    """The page: what every command takes, then each command."""
    shared = {field.name for field in fields_of(OutputOptions)}
    parts = [HEAD, "## Every command\n", _table(OutputOptions, set())]
    for name, command in commands.items():
        usage = " ".join([name, *(_argument(field) for field in fields_of(command.record) if not field.is_flag)])
        parts += [f"## {name}\n", f"`medseg3d {usage}`: {command.help}.\n", *_examples(name), _table(command.record, shared)]
    return "\n".join(parts)


def _examples(name: str) -> Iterator[str]:
    """What the command is typed like, and the page about it; nothing for a command without."""
    if name not in USAGES:
        return
    page = USAGES[name].page
    here = "" if page.startswith("reference/") else f"\n[More](../{page})\n"
    own = page.removeprefix("reference/")
    yield "\n".join(["```sh", *USAGES[name].lines, "```", here or (f"\n[More]({own})\n" if own != "command-line.md" else "")])


def _table(record: type[Options], without: set[str]) -> str:
    rows = [row for field in fields_of(record) if field.name not in without for row in _row(field)]
    return "\n".join(["| option | value | default | meaning | Python |", "|---|---|---|---|---|", *rows, ""]) if rows else ""


def _row(field: Field) -> Iterator[str]:
    option = field.option
    names = ", ".join(f"`{flag}`" for flag in option.flags.split()) if field.is_flag else f"`{option.metavar or field.name}`"
    cells = (names, _value(field), _default(field), _meaning(field), f"`{field.name}`")
    yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(field: Field) -> str:
    """What may be typed."""
    if field.type is bool:
        return ""
    if field.choices:
        return ", ".join(field.choices)
    if field.type in (int, float):
        unit = f", {field.option.unit}" if field.option.unit else ""
        return field.expected_number.removeprefix("a ").removesuffix(", without a unit") + unit
    metavar = f"`{field.option.metavar}`" if field.option.metavar else "text"
    return metavar + {"": "", "commas": "", "words": ", several", "again": ", again"}[field.option.several]


def _default(field: Field) -> str:
    if field.option.is_required:
        return "required"
    if said := DEFAULT.search(field.option.help):
        return said[1]
    is_empty = field.default is None or isinstance(field.default, bool | tuple) or not str(field.default).strip(".")
    return "" if is_empty else f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def _meaning(field: Field) -> str:
    return DEFAULT.sub("", field.option.help)


def _argument(field: Field) -> str:
    name = field.option.metavar or field.name.upper()
    several = " …" if field.option.several else ""
    return f"{name}{several}" if field.option.is_required else f"[{name}{several}]"
