"""Items 22 to 33 of the checklist: the model, its training and its evaluation."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from medseg3d.plan import Configuration, Plan
from medseg3d.reporting import claim_facts as known
from medseg3d.reporting import methods
from medseg3d.reporting.details import network_details, training_details
from medseg3d.reporting.scores import defined, mean_of_labels
from medseg3d.reporting.subgroups import subgroup_sentence, subgroups
from medseg3d.wording import counted

if TYPE_CHECKING:
    from medseg3d.reporting.claim_items import Answers
    from medseg3d.reporting.page import ReportInput


def about_model(report: ReportInput, plan: Plan, chosen: Configuration) -> Answers:
    """Items 22 to 27."""
    selected = " and ".join(report.selected) or plan.recommended
    folds = [fold.fold for fold in report.folds if fold.configuration == chosen.name]
    notes = " ".join(report.selection_notes)
    ensemble = f"The {len(folds)} networks of {selected} (fold {', '.join(folds)}) are averaged as logits" if len(folds) > 1 else ""
    ensemble = ensemble or ("One network predicts; nothing is averaged" if folds else "")
    trained = methods.facts_of(report, chosen)
    unknown_start = any(each.init and not each.init_from for each in trained)
    return {
        22: (f"{methods.network_sentence(report, plan, chosen)} {network_details(plan, chosen)}", ""),
        23: (methods.software_sentence(report), ""),
        24: (methods.start_sentence(trained), "which model the weights began from" if unknown_start else ""),
        25: (
            f"{methods.training_sentence(report, chosen)} {training_details(chosen, methods.training_of(report, chosen))}" if folds else "",
            "",
        ),
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


def about_evaluation(report: ReportInput) -> Answers:
    """Items 28 to 33; none before something was evaluated."""
    if not known.headline(report):
        return {}
    return {
        28: (methods.evaluation_sentence(report), ""),
        29: (
            f"95 % percentile bootstrap intervals of every mean, 2000 resamples of whole {known.patient_names(report)}; standard "
            "deviations "
            "over the cases. Configurations, ensembles and steps of postprocessing are compared by the paired differences of the same "
            "cases "
            f"with intervals of the same kind; no p-values. {methods.software_sentence(report)}",
            "",
        ),
        30: _robustness(report),
        31: (
            "No saliency method was used. Predictions are shown over the images beside the reference, worst cases first; the kind of each "
            "failure is stated.",
            "",
        ),
        32: (_internal(report), ""),
        33: _external(report),
    }


def _robustness(report: ReportInput) -> tuple[str, str]:
    """Item 30: groups of cases, and what else was varied."""
    scores = known.shown_scores(report) or list(report.test_scores or ())
    groups = subgroup_sentence(subgroups(scores, report.patients, known.study_of(report)))
    parts = [f"Mean Dice of the cases {groups}"] if groups else []
    folds = [
        mean.mean
        for fold in report.folds
        if fold.scores and (mean := mean_of_labels(fold.scores, report.patients).get("dice")) is not None and mean.mean is not None
    ]
    if len(folds) > 1:
        what = "with other seeds" if report.members else "by the images that they were trained on"
        parts.append(f"networks {what}: {min(folds):.3f} to {max(folds):.3f}")
    mirrored = [note for note in report.selection_notes if "irroring changes" in note]
    parts += [note.rstrip(".") for note in mirrored]
    text = f"{'; '.join(parts)}. " if parts else ""
    add = "" if groups else "how performance changes with other scanners, noise or protocols"
    return f"{text}Dice is plotted against the reference's volume and the coarsest spacing of each image.", add


def _internal(report: ReportInput) -> str:
    """Item 32."""
    validated = known.cases_of(score for fold in report.folds for score in fold.scores or ())
    if not validated:
        return ""
    unseeing = "networks of which none saw it, their mean" if report.members else "a network that did not see it"
    kind = known.validation_kind(report)
    text = (
        f"{kind[:1].upper()}{kind[1:]}: {counted(len(validated), 'image')} of the same dataset, annotated as those of the training, each "
        f"predicted by {unseeing}."
    )
    losses = {name: [last for fold in report.folds if (last := _last(fold.history, name)) is not None] for name in LOSSES}
    if all(losses.values()):
        train, held = (statistics.fmean(values) for values in losses.values())
        text += f" Mean loss at the end: {train:.3f} on patches of the training cases, {held:.3f} on those of the validation cases."
    return text


LOSSES = ("train_loss", "validation_loss")


def _last(history: tuple[object, ...], name: str) -> float | None:
    found = defined(record.get(name) for record in history if isinstance(record, dict))
    return found[-1] if found else None


def _external(report: ReportInput) -> tuple[str, str]:
    """Item 33: whether test images are of another source, files do not say."""
    if report.test_scores:
        count = counted(len(known.cases_of(report.test_scores)), "test image")
        return f"{count}, apart from training and selection.", "whether the test images are of another institution"
    return "No images of another source were tested: how the model does on them is not known.", "why, or the results of an external test"
