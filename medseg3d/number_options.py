"""Numbers that a part of the package may be told: each with its default, its range and what it does; given ones are checked against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medseg3d.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberOption:
    """One number: its default, the closed range it must lie in, and what it does."""

    default: float
    minimum: float
    maximum: float
    meaning: str
    is_whole: bool = False

    def problem(self, name: str, value: float) -> str | None:
        """What is wrong with a value of it, None where nothing is."""
        is_inside = isinstance(value, int | float) and self.minimum <= value <= self.maximum
        if is_inside and not (self.is_whole and value != int(value)):
            return None
        kind = "a whole number" if self.is_whole else "a number"
        return f"{name} is {value!r}, must be {kind} from {self.minimum:g} to {self.maximum:g} ({self.meaning})"


def completed_numbers(owner: str, known: Mapping[str, NumberOption], given: Mapping[str, float]) -> dict[str, float]:
    """All options: those given, and the defaults of the others; raises :class:`PlanError` with all that is wrong with them.

    >>> completed_numbers("Loss dice", {"weight": NumberOption(default=1.0, minimum=0.0, maximum=2.0, meaning="factor")}, {})
    {'weight': 1.0}
    """
    findings = [
        f"it has no option {name!r}; it has {', '.join(known) or 'none'}" if name not in known else known[name].problem(name, value)
        for name, value in given.items()
    ]
    if wrong := "; ".join(filter(None, findings)):
        raise PlanError(f"{owner}: {wrong}.")
    return {name: float(given.get(name, rule.default)) for name, rule in known.items()}
