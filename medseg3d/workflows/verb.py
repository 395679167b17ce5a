"""How a verb takes its options: as the record, or as the record's fields by name; declared once, in the record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar, get_type_hints

from medseg3d.events import Listener, silent
from medseg3d.options import Options

Fields = ParamSpec("Fields")
Record = TypeVar("Record", bound=Options)
Record_contra = TypeVar("Record_contra", bound=Options, contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Verb(Protocol[Record_contra, Fields, Result_co]):
    """``verb(dataset, work, options)`` or ``verb(dataset, work, hours=2)``; with both, the fields by name replace those of the record.

    ``dataset`` is its folder, ``work`` the work folder where that is another than usual, and ``on`` hears how far the work is.
    """

    def __call__(
        self,
        dataset: Path | str,
        work: Path | str | None = None,
        options: Record_contra | None = None,
        on: Listener = silent,
        *args: Fields.args,
        **fields: Fields.kwargs,
    ) -> Result_co:
        """Do the work."""


def verb(
    record: Callable[Fields, Record],
) -> Callable[[Callable[[Path, Path | None, Record, Listener], Result]], Verb[Record, Fields, Result]]:
    """Let a function of (root, work, record, listener) take the fields of the record by name as well, with their types."""

    def decorate(function: Callable[[Path, Path | None, Record, Listener], Result]) -> Verb[Record, Fields, Result]:
        known = tuple(inspect.signature(record).parameters)

        @wraps(function)
        def call(
            dataset: Path | str,
            work: Path | str | None = None,
            options: Record | None = None,
            on: Listener = silent,
            *args: Fields.args,
            **fields: Fields.kwargs,
        ) -> Result:
            _refuse_unknown(function.__name__, args, fields, known)
            given = record(*args, **fields) if options is None else replace(options, **fields)
            return function(Path(dataset), None if work is None else Path(work), given, on)

        call.__signature__ = _signature(record, function)  # type: ignore[attr-defined]
        return call

    return decorate


def _refuse_unknown(verb: str, args: Sequence[object], fields: Mapping[str, object], known: Sequence[str]) -> None:
    """Raise ``TypeError`` as a function of these keywords would, with the keyword that was probably meant."""
    if args:
        raise TypeError(f"{verb}() takes a dataset, a work folder, options and a listener by place; give options by name")
    for name in fields.keys() - set(known):
        nearest = get_close_matches(name, known, n=1)
        meant = f". Did you mean {nearest[0]!r}?" if nearest else f"; it takes {', '.join(known)}"
        raise TypeError(f"{verb}() got an unexpected keyword argument {name!r}{meant}")


def _signature(record: Callable[..., Options], function: Callable[..., object]) -> inspect.Signature:
    """What ``help()`` shows: the places, the listener, and the fields with their plain types."""
    places = [each for each in inspect.signature(Verb.__call__).parameters.values() if each.name in ("dataset", "work", "options", "on")]
    named = inspect.signature(record).parameters.values()
    types = {
        "dataset": Path | str,
        "work": Path | str | None,
        "options": record | None,  # type: ignore[operator]  # a class, whatever its call is typed as
        "on": Listener,
        **get_type_hints(record),
    }
    shown = [each.replace(annotation=types[each.name]) for each in (*places, *named)]
    return inspect.Signature(shown, return_annotation=inspect.signature(function, eval_str=True).return_annotation)
