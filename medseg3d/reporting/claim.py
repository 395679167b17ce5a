"""The CLAIM 2024 checklist of a study with this model: what the work folder answers is filled in, the rest is named for the authors.

The items are those of Tejani et al. 2024 (44 of them), their topics in our words. An answer says only what files say; ``add`` names what
an item asks beyond that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medseg3d.plan import Configuration, Plan
from medseg3d.reporting import methods
from medseg3d.reporting.scores import label_rows, mean_of_labels
from medseg3d.wording import counted, listed

if TYPE_CHECKING:
    from medseg3d.reporting.page import ReportInput
    from medseg3d.reporting.scores import Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item: its ``answer`` is empty where only authors know; ``add`` is what they add to it."""

    number: int
    section: str
    topic: str
    answer: str = ""
    add: str = ""

    @property
    def status(self) -> str:
        """``filled``, ``filled in part`` or ``authors``."""
        return "authors" if not self.answer else "filled in part" if self.add else "filled"


TOPICS: tuple[tuple[str, str], ...] = (
    ("Title", "The kind of AI method is named"),
    ("Abstract", "Structured summary of design, methods, results and conclusions"),
    ("Introduction", "Background, and the intended use and role of the method"),
    ("Introduction", "Aims, objectives and hypotheses"),
    ("Study design", "Prospective or retrospective"),
    ("Study design", "Goal of the study"),
    ("Data", "Sources of the data"),
    ("Data", "Criteria of inclusion and exclusion"),
    ("Data", "Preprocessing"),
    ("Data", "Choice of parts of the data"),
    ("Data", "De-identification"),
    ("Data", "Handling of missing data"),
    ("Data", "Acquisition of the images"),
    ("Reference standard", "Definition of the method"),
    ("Reference standard", "Rationale for choosing it"),
    ("Reference standard", "Who annotated, with which qualification and tools"),
    ("Reference standard", "Annotation of the test set"),
    ("Reference standard", "Variability within and between annotators, and how it was handled"),
    ("Partitions", "How data were assigned to partitions"),
    ("Partitions", "Level at which partitions are disjoint"),
    ("Testing data", "Intended sample size"),
    ("Model", "Detailed description of the model"),
    ("Model", "Software, libraries and versions"),
    ("Model", "Initialization of the parameters"),
    ("Training", "Details of the training"),
    ("Training", "How the final model was selected"),
    ("Training", "Ensembling"),
    ("Evaluation", "Metrics"),
    ("Evaluation", "Measures of uncertainty and significance"),
    ("Evaluation", "Robustness or sensitivity"),
    ("Evaluation", "Explainability or interpretability"),
    ("Evaluation", "Evaluation on internal data"),
    ("Evaluation", "Testing on external data"),
    ("Evaluation", "Registration of a clinical trial"),
    ("Results, data", "Numbers of patients or images included and excluded"),
    ("Results, data", "Characteristics of the cases in each partition"),
    ("Results, performance", "Performance with its uncertainty, on all partitions"),
    ("Results, performance", "Estimates of diagnostic performance and their precision"),
    ("Results, performance", "Analysis of failures"),
    ("Discussion", "Limitations"),
    ("Discussion", "Implications for practice, intended use"),
    ("Other", "Where the full protocol or further technical details are"),
    ("Other", "Availability of software, model and data"),
    ("Other", "Funding and its role"),
)
"""Section and topic of items 1 to 44."""


def checklist(report: ReportInput) -> tuple[Item, ...]:
    """All 44 items in their order; without a plan nothing can be answered."""
    answers = {} if report.plan is None else _answers(report, report.plan)
    items = []
    for number, (section, topic) in enumerate(TOPICS, 1):
        answer, add = answers.get(number, ("", ""))
        items.append(Item(number=number, section=section, topic=topic, answer=answer.strip(), add=add if answer.strip() else ""))
    return tuple(items)


def _answers(report: ReportInput, plan: Plan) -> dict[int, tuple[str, str]]:
    chosen = methods.chosen_configuration(report, plan)
    return {
        **_about_study(report, plan, chosen),
        **_about_data(report, plan, chosen),
        **_about_model(report, plan, chosen),
        **_about_evaluation(report),
        **_about_results(report, plan),
    }


def _about_study(report: ReportInput, plan: Plan, chosen: Configuration) -> dict[int, tuple[str, str]]:
    labels = listed(plan.labels.names[1:], most=6)
    kind = f"Deep learning: supervised segmentation by a {chosen.network.dimensions}D convolutional network ({chosen.network.family})."
    summary = (
        f"Design: development of a segmentation model and its evaluation. Data: {_num_cases(report, plan)} labelled images. Method: {kind} "
        f"Results: {_headline(report)}"
    )
    return {
        1: (kind, ""),
        2: (summary if _headline(report) else "", "the question and the conclusion"),
        6: (
            f"Creation of a model that segments {labels} in {', '.join(plan.channels)} images, and an estimate of its performance "
            f"{'on a held-out test set' if report.test_scores is not None else f'by {validation_kind(report)}'}.",
            "",
        ),
    }


def _about_data(report: ReportInput, plan: Plan, chosen: Configuration) -> dict[int, tuple[str, str]]:
    facts, failed = report.facts, [f"{failure.case}: {failure.reason}" for failure in report.failures]
    missing = [f"{counted(len(failed), 'image')} could not be used and was left out ({listed(failed, most=3)})"] if failed else []
    if plan.labels.ignore is not None:
        missing.append(f"voxels of the value {plan.labels.ignore} were not annotated and count for nothing")
    if plan.labels.unannotated:
        missing.append("structures that a case was not annotated for enter neither its loss nor its scores")
    orientations = listed([f"{code} ({count})" for code, count in facts.orientations.items()], most=6) if facts else ""
    identity = (
        "Training and prediction read voxels and geometry only; cases are called as their files are. This report shows "
        f"slices of {counted(len(report.pictures), 'case')}, cropped to the labels, and names of cases."
    )
    return {
        7: (methods.data_sentence(report, plan), "institutions, dates, ethics approval, licence"),
        8: (
            f"Excluded for technical reasons: {listed(failed, most=5) if failed else 'none'}.",
            "clinical criteria of inclusion and exclusion",
        ),
        9: (methods.preprocessing_sentence(plan, chosen), ""),
        10: (
            f"Training saw random patches of {' × '.join(map(str, chosen.patch_size))} voxels of the images, cropped to their non-zero "
            f"region, {methods.training_of(report, chosen).foreground_oversampling:.0%} of them centered on a labelled voxel; whole images "
            "were predicted.",
            "",
        ),
        11: (identity, "how the images were de-identified before"),
        12: (f"{'; '.join(missing)}." if missing else "No image, label or prediction was missing.", ""),
        13: (
            f"From the headers: {methods.size_sentence(facts)} Stored orientations: {orientations}." if facts else "",
            "scanners, protocols, contrast agents",
        ),
        14: (
            f"Voxel-wise label maps of {counted(len(plan.labels.names) - 1, 'label')}"
            f"{' with probabilities (soft labels)' if plan.labels.soft else ''}: {listed(plan.labels.names[1:], most=12)}.",
            "how the reference was made, in enough detail to repeat it",
        ),
        19: (_partitions(report), ""),
        20: (_disjoint(report), ""),
        21: (
            f"{_num_cases(report, plan)} images for training and validation"
            f"{f', {len(_cases(report.test_scores))} for testing' if report.test_scores else ''}; the intervals say "
            "how precise the estimates are.",
            "how the size was decided",
        ),
    }


def _about_model(report: ReportInput, plan: Plan, chosen: Configuration) -> dict[int, tuple[str, str]]:
    selected = " and ".join(report.selected) or plan.recommended
    folds = [fold.fold for fold in report.folds if fold.configuration == chosen.name]
    notes = " ".join(report.selection_notes)
    ensemble = f"The {counted(len(folds), 'network')} of {selected} (fold {', '.join(folds)}) are averaged as logits" if folds else ""
    return {
        22: (f"{methods.network_sentence(report, plan, chosen)} plan.json holds every number, and this report the rule behind it.", ""),
        23: (methods.software_sentence(report), ""),
        24: (methods.start_sentence(methods.facts_of(report, chosen)), ""),
        25: (methods.training_sentence(report, chosen) if folds else "", ""),
        26: (
            f"{methods.best_sentence(methods.training_of(report, chosen))} "
            f"{notes or f'{plan.recommended} is recommended. {plan.recommended_reason}'}",
            "",
        ),
        27: (
            f"{ensemble}{'; the configurations are averaged as probabilities' if len(report.selected) > 1 else ''}." if ensemble else "",
            "",
        ),
    }


def _about_evaluation(report: ReportInput) -> dict[int, tuple[str, str]]:
    is_evaluated = _headline(report) != ""
    unit = "patients" if report.patients else "cases"
    validated = _cases(score for fold in report.folds for score in fold.scores or ())
    answers = {
        28: (methods.evaluation_sentence(report), ""),
        29: (
            f"95 % percentile bootstrap intervals of every mean, 2000 resamples of whole {unit}; standard deviations over the cases.",
            "",
        ),
        30: (
            "Dice is plotted against the reference's volume and the coarsest spacing of each image; scores are given fold by fold.",
            "",
        ),
        31: (
            "No saliency method was used. Predictions are shown over the images beside the reference, worst cases first; the kind of each "
            "failure is stated.",
            "",
        ),
        32: (
            f"{validation_kind(report).capitalize()}: {counted(len(validated), 'image')}, each predicted by {_unseeing(report)}."
            if validated
            else "",
            "",
        ),
        33: (
            f"{counted(len(_cases(report.test_scores)), 'test image')}, apart from training and selection." if report.test_scores else "",
            "whether the test images are of another institution",
        ),
    }
    return {number: answer for number, answer in answers.items() if is_evaluated}


def _about_results(report: ReportInput, plan: Plan) -> dict[int, tuple[str, str]]:
    facts = report.facts
    patients = f" of {counted(methods.num_patients(report), 'patient')}" if report.patients else ""
    included = f"{_num_cases(report, plan)} labelled images{patients}; excluded for technical reasons: {len(report.failures)}."
    test = f" {counted(facts.num_test, 'test image')}." if facts is not None and facts.num_test else ""
    folds = [f"fold {fold.fold}: {len(_cases(fold.scores or ()))}" for fold in report.folds if fold.scores]
    warnings = " ".join(report.warnings)
    limits = f"{_num_cases(report, plan)} images of one dataset; nothing is said of other scanners, institutions or diseases. {warnings}"
    work = f"plan.json, splits.json, run.json and metrics.json in the work folder; {report.made_by or 'medseg3d'}."
    headline = _headline(report)
    return {
        35: (included + test, ""),
        36: (f"Validated images, {listed(folds, most=10)}. {methods.size_sentence(facts)}" if facts and folds else "", "age, sex, disease"),
        37: (headline, ""),
        38: (_per_label(report), ""),
        39: (_failures(report), ""),
        40: (limits if headline else "", "limitations of design and data"),
        42: (work, ""),
        43: (
            f"Software: {report.made_by or 'medseg3d'}, Apache License 2.0. The model can be exported to one file (medseg3d export).",
            "where the model and the data can be had",
        ),
    }


def _num_cases(report: ReportInput, plan: Plan) -> int:
    return len(report.facts.shapes) if report.facts else plan.num_training


def _cases(scores: Iterable[Score] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(score.case for score in scores or ()))


def _partitions(report: ReportInput) -> str:
    how = {
        "declared": "Folds were given by the authors",
        "given": "Folds were drawn at random by groups that the authors gave, the rarest labels spread first",
        "off": "Folds were drawn at random by image, the rarest labels spread first",
    }.get(report.grouping, "Folds were drawn at random, the rarest labels spread first")
    if report.members:
        seeds = f"{counted(report.members, 'network')} with other seeds learn from the training cases of the first of them"
        return f"{how}; {seeds}, and are validated on its validation cases; splits.json lists both."
    return f"{how}; {counted(report.num_folds, 'fold')}; splits.json lists them." if report.num_folds else ""


def validation_kind(report: ReportInput) -> str:
    """Folds validate every case once; networks that share one split are validated on what all of them were held back."""
    return "hold-out validation" if report.members else "cross-validation"


def _unseeing(report: ReportInput) -> str:
    return "networks of which none saw it, their mean" if report.members else "a network that did not see it"


def _disjoint(report: ReportInput) -> str:
    if not report.num_folds:
        return ""
    if report.grouping == "given":
        return "Groups given by the authors (patients): no group is divided between training and validation."
    if report.patients:
        return "Patients, as the names of the images tell them: no patient is divided between training and validation."
    return "Images: nothing in their names tells that several are of one patient."


def _headline(report: ReportInput) -> str:
    parts = []
    shown = next(
        (fold.configuration for fold in report.folds if fold.scores and (not report.selected or fold.configuration in report.selected)),
        None,
    )
    shown = shown or next((fold.configuration for fold in report.folds if fold.scores), None)
    scores = [score for fold in report.folds if fold.configuration == shown for score in fold.scores or ()]
    for name, those in ((validation_kind(report), scores), ("test", list(report.test_scores or ()))):
        mean = mean_of_labels(those, report.patients).get("dice") if those else None
        if mean is not None and mean.mean is not None:
            interval = f" (95 % interval {mean.low:.3f} to {mean.high:.3f})" if mean.low is not None and mean.high is not None else ""
            parts.append(f"mean Dice over the labels {mean.mean:.3f}{interval} in {counted(len(_cases(those)), 'image')} ({name})")
    return f"{'; '.join(parts)[:1].upper()}{'; '.join(parts)[1:]}." if parts else ""


def _per_label(report: ReportInput) -> str:
    scores = list(report.test_scores or [score for fold in report.folds for score in fold.scores or ()])
    rows = label_rows(scores, report.patients) if scores else []
    told = [
        f"{row['name']}: Dice {row['values']['dice']['mean']:.3f}"
        + (
            f" [{row['values']['dice']['from']:.3f}, {row['values']['dice']['to']:.3f}]"
            if row["values"]["dice"]["from"] is not None
            else ""
        )
        + f", missed in {row['num_false_negatives']} and extra in {row['num_false_positives']} of {row['num']} cases"
        for row in rows
        if row["values"].get("dice", {}).get("mean") is not None
    ]
    return f"{listed(told, most=12)}. All metrics stand in the tables." if told else ""


def _failures(report: ReportInput) -> str:
    counts: dict[str, int] = {}
    for failures in report.mistakes.values():
        for failure in failures:
            counts[failure.kind] = counts.get(failure.kind, 0) + 1
    if not counts:
        return ""
    kinds = listed([f"{kind} ({count})" for kind, count in sorted(counts.items(), key=lambda item: -item[1])], most=12)
    return (
        f"In the {counted(len(report.mistakes), 'worst case')} labels below a Dice of 0.95 were: {kinds}. Pictures show the worst of them."
    )
