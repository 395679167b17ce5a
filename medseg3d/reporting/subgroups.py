"""How performance holds up where images differ: the mean Dice of the cases in groups by spacing, size, scanner and person."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medseg3d.csv_text import csv_text
from medseg3d.evaluation.compare import Interval, groups_of, interval_of
from medseg3d.reporting.scores import Score, defined, one_per_case
from medseg3d.reporting.study_facts import StudyFacts

MIN_GROUP = 2
"""Cases that a group must have: one has no interval."""
MAX_WORDS = 8
"""Different words of a field that make groups; more are names rather than kinds."""
WORDS = ("sex", "manufacturer", "scanner", "field_strength", "modality", "contrast")
NUMBERS = ("age", "slice_thickness")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subgroup:
    """The cases of one kind by one property, and their mean Dice with its interval over patients."""

    by: str
    kind: str
    dice: Interval


def subgroups(scores: Sequence[Score], patients: Mapping[str, str], facts: StudyFacts) -> tuple[Subgroup, ...]:
    """Halves by the coarsest spacing, by the reference's volume and by numbers of the headers, and kinds by words of the headers; a
    property that does not vary, or is not known of every case, makes no groups."""
    dice, spacing, volume = _by_case(one_per_case(scores))
    known = {case: {**facts.images.get(case, {}), **facts.people.get(case, {})} for case in dice}
    found: list[Subgroup] = []
    for by, numbers in (
        ("coarsest spacing (mm)", spacing),
        ("volume of all structures (ml)", volume),
        *((name.replace("_", " "), _numbers(known, name)) for name in NUMBERS),
    ):
        found += _halves(by, numbers, dice, patients)
    for name in WORDS:
        words = {case: row[name] for case, row in known.items() if row.get(name)}
        kinds = sorted(set(words.values()))
        if len(words) == len(dice) and 2 <= len(kinds) <= MAX_WORDS:
            found += _groups(
                name.replace("_", " "), [(kind, [case for case in dice if words[case] == kind]) for kind in kinds], dice, patients
            )
    return tuple(found)


def _by_case(scores: Sequence[Score]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    cases = list(dict.fromkeys(score.case for score in scores))
    of_case = {case: [score for score in scores if score.case == case] for case in cases}
    values = {case: defined(score.dice for score in own) for case, own in of_case.items()}
    dice = {case: statistics.fmean(found) for case, found in values.items() if found}
    spacing = {case: max(of_case[case][0].spacing_mm) for case in dice if of_case[case][0].spacing_mm}
    volume = {case: sum(score.volume_ml or 0.0 for score in of_case[case]) for case in dice}
    return dice, spacing, volume


def _numbers(known: Mapping[str, Mapping[str, str]], name: str) -> dict[str, float]:
    found = {}
    for case, row in known.items():
        try:
            found[case] = float(row[name])
        except (KeyError, ValueError):
            continue
    return found


def _halves(by: str, numbers: Mapping[str, float], dice: Mapping[str, float], patients: Mapping[str, str]) -> list[Subgroup]:
    if len(numbers) < len(dice) or len(set(numbers.values())) < 2:
        return []
    middle = statistics.median(numbers.values())
    low = [case for case in dice if numbers[case] <= middle]
    high = [case for case in dice if numbers[case] > middle]
    return _groups(by, [(f"up to {middle:.3g}", low), (f"above {middle:.3g}", high)], dice, patients)


def _groups(by: str, kinds: Sequence[tuple[str, Sequence[str]]], dice: Mapping[str, float], patients: Mapping[str, str]) -> list[Subgroup]:
    if any(len(cases) < MIN_GROUP for _, cases in kinds):
        return []
    return [
        Subgroup(by=by, kind=kind, dice=interval_of([dice[case] for case in cases], groups=groups_of(cases, patients)))
        for kind, cases in kinds
    ]


def subgroup_sentence(found: Sequence[Subgroup]) -> str:
    """The means by property; empty where there are no groups."""
    by_property: dict[str, list[Subgroup]] = {}
    for each in found:
        by_property.setdefault(each.by, []).append(each)
    return "; ".join(f"by {by}: " + ", ".join(_told(each) for each in own) for by, own in by_property.items())


def extremes(found: Sequence[Subgroup]) -> str:
    """The groups that a network does best and worst on, empty where there are none."""
    ordered = sorted((each for each in found if each.dice.mean is not None), key=lambda each: each.dice.mean or 0.0)
    if len(ordered) < 2:
        return ""
    worst, best = ordered[0], ordered[-1]
    return f"Best: {best.by}, {_told(best)}. Worst: {worst.by}, {_told(worst)}."


def _told(each: Subgroup) -> str:
    dice = each.dice
    interval = f" [{dice.low:.3f}, {dice.high:.3f}]" if dice.low is not None and dice.high is not None else ""
    return f"{each.kind} {dice.mean:.3f}{interval} (n = {dice.n})"


def subgroups_csv(found: Sequence[Subgroup]) -> str:
    """One row per group."""
    rows: list[list[object]] = [["property", "group", "cases", "mean_dice", "interval_low", "interval_high"]]
    for each in found:
        numbers = (each.dice.mean, each.dice.low, each.dice.high)
        rows.append([each.by, each.kind, each.dice.n, *("" if value is None else f"{value:.4f}" for value in numbers)])
    return csv_text(rows)
