"""The methods of a paper as text: what the data is, how the plan was made, what was trained on what, and how it was evaluated.

In: what the report shows. Out: paragraphs that hold nothing but what the work folder knows; what an author must add stands in brackets.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from medseg3d.plan import Configuration, Plan, TrainingPlan
from medseg3d.wording import counted, duration, listed

if TYPE_CHECKING:
    from medseg3d.reporting.page import DatasetFacts, FoldResult, ReportInput
    from medseg3d.reporting.training_facts import TrainingFacts

NNUNET = (
    "Isensee F, Jaeger PF, Kohl SAA, Petersen J, Maier-Hein KH. nnU-Net. Nature Methods 18, 203–211 (2021). doi:10.1038/s41592-020-01008-z"
)
METRICS_RELOADED = (
    "Maier-Hein L, Reinke A, Godau P, et al. Metrics reloaded. Nature Methods 21, 195–212 (2024). doi:10.1038/s41592-023-02151-z"
)
SURFACE_DICE = "Nikolov S, Blackwell S, Zverovitch A, et al. J Med Internet Res 23(7), e26151 (2021). doi:10.2196/26151"
CLAIM = "Tejani AS, Klontzas ME, Gatti AA, et al. CLAIM 2024 update. Radiol Artif Intell 6(4), e240300 (2024). doi:10.1148/ryai.240300"
REFERENCES = (NNUNET, METRICS_RELOADED, SURFACE_DICE, CLAIM)
"""Titles are shortened."""
FOR_AUTHORS = "[Source of the images, inclusion criteria, scanners, annotators.]"
"""What no file says."""


def methods_paragraphs(report: ReportInput) -> tuple[str, ...]:
    """Data, preprocessing and network, training, prediction, evaluation, software; a paragraph of which nothing is known is left out."""
    if report.plan is None:
        return ()
    chosen = chosen_configuration(report, report.plan)
    parts = (
        f"{data_sentence(report, report.plan)} {FOR_AUTHORS}",
        preprocessing_sentence(report.plan, chosen),
        network_sentence(report, report.plan, chosen),
        f"{training_sentence(report, chosen)} {best_sentence(training_of(report, chosen))}",
        evaluation_sentence(report),
        software_sentence(report),
    )
    return tuple(part for part in parts if part)


def chosen_configuration(report: ReportInput, plan: Plan) -> Configuration:
    """The selected configuration, the first of an ensemble, or the recommended one."""
    return next(
        (plan.configurations[name] for name in report.selected if name in plan.configurations), plan.configurations[plan.recommended]
    )


def data_sentence(report: ReportInput, plan: Plan) -> str:
    """How many images of what, and their labels."""
    facts = report.facts
    labels = listed(plan.labels.names[1:], most=12)
    count = len(facts.shapes) if facts else plan.num_training
    text = f"The dataset “{plan.dataset}” holds {counted(count, 'labelled image')} ({', '.join(plan.channels)})"
    text += f" of {counted(num_patients(report), 'patient')}" if report.patients else ""
    text += f" and {counted(facts.num_test, 'test image')}" if facts is not None and facts.num_test else ""
    text += f", with {counted(len(plan.labels.names) - 1, 'label')}: {labels}."
    return f"{text} {size_sentence(facts)}".strip()


def size_sentence(facts: DatasetFacts | None) -> str:
    """Voxels and spacing of the median image; empty where nothing is known."""
    if facts is None or not facts.shapes:
        return ""
    spacing = [statistics.median(values) for values in zip(*facts.spacings, strict=True)]
    shape = [statistics.median(values) for values in zip(*facts.shapes, strict=True)]
    return f"The median image has {_times(shape)} voxels of {_times(spacing)} mm (superior, anterior, right)."


def num_patients(report: ReportInput) -> int:
    """Patients of the training images, where images of one patient are known to belong together."""
    facts = report.facts
    names = facts.names if facts is not None and facts.names else tuple(report.patients)
    return len({report.patients.get(name, f"case {name}") for name in names})


def preprocessing_sentence(plan: Plan, chosen: Configuration) -> str:
    """Crop, normalization, resampling."""
    schemes = {
        "ct": "clipped to the 0.5th and 99.5th percentile of the training images' foreground and normalized by its mean and deviation",
        "zscore": "normalized by its mean and standard deviation",
        "rescale_0_1": "scaled to the range from 0 to 1",
        "rgb_0_1": "divided by 255",
        "none": "left as it is",
    }
    by_channel = list(zip(plan.channels, chosen.normalization, strict=False))
    how = "; ".join(
        dict.fromkeys(
            f"{', '.join(name for name, each in by_channel if each.scheme == scheme)} is {schemes[scheme]}"
            for scheme in (normalization.scheme for normalization in chosen.normalization)
        )
    )
    axes = "turned to canonical axes" if plan.orientation == "canonical" else "used on their stored axes"
    return (
        f"Images were {axes}, cropped to their non-zero region and resampled to {_times(chosen.spacing)} mm with splines of order "
        f"{chosen.resampling.image_order} (labels: order {chosen.resampling.label_order}). Of the channels, {how}."
    )


def network_sentence(report: ReportInput, plan: Plan, chosen: Configuration) -> str:
    """Family, stages, patch, batch, and by which rules they were chosen."""
    network = chosen.network
    batches = sorted({facts.batch_size for facts in facts_of(report, chosen) if facts.batch_size}) or [chosen.batch_size]
    return (
        f"The configuration {chosen.name} (planner “{plan.planner}”, whose rules follow nnU-Net [1]) is a {network.dimensions}D network of "
        f"the family {network.family} with {counted(len(network.features), 'stage')} ({', '.join(map(str, network.features))} features)"
        f"{', deep supervision' if network.deep_supervision else ''}. It was trained on patches of {_times(chosen.patch_size)} voxels in "
        f"batches of {' or '.join(map(str, batches))}."
    )


def facts_of(report: ReportInput, chosen: Configuration) -> list[TrainingFacts]:
    """Of the folds of a configuration that were trained."""
    return [facts for facts in report.training if facts.configuration == chosen.name]


def training_of(report: ReportInput, chosen: Configuration) -> TrainingPlan:
    """The training numbers that the folds followed: those of the first one where they differ, the plan's where nothing else is known."""
    mine = facts_of(report, chosen)
    training = next((facts.recipe for facts in mine if facts.recipe is not None), chosen.training)
    given = next((facts.learning_rate for facts in mine if facts.learning_rate is not None), None)
    return training if given is None else replace(training, learning_rate=given)


def training_sentence(report: ReportInput, chosen: Configuration) -> str:
    """Loss, optimizer, schedule, length, folds and hardware of the chosen configuration, as its folds were trained."""
    training, mine = training_of(report, chosen), facts_of(report, chosen)
    folds = [fold for fold in report.folds if fold.configuration == chosen.name]
    text = (
        f"Training minimized the loss {training.loss} with {_optimizer(training.optimizer, training.momentum)} (weight decay "
        f"{training.weight_decay:g}) and a learning rate of {training.learning_rate:g} that follows the schedule {training.schedule}"
        f"{'' if training.schedule != 'poly' else f' (exponent {training.poly_exponent:g})'}"
        f"{f' after a warm-up of {training.warmup:.0%} of the run' if training.warmup else ''}; "
        f"{training.foreground_oversampling:.0%} of the patches were centered on a labelled voxel. Patches were rotated, scaled, mirrored"
        f"{'' if chosen.mirror_axes else ' (not along any axis)'}, and changed in noise, blur, brightness, contrast, resolution and gamma."
    )
    if training.patch_growth:
        text += f" Patches grew to their full size over the first {training.patch_growth:.0%} of the run."
    if any(facts.recipe != mine[0].recipe for facts in mine):
        text += " [The folds were trained by different recipes; training.json of each has its own.]"
    parts = (text, _lengths(folds, mine) if folds else "", _hardware(mine) if mine else "", start_sentence(mine))
    return " ".join(part for part in parts if part)


def start_sentence(mine: Sequence[TrainingFacts]) -> str:
    """What the weights began with."""
    digests, frozen = sorted({facts.init for facts in mine if facts.init}), sorted({name for facts in mine for name in facts.frozen})
    if not digests:
        return "Weights began at random (He initialization: normal, for leaky ReLU of slope 0.01; biases 0; the end of residual blocks 0)."
    stayed = f" Parameters that kept their weights: {listed(frozen)}." if frozen else ""
    named = listed(sorted({facts.init_from for facts in mine if facts.init_from})) or "[which model]"
    from_model = f"Weights began from those of another model ({named}, digest {listed(digests)})"
    return f"{from_model}; tensors that do not fit were initialized anew.{stayed}"


def best_sentence(training: TrainingPlan) -> str:
    """Which weights of a fold were kept."""
    where = "fixed windows that cover whole validation cases" if training.best_on_tiles else "validation patches"
    averaged = " or, where they were better, of the running average of its weights" if training.weight_averaging else ""
    return f"Of each fold the weights of the epoch with the highest running mean of the pseudo-Dice on {where} were kept{averaged}."


def _optimizer(name: str, momentum: float) -> str:
    named = {"sgd": "stochastic gradient descent with Nesterov momentum", "adamw": "AdamW", "muon": "Muon"}.get(name, name)
    return f"{named} ({momentum:g})" if name in ("sgd", "muon") else named


def _lengths(folds: Sequence[FoldResult], mine: Sequence[TrainingFacts]) -> str:
    epochs = sorted({len(fold.history) for fold in folds if fold.history})
    steps = sorted({facts.iterations_per_epoch for facts in mine if facts.iterations_per_epoch})
    hours = [sum(float(record.get("seconds") or 0) for record in fold.history) / 3600 for fold in folds if fold.history]
    numbers = [fold.fold for fold in folds]
    span = counted(epochs[0], "epoch") if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]} epochs" if epochs else "[number of] epochs"
    each = f" of {counted(steps[0], 'step') if len(steps) == 1 else f'{steps[0]} to {steps[-1]} steps'}" if steps else ""
    took = f", {duration(3600 * statistics.fmean(hours))} a fold" if hours else ""
    which = f"{counted(len(numbers), 'network')} (fold {', '.join(numbers)}) {'was' if len(numbers) == 1 else 'were'}"
    return f"{which} trained for {span}{each}{took}."


def _hardware(mine: Sequence[TrainingFacts]) -> str:
    devices = listed(sorted({facts.device for facts in mine if facts.device}))
    cpus = listed(sorted({_plain_cpu(facts.cpu) for facts in mine if facts.cpu}))
    precision = listed(sorted({facts.precision for facts in mine if facts.precision}))
    where = f"on {cpus}" if devices == "cpu" else f"on {devices} ({cpus})" if devices else ""
    if not where:
        return ""
    return f"They were trained {where}{f' in {precision}' if precision else ''}."


def _plain_cpu(text: str) -> str:
    return re.sub(r"\s+", " ", text.split(",")[0]).strip()


def evaluation_sentence(report: ReportInput) -> str:
    """Folds, metrics, intervals."""
    folds = {fold.fold for fold in report.folds if fold.scores is not None}
    if not folds and report.test_scores is None:
        return ""
    nsd = f" at a tolerance of {report.nsd_tolerance_mm:g} mm" if report.nsd_tolerance_mm is not None else ""
    text = ""
    if folds:
        of_fold = (
            f"Each image of the {counted(len(folds), 'validated fold')} was predicted whole by a network that did not see it in training"
        )
        of_members = f"Each validation image was predicted whole by {counted(len(folds), 'network')}, of which none saw it in training"
        told = f"{of_members} (the mean of their scores is given)" if report.members else of_fold
        text += f"{told}{', nor any other image of its patient' if report.patients else ''}. "
    if report.test_scores is not None:
        text += f"{counted(len({score.case for score in report.test_scores}), 'test image')} took no part in training or selection. "
    unit = "patients" if report.patients else "cases"
    return (
        f"{text}Dice, IoU, normalized surface Dice [3]{nsd}, the 95th percentile of the Hausdorff distance, the average symmetric surface "
        "distance, volume difference and lesion F1 were computed per label in millimeters, following [2]; a label that only one side "
        "holds counts as Dice 0 and has no distance. Intervals are 95 % percentile bootstrap intervals of the mean over 2000 resamples of "
        f"whole {unit}."
    )


def software_sentence(report: ReportInput) -> str:
    """Versions, and how to cite."""
    versions: dict[str, str] = {}
    for facts in report.training:
        versions.update(facts.versions)
    named = [f"{name} {version}" for name, version in versions.items() if version != "not installed"]
    made = listed(named, most=12) if named else report.made_by
    seeds = sorted({facts.seed for facts in report.training if facts.seed is not None})
    text = f"Software: {made}." if made else ""
    return f"{text} Seed: {', '.join(map(str, seeds))}." if seeds else text


def bibtex(report: ReportInput) -> str:
    """The software itself and nnU-Net, whose rules plans follow."""
    version = report.made_by.removeprefix("medseg3d ").strip() or "unknown"
    return f"""@software{{medseg3d,
  title = {{medseg3d: segmentation of 3D medical images}},
  version = {{{version}}},
  license = {{Apache-2.0}}
}}
{NNUNET_BIBTEX}"""


NNUNET_BIBTEX = """@article{isensee2021nnunet,
  author = {Isensee, Fabian and Jaeger, Paul F. and Kohl, Simon A. A. and Petersen, Jens and Maier-Hein, Klaus H.},
  title = {nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation},
  journal = {Nature Methods},
  volume = {18},
  pages = {203--211},
  year = {2021},
  doi = {10.1038/s41592-020-01008-z}
}
"""


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.3g}" for value in values)
