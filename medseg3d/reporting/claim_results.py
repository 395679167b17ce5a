"""Items 34 to 44 of the checklist: what came out, its limits, and where everything is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medseg3d.plan import Plan
from medseg3d.reporting import claim_facts as known
from medseg3d.reporting import methods
from medseg3d.reporting.flow import flow_of, flow_sentence
from medseg3d.reporting.scores import label_rows
from medseg3d.reporting.subgroups import extremes, subgroup_sentence, subgroups
from medseg3d.wording import counted, listed

if TYPE_CHECKING:
    from medseg3d.reporting.claim_items import Answers
    from medseg3d.reporting.page import ReportInput

FEW_CASES = 10
"""Of a label: below, its mean hangs on single cases."""
SUPPLEMENT = "supplement.md"


def about_results(report: ReportInput, plan: Plan) -> Answers:
    """Items 34 to 44."""
    headline, facts = known.headline(report), known.study_of(report)
    by_sex = subgroup_sentence(
        [each for each in subgroups(known.shown_scores(report), report.patients, facts) if each.by in ("sex", "age")]
    )
    registered = (
        "Not applicable: no patient was enrolled or assigned to an intervention; existing images were evaluated."
        if headline and known.is_retrospective(report)
        else ""
    )
    return {
        34: (registered, ""),
        35: (_numbers(report, plan), ""),
        36: _characteristics(report),
        37: (f"{headline} {f'Mean Dice {by_sex}.' if by_sex else ''}" if headline else "", ""),
        38: (_per_label(report), ""),
        39: (_failures(report), ""),
        40: (_limitations(report, plan) if headline else "", ""),
        42: (
            f"{SUPPLEMENT} and plan.json in the folder beside this report hold every number of preprocessing, network and training; "
            f"{report.made_by or 'medseg3d'} makes the same run again from run.json (medseg3d reproduce).",
            "",
        ),
        43: _availability(report),
    }


def _numbers(report: ReportInput, plan: Plan) -> str:
    """Item 35; the diagram of it is drawn beside."""
    steps = flow_of(report)
    if steps:
        return f"{flow_sentence(steps)}. Images were left out before they were divided. flow.svg shows the numbers."
    return f"{known.num_cases(report, plan)} labelled images; excluded for technical reasons: {len(report.failures)}."


def _characteristics(report: ReportInput) -> tuple[str, str]:
    """Item 36: by partition, and whether they differ."""
    folds = [f"fold {fold.fold}: {len(known.cases_of(fold.scores or ()))}" for fold in report.folds if fold.scores]
    if report.facts is None or not folds:
        return "", ""
    people = known.people_sentence(report)
    text = (
        f"Validated images, {listed(folds, most=10)}. {people} Labels: {known.label_counts(report)} of {len(report.facts.shapes)} images. "
        f"{methods.size_sentence(report.facts)}"
    )
    if not known.knows_people(report):
        return text, "age, sex, disease"
    return f"{text} Groups that are rare here are sources of bias: scores by group are given with the robustness.", ""


def _per_label(report: ReportInput) -> str:
    """Item 38: each label, the best and worst group, and how uneven the classes are."""
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
    if not told:
        return ""
    groups = extremes(subgroups(scores, report.patients, known.study_of(report)))
    return (
        f"{listed(told, most=12)}. {groups} {_imbalance(report)} Means over labels count each label once. All metrics stand in the tables."
    )


def _imbalance(report: ReportInput) -> str:
    means = sorted(
        (sum(label.volumes_ml) / len(label.volumes_ml), label.name)
        for label in (report.facts.labels if report.facts is not None else ())
        if label.volumes_ml
    )
    if len(means) < 2 or means[0][0] <= 0:
        return ""
    (small, least), (large, most) = means[0], means[-1]
    return f"Classes are uneven: {most} has {large / small:.3g} times the mean volume of {least}."


def _failures(report: ReportInput) -> str:
    """Item 39."""
    counts: dict[str, int] = {}
    for failures in (*report.mistakes.values(), *report.test_mistakes.values()):
        for failure in failures:
            counts[failure.kind] = counts.get(failure.kind, 0) + 1
    if not counts:
        return ""
    kinds = listed([f"{kind} ({count})" for kind, count in sorted(counts.items(), key=lambda item: -item[1])], most=12)
    cases = counted(len(report.mistakes) + len(report.test_mistakes), "worst case")
    return f"In the {cases} labels below a Dice of 0.95 were: {kinds}. Pictures show the worst of them."


def _limitations(report: ReportInput, plan: Plan) -> str:
    """Item 40: of methods, materials, biases, uncertainty, what was unexpected, and how far it goes, each as the numbers say it."""
    scores = known.shown_scores(report) or list(report.test_scores or ())
    rows = label_rows(scores, report.patients)
    rare = [f"{row['name']} ({row['values']['dice']['num']})" for row in rows if 0 < row["values"]["dice"]["num"] < FEW_CASES]
    widths = [
        (row["values"]["dice"]["to"] - row["values"]["dice"]["from"], row["name"])
        for row in rows
        if row["values"]["dice"]["from"] is not None
    ]
    missed = sum(row["num_false_negatives"] for row in rows)
    seeds = "one seed" if len({facts.seed for facts in report.training}) <= 1 else "several seeds"
    parts = [
        f"Methods: {seeds} for each network; numbers of the plan follow rules, none was searched for on this dataset",
        f"materials: {known.num_cases(report, plan)} images of one dataset" + (f"; few cases of {listed(rare, most=6)}" if rare else ""),
        "bias: the reference standard is taken as it is, and its own errors count as errors of the network"
        + ("" if known.knows_people(report) else "; age and sex are not known here, so that no group could be looked at"),
    ]
    if widths:
        width, widest = max(widths)
        parts.append(f"uncertainty: the widest interval is that of {widest}, {width:.3f} of Dice")
    parts.append(f"unexpected: a label of the reference was missed entirely {counted(missed, 'time')}")
    parts.append("generalizability: nothing here tells of other scanners, institutions or diseases than those of these images")
    warnings = " ".join(report.warnings)
    return f"{'; '.join(parts)}. {warnings}"


def _availability(report: ReportInput) -> tuple[str, str]:
    """Item 43: in full where the data's place and conditions are known."""
    about = known.study_of(report).about
    text = (
        f"Software: {report.made_by or 'medseg3d'}, Apache License 2.0. Model: in the work folder, not deposited as far as is known here; "
        "medseg3d export writes it as one file."
    )
    if {"reference", "licence"} <= set(about):
        return f"{text} Data: {about['reference']}, licence: {about['licence']}.", ""
    return text, "where the model and the data can be had"
