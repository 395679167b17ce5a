"""What a rule returns: its value, and beside it why, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One number of a plan: its value, the rule that gave it, what the rule was applied to, and what would change it.

    ``configuration`` is ``dataset`` where it holds for all configurations.
    """

    configuration: str = "dataset"
    quantity: str
    value: str
    rule: str
    inputs: str
    changes_it: str


@dataclass(frozen=True, slots=True)
class Decided(Generic[T]):
    """A value that a rule decided, with an explanation of each of its numbers."""

    value: T
    reasons: tuple[Explanation, ...]


def times(numbers: Sequence[float], digits: int = 6) -> str:
    """
    >>> times((1.5, 2, 2))
    '1.5 x 2 x 2'
    """
    return " x ".join(f"{number:.{digits}g}" for number in numbers)
