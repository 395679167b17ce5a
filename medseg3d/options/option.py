"""What an option is: a field of a frozen record that says its type, default, range and meaning; and the check of a record's values.

The parser of the command line, the keywords of the verbs in Python and the reference page are all made from such fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from inspect import get_annotations
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from medseg3d.errors import InputError

Several = Literal["", "words", "commas", "again"]
"""How an option takes several values: not at all, as words after it, in one word with commas, or by being given again."""


@dataclass(frozen=True, slots=True)
class Option:
    """How a field is typed on the command line, what it means, and which numbers it may be.

    ``flags`` are separated by blanks (``-c --configuration``); a word without dashes is an argument that is known by its place.
    ``unit`` is that of a number. Of the options of one ``group`` at most one may be given. ``is_required`` counts on the command line.
    """

    flags: str
    help: str = ""
    metavar: str | None = None
    unit: str = ""
    above: float | None = None
    at_least: int | None = None
    at_most: float | None = None
    several: Several = ""
    group: str = ""
    is_required: bool = False

    @property
    def name(self) -> str:
        """The longest flag: what a message calls the option."""
        return max(self.flags.split(), key=len)

    @property
    def has_range(self) -> bool:
        """Some numbers are refused."""
        return any(bound is not None for bound in (self.above, self.at_least, self.at_most))


@dataclass(frozen=True, slots=True)
class Field:
    """An option of a record: the field's name, the type of one value, its default, and the class that declares it."""

    name: str
    type: Any
    default: Any
    option: Option
    owner: type

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that are allowed; empty where any is."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def is_flag(self) -> bool:
        """It is named by a flag, not known by its place."""
        return self.option.flags.startswith("-")

    def problem(self, value: object) -> str | None:
        """What was expected instead of a value; None for one that is as it should be."""
        if self.choices:
            return None if value in self.choices else f"expected {', '.join(self.choices[:-1])} or {self.choices[-1]}"
        if self.type is int:
            is_number = isinstance(value, Integral) and not isinstance(value, bool)
        elif self.type is float:
            is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        else:
            return self._problem_of_type(value)
        return None if is_number and self._is_in_range(value) else f"expected {self.expected_number}"

    def _problem_of_type(self, value: object) -> str | None:
        if self.type is bool:
            return None if isinstance(value, bool) else "expected True or False"
        if self.type is Path:
            return None if isinstance(value, str | PathLike) else "expected a path"
        return "expected a text" if self.type is str and isinstance(value, bool | float) else None

    def _is_in_range(self, value: Any) -> bool:
        option = self.option
        return (
            (option.above is None or value > option.above)
            and (option.at_least is None or value >= option.at_least)
            and (option.at_most is None or value <= option.at_most)
        )

    @property
    def expected_number(self) -> str:
        """The numbers that are allowed, in words."""
        option = self.option
        kind = "a whole number" if self.type is int else "a number"
        if option.above is not None:
            upper = ", without a unit" if option.at_most is None else f" and up to {option.at_most:g}"
            return f"{kind} above {option.above:g}{upper}"
        if option.at_least is not None:
            upper = "" if option.at_most is None else f" and at most {option.at_most}"
            return f"{kind} of at least {option.at_least:g}{upper}"
        return kind


@dataclass(frozen=True, kw_only=True)  # no slots: records are put together from several, whose layouts of slots would conflict
class Options:
    """A record of options. Raises :class:`InputError` for values out of range, and for two that exclude each other."""

    def __post_init__(self) -> None:
        given: dict[str, str] = {}
        for field in fields_of(type(self)):
            value, option = getattr(self, field.name), field.option
            if field.type is str and not option.several and isinstance(value, Integral) and not isinstance(value, bool):
                value = str(value)  # fold=0, as people write it in Python
                object.__setattr__(self, field.name, value)
            for each in _values(value, option.several):
                if (each is not None or field.default is not None) and (problem := field.problem(each)):
                    raise InputError(f"{option.name} {each}: {problem}.")
            if option.group and value != field.default:
                if option.group in given:
                    raise InputError(f"{given[option.group]} and {option.name}: give at most one of them.")
                given[option.group] = option.name

    @classmethod
    def of(cls, other: Options, **changes: Any) -> Self:
        """A record of this kind with the fields that ``other`` has as well, and ``changes``."""
        shared = {field.name: getattr(other, field.name) for field in fields(cls) if hasattr(other, field.name)}
        return cls(**{**shared, **changes})


def _values(value: object, several: Several) -> Iterable[object]:
    return value if several and isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def fields_of(record: type[Options]) -> tuple[Field, ...]:
    """The options of a record, those of its parts first."""
    key: Any = record
    return _fields_of(key)


def arguments_of(options: Options, record: type[Options]) -> list[str]:
    """The words of a command line that give a command the options of ``record`` as they are here; defaults are left out.

    Only those with a flag: what is known by its place is left to whoever writes the line.
    """
    words: list[str] = []
    for field in fields_of(record):
        value, flag = getattr(options, field.name), field.option.name
        if not field.is_flag or value == field.default:
            continue
        if field.type is bool:
            words.append(flag)
        elif isinstance(value, Mapping):
            words += [flag, ",".join(f"{key}={text}" for key, text in value.items())]
        elif field.option.several == "again":
            words += [word for each in value for word in (flag, str(each))]
        elif field.option.several and not isinstance(value, str):
            several = [str(each) for each in value]
            words += [flag, *(several if field.option.several == "words" else [",".join(several)])]
        else:
            words += [flag, str(value)]
    return words


@cache  # types are looked up once per record
def _fields_of(record: Any) -> tuple[Field, ...]:
    hints = get_type_hints(record, include_extras=True)
    return tuple(
        Field(field.name, _value_type(hints[field.name], option.several), field.default, option, _owner(record, field.name))
        for field in fields(record)
        for option in _options_in(hints[field.name])
    )


def _options_in(hint: Any) -> Iterator[Option]:
    if get_origin(hint) is Annotated:
        yield from (extra for extra in hint.__metadata__ if isinstance(extra, Option))


def _value_type(hint: Any, several: Several) -> Any:
    """The type of one value: the first of a union, None apart, and of a list that of its items.

    >>> _value_type(Annotated[int | None, "extra"], ""), _value_type(tuple[Path, ...], "again")
    (<class 'int'>, <class 'pathlib.Path'>)
    """
    if get_origin(hint) is Annotated:
        return _value_type(get_args(hint)[0], several)
    if get_origin(hint) in (Union, UnionType):
        return _value_type(next(each for each in get_args(hint) if each is not NoneType), several)
    return get_args(hint)[0] if several and get_args(hint) else hint


def _owner(record: type, name: str) -> type:
    """The class whose own field it is."""
    return next(base for base in record.__mro__ if name in get_annotations(base))
