"""What only shows between the cases of a dataset: checked cases in, findings out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from medseg3d.data.annotated import unused_rows
from medseg3d.data.checks import CheckedCase, Finding
from medseg3d.data.dataset import Dataset
from medseg3d.data.grouping import shared_patients
from medseg3d.data.label_names import with_names
from medseg3d.data.label_pairs import by_region, sides
from medseg3d.data.label_rules import (
    Filled,
    absent_background,
    background_doubts,
    marker_message,
    marker_values,
    name_doubts,
    rare_labels,
)
from medseg3d.data.plausible import LOST_INTERCEPT, lost_intercepts, spacing_doubt
from medseg3d.labels import Labels
from medseg3d.wording import listed

SCALE_RATIO = 10.0
"""An intensity range, or a spacing, this many times larger or smaller than the dataset's median is pointed out."""
MIN_CASES_FOR_OUTLIERS = 4
MAX_SINGLE_OUTLIERS = 5
"""More outliers than this are told in one finding: the dataset is like that."""


def compare_cases(dataset: Dataset, training: Sequence[CheckedCase], test: Sequence[CheckedCase]) -> tuple[Finding, ...]:
    """What only shows between cases: copies, test images that were trained on, other orientations, other intensity scales."""
    is_list_wrong = dataset.labels is None and dataset.has_named_channels  # a dataset.json whose labels are refused
    training, test = sorted(training, key=lambda c: c.name), sorted(test, key=lambda c: c.name)
    return (
        *_copies(training, test),
        *_shared_patients(training, test),
        *_orientations((*training, *test)),
        *_spacing_outliers(training),
        *_implausible_spacings(training),
        *_names_alike(training),
        *_intensity_outliers(dataset, training),
        *(() if is_list_wrong else (*_labels_over_all(dataset, training), *_left_and_right(dataset, training))),
        *_partly_annotated(dataset),
    )


def _copies(training: Sequence[CheckedCase], test: Sequence[CheckedCase]) -> Iterator[Finding]:
    by_content: dict[str, list[str]] = {}
    for case in training:
        if case.content:
            by_content.setdefault(case.content, []).append(case.name)
    for names in by_content.values():
        if len(names) > 1:
            message = f"{', '.join(names)} are the same image; in different folds they make the validation too good. Keep one"
            yield Finding(case=names[0], kind="duplicate", severity="warning", message=message)
    for case in test:
        twins = by_content.get(case.content, []) if case.content else []
        if twins:
            message = f"the test image is also the training case {', '.join(twins)}; its score says nothing about new images"
            yield Finding(case=case.name, kind="leakage", severity="warning", message=message)


def _shared_patients(training: Sequence[CheckedCase], test: Sequence[CheckedCase]) -> Iterator[Finding]:
    message = shared_patients([case.name for case in training], [case.name for case in test])
    if message:
        yield Finding(case=None, kind="groups", severity="warning", message=message)


def _orientations(cases: Sequence[CheckedCase]) -> Iterator[Finding]:
    counts: dict[str, int] = {}
    for case in cases:
        if case.orientation:
            counts[case.orientation] = counts.get(case.orientation, 0) + 1
    if len(counts) > 1:
        listed = ", ".join(f"{code} ({counts[code]})" for code in sorted(counts, key=lambda c: (-counts[c], c)))
        message = f"the files are stored in different orientations: {listed}; all are turned to RAS when read"
        yield Finding(case=None, kind="orientation", severity="note", message=message)


def _spacing_outliers(cases: Sequence[CheckedCase]) -> Iterator[Finding]:
    known = [(case, float(np.prod(case.spacing)) ** (1 / 3)) for case in cases if case.spacing]
    if len(known) < MIN_CASES_FOR_OUTLIERS:
        return
    middle = float(np.median([size for _, size in known]))
    for case, size in known:
        if not middle / SCALE_RATIO < size < middle * SCALE_RATIO:
            message = f"voxels of {size:.3g} mm (mean edge), the dataset's median is {middle:.3g} mm; check the unit"
            yield Finding(case=case.name, kind="spacing", severity="warning", message=message)


def _implausible_spacings(cases: Sequence[CheckedCase]) -> Iterator[Finding]:
    """Spacings that can hardly be in mm, of single cases; one finding where all cases are so."""
    known = [(case, spacing_doubt(float(np.prod(case.spacing)) ** (1 / 3))) for case in cases if case.spacing]
    doubtful = [(case, doubt) for case, doubt in known if doubt]
    if len(doubtful) > 1 and len(doubtful) == len(known):
        yield Finding(case=None, kind="spacing", severity="warning", message=f"all cases have {doubtful[0][1]}")
        return
    for case, doubt in doubtful:
        yield Finding(case=case.name, kind="spacing", severity="warning", message=doubt)


def _names_alike(cases: Sequence[CheckedCase]) -> Iterator[Finding]:
    """Names that are one file on the systems that do not tell upper and lower case apart."""
    by_name: dict[str, list[str]] = {}
    for case in cases:
        by_name.setdefault(case.name.casefold(), []).append(case.name)
    for names in by_name.values():
        if len(names) > 1:
            message = f"{', '.join(names)} differ in upper and lower case only: on Windows and macOS they are one file. Rename one"
            yield Finding(case=names[0], kind="names", severity="warning", message=message)


def _intensity_outliers(dataset: Dataset, cases: Sequence[CheckedCase]) -> Iterator[Finding]:
    """A range ten times the usual, or a middle far outside the usual range: other units, a forgotten slope or intercept."""
    for index, channel in enumerate(dataset.channel_names):
        known = [(case, *case.intensities[index]) for case in cases if len(case.intensities) > index]
        for name in lost_intercepts({case.name: low for case, low, _, _ in known}):
            yield Finding(
                case=name, kind="intensity scale", severity="warning", message=f"channel {index} ({channel}) has {LOST_INTERCEPT}"
            )
        ranges = [high - low for _, low, _, high in known]
        usual = float(np.median(ranges)) if ranges else 0.0
        if len(known) < MIN_CASES_FOR_OUTLIERS or usual <= 0:
            continue
        level = float(np.median([middle for _, _, middle, _ in known]))
        outliers = [
            (case.name, low, high)
            for (case, low, middle, high), extent in zip(known, ranges, strict=True)
            if not usual / SCALE_RATIO <= extent <= usual * SCALE_RATIO or abs(middle - level) > SCALE_RATIO * usual
        ]
        there = f"channel {index} ({channel})"
        if len(outliers) > MAX_SINGLE_OUTLIERS:
            listed = ", ".join(f"{name} ({low:.4g} to {high:.4g})" for name, low, high in outliers[:MAX_SINGLE_OUTLIERS])
            message = (
                f"{there}: {len(outliers)} of {len(known)} cases have another intensity scale than the usual {usual:.4g} "
                f"around {level:.4g}: {listed}, …. Fine for MRI, which is normalized per image; wrong for CT"
            )
            yield Finding(case=None, kind="intensity scale", severity="warning", message=message)
            continue
        for case_name, low, high in outliers:
            message = (
                f"{there} runs from {low:.4g} to {high:.4g} (1st to 99th percentile); usual is a range of {usual:.4g} around "
                f"{level:.4g}. Check its unit, slope and intercept"
            )
            yield Finding(case=case_name, kind="intensity scale", severity="warning", message=message)


def _filled(case: CheckedCase) -> Filled:
    """From the sample of the label map that its places come from; 0 stays what is left over."""
    if case.places is None:
        return Filled(name=case.name, shares={})
    shares = {value: label.volume_mm3 / case.places.extent_mm3 for value, label in case.places.labels.items()}
    total = sum(shares.values())
    return Filled(name=case.name, shares=shares if 0 in case.values or not total else {v: s / total for v, s in shares.items()})


def _labels_over_all(dataset: Dataset, cases: Sequence[CheckedCase]) -> Iterator[Finding]:
    there = sorted({value for case in cases for value in case.values})
    usable = [case for case in cases if case.values and all(finding.severity != "error" for finding in case.findings)]
    filled = [_filled(case) for case in usable]
    names = dict(zip(dataset.labels.values, dataset.labels.names, strict=True)) if dataset.labels else dataset.label_names
    for doubt in background_doubts(filled, names):
        yield Finding(case=None, kind="label values", severity="warning", message=doubt.removesuffix("."))
    if dataset.labels is None:
        if 0 not in there and not dataset.label_names and (reason := absent_background(filled)):
            yield Finding(case=None, kind="label values", severity="error", message=reason)
        message = f"no dataset.json: the label values found are {there}"
        yield Finding(case=None, kind="label values", severity="note", message=message)
        yield from _markers(dataset, cases, there)
        for warning in rare_labels({case.name: case.voxels for case in cases if case.values}):
            yield Finding(case=None, kind="rare label", severity="warning", message=warning)
        return
    for doubt in name_doubts(dict(zip(dataset.labels.values, dataset.labels.names, strict=True))):
        yield Finding(case=None, kind="label names", severity="warning", message=doubt)
    for index in dataset.labels.foreground:
        name, members = dataset.labels.names[index], dataset.labels.members(index)
        if not set(members) & set(there):
            message = f"label {name} ({', '.join(map(str, members))}) is declared, but no case has it"
            yield Finding(case=None, kind="label values", severity="warning", message=message)


def _markers(dataset: Dataset, cases: Sequence[CheckedCase], there: Sequence[int]) -> Iterator[Finding]:
    """Values that mean "not annotated": one beside structures is taken for that, others cost their cases."""
    markers = set(marker_values(there)) - set(dataset.label_names)
    beside = {value for case in cases for value in markers & set(case.values) if set(case.values) - markers - {0}}
    if len(markers) == len(beside) == 1:
        (value,) = beside
        holders = [case.name for case in cases if value in case.values and set(case.values) - markers - {0}]
        message = (
            f"the label value {value} of {listed(holders, most=5)} is taken for voxels that nobody has annotated; if it is a structure, "
            f"name it (--labels {value}=NAME, or labels.csv beside the images)"
        )
        yield Finding(case=None, kind="label values", severity="warning", message=message)
        cases = [case for case in cases if case.name not in holders]
    for case in cases:
        found = sorted(markers & set(case.values))
        if found:
            yield Finding(case=case.name, kind="label values", severity="error", message=marker_message(found))


def _partly_annotated(dataset: Dataset) -> Iterator[Finding]:
    """How many cases were annotated for each structure, where not all were."""
    if unused := unused_rows(dataset.root, [case.name for case in (*dataset.training, *dataset.test)]):
        yield Finding(case=None, kind="annotated", severity="warning", message=unused)
    if dataset.labels is None or all(case.annotated is None for case in dataset.training):
        return
    names = dataset.labels.names[1:]
    counts = {name: sum(case.annotated is None or name in case.annotated for case in dataset.training) for name in names}
    listing = ", ".join(f"{name} {count}" for name, count in counts.items())
    message = f"annotated.csv: of {len(dataset.training)} cases are annotated for {listing}"
    yield Finding(case=None, kind="annotated", severity="note", message=message)
    for name, count in counts.items():
        if not count:
            yield Finding(case=None, kind="annotated", severity="warning", message=f"no case was annotated for {name}")


def _left_and_right(dataset: Dataset, cases: Sequence[CheckedCase]) -> Iterator[Finding]:
    """Labels that may be left and right of the same, and headers that contradict their names."""
    values = (0, *sorted({value for case in cases for value in case.values} - {0}))
    names = tuple(f"label_{value}" if value else "background" for value in values)
    labels = dataset.labels or with_names(Labels(names=names, values=values), dataset.label_names)
    known = sides(by_region([case.places for case in cases if case.places is not None], labels), labels)
    for message in (*known.warnings, *filter(None, [known.doubt])):
        yield Finding(case=None, kind="left and right", severity="warning", message=message.removesuffix("."))
