"""What a dataset looks like: read every training case once, describe it, and merge the descriptions.

In: a :class:`~medseg3d.data.dataset.Dataset`. Out: a :class:`Fingerprint` with one :class:`CaseFingerprint` per case. Cases are
independent of each other: a new or changed case costs the reading of that case, all others are taken from the previous
fingerprint by the digest of their files. All lists over axes are canonical (S, A, R).
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg3d.data.content import SAMPLES_PER_AXIS, body_middle, content_of
from medseg3d.data.cropping import nonzero_box
from medseg3d.data.grouping import Likeness
from medseg3d.data.label_rules import refuse_image
from medseg3d.errors import CaseFailure, DatasetError, ImageReadError, LabelValueError, StorageError
from medseg3d.execution import run_cases
from medseg3d.fingerprint.intensities import CHUNK, Histogram, IntensityStatistics, describe_values, merge_intensities, sampled_quantiles
from medseg3d.frame import CANONICAL_FRAME, Direction, Frame, Grid, common_frame, grid_of, orientation_in
from medseg3d.geometry import Orientation, code_of, orientation_of
from medseg3d.image_profile import SHARES
from medseg3d.labels import Labels, listed_values, unique_values

if TYPE_CHECKING:
    from medseg3d.data.dataset import Case, Dataset
    from medseg3d.data.reading import RawCase

logger = logging.getLogger(__name__)


# --- records


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFingerprint:
    """One channel of one case: the range of the whole image, and its foreground.

    ``is_integer`` says that a sample of the whole image holds whole numbers only. ``foreground`` is None for a case without
    labelled voxels. ``quantiles`` of the whole image are those of :data:`~medseg3d.image_profile.SHARES`; None in a file of an older
    version.
    """

    minimum: float
    maximum: float
    is_integer: bool
    foreground: IntensityStatistics | None
    histogram: Histogram
    quantiles: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.quantiles is not None and len(self.quantiles) != len(SHARES):
            raise ValueError(f"{len(self.quantiles)} quantiles; expected {len(SHARES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStatistics:
    """One label in one case. Components are 26-connected; ``center`` is a fraction of the volume along (S, A, R).

    ``elongation`` is the diagonal of the bounding box of the largest component over the cube root of its volume, both in mm (of
    several largest ones the longest counts): 1.7 for a cube, 2.1 for a ball, 8.0 to 8.5 by its direction for a tube of 20
    diameters. A component of one voxel has that of the voxel's own box. None in a file of an older version: such a case is not
    measured again, as its images did not change.
    """

    voxels: int
    volume_mm3: float
    components: int
    largest_mm3: float
    smallest_mm3: float
    touches_border: bool
    center: tuple[float, float, float]
    elongation: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFingerprint:
    """One case. ``orientation`` is the code of the file, for instance ``LAS``.

    ``labels`` is keyed by the values in the file, without the background. ``crop`` is (start, stop) of the box of
    non-zero voxels along (S, A, R); ``relative_size`` its share of the volume. ``direction`` holds the unit vectors of the file's axes
    (x, y, z) in RAS+ world axes, ``axes`` says which axis of the lists each of them is; both are None in a file of an older version.
    ``middle`` is where the middle of the body lies, a fraction of the volume along (S, A, R), None in an older file.
    """

    name: str
    digest: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    crop: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    relative_size: float
    channels: tuple[ChannelFingerprint, ...]
    labels: dict[int, LabelStatistics]
    direction: tuple[Direction, Direction, Direction] | None = None
    axes: Orientation | None = None
    middle: tuple[float, float, float] | None = None
    content: str = ""
    """A digest of a sample of the image's voxels: the same for copies, whatever their labels; empty for an even image."""

    def __post_init__(self) -> None:
        axes = self.axes or ((0, 1), (1, 1), (2, 1))
        if sorted(ras for ras, _ in axes) != [0, 1, 2] or any(sign not in (-1, 1) for _, sign in axes):
            raise ValueError(f"axes {self.axes}; expected each of 0, 1 and 2 once, with 1 or -1")
        if min(self.shape) < 1 or not all(0 < edge < math.inf for edge in self.spacing):
            raise ValueError(f"shape {self.shape} at {self.spacing} mm; expected numbers above 0")

    @property
    def grid(self) -> Grid | None:
        """The grid of the file; None in a record of an older version."""
        if self.direction is None or self.axes is None:
            return None
        x, y, z = (2 - ras for ras, _ in self.axes)
        spacing, shape = self.spacing, self.shape
        return Grid(direction=self.direction, spacing=(spacing[x], spacing[y], spacing[z]), shape=(shape[x], shape[y], shape[z]))

    @property
    def axis_directions(self) -> np.ndarray:
        """3x3: the unit vectors of the axes (S, A, R) of the lists in RAS+ world axes, in rows."""
        rows = np.eye(3)[::-1].copy()
        if self.direction is not None and self.axes is not None:
            for vector, (ras, sign) in zip(self.direction, self.axes, strict=True):
                rows[2 - ras] = np.asarray(vector) * sign
        return rows

    def world_position(self, center: Sequence[float]) -> np.ndarray:
        """A center (fractions along S, A, R) in mm from the middle of the volume, along the anatomical axes (S, A, R)."""
        extent = np.multiply(self.shape, self.spacing)
        world: np.ndarray = ((np.asarray(center) - 0.5) * extent) @ self.axis_directions
        return world[::-1]

    @property
    def cropped_shape(self) -> tuple[int, int, int]:
        """The shape of the crop box, (S, A, R)."""
        (s0, s1), (a0, a1), (r0, r1) = self.crop
        return (s1 - s0, a1 - a0, r1 - r0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """A dataset: its cases by name, and per channel the intensities of all foreground voxels of all cases.

    ``failures`` are the cases that could not be read; they are tried again next time. ``background`` is the label value that is
    not foreground. ``frame`` says which axes the lists of all cases follow.
    """

    dataset: str
    channel_names: tuple[str, ...]
    background: int
    cases: tuple[CaseFingerprint, ...]
    intensities: tuple[IntensityStatistics, ...]
    failures: tuple[CaseFailure, ...] = ()
    frame: Frame = CANONICAL_FRAME

    @property
    def median_relative_size(self) -> float:
        """The median over cases of the share of the volume that is left after cropping."""
        return float(np.median([case.relative_size for case in self.cases]))

    @property
    def label_values(self) -> tuple[int, ...]:
        """Every foreground value that occurs in a label file, sorted."""
        return tuple(sorted({value for case in self.cases for value in case.labels}))

    @property
    def digest(self) -> str:
        """Changes when a case is added, removed, renamed or changed."""
        lines = [f"background {self.background}", *sorted(f"{case.name} {case.digest}" for case in self.cases)]
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


# --- the way through


def make_fingerprint(
    dataset: Dataset,
    *,
    previous: Fingerprint | None = None,
    num_workers: int | None = None,
    max_bytes: int | None = None,
    executor: Executor | None = None,
    on_case: Callable[[Sequence[CaseFingerprint]], None] | None = None,
) -> Fingerprint:
    """The fingerprint of all training cases; ``on_case`` is given all that are measured so far after each case.

    Cases of ``previous`` with the same digest and channels are taken over. Cases that cannot be read are listed in
    ``failures``; raises :class:`DatasetError` where none can be read, or none has a labelled voxel.
    """
    background = dataset.labels.values[0] if dataset.labels else 0
    usable = previous is not None and previous.background == background
    known = {case.name: case for case in previous.cases} if previous and usable else {}

    def work(case: Case) -> CaseFingerprint:
        from medseg3d.data.reading import read_case, refuse_copy

        digest = digest_of(case)
        found = known.get(case.name)
        if found is None or found.grid is None or found.digest != digest or len(found.channels) != len(case.channels):
            raw = read_case(case)
            found = fingerprint_case(raw, digest, background=background)
            refuse_copy(case, raw)
        _check_values(found, dataset.labels)
        return found

    cases: list[CaseFingerprint] = []
    failures = list(dataset.failures)
    for done in run_cases(
        work,
        dataset.training,
        name_of=lambda case: case.name,
        stage="fingerprint",
        bytes_of=peak_bytes,
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
    merged = merge(cases, dataset=dataset.name, channel_names=dataset.channel_names, background=background, failures=failures)
    return in_common_frame(merged, previous=previous.frame if previous else None)


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
    return replace(
        case,
        axes=axes,
        shape=(case.shape[s], case.shape[a], case.shape[r]),
        spacing=(case.spacing[s], case.spacing[a], case.spacing[r]),
        crop=(box(0), box(1), box(2)),
        labels={value: replace(label, center=place(label.center)) for value, label in case.labels.items()},
        middle=None if case.middle is None else place(case.middle),
    )


def _check_values(case: CaseFingerprint, labels: Labels | None) -> None:
    """Raise :class:`LabelValueError` for values of a label file that the dataset does not list."""
    unknown = sorted(set(case.labels) - set(labels.values)) if labels is not None else []
    if labels is not None and unknown:
        raise LabelValueError(
            f"{case.name}: label values {listed_values(unknown)} are not in the list {listed_values(sorted(labels.values))}. Correct the "
            "file, or add the labels to dataset.json."
        )


def digest_of(case: Case) -> str:
    """A digest of the bytes of a case's files as they lie on the disk: channels in order, then the label map.

    Raises :class:`ImageReadError` for a file that is missing or may not be read, :class:`StorageError` for a disk that fails.
    """
    digest = hashlib.blake2b(digest_size=16)
    paths = list(dict.fromkeys((channel.path, channel.files) for channel in case.channels))
    for path, files in (*paths, *(((case.label, ()),) if case.label else ())):
        try:
            for file in files or _files_of(path):
                digest.update(f"{file.stat().st_size} ".encode())
                with file.open("rb", buffering=0) as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
        except FileNotFoundError:
            raise ImageReadError(f"{case.name}: {path}: no such file.") from None
        except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
            raise ImageReadError(f"{case.name}: {path}: cannot be read ({error.strerror}). Check the file and its permissions.") from None
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error.strerror or error}).") from error
    digest.update(" ".join(f"{paths.index((channel.path, channel.files))}:{channel.volume}" for channel in case.channels).encode())
    return digest.hexdigest()


def stamp_of(case: Case) -> str:
    """Sizes and times of a case's files: while it is the same, they have not been written since, and need not be read to know it.

    Empty where a file cannot be looked at.
    """
    places = dict.fromkeys((channel.path, channel.files) for channel in case.channels)
    if case.label:
        places[case.label, ()] = None
    try:
        states = [file.stat() for path, files in places for file in files or _files_of(path)]
    except (OSError, ImageReadError):
        return ""
    return ",".join(f"{state.st_size}-{state.st_mtime_ns}" for state in states)


def _files_of(path: Path) -> tuple[Path, ...]:
    """The files that an image consists of, all of them plain files: a pipe would wait for ever."""
    from medseg3d import images

    found = images.data_files(path)
    if not path.is_dir():
        for file in found:
            images.check_is_file(file)
    return found


SMALL_FILE = 1 << 18
"""Bytes. A file below is not opened to learn its size: that would cost more than the budget gains from it."""


def peak_bytes(case: Case) -> int:
    """The memory that :func:`fingerprint_case` takes at its peak, from the headers."""
    first = case.channels[0].path
    has_voxels = first.is_file() and first.suffix.lower() not in (".mhd", ".nhdr")
    if has_voxels and first.stat().st_size < SMALL_FILE:
        return 64 * SMALL_FILE
    from medseg3d.errors import InputError
    from medseg3d.images import read_header

    try:
        voxels = math.prod(read_header(first, files=case.channels[0].files).geometry.shape)
    except InputError:
        return 64 * SMALL_FILE  # reading the case will say what is wrong
    # float32 channels, one of them twice while it is decoded (up to float64), labels, components, masks and foreground values
    return voxels * (4 * len(case.channels) + 24)


def fingerprint_case(raw: RawCase, digest: str, *, background: int = 0) -> CaseFingerprint:
    """Describe one case; foreground is what has another label value than ``background``, inside the crop box as in nnU-Net.

    Raises :class:`LabelValueError` for a label map that looks like an image.
    """
    box = nonzero_box(raw.image)
    shape = raw.image.shape[1:]
    crop = tuple((s.start, s.stop) for s in box)
    inside = None if raw.labels is None else raw.labels[box] != background
    channels = tuple(_describe_channel(channel, channel[box], inside) for channel in raw.image)
    labels: dict[int, LabelStatistics] = {}
    if raw.labels is not None:
        values = unique_values(raw.labels)
        refuse_image(raw.labels, raw.name, num_values=len(values))
        labels = describe_labels(raw.labels, raw.spacing, background=background, values=values)
    return CaseFingerprint(
        name=raw.name,
        digest=digest,
        shape=(shape[0], shape[1], shape[2]),
        spacing=(float(raw.spacing[0]), float(raw.spacing[1]), float(raw.spacing[2])),
        orientation=code_of(orientation_of(raw.header.geometry.matrix)),
        direction=grid_of(raw.header.geometry).direction,
        axes=raw.orientation,
        crop=(crop[0], crop[1], crop[2]),
        relative_size=math.prod(stop - start for start, stop in crop) / math.prod(shape),
        channels=channels,
        labels=labels,
        middle=body_middle(raw.image[0]),
        content=content_of(raw.image),
    )


def likeness_of(fingerprint: Fingerprint) -> Likeness:
    """What tells copies and the images of one patient among the cases; see :mod:`medseg3d.data.grouping`."""
    intensities = {}
    for case in fingerprint.cases:
        known = [channel.foreground for channel in case.channels if channel.foreground is not None]
        if len(known) == len(case.channels):
            numbers = [(f.median, f.percentile_00_5, f.percentile_99_5, f.mean, f.std) for f in known]
            intensities[case.name] = tuple(float(value) for value in np.log(np.maximum(np.abs(np.ravel(numbers)), 1e-6)))
    return Likeness(contents={case.name: case.content for case in fingerprint.cases}, intensities=intensities)


def _describe_channel(whole: np.ndarray, cropped: np.ndarray, inside: np.ndarray | None) -> ChannelFingerprint:
    values = cropped[inside] if inside is not None else cropped[:0].ravel()
    histogram, foreground = describe_values(values)
    step = tuple(max(1, length // SAMPLES_PER_AXIS) for length in whole.shape)
    sample = whole[:: step[0], :: step[1], :: step[2]]
    return ChannelFingerprint(
        minimum=float(whole.min()),
        maximum=float(whole.max()),
        is_integer=bool((sample == np.rint(sample)).all()),
        foreground=foreground,
        histogram=histogram,
        quantiles=sampled_quantiles(whole, SHARES),
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


# --- labels


def describe_labels(
    labels: np.ndarray, spacing: Sequence[float], *, background: int = 0, values: Sequence[int] | None = None
) -> dict[int, LabelStatistics]:
    """Statistics per foreground value of an integer label map (S, A, R); ``spacing`` in mm, ``values`` where they are known."""
    import cc3d

    values = [value for value in (unique_values(labels) if values is None else values) if value != background]
    if not values:
        return {}
    box = nonzero_box((labels != background)[np.newaxis])
    dense = _dense(labels[box], values)
    components, count = cc3d.connected_components(dense, connectivity=26, return_N=True)
    described = cc3d.statistics(components, no_slice_conversion=True)
    sizes, boxes = described["voxel_counts"].astype(np.int64), described["bounding_boxes"]
    owners = _owners(components, dense, count)
    # of indices per label: whole numbers, so that rounding takes back what the division by the size lost
    sums = [np.bincount(owners, np.rint(described["centroids"][:, a] * sizes)) for a in range(3)]
    voxel_mm3 = math.prod(spacing)
    result = {}
    by_owner = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[by_owner], np.arange(1, len(values) + 2))
    for index, value in enumerate(values, start=1):
        own = by_owner[starts[index - 1] : starts[index]]
        own_sizes, own_boxes = sizes[own], boxes[own]
        voxels, largest = int(own_sizes.sum()), int(own_sizes.max())
        center = [(float(sums[a][index]) / voxels + box[a].start + 0.5) / labels.shape[a] for a in range(3)]
        first, last = own_boxes[:, 0::2].min(0), own_boxes[:, 1::2].max(0)
        of_largest = own_boxes[own_sizes == largest].astype(np.int64)
        extents_mm = (of_largest[:, 1::2] - of_largest[:, 0::2] + 1) * np.asarray(spacing)
        result[value] = LabelStatistics(
            voxels=voxels,
            volume_mm3=voxels * voxel_mm3,
            components=own_sizes.size,
            largest_mm3=largest * voxel_mm3,
            smallest_mm3=int(own_sizes.min()) * voxel_mm3,
            touches_border=any(int(first[a]) + box[a].start == 0 or int(last[a]) + box[a].start == labels.shape[a] - 1 for a in range(3)),
            center=(center[0], center[1], center[2]),
            elongation=float(np.linalg.norm(extents_mm, axis=1).max()) / math.cbrt(largest * voxel_mm3),
        )
    return result


def _owners(components: np.ndarray, dense: np.ndarray, count: int) -> np.ndarray:
    """The label of each of ``count`` components; entry 0 is the background's."""
    owners = np.zeros(count + 1, dense.dtype)
    step = max(1, CHUNK // dense[0].size)
    for start in range(0, len(dense), step):  # in slabs, as numpy copies indices to 64 bits
        owners[components[start : start + step]] = dense[start : start + step]  # all voxels of a component agree
    return owners


def _dense(labels: np.ndarray, values: list[int]) -> np.ndarray:
    """Values → 1, 2, … in their order, everything else → 0, C-contiguous in the smallest unsigned type."""
    dtype = np.min_scalar_type(len(values))
    low, high = values[0], values[-1]
    if low == 1 and high == len(values) and labels.min() >= 0:
        return np.ascontiguousarray(labels, dtype)
    if high - low > 1_000_000:  # a table would be larger than the volume
        places = np.searchsorted(values, labels)
        hit = np.asarray(values)[np.minimum(places, len(values) - 1)] == labels
        return np.where(hit, places + 1, 0).astype(dtype)
    table = np.zeros(high - low + 3, dtype)
    table[np.asarray(values) - low + 1] = np.arange(1, len(values) + 1)
    return table[np.clip(labels.astype(np.int64) - low + 1, 0, high - low + 2)]


def infer_labels(fingerprint: Fingerprint) -> Labels:
    """Labels for a dataset that names none: ``label_<value>`` for every value that occurs."""
    values = fingerprint.label_values
    return Labels(names=("background", *(f"label_{value}" for value in values)), values=(fingerprint.background, *values))


CT_MINIMUM = -500.0
"""Hounsfield units: air is -1000, and no other modality stores whole numbers that far below zero."""


def infer_modality(fingerprint: Fingerprint) -> tuple[tuple[str, ...], str]:
    """Names for the channels of a dataset that names none, and the reason in one sentence per channel.

    A channel is ``CT`` where the median over cases of the image's minimum is at most -500 and the voxels are whole numbers in
    most cases; everything else is called ``MRI`` and is normalized by its own mean and standard deviation.
    """
    names, reasons = [], []
    for channel in range(len(fingerprint.intensities)):
        parts = [case.channels[channel] for case in fingerprint.cases]
        lowest = float(np.median([part.minimum for part in parts]))
        integer = sum(part.is_integer for part in parts)
        is_ct = lowest <= CT_MINIMUM and 2 * integer > len(parts)
        names.append("CT" if is_ct else "MRI")
        rule = "CT, because both hold" if is_ct else "MRI (z-score per image), because CT needs both"
        reasons.append(
            f"Channel {channel} is taken for {rule}: median of the images' minima at most {CT_MINIMUM:g} (it is {lowest:g}), and "
            f"whole numbers in most cases (in {integer} of {len(parts)}). Use --channels to say otherwise."
        )
    return tuple(names), " ".join(reasons)
