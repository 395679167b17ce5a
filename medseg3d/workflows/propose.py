"""Propose: images without labels → those worth annotating next, with the reasons, and predictions to start from."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from medseg3d.boundary import CaseBoundary
from medseg3d.csv_text import csv_text
from medseg3d.data.dataset import Case
from medseg3d.data.digests import digest_of
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.prediction_cases import find_prediction_cases
from medseg3d.domain import domain_of, is_universal
from medseg3d.errors import CaseFailure, InputError
from medseg3d.events import Event, Listener
from medseg3d.files import check_writable, file_digest, remove_file, replacing, write_text
from medseg3d.fingerprint.familiarity import look_of
from medseg3d.fingerprint.records import CaseFingerprint, Fingerprint
from medseg3d.images import ImageHeader, write_label_map
from medseg3d.labels import Labels
from medseg3d.models.model import Model
from medseg3d.options import ProposeOptions
from medseg3d.plan import Plan
from medseg3d.prediction.probability_file import probability_array, scratch_file
from medseg3d.records import Checked, read_record, write_record
from medseg3d.validation.expected_quality import Proposal, chosen_next, expected_dice
from medseg3d.wording import listed
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.load import model_for
from medseg3d.workflows.verb import verb

logger = logging.getLogger(__name__)

FOLDER, NAME = "proposals", "proposals"
UNSURE = 0.9
"""An expected Dice below it is said as a reason; above it a case is on the list for what it is unlike."""
UNLIKE = 1.5
"""Standard deviations of the training cases, from which unlikeness is said as a reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate(Checked):
    """What is known of an image without a label: by which model from which files, expected Dice per label, volumes, and numbers that say
    what it looks like.

    ``output_digest`` is that of its label map; ``replaced_digest`` that of the one which lay there before, as a call may be killed after
    this is written down and before the new label map is in its place.
    """

    came_later: ClassVar[tuple[str, ...]] = ("replaced_digest",)

    model: str
    input_digest: str
    expected: dict[str, float | None]
    volumes_ml: dict[str, float]
    numbers: tuple[float, ...]
    output_digest: str
    warnings: tuple[str, ...] = ()
    replaced_digest: str = ""

    @property
    def expected_dice(self) -> float | None:
        """The mean over the labels of which something is expected."""
        values = [value for value in self.expected.values() if value is not None]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposals:
    """``proposals.json``: the most worth first; ``estimates`` of all images."""

    images: str
    folder: str
    proposed: tuple[Proposal, ...]
    estimates: dict[str, Estimate]
    failures: tuple[CaseFailure, ...] = field(default_factory=tuple)


@verb(ProposeOptions)
def propose(root: Path, work: Path | None, options: ProposeOptions, on: Listener) -> Proposals:
    """Predict the images of a folder, and list those worth annotating next; what was predicted by the same model is not predicted again.

    Training cases are left out. Raises :class:`InputError` where no image is left, or nothing says what the training cases look like.
    """
    folder = work_folder(root, work)
    if is_universal(folder):
        folder = domain_of(root, work).folder
    if not folder.fingerprint.exists():
        raise InputError(
            f"{folder.root}: no fingerprint.json, which says what the training images look like. Train a model "
            "first, by medseg3d run, or name its work folder with -w."
        )
    target = folder.root / FOLDER
    check_writable(target)
    model = model_for(folder.root, options)
    known = {case.name for case in open_dataset(root, channels=model.plan.channels).training}
    cases, unusable = find_prediction_cases(options.images, num_channels=len(model.plan.channels))
    cases = tuple(case for case in cases if case.name not in known)
    if not cases:
        raise InputError(f"{options.images}: all images are training cases already; there is none to propose.")
    earlier = read_proposals(folder)
    known_before = earlier.estimates if earlier is not None else {}
    images, kept = str(options.images.absolute()), () if earlier is None else earlier.proposed

    def keep(found: dict[str, Estimate]) -> None:
        write_record(target / f"{NAME}.json", Proposals(images=images, folder=str(target), proposed=kept, estimates=found), "proposals")

    estimates, failures = _estimated(cases, model, target, known_before, on, keep)
    training = read_record(folder.fingerprint, Fingerprint, "fingerprint")
    proposed = _proposed(estimates, training, model.plan, options)
    found = Proposals(
        images=images,
        folder=str(target),
        proposed=proposed,
        estimates=estimates,
        failures=(*unusable, *failures),
    )
    write_text(target / f"{NAME}.csv", _csv(found))
    write_record(target / f"{NAME}.json", found, "proposals")
    return found


def read_proposals(folder: WorkFolder) -> Proposals | None:
    """What was proposed last; None where nothing was."""
    file = folder.root / FOLDER / f"{NAME}.json"
    return read_record(file, Proposals, "proposals") if file.exists() else None


def image_folder_of(folder: WorkFolder) -> Path | None:
    """The images that the last proposals were made of, where they are there still."""
    found = read_proposals(folder)
    return Path(found.images) if found is not None and Path(found.images).exists() else None


def _estimated(
    cases: Sequence[Case],
    model: Model,
    target: Path,
    earlier: Mapping[str, Estimate],
    on: Listener,
    keep: Callable[[dict[str, Estimate]], object],
) -> tuple[dict[str, Estimate], list[CaseFailure]]:
    """``keep`` writes down what is known after each case: a call that is stopped goes on there."""
    boundary, found, failures = CaseBoundary("propose"), dict[str, Estimate](), list[CaseFailure]()
    on(Event(stage="propose", total=len(cases)))
    for done, case in enumerate(cases, 1):
        with boundary.around(case.name) as attempt:
            known, digest = earlier.get(case.name), digest_of(case)
            file = target / f"{case.name}.nii.gz"
            there = file_digest(file) if file.exists() else ""
            if there and (known is None or there not in (known.output_digest, known.replaced_digest)):
                logger.warning(
                    "%s: was changed by hand, or comes from elsewhere, and is left alone. Put corrections into corrections/.", file
                )
                found |= {case.name: known} if known is not None else {}
                continue
            if known is not None and (known.model, known.input_digest, known.output_digest) == (model.identity, digest, there):
                found[case.name] = known
            else:
                values, header, estimate = _estimate(case, model, target, digest)
                with replacing(file) as temporary:
                    write_label_map(temporary, values, header)
                    found[case.name] = replace(estimate, output_digest=file_digest(temporary), replaced_digest=there)
                    keep({**earlier, **found})  # before the label map is there: one of which nothing is known counts as the user's
        if attempt.failure is not None:
            failures.append(attempt.failure)
        on(Event(stage="propose", done=done, total=len(cases)))
    boundary.finish()
    return found, failures


def _estimate(case: Case, model: Model, target: Path, digest: str) -> tuple[np.ndarray, ImageHeader, Estimate]:
    """Predict one image: the label map with its header, and what is expected of it, as yet without the digest of the file."""
    raw = model.read(case)
    look, file, labels = look_of(raw), target / f"{case.name}.nii.gz", model.plan.labels
    volume_ml = math.prod(raw.spacing) / 1000
    prepared = model.prepare(raw, in_place=True)
    try:
        with probability_array(file, prepared, labels, "medseg3d") as chances:
            if chances is None:
                raise ValueError("no probabilities were asked for")
            indices = model.segment(prepared, probabilities=chances)
            expected = _expected(chances, indices, labels)
            del chances
    finally:
        remove_file(scratch_file(file))
    counts = np.bincount(indices.ravel(), minlength=labels.num_classes)
    volumes = {labels.names[index]: float(counts[_places(labels, index)].sum()) * volume_ml for index in labels.foreground}
    estimate = Estimate(
        model=model.identity,
        input_digest=digest,
        expected=expected,
        volumes_ml=volumes,
        numbers=_numbers(look.spacing, look.extent, [channel.quantiles for channel in look.channels], volumes.values(), model.plan),
        output_digest="",
        warnings=prepared.warnings,
    )
    return model.finish(indices, prepared.orientation), prepared.header, estimate


def _places(labels: Labels, index: int) -> list[int]:
    """The indices of a label map that count as a label: of regions all whose value is one of its members."""
    return [other for other in labels.foreground if labels.values[other] in labels.members(index)] if labels.regions else [index]


def _expected(chances: np.ndarray, indices: np.ndarray, labels: Labels) -> dict[str, float | None]:
    """By label; plane by plane, as the probabilities lie on the disk."""
    first = 0 if labels.regions else 1  # a softmax has the background in front
    inside, total, voxels = (np.zeros(labels.num_classes) for _ in range(3))
    for plane, probabilities in zip(indices, chances.swapaxes(0, 1), strict=True):
        values = np.asarray(probabilities, np.float32)
        for index in labels.foreground:
            mask = np.isin(plane, _places(labels, index))
            own = values[index - 1 + first]
            inside[index] += float(own[mask].sum(dtype=np.float64))
            total[index] += float(own.sum(dtype=np.float64))
            voxels[index] += np.count_nonzero(mask)
    return {labels.names[index]: expected_dice(inside[index], total[index], voxels[index]) for index in labels.foreground}


def _numbers(
    spacing: Sequence[float], extent: Sequence[float], quantiles: Sequence[Sequence[float]], volumes: object, plan: Plan
) -> tuple[float, ...]:
    """What a case looks like, in numbers that can be compared: logarithms of lengths and volumes, grey values.

    Hounsfield units and other values that a model takes as they are count as they are, in thousands; the others relative to their range.
    """
    found = [math.log(value) for value in (*sorted(spacing), *sorted(extent))]
    schemes = [each.scheme for each in next(iter(plan.configurations.values())).normalization]
    for scheme, values in zip(schemes, quantiles, strict=True):
        if scheme in ("ct", "none", "rgb_0_1"):
            found += [value / 1000 if scheme == "ct" else value for value in values]
        elif values:
            low, high = values[0], values[-1]
            found += [(value - low) / ((high - low) or 1.0) for value in values[1:-1]]
    return (*found, *(math.log1p(float(volume)) for volume in volumes))  # type: ignore[attr-defined]


def _training_numbers(case: CaseFingerprint, plan: Plan) -> tuple[float, ...]:
    labels, voxel_ml = plan.labels, math.prod(case.spacing) / 1000
    volumes = [
        sum(case.labels[value].voxels for value in labels.members(index) if value in case.labels) * voxel_ml for index in labels.foreground
    ]
    extent = [n * edge for n, edge in zip(case.shape, case.spacing, strict=True)]
    return _numbers(case.spacing, extent, [channel.quantiles or () for channel in case.channels], volumes, plan)


def _proposed(estimates: Mapping[str, Estimate], training: Fingerprint, plan: Plan, options: ProposeOptions) -> tuple[Proposal, ...]:
    seen = [_training_numbers(case, plan) for case in training.cases]
    length = max(map(len, seen))
    known = np.array([numbers for numbers in seen if len(numbers) == length])  # cases of older fingerprints lack quantiles
    numbers = {name: np.array(each.numbers) for name, each in estimates.items() if len(each.numbers) == length}
    expected = {name: estimates[name].expected_dice for name in numbers}
    chosen = chosen_next(expected, numbers, known, count=options.number, diversity=options.diversity)
    return tuple(
        Proposal(
            case=name,
            expected_dice=expected[name],
            labels=estimates[name].expected,
            unlikeness=far,
            score=score,
            reasons=_reasons(estimates[name], far),
        )
        for name, far, score in chosen
    )


def _reasons(estimate: Estimate, far: float) -> tuple[str, ...]:
    found = []
    mean = estimate.expected_dice
    if mean is None:
        found.append("nothing was found in it")
    elif mean < UNSURE:
        worst = min((value, name) for name, value in estimate.expected.items() if value is not None)
        found.append(f"the model expects a Dice of {mean:.2f} (least for {worst[1]}, {worst[0]:.2f})")
    absent = [name for name, value in estimate.volumes_ml.items() if value == 0]
    if absent and mean is not None:
        found.append(f"without {listed(absent, most=3)}")
    if far > UNLIKE:
        found.append(f"unlike all that was seen ({far:.1f} standard deviations)")
    found += [f"this image {warning}" for warning in estimate.warnings]
    return tuple(found) or ("adds a case of another kind than those before it",)


def _csv(found: Proposals) -> str:
    labels = list(dict.fromkeys(name for each in found.proposed for name in each.labels))
    head = ["rank", "case", "expected_dice", *(f"expected_dice_{name}" for name in labels), "unlikeness", "score", "reasons"]
    rows: list[list[object]] = [[*head]]
    for rank, each in enumerate(found.proposed, 1):
        values = [each.expected_dice, *(each.labels.get(name) for name in labels), each.unlikeness, each.score]
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        rows.append([rank, each.case, *cells, "; ".join(each.reasons)])
    return csv_text(rows)
