"""What a dataset looks like: read every training case once, describe it, and merge the descriptions.

In: a :class:`~medseg3d.data.dataset.Dataset`. Out: a :class:`~medseg3d.fingerprint.records.Fingerprint` with one record per case. Cases
are independent of each other: a new or changed case costs the reading of that case, all others are taken from the previous fingerprint
by the digest of their files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from medseg3d.data.digests import digest_of
from medseg3d.data.label_names import ignored_value
from medseg3d.data.label_rules import ignore_hint, marker_values
from medseg3d.errors import CaseFailure, DatasetError, LabelValueError
from medseg3d.execution import run_cases
from medseg3d.fingerprint.describe_case import bytes_to_describe, describe_case
from medseg3d.fingerprint.intensities import merge_intensities
from medseg3d.fingerprint.records import CaseFingerprint, Fingerprint
from medseg3d.frame import Frame, common_frame, orientation_in
from medseg3d.labels import Labels, listed_values

if TYPE_CHECKING:
    from medseg3d.data.dataset import Case, Dataset


def make_fingerprint(
    dataset: Dataset,
    *,
    previous: Fingerprint | None = None,
    num_workers: int | None = None,
    max_bytes: int | None = None,
    on_case: Callable[[Sequence[CaseFingerprint]], None] | None = None,
    executor: Executor | None = None,
) -> Fingerprint:
    """The fingerprint of all training cases; ``on_case`` is given all that are measured so far after each case.

    Cases of ``previous`` with the same digest and channels are taken over. Cases that cannot be read are listed in
    ``failures``; raises :class:`DatasetError` where none can be read, or none has a labelled voxel. With an ``executor`` the cases are
    read wherever it runs them.
    """
    background = dataset.labels.values[0] if dataset.labels else 0
    ignore = ignored_value(dataset.labels, dataset.label_names)
    usable = previous is not None and previous.background == background and previous.ignore == ignore
    known = {case.name: case for case in previous.cases} if previous and usable else {}

    cases: list[CaseFingerprint] = []
    failures = list(dataset.failures)
    for done in run_cases(
        partial(_measured, background=background, ignore=ignore, labels=dataset.labels),
        [(case, known.get(case.name)) for case in dataset.training],
        name_of=lambda item: item[0].name,
        stage="fingerprint",
        bytes_of=lambda item: bytes_to_describe(item[0]),
        num_workers=num_workers,
        max_bytes=max_bytes,
        executor=executor,
    ):
        if done.result is not None:
            cases.append(done.result)
        if done.failure is not None:
            failures.append(done.failure)
        if on_case is not None:
            on_case(cases)
    if not cases:
        raise DatasetError(
            f"{dataset.root}: no training case could be read. Run medseg3d doctor to see what is wrong with the files.",
            [f"{failure.case}: {failure.reason}" for failure in sorted(failures, key=lambda failure: failure.case)],
        )
    if ignore is None and (marker := undeclared_ignore(cases, dataset)) is not None:
        ignore = marker
        holders = {case.name for case in cases if set(case.labels) > {marker}}  # a mask of 0 and 255 is no case of it
        again = {case.name: case for case in dataset.training if case.name in holders}
        cases = [_described(again[case.name], case.digest, background, marker) if case.name in again else case for case in cases]
    merged = merge(cases, dataset=dataset.name, channel_names=dataset.channel_names, background=background, failures=failures)
    return in_common_frame(replace(merged, ignore=ignore), previous=previous.frame if previous else None)


def _described(case: Case, digest: str, background: int, ignore: int | None) -> CaseFingerprint:
    from medseg3d.data.reading import read_case, refuse_copy

    raw = read_case(case)
    found = describe_case(raw, digest, background=background, ignore=ignore)
    refuse_copy(case, raw)
    return found


def undeclared_ignore(cases: Sequence[CaseFingerprint], dataset: Dataset) -> int | None:
    """The one value that marks voxels nobody has annotated, in a dataset that lists no labels and gives it no name; None otherwise.

    It must occur beside structures in the same label map: what only stands alone is a mask of another value.
    """
    if dataset.labels is not None:
        return None
    markers = set(marker_values({value for case in cases for value in case.labels})) - set(dataset.label_names)
    beside = {value for case in cases for value in markers & set(case.labels) if set(case.labels) - markers}
    return beside.pop() if len(markers) == len(beside) == 1 else None


def _measured(item: tuple[Case, CaseFingerprint | None], *, background: int, ignore: int | None, labels: Labels | None) -> CaseFingerprint:
    """A case as it was measured before, where its files and channels are the same; or read and measured."""
    case, found = item
    digest = digest_of(case)
    if found is None or found.grid is None or found.digest != digest or len(found.channels) != len(case.channels):
        found = _described(case, digest, background, ignore)
    _check_values(found, labels)
    return found


def _check_values(case: CaseFingerprint, labels: Labels | None) -> None:
    """Raise :class:`LabelValueError` for values of a label file that the dataset does not list."""
    unknown = sorted(set(case.labels) - set(labels.file_values)) if labels is not None else []
    if labels is not None and unknown:
        raise LabelValueError(
            f"{case.name}: label values {listed_values(unknown)} are not in the list {listed_values(sorted(labels.file_values))}. Correct "
            f"the file, or add the labels to dataset.json{ignore_hint(unknown, labels)}."
        )


def merge(
    cases: Iterable[CaseFingerprint],
    *,
    dataset: str,
    channel_names: Sequence[str],
    background: int = 0,
    failures: Sequence[CaseFailure] = (),
) -> Fingerprint:
    """The fingerprint of a dataset from those of its cases, in the order of their names.

    Raises :class:`DatasetError` where no case has a labelled voxel: nothing could be learned.
    """
    ordered = tuple(sorted(cases, key=lambda case: case.name))
    counts = {len(case.channels) for case in ordered}
    if len(counts) > 1:
        raise DatasetError(f"{dataset}: the cases have {sorted(counts)} channels; all cases of a dataset need the same number.")
    intensities = []
    for channel in range(max(counts, default=0)):
        parts = [case.channels[channel] for case in ordered]
        merged = merge_intensities([(part.histogram, part.foreground) for part in parts if part.foreground is not None])
        if merged is None:
            raise DatasetError(f"{dataset}: no case has a labelled voxel inside its image, so there is nothing to learn.")
        intensities.append(merged)
    return Fingerprint(
        dataset=dataset,
        channel_names=tuple(channel_names),
        background=background,
        cases=ordered,
        intensities=tuple(intensities),
        failures=tuple(sorted(failures, key=lambda failure: failure.case)),
    )


def in_common_frame(fingerprint: Fingerprint, *, previous: Frame | None = None) -> Fingerprint:
    """The same fingerprint with the axes of all cases assigned together; see :func:`~medseg3d.frame.common_frame`."""
    frame = common_frame([case.grid for case in fingerprint.cases if case.grid is not None], previous=previous)
    return replace(fingerprint, frame=frame, cases=tuple(in_frame(case, frame) for case in fingerprint.cases))


def in_frame(case: CaseFingerprint, frame: Frame) -> CaseFingerprint:
    """The same case with its lists along the axes that the frame gives its file; no image is read."""
    if case.grid is None or case.axes is None:
        return case
    axes = orientation_in(frame, case.grid)
    if axes == case.axes:
        return case
    source, is_flipped = [0, 0, 0], [False, False, False]
    for (old, old_sign), (new, new_sign) in zip(case.axes, axes, strict=True):
        source[2 - new], is_flipped[2 - new] = 2 - old, old_sign != new_sign

    def box(axis: int) -> tuple[int, int]:
        (start, stop), length = case.crop[source[axis]], case.shape[source[axis]]
        return (length - stop, length - start) if is_flipped[axis] else (start, stop)

    def place(center: tuple[float, float, float]) -> tuple[float, float, float]:
        s, a, r = (1 - center[source[axis]] if is_flipped[axis] else center[source[axis]] for axis in range(3))
        return (s, a, r)

    s, a, r = source
    edges = case.foreground_edges or (0, 0, 0)
    return replace(
        case,
        axes=axes,
        shape=(case.shape[s], case.shape[a], case.shape[r]),
        spacing=(case.spacing[s], case.spacing[a], case.spacing[r]),
        crop=(box(0), box(1), box(2)),
        labels={value: replace(label, center=place(label.center)) for value, label in case.labels.items()},
        middle=None if case.middle is None else place(case.middle),
        foreground_edges=case.foreground_edges and (edges[s], edges[a], edges[r]),
    )
