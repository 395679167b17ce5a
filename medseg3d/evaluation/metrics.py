"""The records of an evaluation: per label of a case, per case, and over all cases; and how they become a table and a CSV.

No number is ever NaN: what is not defined is None (``null`` in JSON, empty in CSV), and every mean carries the number of
values in it. What is counted when an object is empty is written in ``docs/reference/metrics.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from medseg3d.csv_text import csv_text
from medseg3d.data.grouping import find_groups
from medseg3d.errors import CaseFailure
from medseg3d.evaluation.compare import Interval, groups_of, interval_of
from medseg3d.evaluation.measures import METRICS
from medseg3d.files import write_text
from medseg3d.records import Checked, read_record, write_record

RECORD_KIND = "metrics"

Presence = Literal["both", "only_reference", "only_prediction", "neither", "not_annotated"]
"""Where a label has voxels; everything but ``both`` is an empty case of the written policy. ``not_annotated``: nobody has looked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMetrics(Checked):
    """One label of one case. Lengths in mm, volumes in ml; differences are prediction minus reference.

    ``dice``, ``iou``, ``nsd`` and ``lesion_f1`` are None where neither has the label, ``hd95_mm`` and ``assd_mm`` where not
    both have it. ``further`` are metrics by name that have no field.
    """

    value: int
    name: str
    presence: Presence
    dice: float | None
    iou: float | None
    nsd: float | None
    hd95_mm: float | None
    assd_mm: float | None
    volume_reference_ml: float
    volume_prediction_ml: float
    volume_difference_ml: float
    voxels_reference: int
    voxels_prediction: int
    voxels_common: int
    lesion_true_positives: int
    lesion_false_positives: int
    lesion_false_negatives: int
    lesion_f1: float | None
    further: dict[str, float | None] = field(default_factory=dict)
    came_later: ClassVar[tuple[str, ...]] = ("further",)

    def value_of(self, name: str) -> float | None:
        """Of a metric by name; None where it is not defined or was not measured."""
        if name in OWN_FIELDS:
            found: float | None = getattr(self, name)
            return found
        return self.further.get(name)


OWN_FIELDS = ("dice", "iou", "nsd", "hd95_mm", "assd_mm", "volume_difference_ml", "lesion_f1")
"""Metrics that have a field in the records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseMetrics:
    """One case: its labels without the background, and the mean Dice of those that prediction or reference has.

    ``foreground_dice`` is None where no label occurs in either; ``num_labels_counted`` stands beside it. ``spacing_mm`` as
    the arrays' axes.
    """

    case: str
    spacing_mm: tuple[float, float, float]
    tolerance_mm: float
    foreground_dice: float | None
    num_labels_counted: int
    labels: tuple[LabelMetrics, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean and the number of values in it; None of no values."""

    mean: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSummary(Checked):
    """One label over all cases.

    ``missed_cases`` have the label in the reference only, ``false_positive_cases`` in the prediction only; both have no HD95
    and ASSD. ``num_neither`` cases have it in neither and enter no mean, nor do ``num_not_annotated`` cases that were not annotated for
    it. Lesions are summed over the cases. ``further`` as in :class:`LabelMetrics`.
    """

    value: int
    name: str
    dice: Mean
    iou: Mean
    nsd: Mean
    hd95_mm: Mean
    assd_mm: Mean
    volume_difference_ml: Mean
    lesion_f1: Mean
    num_neither: int
    num_distances_undefined: int
    missed_cases: tuple[str, ...]
    false_positive_cases: tuple[str, ...]
    lesion_true_positives: int
    lesion_false_positives: int
    lesion_false_negatives: int
    further: dict[str, Mean] = field(default_factory=dict)
    num_not_annotated: int = 0
    came_later: ClassVar[tuple[str, ...]] = ("further", "num_not_annotated")

    def mean_of(self, name: str) -> Mean:
        """Of a metric by name."""
        if name in OWN_FIELDS:
            found: Mean = getattr(self, name)
            return found
        return self.further.get(name, Mean(mean=None, n=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All cases, all labels, and what could not be evaluated.

    ``foreground_dice`` is over the cases' own ``foreground_dice``: mean, median and bootstrap interval.
    ``mean_dice_over_labels`` is the mean of the labels' means instead (nnU-Net's ``foreground_mean``), which differs where
    labels are missing in some cases.
    """

    predictions: str
    references: str
    tolerance_mm: float
    num_cases: int
    foreground_dice: Interval
    mean_dice_over_labels: Mean
    labels: tuple[LabelSummary, ...]
    missing_predictions: tuple[str, ...]
    extra_predictions: tuple[str, ...]
    failures: tuple[CaseFailure, ...]
    cases: tuple[CaseMetrics, ...]

    def dice_per_case(self) -> dict[str, float | None]:
        """The mean foreground Dice per case; None where neither prediction nor reference has any label."""
        return {case.case: case.foreground_dice for case in self.cases}


def summarize_cases(
    cases: Iterable[CaseMetrics],
    *,
    tolerance_mm: float,
    predictions: str = "",
    references: str = "",
    missing_predictions: Iterable[str] = (),
    extra_predictions: Iterable[str] = (),
    failures: Iterable[CaseFailure] = (),
    seed: int = 0,
    patients: Mapping[str, str] | None = None,
) -> Evaluation:
    """Cases → an evaluation, sorted by case name; a label that a case does not list occurs in neither there.

    The interval resamples ``patients``, by case; None: those that the names of the cases tell, where they tell any.
    """
    names: dict[int, str] = {}
    ordered = sorted(cases, key=lambda case: case.case)
    for case in ordered:
        for label in case.labels:
            names.setdefault(label.value, label.name)
    complete = tuple(_with_all_labels(case, names) for case in ordered)
    summaries = tuple(_summarize_label(complete, place) for place in range(len(names)))
    group_of = find_groups([case.case for case in complete]).group_of if patients is None else patients
    dice = {case.case: case.foreground_dice for case in complete if case.foreground_dice is not None}
    return Evaluation(
        predictions=predictions,
        references=references,
        tolerance_mm=tolerance_mm,
        num_cases=len(complete),
        foreground_dice=interval_of(list(dice.values()), seed=seed, groups=groups_of(list(dice), group_of)),
        mean_dice_over_labels=mean_of(s.dice.mean for s in summaries),
        labels=summaries,
        missing_predictions=tuple(sorted(missing_predictions)),
        extra_predictions=tuple(sorted(extra_predictions)),
        failures=tuple(sorted(failures, key=lambda failure: failure.case)),
        cases=complete,
    )


def mean_of(values: Iterable[float | None]) -> Mean:
    """The mean of the values that are defined.

    >>> mean_of([0.5, None, 1.0])
    Mean(mean=0.75, n=2)
    >>> mean_of([None])
    Mean(mean=None, n=0)
    """
    defined = [value for value in values if value is not None]
    return Mean(mean=sum(defined) / len(defined) if defined else None, n=len(defined))


def absent_label(value: int, name: str, *, presence: Presence = "neither") -> LabelMetrics:
    """A label that neither prediction nor reference has, or that was not annotated: nothing is defined, nothing is counted."""
    return LabelMetrics(
        value=value,
        name=name,
        presence=presence,
        dice=None,
        iou=None,
        nsd=None,
        hd95_mm=None,
        assd_mm=None,
        volume_reference_ml=0.0,
        volume_prediction_ml=0.0,
        volume_difference_ml=0.0,
        voxels_reference=0,
        voxels_prediction=0,
        voxels_common=0,
        lesion_true_positives=0,
        lesion_false_positives=0,
        lesion_false_negatives=0,
        lesion_f1=None,
    )


def _with_all_labels(case: CaseMetrics, names: dict[int, str]) -> CaseMetrics:
    known = {label.value: label for label in case.labels}
    return replace(case, labels=tuple(known.get(value) or absent_label(value, names[value]) for value in sorted(names)))


def _summarize_label(cases: tuple[CaseMetrics, ...], place: int) -> LabelSummary:
    rows = [(case.case, case.labels[place]) for case in cases]
    labels = [label for _, label in rows]
    absent = [label.presence for label in labels if label.presence in ("neither", "not_annotated")]
    present = [label for label in labels if label.presence not in absent]
    means = {name: mean_of(label.value_of(name) for label in present) for name in (*OWN_FIELDS, *_further_names(labels))}
    own: dict[str, Any] = {name: means.pop(name) for name in OWN_FIELDS}
    return LabelSummary(
        value=labels[0].value,
        name=labels[0].name,
        **own,
        further=means,
        num_neither=absent.count("neither"),
        num_not_annotated=absent.count("not_annotated"),
        num_distances_undefined=sum(label.presence in ("only_reference", "only_prediction") for label in labels),
        missed_cases=tuple(case for case, label in rows if label.presence == "only_reference"),
        false_positive_cases=tuple(case for case, label in rows if label.presence == "only_prediction"),
        lesion_true_positives=sum(label.lesion_true_positives for label in labels),
        lesion_false_positives=sum(label.lesion_false_positives for label in labels),
        lesion_false_negatives=sum(label.lesion_false_negatives for label in labels),
    )


def _further_names(labels: Iterable[LabelMetrics]) -> tuple[str, ...]:
    """Of metrics that have no field, in the order in which they were met."""
    return tuple(dict.fromkeys(name for label in labels for name in label.further))


def write_evaluation(evaluation: Evaluation, path: Path) -> tuple[Path, Path]:
    """Write ``NAME.json`` and ``NAME.csv`` (one row per case and label); ``path`` is one of them or ``NAME``. Returns both paths."""
    stem = path.with_suffix("") if path.suffix in (".json", ".csv") else path
    table = write_text(stem.with_name(stem.name + ".csv"), to_csv(evaluation))
    return write_record(table.with_suffix(".json"), evaluation, RECORD_KIND), table  # last, as others ask whether it is there


def read_evaluation(path: Path) -> Evaluation:
    """Read the JSON of :func:`write_evaluation`."""
    return read_record(path, Evaluation, RECORD_KIND)


def to_csv(evaluation: Evaluation) -> str:
    """One row per case and label; what is not defined is empty."""
    columns = [each.name for each in fields(LabelMetrics) if each.name != "further"]
    further = _further_names(label for case in evaluation.cases for label in case.labels)
    rows: list[list[object]] = [["case", *("label" if name == "name" else name for name in columns), "tolerance_mm", *further]]
    for case in evaluation.cases:
        for label in case.labels:
            values = [*(getattr(label, name) for name in columns), case.tolerance_mm, *(label.value_of(name) for name in further)]
            rows.append([case.case, *values])
    return csv_text(rows)


def table_header(evaluation: Evaluation) -> tuple[str, ...]:
    """The column titles of :func:`table_rows`, with units and the tolerance."""
    titles = (METRICS[name].title if name in METRICS else name for name in _columns(evaluation))
    named = (f"NSD {evaluation.tolerance_mm:.3g} mm" if title == METRICS["nsd"].title else title for title in titles)
    return ("Label", *named, "FN cases", "FP cases")


def _columns(evaluation: Evaluation) -> tuple[str, ...]:
    """The metrics that an evaluation has, also those that nobody here knows any more."""
    found = {name for label in evaluation.labels for name in label.further}
    return (*OWN_FIELDS, *(name for name in METRICS if name in found), *sorted(found - set(METRICS)))


def table_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """One row of texts per label, ``mean (n)`` in each cell; the last row is the mean Dice of the foreground per case."""
    columns = _columns(evaluation)
    rows: list[tuple[str, ...]] = [
        (
            label.name,
            *(_cell(label.mean_of(name), METRICS[name].digits if name in METRICS else 3) for name in columns),
            str(len(label.missed_cases)),
            str(len(label.false_positive_cases)),
        )
        for label in evaluation.labels
    ]
    dice = evaluation.foreground_dice
    false_negatives = sum(len(label.missed_cases) for label in evaluation.labels)
    false_positives = sum(len(label.false_positive_cases) for label in evaluation.labels)
    overall = _cell(Mean(mean=dice.mean, n=dice.n))
    rows.append(("mean per case", overall, *[""] * (len(columns) - 1), str(false_negatives), str(false_positives)))
    return rows


def _cell(mean: Mean, digits: int = 3) -> str:
    if mean.mean is None:
        return "– (0)"
    is_tiny = 0 < abs(mean.mean) < 0.1**digits * 10  # lengths in microscopy: figures that count, not places
    return f"{mean.mean:.{digits}g} ({mean.n})" if is_tiny else f"{mean.mean:.{digits}f} ({mean.n})"
