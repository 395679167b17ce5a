"""What is wrong with a dataset, and what would repair it: cases in, findings out, all of them at once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from medseg3d import images
from medseg3d.data.content import body_middle
from medseg3d.data.dataset import Case
from medseg3d.data.grid_wording import describe
from medseg3d.data.label_pairs import Whereabouts, whereabouts
from medseg3d.data.label_rules import (
    ignore_hint,
    refuse_image,
)
from medseg3d.data.plausible import extreme_voxels
from medseg3d.data.reading import copied, is_segmentation, label_file, orientation_on_grid
from medseg3d.data.segmentations import onto_grid
from medseg3d.errors import GeometryMismatchError, ImageReadError, LabelValueError
from medseg3d.execution import run_cases
from medseg3d.geometry import (
    Geometry,
    GeometryDifference,
    Orientation,
    canonical_geometry,
    compare,
    orientation_code,
    orientation_of,
    to_canonical,
)
from medseg3d.images import ImageHeader
from medseg3d.labels import Labels, listed_values, unique_values, value_counts

logger = logging.getLogger(__name__)

Severity = Literal["error", "fixable", "warning", "note"]
"""``error`` keeps a case out of training; ``fixable`` does not, and ``doctor --fix`` repairs it; a ``warning`` deserves a look; a ``note``
is just that. What ``--fix`` repairs, errors among it, has a :attr:`Finding.fix`."""

ROUNDING_VOXELS = 1e-2
"""Grids closer than this differ by the rounding of float32 headers only."""
MIN_FOREGROUND_INSIDE = 0.999
"""A label is resampled onto its image only where nearly all of its foreground lies inside: else they do not belong together."""
MAX_SAMPLED_VOXELS = 200_000
"""Enough for percentiles that are compared by factors of ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found. ``case`` is None where it concerns the dataset; ``fix`` says what ``doctor --fix`` would do."""

    case: str | None
    kind: str
    severity: Severity
    message: str
    fix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedCase:
    """One case with its findings, and what is compared between cases.

    ``content`` is a digest of the voxels of all channels, whatever the file format and orientation; ``intensities`` are the 1st,
    50th and 99th percentile per channel; ``values`` the label values found, ``voxels`` how many voxels each has, without the
    background, counted where no list of labels is declared; ``places`` where they lie. Empty where the file could not be read.
    """

    name: str
    findings: tuple[Finding, ...]
    content: str = ""
    orientation: str = ""
    spacing: tuple[float, float, float] | None = None
    intensities: tuple[tuple[float, float, float], ...] = ()
    values: tuple[int, ...] = ()
    voxels: dict[int, int] = field(default_factory=dict)
    places: Whereabouts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """All findings of a dataset, its own first, then case by case; and what was repaired."""

    dataset: str
    num_training: int
    num_test: int
    findings: tuple[Finding, ...]
    repaired: tuple[str, ...] = ()

    @property
    def num_errors(self) -> int:
        """Findings that keep a case out of training."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def num_fixable(self) -> int:
        """Findings that ``doctor --fix`` would repair: all that are ``fixable``, and the errors that it can repair."""
        return sum(finding.fix is not None for finding in self.findings)


def check_cases(
    cases: Sequence[Case],
    labels: Labels | None,
    *,
    num_workers: int | None = None,
    max_bytes: int | None = None,
) -> Iterator[CheckedCase]:
    """Check cases side by side, each as soon as it is done; a case that cannot be read is a finding, no error."""
    work = _Check(labels=labels)
    for done in run_cases(
        work,
        cases,
        name_of=lambda case: case.name,
        stage="doctor",
        bytes_of=_bytes_of,
        num_workers=num_workers,
        max_bytes=max_bytes,
    ):
        if done.result is not None:
            yield done.result
        elif done.failure is not None:
            finding = Finding(case=done.item.name, kind="unreadable", severity="error", message=done.failure.reason)
            yield CheckedCase(name=done.item.name, findings=(finding,))


def check_case(case: Case, labels: Labels | None) -> CheckedCase:
    """Everything that is wrong with one case; ``labels`` is the declared list, None where there is none."""
    findings: list[Finding] = []

    def found(kind: str, severity: Severity, message: str, fix: str | None = None) -> None:
        findings.append(Finding(case=case.name, kind=kind, severity=severity, message=message, fix=fix))

    header: ImageHeader | None = None
    body: tuple[float, float, float] | None = None
    content, digests = hashlib.blake2b(digest_size=16), list[str]()
    intensities: list[tuple[float, float, float]] = []
    for index, channel in enumerate(case.channels):
        where = f"channel {index} ({channel.path.name})"
        try:
            (image,) = images.read_volumes(channel.path, [channel.volume], files=channel.files)
        except ImageReadError as error:
            found("unreadable", "error", str(error))
            continue
        for note in image.header.notes:
            found("header", "note", f"{where}: {note}")
        own = image.header.geometry
        if header is None:
            header = image.header
        else:
            turned = orientation_on_grid(own, header.geometry, orientation_of(header.geometry.matrix))
            if isinstance(turned, GeometryDifference):
                message = f"{where} lies on another grid than channel 0: {describe(turned)}; resample the channels onto one"
                found("grid", "error", message)
        with np.errstate(over="ignore"):
            canonical = np.ascontiguousarray(to_canonical(image.array, orientation_of(own.matrix)), np.float32)
        digests.append(_digest(canonical))
        content.update(digests[-1].encode())
        finite = np.isfinite(canonical)
        if index == 0 and finite.all() and canonical.size:
            body = body_middle(canonical)
        if not finite.all():
            count = finite.size - int(finite.sum())
            found("not finite", "error", f"{where} has {count} NaN or infinite voxels of {finite.size}; replace them")
        sample = canonical[finite][:: max(1, canonical.size // MAX_SAMPLED_VOXELS)] if canonical.size else canonical.ravel()
        if sample.size:
            low, middle, high = (float(v) for v in np.percentile(sample, (1, 50, 99)))
            intensities.append((low, middle, high))
            if canonical[finite].min() == canonical[finite].max():
                found("constant", "warning", f"{where}: all voxels have the value {low:g}")
            extreme = extreme_voxels(canonical, sample)
            if extreme:
                found("extreme voxels", "warning", f"{where} has {extreme}")
    seen = _SeenLabel() if case.label is None else _check_label(case, case.label, header, labels, found, middle=body)
    if seen.content in digests and any(seen.values):
        found("label values", "error", copied(case.channels[digests.index(seen.content)].path.name, case.label.name if case.label else ""))
    if header is None:
        return CheckedCase(name=case.name, findings=tuple(findings), values=seen.values, voxels=seen.voxels, places=seen.places)
    return CheckedCase(
        name=case.name,
        findings=tuple(findings),
        content=content.hexdigest(),
        orientation=orientation_code(header.geometry.matrix),
        spacing=header.geometry.spacing,
        intensities=tuple(intensities),
        values=seen.values,
        voxels=seen.voxels,
        places=seen.places,
    )


def _digest(canonical: np.ndarray) -> str:
    """Of the shape and the voxels of a channel."""
    content = hashlib.blake2b(repr(canonical.shape).encode(), digest_size=16)
    content.update(canonical.data)
    return content.hexdigest()


AMBIGUOUS = (
    "image and label have the same shape but other positions; whether the header is wrong or the label belongs elsewhere "
    "cannot be told from the files. If the voxels fit, copy the image's header onto the label"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    """:func:`check_case` with its list of labels, so that another process can be given it."""

    labels: Labels | None

    def __call__(self, case: Case) -> CheckedCase:
        return check_case(case, self.labels)


def _bytes_of(case: Case) -> int:
    """A stored and a canonical copy of a channel, a mask and the label, at most 16 bytes a voxel."""
    try:
        return 16 * images.read_header(case.channels[0].path, files=case.channels[0].files).num_voxels
    except (ImageReadError, IndexError):
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _SeenLabel:
    """What a label file holds, as :class:`CheckedCase` has it."""

    values: tuple[int, ...] = ()
    voxels: dict[int, int] = field(default_factory=dict)
    places: Whereabouts | None = None
    content: str = ""


def _check_label(
    case: Case,
    path: Path,
    header: ImageHeader | None,
    labels: Labels | None,
    found: Callable[..., None],
    *,
    middle: tuple[float, float, float] | None,
) -> _SeenLabel:
    """Findings of a label file, and what it holds."""
    try:
        integers, label_header = label_file(path, case.soft)
        values = tuple(unique_values(integers, str(path)))
        refuse_image(integers, path.name, num_values=len(values))
    except ImageReadError as error:
        found("unreadable", "error", str(error))
        return _SeenLabel()
    except LabelValueError as error:
        found("label values", "error", str(error))
        return _SeenLabel()
    if labels is not None:
        unknown = sorted(set(values) - set(labels.file_values))
        if unknown:
            found(
                "label values",
                "error",
                f"label values {listed_values(unknown)} are not declared; the list is {listed_values(sorted(labels.file_values))}"
                + ignore_hint(unknown, labels),
            )
    if labels is not None and labels.ignore in values:
        known = integers != labels.ignore
        found(
            "ignored voxels", "note", f"{1 - known.mean():.1%} of the voxels are not annotated ({labels.ignore}); training leaves them out"
        )
        if not known.any():
            found("ignored voxels", "error", f"no voxel of the label ({path.name}) is annotated; leave the case out")
        integers = np.where(known, integers, 0)
        values = tuple(value for value in values if value != labels.ignore)
    if not any(values):
        found("empty label", "warning", f"the label ({path.name}) is empty, only background; check that this is meant")
    geometry = label_header.geometry
    if header is not None and is_segmentation(path):  # such files leave out what is empty
        try:
            integers, geometry = onto_grid(integers, geometry, header.geometry, path), header.geometry
        except GeometryMismatchError as error:
            found("grid", "error", str(error))
            return _SeenLabel(values=values)
    if header is not None:
        _check_grid(path, geometry, header.geometry, integers, found)
    orientation = orientation_of(geometry.matrix)
    canonical = to_canonical(integers, orientation)
    places = whereabouts(case.name, canonical, _edges(geometry, orientation), middle=middle)
    return _SeenLabel(
        values=values,
        voxels=value_counts(integers) if labels is None else {},
        places=places,
        content=_digest(np.ascontiguousarray(canonical, np.float32)),
    )


def _edges(geometry: Geometry, orientation: Orientation) -> tuple[tuple[float, float, float], ...]:
    """The edges of a volume along its canonical axes (S, A, R), each as a vector (S, A, R) in mm."""
    edges = np.zeros((3, 3))
    for column, length, (ras, sign) in zip(geometry.matrix[:3, :3].T, geometry.shape, orientation, strict=True):
        edges[2 - ras] = column[::-1] * length * sign
    s, a, r = ((float(edge[0]), float(edge[1]), float(edge[2])) for edge in edges)
    return s, a, r


def _check_grid(path: Path, label: Geometry, image: Geometry, values: np.ndarray, found: Callable[..., None]) -> None:
    orientation = orientation_of(image.matrix)
    turned = orientation_on_grid(label, image, orientation)
    if not isinstance(turned, GeometryDifference):
        difference = compare(canonical_geometry(image, orientation), canonical_geometry(label, turned))
        if difference.corner_offset_voxels > ROUNDING_VOXELS:
            message = (
                f"the label ({path.name}) lies slightly beside the image: {describe(difference)}; medseg3d doctor --fix gives it the "
                "image's header"
            )
            found("grid", "fixable", message, "give the label the image's header")
        return
    message = f"the label ({path.name}) lies on another grid than the image: {describe(turned)}"
    if turned.is_same_shape:
        found("grid", "error", f"{message}; {AMBIGUOUS}")
        return
    inside = foreground_inside(values, label, image)
    if inside >= MIN_FOREGROUND_INSIDE:
        fix = "resample the label onto the image's grid (nearest neighbor)"
        found("grid", "error", f"{message}; medseg3d doctor --fix resamples it", fix)
    else:
        found("grid", "error", f"{message}; only {inside:.1%} of its foreground lies inside the image: do they belong together?")


def foreground_inside(values: np.ndarray, label: Geometry, image: Geometry) -> float:
    """The share of the label's foreground voxels whose centers lie inside the image; 1 for an empty label."""
    places = np.argwhere(values != 0)
    if not len(places):
        return 1.0
    to_image = np.linalg.inv(image.matrix) @ label.matrix
    there = places @ to_image[:3, :3].T + to_image[:3, 3]
    return float(((there >= -0.5) & (there <= np.array(image.shape) - 0.5)).all(1).mean())
