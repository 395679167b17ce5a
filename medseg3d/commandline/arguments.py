"""The parser of the command line, made from the records of options."""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from medseg3d.commandline.examples import examples_of
from medseg3d.commandline.terminal import wrapped
from medseg3d.errors import InputError
from medseg3d.options import Field, Options, OutputOptions, fields_of
from medseg3d.version import __version__

if TYPE_CHECKING:
    from medseg3d.commandline.console import Console

Record = TypeVar("Record", bound=OutputOptions)
Taken = TypeVar("Taken", bound=Options)
EXIT_USAGE = 2
VERB = "verb"
"""Where the parser leaves the name of the command."""
NARROW = 78
"""Letters in a line of a terminal of 80, as argparse counts them."""


@dataclass(frozen=True, slots=True)
class Command(Generic[Record]):
    """A verb of the command line: its line in ``--help``, the record of what it takes, and what is done; that may give an exit code."""

    help: str
    record: type[Record]
    run: Callable[[Record, Console], int | None]


def build_parser(commands: Mapping[str, Command[Any]]) -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = Parser(
        prog="medseg3d",
        description="From a folder of labelled 3D medical images to a segmentation model\nthat is trained, measured and explained.",
        epilog="Start with: medseg3d run DATASET. COMMAND --help ends with examples,\nand medseg3d docs shows the documentation. "
        "Without a dataset or model\nthe current folder is meant.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"medseg3d {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in commands.items():
        own = subparsers.add_parser(
            name,
            help=command.help,
            description=textwrap.fill(f"{command.help[0].upper()}{command.help[1:]}.", NARROW),
            epilog=examples_of(name),
            formatter_class=HelpFormatter,
        )
        own.set_defaults(**{VERB: name})
        add_options(own, command.record)
    return parser


def add_options(parser: argparse.ArgumentParser, record: type[Options]) -> None:
    """Add an option for every field of a record."""
    groups: dict[str, Any] = {}
    for field in fields_of(record):
        place: Any = parser
        if field.option.group:
            place = groups.setdefault(field.option.group, None) or parser.add_mutually_exclusive_group()
            groups[field.option.group] = place
        place.add_argument(*_flags(field), **_keywords(field))


def taken(record: type[Taken], namespace: argparse.Namespace) -> Taken:
    """The record of what was typed; its own defaults stand for the rest. Raises :class:`InputError` as the record does."""
    typed = {field.name: getattr(namespace, field.name, None) for field in fields_of(record)}
    return record(**{name: tuple(value) if isinstance(value, list) else value for name, value in typed.items() if value is not None})


def _flags(field: Field) -> Sequence[str]:
    return field.option.flags.split() if field.is_flag else ()


def _keywords(field: Field) -> dict[str, Any]:
    """What argparse is told of a field; defaults stay in the record, so an option that is not typed leaves nothing."""
    option = field.option
    keywords: dict[str, Any] = {"dest": field.name, "help": option.help.replace("%", "%%"), "default": None}
    if field.type is bool:
        return keywords | {"action": "store_const", "const": True}
    keywords |= {"metavar": option.metavar, "type": _reader(field)}
    if field.choices:
        keywords["choices"] = field.choices
    if option.several == "words":
        keywords["nargs"] = "+" if field.is_flag else "*"
    if option.several and field.is_flag:  # --folds 0 --folds 1 are both folds, as --folds 0 1 are
        keywords["action"] = "append" if option.several == "again" else "extend"
    elif field.type in (Mapping[int, str], Mapping[str, float]):
        keywords["action"] = Merged
    if field.is_flag:
        return keywords | {"required": option.is_required}
    return keywords if option.is_required or option.several else keywords | {"nargs": "?"}


class Merged(argparse.Action):
    """Names with values, also where the option is given again: all of them count."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        """Add to what was given before; the same name twice is no choice."""
        before = getattr(namespace, self.dest) or {}
        if twice := sorted(str(name) for name in before.keys() & values.keys() if before[name] != values[name]):
            raise argparse.ArgumentError(self, f"{', '.join(twice)} is given twice, with different values")
        setattr(namespace, self.dest, {**before, **values})


def _reader(field: Field) -> Callable[[str], Any]:
    """From what is typed to a value in its range."""
    read = READERS[str] if field.choices else READERS[field.type]

    def value(text: str) -> Any:
        found = read(text)
        problem = field.problem(found) if not field.choices else None  # argparse says which choices there are
        if problem:
            raise argparse.ArgumentTypeError(f"{text}: {problem}")
        return found

    return (lambda text: [value(each) for each in text.split(",")]) if field.option.several == "commas" else value


def _whole_number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?[0-9]{1,400}", text) else text


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _label_names(text: str) -> dict[int, str]:
    from medseg3d.data.label_names import names_from_text

    try:
        return names_from_text(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rates(text: str) -> dict[str, float]:
    pairs = [each.partition("=") for each in text.split(",")]
    try:
        return {name: float(number) for name, _, number in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected names with numbers, such as encoder=0.1,decoder=1") from None


def _part(text: str) -> tuple[int, int]:
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise argparse.ArgumentTypeError(f"{text}: expected two numbers such as 2/8, the first from 1 to the second")
    return int(number), int(total)


READERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    Path: Path,
    int: _whole_number,
    float: _number,
    Mapping[int, str]: _label_names,
    Mapping[str, float]: _rates,
    tuple[int, int]: _part,
}
"""By the type of a field; text that is no such value stays text, and the field says what it expected."""


LONGEST_COMMAND = 14
"""Columns of the longest name of a command with its indentation, which argparse counts as less than it is."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Names of options once with their value, in a column that holds the longest command."""

    def __init__(self, prog: str, **keywords: Any) -> None:
        super().__init__(prog, **{"max_help_position": 28, **keywords})
        self._action_max_length = LONGEST_COMMAND

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


ALIKE = 6
"""Letters, with the dashes, that an option begins with which is meant by an unknown word: --probs is --probabilities rather than --jobs."""


class Parser(argparse.ArgumentParser):
    """Takes options by their whole names only, names the nearest one for an option that it does not know, and obeys ``--json``."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)
        self._given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = list(sys.argv[1:] if args is None else args)
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """One message and exit code 2; with ``--json`` as a document on standard output."""
        if "argument COMMAND: invalid choice" in message:
            message = self._no_command()
        elif nearest := self._nearest():
            message += f". Did you mean {' and '.join(nearest)}?"
        if "--json" in self._given:
            sys.stdout.write(json.dumps({"error": "UsageError", "message": message, "exit_code": EXIT_USAGE}) + "\n")
            self.exit(EXIT_USAGE)
        hint = f"Options and examples: {self.prog} --help"
        self.exit(EXIT_USAGE, f"{wrapped(f'{self.prog}: error: {message}', sys.stderr)}\n{hint}\n")

    def _no_command(self) -> str:
        """There is no command of this name, and which one was probably meant."""
        commands = [name for action in self._actions if isinstance(action, argparse._SubParsersAction) for name in action.choices]
        typed = next((word for word in self._given if not word.startswith("-")), "")
        nearest = difflib.get_close_matches(typed, commands, n=1)
        if nearest:
            return f"there is no command {typed!r}. Did you mean {nearest[0]}?"
        if Path(typed).exists():
            return f"there is no command {typed!r}. Did you mean: medseg3d run {typed}?"
        return f"there is no command {typed!r}. The commands are {', '.join(commands)}."

    def _nearest(self) -> list[str]:
        """For each option that is not known the one that was probably meant."""
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        words: Iterable[str] = self._given
        if any(isinstance(action, argparse._SubParsersAction) for action in self._actions):  # what follows belongs to a command
            words = itertools.takewhile(lambda word: word.startswith("-"), words)
        unknown = [word.split("=")[0] for word in words if word.startswith("--") and word.split("=")[0] not in known]
        found = []
        for word in unknown:
            longer = [option for option in known if option.startswith(word)]
            alike = [option for option in known if len(word) > ALIKE and option.startswith(word[:ALIKE])]
            found += longer[:1] or alike[:1] or difflib.get_close_matches(word, known, n=1)
        return found
