"""Make the report's page: one HTML file that says what the data is, what was decided and why, and how good the model is.

In: a :class:`ReportInput`, filled by hand or by ``report.read_work``. Out: one file with nothing to load: pictures are
data URIs, style sheet and script are inline, so it can be mailed and opened years later. Names of cases and labels are not trusted: every
text is escaped, and the page forbids itself every other script and the network.
"""

from __future__ import annotations

import base64
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg3d.errors import CaseFailure
from medseg3d.evaluation.failure_kinds import KINDS, Failure
from medseg3d.extensions import needed_arguments, source_text
from medseg3d.files import write_text
from medseg3d.plan import Plan
from medseg3d.reporting.case_pictures import Picture
from medseg3d.reporting.charts import Chart, Series, line_chart
from medseg3d.reporting.paper import paper_view
from medseg3d.reporting.scatter import explaining_charts
from medseg3d.reporting.scores import Score, columns_of, defined, label_rows, mean_of_labels, summary
from medseg3d.reporting.study import Study
from medseg3d.reporting.study_facts import StudyFacts
from medseg3d.reporting.training_facts import TrainingFacts
from medseg3d.reporting.viewer_parts import as_data, page_script, script_source, viewer_style

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldResult:
    """One training: its history (records of ``history.jsonl``) and the scores of its validation cases, None if not measured."""

    configuration: str
    fold: str
    history: tuple[Mapping[str, Any], ...] = ()
    scores: tuple[Score, ...] | None = None
    is_finished: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """A label over the training cases: how many hold it, its volume in ml and its number of pieces there."""

    name: str
    value: int
    num_cases: int
    volumes_ml: tuple[float, ...]
    components: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """The dataset at a glance; shapes and spacings (mm) are per case, in the order S, A, R."""

    channels: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    spacings: tuple[tuple[float, ...], ...]
    orientations: Mapping[str, int]
    labels: tuple[LabelFacts, ...]
    num_test: int | None = None
    names: tuple[str, ...] = ()
    """Of the training cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInput:
    """All that the report shows. What is None or empty is not there yet, and the page says so instead of leaving a gap."""

    output: Path
    dataset: str
    work: str
    """The work folder as it is to be typed in commands."""
    facts: DatasetFacts | None = None
    plan: Plan | None = None
    explanations: tuple[Mapping[str, Any], ...] = ()
    """Records with ``configuration``, ``quantity``, ``value``, ``rule``, ``inputs``, ``changes_it``."""
    folds: tuple[FoldResult, ...] = ()
    selected: tuple[str, ...] = ()
    """The selected configuration, or the members of the selected ensemble."""
    selection_notes: tuple[str, ...] = ()
    """Why it was selected, and the postprocessing that goes with it, one sentence each."""
    test_scores: tuple[Score, ...] | None = None
    nsd_tolerance_mm: float | None = None
    pictures: tuple[Picture, ...] = ()
    test_pictures: tuple[Picture, ...] = ()
    mistakes: Mapping[str, tuple[Failure, ...]] = field(default_factory=dict)
    """What went wrong in the worst cases, by case, the worst first; ``test_mistakes`` in those of the test set."""
    test_mistakes: Mapping[str, tuple[Failure, ...]] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)
    """By case, where several images are of one patient; intervals resample patients then."""
    grouping: str = ""
    """How cases were kept together in the folds; see :class:`medseg3d.training.folds.Splits`."""
    num_folds: int = 0
    fold_sizes: tuple[tuple[int, int], ...] = ()
    """Training and validation cases of each fold."""
    left_out: tuple[str, ...] = ()
    """Cases that the user's own folds do not name."""
    members: int = 0
    """So many networks with other seeds share one split, in the place of folds."""
    study_facts: StudyFacts | None = None
    study: Study | None = None
    """What the authors say, where they left a file."""
    training: tuple[TrainingFacts, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    """Stage → seconds, in the order of the stages."""
    failures: tuple[CaseFailure, ...] = ()
    warnings: tuple[str, ...] = ()
    made_by: str = ""


def build_report(report: ReportInput) -> Path:
    """Write the page atomically, and return its path; raises :class:`StorageError` where it cannot be written."""
    return write_text(report.output, render(report))


def render(report: ReportInput) -> str:
    """The page as text."""
    import importlib.resources

    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = importlib.resources.files("medseg3d.reporting")
    loader = FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, score=score, duration=duration, numbers=numbers, text=as_text, breakable=breakable)
    return environment.get_template("report.html.jinja").render({**_about_model(report), **_about_cases(report), **paper_view(report)})


def _about_model(report: ReportInput) -> dict[str, Any]:
    networks = [configuration.network for configuration in report.plan.configurations.values()] if report.plan else []
    providers = tuple(dict.fromkeys(network.provider for network in networks if network.provider))
    arguments = needed_arguments(providers)
    return {
        "report": report,
        "made_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "shell_work": shlex.quote(report.work),
        "python_work": repr(report.work),
        "shell_extensions": f"{shlex.join(arguments)} " if arguments else "",
        "extension_files": [repr(file) for file in arguments[1::2]],
        "extensions": [source_text(provider) for provider in providers],
        "shown": shown_configuration(report),
        "configurations": [configuration_view(report, name) for name in configuration_names(report)],
        "facts": facts_view(report.facts) if report.facts else None,
        "plan_groups": plan_groups(report.explanations),
        "timings": timing_view(report.timings),
    }


def _about_cases(report: ReportInput) -> dict[str, Any]:
    from markupsafe import Markup

    shown = shown_configuration(report)
    drawn = shown["scores"] if shown else report.test_scores or ()
    return {
        "test": test_view(report) if report.test_scores is not None else None,
        "pictures": [{"picture": p, "uri": data_uri(p.png, "image/png")} for p in report.pictures],
        "test_pictures": [{"picture": p, "uri": data_uri(p.png, "image/png")} for p in report.test_pictures],
        "scenes": Markup(as_data([p.scene for p in report.pictures if p.scene is not None])),
        "test_scenes": Markup(as_data([p.scene for p in report.test_pictures if p.scene is not None])),
        "mistakes": list(report.mistakes.items()),
        "test_mistakes": list(report.test_mistakes.items()),
        "kinds": KINDS,
        "explaining": explaining_charts(drawn),
        "page_script": Markup(page_script()),
        "viewer_style": Markup(viewer_style()),
        "script_source": script_source(page_script()),
    }


def configuration_names(report: ReportInput) -> list[str]:
    """The configurations that were trained (and ensembles of two, ``a+b``), the selected and the recommended first."""
    trained = {fold.configuration for fold in report.folds}
    first = ["+".join(report.selected), *report.selected, *([report.plan.recommended] if report.plan else [])]
    return [name for name in dict.fromkeys([*first, *sorted(trained)]) if name in trained]


def shown_configuration(report: ReportInput) -> dict[str, Any] | None:
    """The configuration whose result heads the page: the first of :func:`configuration_names` that has scores."""
    for name in configuration_names(report):
        view = configuration_view(report, name)
        if view["labels"]:
            return view
    return None


def configuration_view(report: ReportInput, name: str) -> dict[str, Any]:
    """Scores of a configuration pooled over its folds (each case is validated in one fold), per label, fold and case."""
    folds = [fold for fold in report.folds if fold.configuration == name]
    scores = [score for fold in folds for score in fold.scores or ()]
    return {
        "name": name,
        "num_measured": sum(fold.scores is not None for fold in folds),
        "members": report.members,
        "folds": [fold_row(fold) for fold in folds],
        "charts": [chart for chart in learning_curves(folds) if chart],
        **score_view(scores, case_rows(folds), report.patients),
    }


def test_view(report: ReportInput) -> dict[str, Any]:
    """Scores of the test set as those of a configuration."""
    scores = report.test_scores or ()
    return score_view(scores, case_rows([FoldResult(configuration="", fold="test", scores=tuple(scores))]), report.patients)


def score_view(scores: Sequence[Score], cases: list[dict[str, Any]], patients: Mapping[str, str]) -> dict[str, Any]:
    """Tables by label, by metric and by case."""
    rows = label_rows(scores, patients)
    return {
        "scores": scores,
        "labels": rows,
        "means": mean_of_labels(scores, patients),
        "columns": columns_of(scores),
        "num_cases": len({s.case for s in scores}),
        "cases": cases,
        "label_names": [row["name"] for row in rows],
    }


def fold_row(fold: FoldResult) -> dict[str, Any]:
    """One line of the table of folds."""
    means = mean_of_labels(fold.scores or ())
    smoothed = defined(record.get("pseudo_dice_smoothed") for record in fold.history)
    seconds = defined(record.get("seconds") for record in fold.history)
    waiting = defined(record.get("waiting_share") for record in fold.history)
    return {
        "fold": fold.fold,
        "epochs": len(fold.history) or None,
        "is_finished": fold.is_finished,
        "best": max(smoothed) if smoothed else None,
        "dice": means["dice"].mean if "dice" in means else None,
        "num": len({s.case for s in fold.scores or ()}),
        "is_measured": fold.scores is not None,
        "seconds": sum(seconds) if seconds else None,
        "waiting": statistics.fmean(waiting) if waiting else None,
    }


def case_rows(folds: Sequence[FoldResult]) -> list[dict[str, Any]]:
    """All measured cases, the lowest mean Dice first; cases without any defined Dice come last."""
    rows = []
    for fold in folds:
        for name in dict.fromkeys(s.case for s in fold.scores or ()):
            mine = {s.label: s for s in fold.scores or () if s.case == name}
            dice = defined(s.dice for s in mine.values())
            hd95 = defined(s.values.get("hd95_mm") for s in mine.values())
            rows.append(
                {
                    "case": name,
                    "fold": fold.fold,
                    "mean": statistics.fmean(dice) if dice else None,
                    "hd95": max(hd95) if hd95 else None,
                    "dice": {label: s.dice for label, s in mine.items()},
                    "lowest": min(((s.dice, s.label) for s in mine.values() if s.dice is not None), default=None),
                }
            )
    return sorted(rows, key=lambda row: (row["mean"] is None, row["mean"] or 0.0, row["case"]))


MAX_LABEL_CURVES = 8
"""More curves in one chart cannot be followed by eye; then the labels that ended lowest are shown."""


def learning_curves(folds: Sequence[FoldResult]) -> list[Chart | None]:
    """Loss per fold, smoothed pseudo-Dice per fold, and pseudo-Dice per label as the mean over the folds."""
    folds = [fold for fold in folds if fold.history]
    losses, dices = [], []
    for color, fold in enumerate(folds):
        xs = [float(record["epoch"]) for record in fold.history]
        losses.append(Series(name=f"fold {fold.fold}", xs=xs, ys=_values(fold, "train_loss"), color=color))
        losses.append(Series(name="", xs=xs, ys=_values(fold, "validation_loss"), color=color, style="dashed"))
        mean = [_mean(list((record.get("pseudo_dice") or {}).values())) for record in fold.history]
        dices.append(Series(name="", xs=xs, ys=mean, color=color, style="faint"))
        dices.append(Series(name=f"fold {fold.fold}", xs=xs, ys=_values(fold, "pseudo_dice_smoothed"), color=color))
    per_label: dict[str, dict[float, list[object]]] = {}
    for fold in folds:
        for record in fold.history:
            for name, value in (record.get("pseudo_dice") or {}).items():
                per_label.setdefault(name, {}).setdefault(float(record["epoch"]), []).append(value)
    means = {name: {epoch: _mean(values) for epoch, values in sorted(epochs.items())} for name, epochs in per_label.items()}
    names = sorted(means, key=lambda name: next((v for v in reversed(means[name].values()) if v is not None), 0.0))
    chosen = [name for name in means if name in names[:MAX_LABEL_CURVES]]
    labels = [Series(name=name, xs=list(means[name]), ys=list(means[name].values()), color=color) for color, name in enumerate(chosen)]
    which = f", the {MAX_LABEL_CURVES} lowest of {len(means)}" if len(means) > MAX_LABEL_CURVES else ""
    return [
        line_chart("Loss (dashed: validation)", losses),
        line_chart("Pseudo-Dice, mean of labels (thick: smoothed)", dices, y_range=(0.0, 1.0)),
        line_chart(f"Pseudo-Dice per label, mean of folds{which}", labels, y_range=(0.0, 1.0)),
    ]


def facts_view(facts: DatasetFacts) -> dict[str, Any]:
    """Ranges over the cases for the table of shapes and spacings, and the labels with their volumes."""
    axes = ("superior", "anterior", "right")
    extents = [
        tuple(n * s for n, s in zip(shape, spacing, strict=True)) for shape, spacing in zip(facts.shapes, facts.spacings, strict=True)
    ]
    return {
        "num_cases": len(facts.shapes),
        "axes": [
            {
                "name": name,
                "shape": summary([float(shape[axis]) for shape in facts.shapes]),
                "spacing": summary([spacing[axis] for spacing in facts.spacings]),
                "extent": summary([extent[axis] for extent in extents]),
            }
            for axis, name in enumerate(axes)
        ],
        "orientations": sorted(facts.orientations.items(), key=lambda item: (-item[1], item[0])),
        "labels": [
            {"label": label, "volume": summary(label.volumes_ml), "components": summary(label.components)} for label in facts.labels
        ],
    }


def plan_groups(explanations: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Explanations by configuration, in the order given; ``dataset`` stands for what holds for all of them."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for explanation in explanations:
        groups.setdefault(str(explanation.get("configuration") or "dataset"), []).append(explanation)
    return list(groups.items())


def timing_view(timings: Mapping[str, float]) -> list[dict[str, Any]]:
    """Stage, seconds and share of the whole."""
    total = sum(timings.values())
    return [{"stage": stage, "seconds": seconds, "share": seconds / total if total else 0.0} for stage, seconds in timings.items()]


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


# ------------------------------------------------------------------------------------------------- how values are written


def number(value: float | None, digits: int = 3) -> str:
    """A number with at most ``digits`` significant decimals; a dash for None.

    >>> number(12.0), number(0.78125), number(14531.2), number(None)
    ('12', '0.781', '14531', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def score(value: float | None, digits: int = 3) -> str:
    """A score with fixed decimals, so that columns can be compared; of lengths in microscopy the figures that count. A dash for None.

    >>> score(0.5), score(-0.001234, 2), score(-0.0), score(None)
    ('0.500', '-0.0012', '0.000', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.2g}" if 0 < abs(value) < 0.1**digits else f"{value + 0.0:.{digits}f}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them.

    >>> duration(0.42), duration(75), duration(7322)
    ('0.4 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


LONGEST_WHOLE = 28
"""Characters of a name that stays in one line: on a phone its table scrolls, which reads better than a broken name."""


def breakable(name: str) -> Markup:
    """A name that is escaped, and that breaks after underscores, hyphens and slashes only: on paper, and on a screen where it is long.

    >>> breakable("left_kidney<")
    Markup('<span class="whole">left_<wbr>kidney&lt;</span>')
    """
    from markupsafe import Markup

    pieces = Markup("").join(Markup("{}<wbr>").format(c) if c in "_-/" else c for c in name)
    return Markup('<span class="whole">{}</span>').format(pieces) if len(name) <= LONGEST_WHOLE else pieces


def numbers(values: Sequence[float], joiner: str = "\u00a0×\u00a0") -> str:
    """Several numbers in one cell."""
    return joiner.join(number(float(value)) for value in values)


def as_text(value: object) -> str:
    """Any value of an explanation as a person reads it: numbers short, lists joined, no braces."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value, 4)
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {as_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        if value and all(isinstance(item, list | tuple) for item in value):
            return ", ".join(f"({as_text(item)})" for item in value)
        plain = all(isinstance(item, int | float) for item in value)
        return ("\u00a0×\u00a0" if plain else ", ").join(as_text(item) for item in value)
    return str(value)


def _values(fold: FoldResult, key: str) -> list[float | None]:
    return [value if isinstance(value := record.get(key), int | float) else None for record in fold.history]


def _mean(values: Sequence[object]) -> float | None:
    known = defined(values)
    return statistics.fmean(known) if known else None
