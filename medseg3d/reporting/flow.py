"""From the images that were found to those that were evaluated: numbers and reasons at each step, as text and as a diagram."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from medseg3d.wording import counted, listed

if TYPE_CHECKING:
    from medseg3d.reporting.page import ReportInput

WIDTH, LEFT, LINE, CHARACTERS = 760, 330, 16, 48
"""Pixels of the diagram, of a box and of a line of text; so many characters fit a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowStep:
    """What is there at a step, and what was left out after it, with the reasons."""

    text: str
    left_out: str = ""


def flow_of(report: ReportInput) -> tuple[FlowStep, ...]:
    """The steps that are known; none before the dataset was measured."""
    facts, study = report.facts, report.study_facts
    if facts is None:
        return ()
    num_test = (study.num_test + study.num_test_failures) if study is not None else (facts.num_test or 0)
    failed = listed([f"{failure.case}: {failure.reason}" for failure in report.failures], most=3)
    found = len(facts.shapes) + sum(failure.case not in _test_names(report) for failure in report.failures)
    steps = [
        FlowStep(
            text=f"Found in the dataset's folder: {counted(found, 'labelled image')}"
            + (f", {counted(num_test, 'test image')}" if num_test else ""),
            left_out=f"{len(report.failures)} left out, as they could not be used ({failed})" if report.failures else "0 left out",
        )
    ]
    patients = len({report.patients.get(name, f"case {name}") for name in facts.names}) if report.patients else 0
    of_patients = f" of {counted(patients, 'patient')}" if patients else ""
    unused = f"{len(report.left_out)} left out, as the given folds do not name them" if report.left_out else ""
    steps.append(FlowStep(text=f"Included: {counted(len(facts.shapes), 'labelled image')}{of_patients}", left_out=unused))
    if report.fold_sizes:
        sizes = listed([f"fold {number}: {train} to train, {held} to validate" for number, (train, held) in enumerate(report.fold_sizes)])
        steps.append(FlowStep(text=f"Partitions: {sizes}"))
    evaluated = [f"{counted(number, 'image')} in {name}" for name, number in _evaluated(report).items()]
    if evaluated:
        steps.append(FlowStep(text=f"Evaluated: {', '.join(evaluated)}"))
    return tuple(steps)


def _test_names(report: ReportInput) -> set[str]:
    return set() if report.study_facts is None else set(report.study_facts.test_names)


def _evaluated(report: ReportInput) -> dict[str, int]:
    found = {f"validation of {fold.configuration}": set[str]() for fold in report.folds if fold.scores}
    for fold in report.folds:
        if fold.scores:
            found[f"validation of {fold.configuration}"] |= {score.case for score in fold.scores}
    if report.test_scores:
        found["the test set"] = {score.case for score in report.test_scores}
    return {name: len(cases) for name, cases in found.items()}


def flow_sentence(steps: tuple[FlowStep, ...]) -> str:
    """All steps, one after the other."""
    return " → ".join(f"{step.text}{f' ({step.left_out})' if step.left_out else ''}" for step in steps)


def flow_svg(steps: tuple[FlowStep, ...]) -> str:
    """A box per step with an arrow to the next, and beside it a box of what was left out. The text is escaped."""
    parts, top = [], 8
    for place, step in enumerate(steps):
        lines, aside = _lines(step.text), _lines(step.left_out) if step.left_out else []
        height = LINE * max(len(lines), len(aside)) + 20
        parts.append(_box(8, top, LEFT, height, lines))
        if aside:
            parts.append(_box(LEFT + 60, top, LEFT, height, aside, is_dashed=True))
            parts.append(f'<path d="M{LEFT + 8} {top + height / 2}h44" marker-end="url(#arrow)"/>')
        if place + 1 < len(steps):
            parts.append(f'<path d="M{8 + LEFT / 2} {top + height}v22" marker-end="url(#arrow)"/>')
        top += height + 30
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" font-family="sans-serif" font-size="12" fill="none" '
        'stroke="currentColor" role="img" aria-label="Flow of images"><defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor" stroke="none"/></marker></defs>'
    )
    return f"{head}{''.join(parts)}</svg>\n"


def _box(x: int, y: int, width: int, height: int, lines: list[str], *, is_dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 3"' if is_dashed else ""
    texts = "".join(
        f'<text x="{x + 10}" y="{y + 22 + LINE * place}" fill="currentColor" stroke="none">{escape(line)}</text>'
        for place, line in enumerate(lines)
    )
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4"{dash}/>{texts}'


def _lines(text: str) -> list[str]:
    """Broken at blanks, and within words that fit no line."""
    lines = [""]
    for word in text.split():
        for start in range(0, len(word), CHARACTERS):
            part = word[start : start + CHARACTERS]
            if lines[-1] and len(lines[-1]) + 1 + len(part) > CHARACTERS:
                lines.append("")
            lines[-1] = f"{lines[-1]} {part}".strip()
    return lines
