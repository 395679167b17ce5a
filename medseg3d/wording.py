"""Counts and lists as they stand in a sentence."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """A number with its noun, singular where it is one.

    >>> counted(1, "case"), counted(3, "case")
    ('1 case', '3 cases')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Sequence[str], *, most: int = 10) -> str:
    """The first ``most`` names, and how many more there are.

    >>> listed(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def duration(seconds: float) -> str:
    """A time as people say it, to the two largest units.

    >>> duration(8.4), duration(75), duration(7500), duration(200_000)
    ('8 s', '1 min', '2 h 5 min', '2 days 7 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    hours, days = minutes // 60, minutes // (24 * 60)
    if days:
        return f"{counted(days, 'day')} {hours % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
