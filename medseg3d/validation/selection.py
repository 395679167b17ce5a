"""Dice per case of every candidate → the selection: which configuration or ensemble of two predicts, why, and with which postprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from medseg3d.errors import InputError
from medseg3d.evaluation.compare import Interval, groups_of, interval_of, paired_difference
from medseg3d.provenance import Origin, changes_since, is_outdated
from medseg3d.records import Checked, read_record
from medseg3d.validation.postprocessing import NO_POSTPROCESSING, Postprocessing
from medseg3d.wording import counted, listed
from medseg3d.work_folder import WorkFolder

MIN_GAIN_OF_PAIR = 1e-3
"""Mean Dice that an ensemble of two must add: it costs twice the time of prediction."""
MIN_CASES_FOR_PAIR = 5
"""With fewer cases (of different patients) an interval says little, and the simpler model stays."""
MIN_GAIN_OF_MIRRORING = 1e-3
"""Mean Dice that mirroring must add: it costs two, four or eight times the time of prediction."""
MIN_CASES_FOR_MIRRORING = 5
"""With fewer cases it is not left out: the choice would hang on one of them."""
MIRRORING = "mirroring.json"
NO_PATIENTS: Mapping[str, str] = MappingProxyType({})
"""Every case is one of its own."""
TIE = 1e-6
"""Means that differ by less are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One configuration, or an ensemble of two, and its validation.

    ``folds``: the finished folds per configuration; ``dice``: the mean foreground Dice per validated case, None where
    neither prediction nor reference has any label (:meth:`medseg3d.evaluation.metrics.Evaluation.dice_per_case`).
    """

    configurations: tuple[str, ...]
    folds: Mapping[str, tuple[str, ...]]
    dice: Mapping[str, float | None]

    @property
    def name(self) -> str:
        """The configurations joined by a plus."""
        return " + ".join(self.configurations)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateResult:
    """A candidate on the common cases (``dice``, what decides) and on all its own cases (``own_dice``).

    ``gain`` is the paired difference to the best single configuration on the common cases; None for that one itself.
    """

    name: str
    configurations: tuple[str, ...]
    folds: dict[str, tuple[str, ...]]
    dice: Interval
    own_dice: Interval
    gain: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MirroringChoice:
    """Whether a configuration is mirrored at prediction; ``gain`` is the Dice with it minus without it, None where not compared."""

    is_used: bool
    gain: Interval | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldMirroring:
    """``mirroring.json`` of a validation: what its label maps were made with, and whether the other way lies beside them."""

    is_used: bool
    has_other: bool

    @property
    def other(self) -> str:
        """The folder of the other way."""
        return "unmirrored" if self.is_used else "mirrored"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMirroring(Checked):
    """``mirroring.json`` of an ensemble's validation: whether each configuration was mirrored, and the level of those that have some."""

    came_later: ClassVar[tuple[str, ...]] = ("levels",)

    is_used: dict[str, bool]
    levels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The chosen ``configurations`` (one, or two to be averaged) with the ``folds`` that were finished, and why.

    ``candidates`` are sorted by mean Dice on the common cases, the best first; ``cases`` are those common cases. ``origin`` is what all
    of it was made from.
    """

    configurations: tuple[str, ...]
    folds: dict[str, tuple[str, ...]]
    reason: str
    candidates: tuple[CandidateResult, ...]
    cases: tuple[str, ...]
    postprocessing: Postprocessing = NO_POSTPROCESSING
    notes: tuple[str, ...] = ()
    mirroring: dict[str, MirroringChoice] = field(default_factory=dict)
    origin: Origin | None = None


def read_selection(work: WorkFolder) -> tuple[Selection | None, str | None]:
    """The selection of a work folder where it belongs to the weights, label maps and folds of today; and a sentence where it does not.

    One that older versions wrote does not say what it was made from: it is used with a sentence, but not for weights of this version
    that are younger. Raises :class:`InputError` for a damaged file.
    """
    if not work.selection.exists():
        return None, None
    try:
        selection = read_record(work.selection, Selection, "selection")
    except InputError as error:
        raise InputError(f"{str(error).removesuffix('.')}. Delete the file and run medseg3d select, which makes it again.") from error
    changes = _changes_since(selection, work)
    if changes is not None:
        left_out = "so that neither its choices nor its Dice are used"
        again = "Train those folds again with --restart, then run" if "validation cases" in changes else "Run"
        return None, f"{work.selection} was made from {changes}, {left_out}. {again} medseg3d select to make it anew."
    if selection.origin is None:
        unknown = "was written by an older version and does not say which weights it was made from"
        return selection, f"{work.selection} {unknown}; medseg3d select writes one that does."
    return selection, None


def _changes_since(selection: Selection, work: WorkFolder) -> str | None:
    if selection.origin is not None:
        return changes_since(selection.origin, work)
    used = [(name, fold) for name, folds in selection.folds.items() for fold in folds]
    younger = [f"{name} fold {fold}" for name, fold in used if is_outdated(work.selection, work.weights(name, fold))]
    return f"other weights of {listed(younger)}" if younger else None


def select(
    candidates: Sequence[Candidate], *, recommended: str | None = None, seed: int = 0, patients: Mapping[str, str] = NO_PATIENTS
) -> Selection:
    """Choose by the mean foreground Dice over the cases that all candidates were validated on.

    Of single configurations the highest mean wins; ties go to ``recommended``, then to the earlier one. The best ensemble is taken
    instead only if it gains more than ``MIN_GAIN_OF_PAIR`` and the 95 % bootstrap interval of its gain per case is above 0.
    Where a reference is empty, a candidate that predicts nothing counts as 1 on that case, so that it stands above one with
    false positives; cases that are empty for all are left out. Where no case is common to all, single configurations are
    compared on their own cases and a note says so. Intervals resample whole ``patients`` (by case), of which ``MIN_CASES_FOR_PAIR`` are
    needed. Raises :class:`InputError` without candidates.
    """
    if not candidates or not any(len(c.configurations) == 1 for c in candidates):
        raise InputError("No configuration has a finished fold with validation. Run medseg3d train --fold 0 first.")
    ordered = sorted(candidates, key=lambda c: (len(c.configurations), c.name != recommended))  # stable: simpler first
    cases = _common_cases(ordered)
    notes = _notes(ordered, cases)
    singles = [c for c in ordered if len(c.configurations) == 1]
    pairs = [c for c in ordered if len(c.configurations) > 1] if cases else []
    best = _highest(singles, cases)
    chosen, reason = best, _reason_of_single(best, singles, cases)
    if pairs:
        pair = _highest(pairs, cases)
        gain = _gain(pair, best, cases, seed, patients)
        if _is_worth_it(gain, len(set(groups_of(cases, patients)))):
            chosen = pair
            reason = f"{pair.name} gains {_signed(gain)} mean Dice over {best.name}, the best single configuration"
        else:
            reason += f"; {pair.name} is not clearly better ({_signed(gain)}), and one configuration is simpler"
    results = [
        CandidateResult(
            name=c.name,
            configurations=c.configurations,
            folds=dict(c.folds),
            dice=interval_of(_values(c, cases), seed=seed, groups=groups_of(cases, patients)),
            own_dice=interval_of(_values(c, _own_cases(c)), seed=seed, groups=groups_of(_own_cases(c), patients)),
            gain=_gain(c, best, cases, seed, patients) if c is not best and cases else None,
        )
        for c in ordered
    ]
    results.sort(key=lambda r: -(r.dice.mean if r.dice.mean is not None else r.own_dice.mean or 0.0))
    return Selection(
        configurations=chosen.configurations,
        folds=dict(chosen.folds),
        reason=f"{reason}.",
        candidates=tuple(results),
        cases=cases,
        notes=notes,
    )


def choose_mirroring(
    mirrored: Mapping[str, float | None],
    plain: Mapping[str, float | None],
    *,
    seed: int = 0,
    patients: Mapping[str, str] = NO_PATIENTS,
) -> MirroringChoice:
    """Mirror where it gains more than ``MIN_GAIN_OF_MIRRORING`` mean Dice over the cases that were evaluated both ways.

    A case that is empty in reference and prediction counts as 1, as for :func:`select`. Below ``MIN_CASES_FOR_MIRRORING`` cases it is
    used as if nothing had been evaluated.
    """
    cases = [case for case in mirrored if case in plain and (mirrored[case] is not None or plain[case] is not None)]
    if not cases:
        return MirroringChoice(is_used=True, gain=None, reason="mirroring was not compared, and is used")

    def values(dice: Mapping[str, float | None]) -> list[float]:
        return [1.0 if (value := dice[case]) is None else value for case in cases]

    gain = paired_difference(values(mirrored), values(plain), seed=seed, groups=groups_of(cases, patients))
    if gain.n < MIN_CASES_FOR_MIRRORING:
        few = f"and is used: {MIN_CASES_FOR_MIRRORING} cases are needed to leave it out"
        return MirroringChoice(is_used=True, gain=gain, reason=f"mirroring changes the mean Dice by {_signed(gain)}, {few}")
    is_used = (gain.mean or 0.0) > MIN_GAIN_OF_MIRRORING
    verdict = "is used" if is_used else f"is left out, as less than {MIN_GAIN_OF_MIRRORING:g} is not worth its time"
    return MirroringChoice(is_used=is_used, gain=gain, reason=f"mirroring changes the mean Dice by {_signed(gain)}, and {verdict}")


def read_fold_mirroring(validation: Path) -> FoldMirroring | None:
    """What the label maps in a validation folder were made with; None where nothing says so."""
    file = validation / MIRRORING
    return read_record(file, FoldMirroring, "mirroring") if file.exists() else None


def pairs_of(configurations: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """All pairs of different configurations, in the given order.

    >>> pairs_of(["2d", "3d_fullres", "3d_lowres"])
    (('2d', '3d_fullres'), ('2d', '3d_lowres'), ('3d_fullres', '3d_lowres'))
    """
    return tuple((a, b) for i, a in enumerate(configurations) for b in configurations[i + 1 :])


def _common_cases(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    common = set.intersection(*(set(c.dice) for c in candidates))
    return tuple(sorted(case for case in common if any(c.dice[case] is not None for c in candidates)))


def _own_cases(candidate: Candidate) -> tuple[str, ...]:
    return tuple(case for case, dice in candidate.dice.items() if dice is not None)


def _values(candidate: Candidate, cases: Sequence[str]) -> list[float]:
    values = (candidate.dice[case] for case in cases)
    return [1.0 if value is None else value for value in values]


def _mean(candidate: Candidate, cases: Sequence[str]) -> float:
    values = _values(candidate, cases or _own_cases(candidate))
    return sum(values) / len(values) if values else 0.0


def _highest(candidates: Sequence[Candidate], cases: Sequence[str]) -> Candidate:
    best = candidates[0]
    for candidate in candidates[1:]:
        if _mean(candidate, cases) > _mean(best, cases) + TIE:
            best = candidate
    return best


def _gain(candidate: Candidate, over: Candidate, cases: Sequence[str], seed: int, patients: Mapping[str, str]) -> Interval:
    return paired_difference(_values(candidate, cases), _values(over, cases), seed=seed, groups=groups_of(cases, patients))


def _is_worth_it(gain: Interval, num_patients: int) -> bool:
    is_large = gain.mean is not None and gain.mean > MIN_GAIN_OF_PAIR
    return is_large and num_patients >= MIN_CASES_FOR_PAIR and gain.low is not None and gain.low > 0


def _signed(gain: Interval) -> str:
    interval = f", 95 % interval {gain.low:+.4f} to {gain.high:+.4f}" if gain.low is not None and gain.high is not None else ""
    return f"{gain.mean or 0.0:+.4f}{interval}, {counted(gain.n, 'case')}"


def _reason_of_single(best: Candidate, singles: Sequence[Candidate], cases: Sequence[str]) -> str:
    where = counted(len(cases), "common validation case") if cases else f"its {counted(len(_own_cases(best)), 'validation case')}"
    if len(singles) == 1:
        return f"{best.name} is the only configuration with a finished fold (mean Dice {_mean(best, cases):.4f} on {where})"
    return f"{best.name} has the highest mean Dice of the single configurations, {_mean(best, cases):.4f} on {where}"


def _notes(candidates: Sequence[Candidate], cases: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if not cases:
        notes.append(
            "No validation case is common to all candidates: the configurations were compared on different cases, and ensembles were "
            "left out. Finish the same folds of each configuration, then run medseg3d select again."
        )
    most = max(len(c.dice) for c in candidates)
    if cases and len(cases) < most:
        notes.append(f"Compared on {counted(len(cases), 'case')} that all candidates have; the most validated one has {most}.")
    return tuple(notes)
