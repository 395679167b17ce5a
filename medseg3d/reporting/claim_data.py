"""Items 1 to 21 of the checklist: the study, its data, the reference standard and the partitions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medseg3d.plan import Configuration, Plan
from medseg3d.reporting import claim_facts as known
from medseg3d.reporting import methods
from medseg3d.reporting.details import preprocessing_details
from medseg3d.wording import counted, listed

if TYPE_CHECKING:
    from medseg3d.reporting.claim_items import Answers
    from medseg3d.reporting.page import ReportInput
    from medseg3d.reporting.scores import Score

SHARE_TOLD = 0.9
"""Of the images must tell a field of their acquisition, so that its distribution describes the dataset."""
MIN_FIELDS = 3
"""Parameters of an acquisition beside the scanner's maker."""


def about_study(report: ReportInput, plan: Plan, chosen: Configuration) -> Answers:
    """Items 1 to 6."""
    labels = listed(plan.labels.names[1:], most=6)
    kind = f"Deep learning: supervised segmentation by a {chosen.network.dimensions}D convolutional network ({chosen.network.family})."
    how = "on a held-out test set" if report.test_scores is not None else f"by {known.validation_kind(report)}"
    retrospective = (
        "Retrospective: the network was trained and evaluated on images that existed before; no patient was examined for it."
        if known.is_retrospective(report)
        else "Training and validation are retrospective: their images existed before the network."
    )
    unknown = (
        "" if known.is_retrospective(report) else "whether the test images were acquired after the training, as their files are younger"
    )
    return {
        1: (kind, ""),
        2: _summary(report, plan, kind),
        5: (retrospective, unknown),
        6: (
            f"Creation of a model, and an estimate of its performance {how}. Predicted is one of "
            f"{len(plan.labels.names)} classes "
            f"({labels}, background) for every voxel of {', '.join(plan.channels)} images, on their own grid, so that these structures "
            "can be "
            "outlined and measured in new images without drawing them by hand.",
            "",
        ),
    }


def _summary(report: ReportInput, plan: Plan, kind: str) -> tuple[str, str]:
    """Item 2; in full only with data source, people, and where data can be had."""
    headline = known.headline(report)
    if not headline:
        return "", ""
    people, about = known.people_sentence(report), known.study_of(report).about
    design = "retrospective development and evaluation" if known.is_retrospective(report) else "development and evaluation"
    patients = f" of {counted(methods.num_patients(report), 'patient')}" if report.patients else ""
    text = (
        f"Design: {design} of a segmentation model. Data: {known.num_cases(report, plan)} labelled images{patients}. "
        f"{known.source_sentence(report)} {people} Method: {kind} Statistics: 95 % bootstrap intervals over "
        f"{known.patient_names(report)}. Results: {headline} Conclusion: within this dataset "
        f"{listed(plan.labels.names[1:], most=6)} can be segmented with this accuracy; of images of other sources nothing is said."
    )
    missing = [] if known.knows_people(report) else ["age and sex"]
    missing += [] if {"reference", "licence"} <= set(about) else ["the data's source and where software, model and data can be had"]
    return text, listed(missing)


def about_data(report: ReportInput, plan: Plan, chosen: Configuration) -> Answers:
    """Items 7 to 21."""
    failed = [f"{failure.case}: {failure.reason}" for failure in report.failures]
    return {
        7: (
            f"{methods.data_sentence(report, plan)} {known.source_sentence(report)}",
            "how well the data fit the intended use"
            + ("" if known.source_sentence(report) else ", institutions, ethics approval, licence"),
        ),
        8: (
            "All images of the dataset's folder were taken, none was sampled. Excluded for technical reasons: "
            f"{listed(failed, most=5) if failed else 'none'}.",
            "clinical criteria of inclusion and exclusion, and how patients were found",
        ),
        9: (
            f"{methods.preprocessing_sentence(plan, chosen)} {preprocessing_details(plan, chosen)} {methods.software_sentence(report)}",
            "",
        ),
        10: (
            f"Training saw random patches of {' × '.join(map(str, chosen.patch_size))} voxels of the images, cropped to their non-zero "
            f"region, {methods.training_of(report, chosen).foreground_oversampling:.0%} of them centered on a labelled voxel; whole images "
            "were predicted. All of it is automatic, and is done in the same way for new images.",
            "",
        ),
        11: _deidentification(report),
        12: (_missing(report, plan, failed), ""),
        13: _acquisition(report),
        14: (
            f"Voxel-wise label maps of {counted(len(plan.labels.names) - 1, 'label')}"
            f"{' with probabilities (soft labels)' if plan.labels.soft else ''}: {listed(plan.labels.names[1:], most=12)}.",
            "how the reference was made, in enough detail to repeat it",
        ),
        19: _partitions(report),
        20: (_disjoint(report), ""),
        21: _sample_size(report, plan),
    }


def _missing(report: ReportInput, plan: Plan, failed: list[str]) -> str:
    """Item 12."""
    missing = [f"{counted(len(failed), 'image')} could not be used and was left out ({listed(failed, most=3)})"] if failed else []
    if plan.labels.ignore is not None:
        missing.append(f"voxels of the value {plan.labels.ignore} were not annotated and count neither in the loss nor in the scores")
    if plan.labels.unannotated:
        missing.append("structures that a case was not annotated for enter neither its loss nor its scores")
    told = f"{'; '.join(missing)[:1].upper()}{'; '.join(missing)[1:]}." if missing else "No image, label or prediction was missing."
    channels = f" Every image has all of {len(plan.channels)} channels." if len(plan.channels) > 1 else ""
    return f"{told}{channels} Nothing was imputed."


def _deidentification(report: ReportInput) -> tuple[str, str]:
    """Item 11."""
    from medseg3d.data.acquisition import describe

    facts = known.study_of(report)
    identity = (
        "Training and prediction read voxels, geometry and what describes the acquisition; cases are called as their files are. This "
        f"report shows slices of {counted(len(report.pictures), 'case')}, cropped to the labels, and names of cases."
    )
    rows = list(facts.images.values())
    removed = rows and all(row.get("identity_removed", "").upper() in ("YES", "Y") and row.get("deidentification") for row in rows)
    if removed:
        how = describe(rows, "deidentification")
        return f"The headers of all {len(rows)} images say that the patient's identity was removed: {how}. {identity}", ""
    return identity, "how the images were de-identified before"


def _acquisition(report: ReportInput) -> tuple[str, str]:
    """Item 13: the distribution of each parameter that headers or JSON files tell."""
    from medseg3d.data.acquisition import FIELDS, PEOPLE, describe

    if report.facts is None:
        return "", ""
    study = known.study_of(report)
    rows = list(study.images.values())
    shown = [name for name in FIELDS if name not in (*PEOPLE, "identity_removed", "deidentification")]
    told = [f"{FIELDS[name].title} {text}" for name in shown if (text := describe(rows, name, unit=FIELDS[name].unit))]
    orientations = listed([f"{code} ({count})" for code, count in report.facts.orientations.items()], most=6)
    size = f"{methods.size_sentence(report.facts)} Stored orientations: {orientations}."
    well = [name for name in shown if rows and sum(bool(row.get(name)) for row in rows) >= SHARE_TOLD * len(rows)]
    is_full = "manufacturer" in well and len(well) > MIN_FIELDS
    source = f"Of {counted(study.num_read, 'image')} headers or JSON files tell: {'; '.join(told)}. " if told else "From the headers: "
    return f"{source}{size}", "" if is_full else "scanners, protocols, contrast agents"


def _partitions(report: ReportInput) -> tuple[str, str]:
    """Item 19."""
    how = {
        "declared": "Folds were given by the authors",
        "given": "Folds were drawn at random by groups that the authors gave, the rarest labels spread first",
        "off": "Folds were drawn at random by image, the rarest labels spread first",
    }.get(report.grouping, "Folds were drawn at random, the rarest labels spread first")
    if not report.num_folds:
        return "", ""
    if report.members:
        seeds = f"{counted(report.members, 'network')} with other seeds learn from the training cases of the first of them"
        text = f"{how}; {seeds}, and are validated on its validation cases; splits.json lists both."
    else:
        text = f"{how}; {counted(report.num_folds, 'fold')}, as in nnU-Net; splits.json lists them."
    if report.fold_sizes:
        train, held = report.fold_sizes[0]
        text += f" In the first, {train} images ({train / max(1, train + held):.0%}) train and {held} validate."
    num_test = known.study_of(report).num_test or (report.facts.num_test if report.facts is not None else 0) or 0
    if not num_test:
        return text, ""
    text += f" {counted(num_test, 'test image')}: those that the dataset keeps apart. {_differences(report)}"
    return text, "" if "reference" in known.study_of(report).about else "how the test images were chosen"


def _differences(report: ReportInput) -> str:
    """Of test and validated images: what differs systematically of what is measured of both."""
    validated, test = known.shown_scores(report), list(report.test_scores or ())
    measured: dict[str, tuple[list[float], list[float]]] = {
        "coarsest spacing (mm)": (_spacings(validated), _spacings(test)),
        "volume of a structure (ml)": (_volumes(validated), _volumes(test)),
    }
    pairs = [
        f"{name} {statistics.median(there):.3g} (validation: {statistics.median(before):.3g})"
        for name, (before, there) in measured.items()
        if before and there
    ]
    return f"Medians of the test images: {', '.join(pairs)}." if pairs else ""


def _spacings(scores: Sequence[Score]) -> list[float]:
    return [max(score.spacing_mm) for score in scores if score.spacing_mm]


def _volumes(scores: Sequence[Score]) -> list[float]:
    return [score.volume_ml for score in scores if score.volume_ml is not None]


def _disjoint(report: ReportInput) -> str:
    """Item 20."""
    if not report.num_folds:
        return ""
    if report.grouping == "given":
        text = "Groups given by the authors (patients): no group is divided between training and validation."
    elif report.patients:
        text = "Patients, as the names of the images tell them: no patient is divided between training and validation."
    else:
        text = "Images: nothing in their names tells that several are of one patient."
    study = known.study_of(report)
    if study.num_test:
        shared = study.shared
        told = f"{counted(len(shared), 'test image')} may be of patients of the training ({listed(shared, most=5)})" if shared else ""
        text += f" {told or 'By their names no test image is of a patient of the training'}."
    return text


def _sample_size(report: ReportInput, plan: Plan) -> tuple[str, str]:
    """Item 21: the size, and how precise the estimates are that it allows."""
    text = f"{known.num_cases(report, plan)} images for training and validation"
    text += f", {len(known.cases_of(report.test_scores))} for testing" if report.test_scores else ""
    text += ": all that the dataset holds."
    for name, scores, mean in known.evaluations(report):
        if mean.low is None or mean.high is None or mean.high <= mean.low:
            continue
        half, count = (mean.high - mean.low) / 2, len(known.cases_of(scores))
        text += (
            f" {name[:1].upper()}{name[1:]}: {count} images give the mean Dice to ± {half:.3f}; ± 0.01 would take about "
            f"{math.ceil(count * (half / 0.01) ** 2)}."
        )
    return text, "whether a size was calculated before"
