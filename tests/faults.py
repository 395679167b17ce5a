"""The table of faults in ``docs/reliability.md``: what each test marked ``fault`` tried, how often, and what happens now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

TITLES = {
    "A": "Results that were silently wrong",
    "B": "One bad file among good ones",
    "C": "Two processes, or one that dies between two writes",
    "D": "Options and repairs",
    "E": "Messages",
    "F": "The server",
}


@dataclass(slots=True)
class Fault:
    """One row: ``kind`` is the letter of its table; ``outcomes`` counts the inputs that were tried by what became of them."""

    kind: str
    what: str
    now: str
    outcomes: dict[str, int] = field(default_factory=dict)

    @property
    def tries(self) -> int:
        """Inputs that ran; skipped ones do not count."""
        return sum(count for outcome, count in self.outcomes.items() if outcome != "skipped")

    @property
    def failed(self) -> int:
        """Inputs for which the test did not hold."""
        return self.outcomes.get("failed", 0)


def render(faults: Iterable[Fault]) -> str:
    """Markdown: the sum, then a table per kind."""
    rows = sorted(faults, key=lambda fault: (fault.kind, fault.what))
    tries, failed = sum(fault.tries for fault in rows), sum(fault.failed for fault in rows)
    lines = [f"{len(rows)} faults were tried {tries} times; {failed} of the tries ended otherwise than the last column says."]
    for letter in sorted({fault.kind[0] for fault in rows}):
        lines += ["", f"## {letter}. {TITLES[letter]}", "", "| fault | tries | failed | what happens now |", "|---|---|---|---|"]
        lines += [f"| {f.what} | {f.tries or 'skipped'} | {f.failed} | {f.now} |" for f in rows if f.kind[0] == letter]
    return "\n".join(lines).strip() + "\n"
