"""From a raw case to its label indices: prepared images go through the networks, and slabs of logits become rows of the label map.

What is held beside the prepared images and the label map does not grow with the number of slices, nor at full size with the number of
classes: not for one network, not for folds, ensembles of two configurations, cascades or probabilities.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from medseg3d.axes import to_network_order
from medseg3d.data.cropping import nonzero_mask
from medseg3d.data.reading import RawCase
from medseg3d.devices import Device, free_bytes
from medseg3d.geometry import Orientation
from medseg3d.images import ImageHeader
from medseg3d.labels import Labels
from medseg3d.networks.build import output_size
from medseg3d.plan import Configuration, Plan, total_stride
from medseg3d.prediction.empty_windows import Skipping, Survey
from medseg3d.prediction.restore import LabelCanvas, on_crop, on_whole, restore_label_maps, restored_probabilities
from medseg3d.prediction.sliding_window import OnWindows, copied_to_host, stream_logits
from medseg3d.preprocessing.preprocess_case import PreprocessedCase, preprocess_for, previous_stage_channels, resampled_box
from medseg3d.validation.box import Box, BoxRule, find_box, grown

logger = logging.getLogger(__name__)
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One configuration of a model with the networks of its folds; ``previous`` is the first stage of a cascade.

    ``box`` is how its label map says where to look, where the configuration sees nothing but that box (a crop cascade).
    ``skipping`` says which windows are left out as empty; ``survey`` counts the windows that could be.
    """

    configuration: Configuration
    networks: tuple[torch.nn.Module, ...]
    mirroring: bool = True
    previous: Member | None = None
    box: BoxRule | None = None
    is_whole: bool = False
    """The networks see each image at once instead of windows."""
    skipping: Skipping | None = None
    survey: Survey | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedCase:
    """A case as the networks of all members want it, and what it takes to write its label map; the raw image is not kept.

    ``images`` are by configuration, also those of first stages. ``inside`` (bool, crop in network order) is the non-zero region, kept
    for cascades. ``warnings`` say why its label map may not be relied on, ``notes`` what else was done otherwise than usual. The images of
    crop cascades are those of their boxes where it ``is_located``, before that the whole case at its own spacing.
    """

    name: str
    shape: tuple[int, int, int]
    orientation: Orientation
    header: ImageHeader
    images: dict[str, PreprocessedCase]
    inside: np.ndarray | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    is_located: bool = False

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return sum(case.image.nbytes for case in self.images.values()) + (self.inside.nbytes if self.inside is not None else 0)


def prepare_case(raw: RawCase, plan: Plan, members: Sequence[Member], *, in_place: bool = False, device: str | None = None) -> PreparedCase:
    """Preprocess a raw case for all members; with ``in_place`` its image is overwritten, which spares a copy.

    ``device`` as for :func:`~medseg3d.preprocessing.preprocess_case.preprocess_for`.
    """
    stages = [stage for member in members for stage in (member.previous, member) if stage is not None]
    configurations = {stage.configuration.name: stage.configuration for stage in stages}
    inside = None
    if any(member.previous is not None and not member.configuration.is_cropped for member in members):
        inside = nonzero_mask(to_network_order(raw.image, plan.axis_order))
    stages_to_prepare, cropped = tuple(configurations.values()), {name for name, each in configurations.items() if each.is_cropped}
    cases = list(preprocess_for(raw, plan=plan, configurations=stages_to_prepare, in_place=in_place, device=device, as_they_are=cropped))
    if inside is not None:
        inside = inside[tuple(slice(start, stop) for start, stop in cases[0].restoration.box)]
    return PreparedCase(
        name=raw.name,
        shape=raw.image.shape[1:],
        orientation=raw.orientation,
        header=raw.header,
        images=dict(zip(configurations, cases, strict=True)),
        inside=inside,
        is_located=not cropped,
    )


def locate(
    prepared: PreparedCase, members: Sequence[Member], labels: Labels, device: Device, *, step: float = 0.5, max_bytes: int | None = None
) -> PreparedCase:
    """The case with the images of crop cascades cut to the boxes that first stages find; whole, with a note, where that is nothing."""
    if prepared.is_located:
        return prepared
    images, notes = dict(prepared.images), list(prepared.notes)
    for member in members:
        configuration, case = member.configuration, prepared.images[member.configuration.name]
        if not configuration.is_cropped or member.previous is None or member.box is None:
            continue
        restoration = case.restoration
        first = segment(prepared, (member.previous,), labels, device, step=step, max_bytes=max_bytes)
        found = find_box(to_network_order(first, restoration.axis_order) > 0, member.box, restoration.spacing)
        box = None if found is None else _within(found, restoration.box)
        if box is None:
            notes.append(f"{member.previous.configuration.name} found nothing, so {configuration.name} saw the whole case")
            logger.warning("%s: %s.", prepared.name, notes[-1])
        edges = [
            math.ceil(n * at / own) for n, at, own in zip(configuration.patch_size, configuration.spacing, restoration.spacing, strict=True)
        ]
        chosen = restoration.box if box is None else grown(box, edges, restoration.box)
        images[configuration.name] = resampled_box(case, chosen, configuration, device=device.for_resampling)
    return replace(prepared, images=images, notes=tuple(notes), is_located=True)


def _within(box: Box, limits: Box) -> Box | None:
    """The part of a box that lies in another; None for nothing."""
    cut = [(max(low, first), min(high, last)) for (low, high), (first, last) in zip(box, limits, strict=True)]
    return (cut[0], cut[1], cut[2]) if all(low < high for low, high in cut) else None


def segment(
    prepared: PreparedCase,
    members: Sequence[Member],
    labels: Labels,
    device: Device,
    *,
    step: float = 0.5,
    probabilities: np.ndarray | None = None,
    max_bytes: int | None = None,
    on_windows: OnWindows | None = None,
) -> np.ndarray:
    """Label indices ``(S, A, R)``: the arg-max of one member's logits, or of the mean probabilities of several.

    ``probabilities``, zeros ``(K, S, A, R)`` of any float type, in memory or mapped from a file, is filled where it is given; outside
    of the non-zero region all is background. ``max_bytes`` as for :func:`~medseg3d.prediction.sliding_window.stream_logits`.
    ``on_windows(done, all)`` is told how many windows of all members are done; only on a CPU, where they take long.
    """
    tell = _told_together(on_windows if device.device.type == "cpu" else None, len(members))
    is_regions = bool(labels.regions)
    if any(member.configuration.is_cropped for member in members):
        prepared = locate(prepared, members, labels, device, step=step, max_bytes=max_bytes)
    if len(members) == 1 and probabilities is None:
        (member,) = members
        case = _with_first_stage(prepared, member, labels, device, step, max_bytes)
        slabs = _slabs(prepared.name, case, member, device, step, max_bytes, on_windows=tell[0])
        (indices,) = restore_label_maps(slabs, labels.num_outputs, case.restoration, is_regions=is_regions)
        return indices
    cases = [_with_first_stage(prepared, member, labels, device, step, max_bytes) for member in members]
    streams = [
        restored_probabilities(
            _slabs(prepared.name, case, member, device, step, max_bytes, on_windows=told),
            labels.num_outputs,
            case.restoration,
            is_regions=is_regions,
        )
        for case, member, told in zip(cases, members, tell, strict=True)
    ]
    restoration = cases[0].restoration  # the raw grid and the crop are the same for all, but for crop cascades
    if len(members) > 1 and (detectors := [m.previous.configuration.name for m in members if m.configuration.is_cropped and m.previous]):
        restoration = prepared.images[detectors[0]].restoration
        streams = [
            on_whole(stream, case.restoration, restoration, labels.num_outputs, is_regions=is_regions)
            for stream, case in zip(streams, cases, strict=True)
        ]
    canvas = LabelCanvas(restoration, labels.num_classes - 1)
    if probabilities is not None and not is_regions:
        probabilities[0] = 1
    for rows, block in streams[0] if len(streams) == 1 else _mean_stream(streams, is_regions=is_regions):
        canvas.crop[rows] = block[-1]
        if probabilities is not None:
            on_crop(probabilities, restoration)[:, rows] = block[:-1]
    return canvas.indices


def _told_together(on_windows: OnWindows | None, number: int) -> list[OnWindows | None]:
    """For each of several streams of windows what hears of it, so that their sum is told."""
    if on_windows is None:
        return [None] * number
    counts: dict[int, tuple[int, int]] = {}

    def tell(stream: int, done: int, total: int) -> None:
        counts[stream] = (done, total)
        missing = (number - len(counts)) * total  # streams that have not begun are as long as this one
        on_windows(sum(done for done, _ in counts.values()), sum(total for _, total in counts.values()) + missing)

    return [partial(tell, stream) for stream in range(number)]


def segment_with_and_without_mirroring(
    prepared: PreparedCase, member: Member, labels: Labels, device: Device, *, step: float = 0.5, max_bytes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Two label maps ``(S, A, R)`` of one pass over the image: with mirroring, and without."""
    prepared = locate(prepared, (member,), labels, device, step=step, max_bytes=max_bytes)
    case = _with_first_stage(prepared, member, labels, device, step, max_bytes)
    slabs = _slabs(prepared.name, case, member, device, step, max_bytes, with_unmirrored=True)
    mirrored, plain = restore_label_maps(slabs, labels.num_outputs, case.restoration, num_maps=2, is_regions=bool(labels.regions))
    return mirrored, plain


def segment_every_level(
    prepared: PreparedCase,
    member: Member,
    labels: Labels,
    device: Device,
    *,
    num_levels: int,
    step: float = 0.5,
    both_ways: bool = False,
    max_bytes: int | None = None,
) -> list[np.ndarray]:
    """A label map ``(S, A, R)`` for every level, deepest first, of one pass; with ``both_ways`` those without mirroring behind them.

    The networks of ``member`` give the logits of all levels (:class:`~medseg3d.networks.levels.EveryLevel`).
    """
    prepared = locate(prepared, (member,), labels, device, step=step, max_bytes=max_bytes)
    case = _with_first_stage(prepared, member, labels, device, step, max_bytes)
    slabs = _slabs(prepared.name, case, member, device, step, max_bytes, with_unmirrored=both_ways)
    num_maps = num_levels * (2 if both_ways else 1)
    return restore_label_maps(slabs, labels.num_outputs, case.restoration, num_maps=num_maps, is_regions=bool(labels.regions))


def _with_first_stage(
    prepared: PreparedCase, member: Member, labels: Labels, device: Device, step: float, max_bytes: int | None
) -> PreprocessedCase:
    """The member's image; in a cascade with the label map of the first stage in further channels."""
    case = prepared.images[member.configuration.name]
    if member.previous is None or prepared.inside is None or member.configuration.is_cropped:
        return case
    first = segment(prepared, (member.previous,), labels, device, step=step, max_bytes=max_bytes)
    channels = previous_stage_channels(first, prepared.inside, case, labels)
    return replace(case, image=np.concatenate((case.image, channels)))


def _slabs(
    name: str,
    case: PreprocessedCase,
    member: Member,
    device: Device,
    step: float,
    max_bytes: int | None,
    *,
    with_unmirrored: bool = False,
    on_windows: OnWindows | None = None,
) -> Iterator[torch.Tensor]:
    configuration = member.configuration
    window = _whole_window(name, case.image.shape[1:], member, device) if member.is_whole else configuration.patch_size
    slabs = stream_logits(
        member.networks,
        torch.from_numpy(case.image),
        case=name,
        window=window,
        output=output_size(configuration.network, window),
        device=device,
        step=step,
        mirror_axes=configuration.mirror_axes if member.mirroring or with_unmirrored else (),
        with_unmirrored=with_unmirrored,
        max_bytes=max_bytes,
        skipping=member.skipping,
        survey=member.survey,
        on_windows=on_windows,
    )
    if device.device.type == "cpu":
        return slabs
    return ahead(copied_to_host(slab) for slab in slabs)  # the device computes the next slab while this one is resampled


MAPS_AT_ONCE = 6
"""Feature maps of the finest stage that a U-Net holds at its peak: a skip, twice that where it meets the decoder, the input and the output
of a convolution, and the sum of its norm."""


def _whole_window(name: str, shape: Sequence[int], member: Member, device: Device) -> tuple[int, ...]:
    """A window that holds an image, in multiples of the network's stride and no smaller than its patch.

    Raises ``MemoryError`` with what it would take, where the device has not got it.
    """
    configuration = member.configuration
    stride, patch = total_stride(configuration.network.strides), configuration.patch_size
    sizes = shape[-len(patch) :]
    window = tuple(max(p, math.ceil(n / s) * s) for n, s, p in zip(sizes, stride, patch, strict=True))
    network = configuration.network
    per_voxel = 4 * (MAPS_AT_ONCE * network.features[0] + 2 * network.num_classes + network.in_channels)
    needed, free = per_voxel * math.prod(window), free_bytes(device.device)
    if free is not None and needed > free:
        raise MemoryError(
            f"{name}: the whole image at once, {' x '.join(map(str, window))} voxels, takes {needed / 2**30:.3g} GiB for its feature maps, "
            f"and {free / 2**30:.3g} GiB are free. Leave --whole-image out: windows of {' x '.join(map(str, patch))} take "
            f"{per_voxel * math.prod(patch) / 2**30:.2g} GiB whatever the size of the image"
        )
    return window


def with_networks(member: Member, converted: Callable[[torch.nn.Module], torch.nn.Module]) -> Member:
    """The same member with other networks in place of its own, in all stages."""
    return replace(
        member,
        networks=tuple(converted(network) for network in member.networks),
        previous=None if member.previous is None else with_networks(member.previous, converted),
    )


def _mean_stream(streams: Sequence[Iterator[tuple[slice, np.ndarray]]], *, is_regions: bool) -> Iterator[tuple[slice, np.ndarray]]:
    """The mean of streams of consecutive rows whose blocks may begin at different rows; the last channel is the index that wins then."""
    blocks: list[tuple[int, np.ndarray]] = [(0, np.empty((0, 0)))] * len(streams)
    while True:
        for number, stream in enumerate(streams):
            if not blocks[number][1].size:
                rows, block = next(stream, (slice(0, 0), None))
                if block is None:
                    return
                blocks[number] = (rows.start, block)
        start = blocks[0][0]
        count = min(block.shape[1] for _, block in blocks)
        mean = np.mean([block[:, :count] for _, block in blocks], 0)
        mean[-1] = _by_class_order(mean[:-1]) if is_regions else mean[:-1].argmax(0)
        yield slice(start, start + count), mean
        blocks = [(first + count, block[:, count:]) for first, block in blocks]


def _by_class_order(probabilities: np.ndarray) -> np.ndarray:
    """Region ``i`` with index ``i + 1`` where its probability is above a half, later ones over earlier ones."""
    indices = np.zeros(probabilities.shape[1:], np.min_scalar_type(len(probabilities)))
    for number, chance in enumerate(probabilities, start=1):
        indices[chance > 0.5] = number
    return indices


def ahead(values: Iterator[Value]) -> Iterator[Value]:
    """The same values, each computed in a thread of its own while the one before is in use, never more than one ahead."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        upcoming = pool.submit(next, values, end)
        while (value := upcoming.result()) is not end:
            upcoming = pool.submit(next, values, end)
            yield value  # type: ignore[misc]
