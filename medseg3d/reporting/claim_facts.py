"""Short facts that several items of the checklist need: cases, their people, the headline of the results, kinds of validation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from medseg3d.plan import Plan
from medseg3d.reporting.scores import mean_of_labels
from medseg3d.reporting.study_facts import StudyFacts
from medseg3d.wording import counted, listed

if TYPE_CHECKING:
    from medseg3d.evaluation.compare import Interval
    from medseg3d.reporting.page import ReportInput
    from medseg3d.reporting.scores import Score

NO_FACTS = StudyFacts()


def study_of(report: ReportInput) -> StudyFacts:
    """What is known of the study beside the images; nothing where the dataset could not be opened."""
    return report.study_facts or NO_FACTS


def num_cases(report: ReportInput, plan: Plan) -> int:
    """Labelled images."""
    return len(report.facts.shapes) if report.facts else plan.num_training


def cases_of(scores: Iterable[Score] | None) -> tuple[str, ...]:
    """Each once."""
    return tuple(dict.fromkeys(score.case for score in scores or ()))


def shown_scores(report: ReportInput) -> list[Score]:
    """The validation of the configuration that heads the page: a selected one where it is validated."""
    measured = [fold for fold in report.folds if fold.scores]
    shown = next((fold.configuration for fold in measured if fold.configuration in report.selected), None)
    shown = shown or next((fold.configuration for fold in measured), None)
    return [score for fold in measured if fold.configuration == shown for score in fold.scores or ()]


def validation_kind(report: ReportInput) -> str:
    """Folds validate every case once; networks that share one split are validated on what all of them were held back."""
    if report.members:
        return "hold-out validation"
    folds = {fold.fold for fold in report.folds if fold.scores}
    return f"validation of {len(folds)} of {report.num_folds} folds" if 0 < len(folds) < report.num_folds else "cross-validation"


def evaluations(report: ReportInput) -> list[tuple[str, list[Score], Interval]]:
    """What was evaluated, its scores, and the mean Dice over the labels."""
    found = []
    for name, scores in ((validation_kind(report), shown_scores(report)), ("test", list(report.test_scores or ()))):
        mean = mean_of_labels(scores, report.patients).get("dice") if scores else None
        if mean is not None and mean.mean is not None:
            found.append((name, scores, mean))
    return found


def headline(report: ReportInput) -> str:
    """Mean Dice with its interval, empty where nothing was evaluated."""
    parts = []
    for name, scores, mean in evaluations(report):
        interval = f" (95 % interval {mean.low:.3f} to {mean.high:.3f})" if mean.low is not None and mean.high is not None else ""
        parts.append(f"mean Dice over the labels {mean.mean:.3f}{interval} in {counted(len(cases_of(scores)), 'image')} ({name})")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def people_sentence(report: ReportInput) -> str:
    """Age, sex and what else a table says of the people, for the training and the test images; empty where nothing is known."""
    from medseg3d.data.acquisition import describe

    facts, parts = study_of(report), []
    training = report.facts.names if report.facts is not None else ()
    names = list(dict.fromkeys(name for row in facts.people.values() for name in row))
    for title, cases in (("training", list(training)), ("test", list(facts.test_names))):
        rows = facts.rows(facts.people, cases)
        told = [f"{name} {text}" for name in names if (text := describe(rows, name, unit="years" if name == "age" else ""))]
        if told:
            parts.append(f"{title} images: {'; '.join(told)}")
    return f"{'. '.join(parts)[:1].upper()}{'. '.join(parts)[1:]}." if parts else ""


def knows_people(report: ReportInput) -> bool:
    """Whether age and sex of everybody are known."""
    facts = study_of(report)
    cases = [*(report.facts.names if report.facts is not None else ()), *facts.test_names]
    return facts.tells_all("age", cases) and facts.tells_all("sex", cases)


def source_sentence(report: ReportInput) -> str:
    """What ``dataset.json`` says of the dataset: description, place, licence."""
    about = study_of(report).about
    told = [f"{name}: {about[name].rstrip('.')}" for name in ("description", "reference", "licence", "release") if name in about]
    return f"dataset.json says, {'; '.join(told)}." if told else ""


def is_retrospective(report: ReportInput) -> bool:
    """Whether every image that was evaluated is known to have existed before the training."""
    facts = study_of(report)
    num_test = facts.num_test or (report.facts.num_test if report.facts is not None else 0) or 0
    return not num_test or facts.is_older is True


def patient_names(report: ReportInput) -> str:
    """The unit that partitions and intervals follow."""
    return "patients" if report.patients else "images"


def label_counts(report: ReportInput) -> str:
    """In how many training images each label is."""
    labels = report.facts.labels if report.facts is not None else ()
    return listed([f"{label.name} in {label.num_cases}" for label in labels], most=12)
