"""What retraining on corrections gave: Dice of the same validation cases before and after → better or not, with a paired interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medseg3d.evaluation.compare import Interval, groups_of, interval_of, paired_difference
from medseg3d.evaluation.metrics import Evaluation
from medseg3d.validation.preset_comparison import Verdict, verdict_of

Dice = Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Of a configuration, over the validation cases that the weights of before and of after were both measured on, all folds together;
    of networks that share their cases the mean counts.

    Both are measured against the label maps of today. ``labels``: the mean change of the Dice of each label.
    """

    configuration: str
    cases: tuple[str, ...]
    before: Interval
    after: Interval
    difference: Interval
    verdict: Verdict
    labels: dict[str, float | None]
    worst: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One call of ``correct``: what was taken, where the weights of before lie (below the work folder), which folds were trained again.

    ``digests`` are those of the dropped files, by case: a round that goes on takes what it had recorded and nothing else.
    """

    number: int
    taken: tuple[str, ...]
    added: tuple[str, ...]
    earlier: str
    folds: dict[str, tuple[str, ...]]
    digests: dict[str, str] = field(default_factory=dict)
    is_finished: bool = False
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """``corrections.json`` of a work folder."""

    rounds: tuple[Round, ...] = field(default_factory=tuple)


SHOWN_WORST = 3
"""Cases that lost most, to be looked at."""


def change_of(
    configuration: str,
    before: Mapping[str, Evaluation],
    after: Mapping[str, Evaluation],
    *,
    seed: int = 0,
    patients: Mapping[str, str] | None = None,
) -> Change:
    """Compare the evaluations of a configuration by fold.

    A case whose reference is empty counts as 1 for weights that predict nothing there; one that is empty for both is left out. Intervals
    resample whole ``patients`` (by case).
    """
    old, new = _by_case(before), _by_case(after)
    cases = sorted(case for case in old.keys() & new.keys() if any(dice is not None for dice in (*old[case], *new[case])))
    first, second = [_mean(old[case]) for case in cases], [_mean(new[case]) for case in cases]
    groups = groups_of(cases, patients or {})
    difference = paired_difference(second, first, seed=seed, groups=groups)
    lost = sorted((b - a, case) for case, a, b in zip(cases, first, second, strict=True) if b < a)
    return Change(
        configuration=configuration,
        cases=tuple(cases),
        before=interval_of(first, seed=seed, groups=groups),
        after=interval_of(second, seed=seed, groups=groups),
        difference=difference,
        verdict=verdict_of(difference, num_patients=len(set(groups))),
        labels=_labels(before, after, set(cases)),
        worst=tuple((case, change) for change, case in lost[:SHOWN_WORST]),
    )


def _by_case(evaluations: Mapping[str, Evaluation]) -> dict[str, list[float | None]]:
    """The Dice of each case, one for each fold that validated it: networks with other seeds share a fold's cases."""
    found: dict[str, list[float | None]] = {}
    for evaluation in evaluations.values():
        for case, dice in evaluation.dice_per_case().items():
            found.setdefault(case, []).append(dice)
    return found


def _mean(values: Sequence[float | None]) -> float:
    """One value per case, so that networks with other seeds do not count as further cases."""
    return sum(1.0 if value is None else value for value in values) / len(values)


def _labels(before: Mapping[str, Evaluation], after: Mapping[str, Evaluation], cases: set[str]) -> dict[str, float | None]:
    """The mean change of each label over the cases in which both have a Dice."""
    old, new = _by_label(before), _by_label(after)
    found: dict[str, float | None] = {}
    for name in new:
        pairs = [(old[name][case], dice) for case, dice in new[name].items() if case in cases and case in old.get(name, {})]
        found[name] = sum(b - a for a, b in pairs) / len(pairs) if pairs else None
    return found


def _by_label(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = {}
    for evaluation in evaluations.values():
        for case in evaluation.cases:
            for label in case.labels:
                own = found.setdefault(label.name, {})
                if label.dice is not None:
                    own.setdefault(case.case, []).append(label.dice)
    return {name: {case: _mean(values) for case, values in own.items()} for name, own in found.items()}
