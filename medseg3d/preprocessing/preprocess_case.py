"""Bring a raw case to the grid and the intensities of a configuration, and record what is needed to go back.

Order of the steps, as in nnU-Net 2.8.1: network order of axes → crop to the non-zero box → normalize → resample. Normalization comes first
because resampling would smear the border of a mask.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medseg3d.axes import AxisOrder, Triple, permute, to_network_order, triple
from medseg3d.data.cropping import nonzero_box, nonzero_mask
from medseg3d.data.reading import RawCase
from medseg3d.errors import ChannelCountError
from medseg3d.execution import free_memory
from medseg3d.geometry import resampled_shape
from medseg3d.label_codes import LabelCodes
from medseg3d.labels import Labels
from medseg3d.plan import Configuration, Normalization, Plan, Resampling
from medseg3d.preprocessing.normalization import normalize
from medseg3d.preprocessing.resampling import resample_image, resample_labels, resampling_bytes
from medseg3d.records import to_plain

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoration:
    """All that it takes to bring logits back to the grid of the raw case.

    ``original_shape`` is canonical (S, A, R); everything else is in network order: ``box`` holds (start, stop) per axis of the crop in the
    permuted raw volume, spacings are in mm.
    """

    original_shape: Shape
    axis_order: AxisOrder
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    spacing: Triple
    resampled_shape: Shape
    resampled_spacing: Triple
    resampling: Resampling

    @property
    def cropped_shape(self) -> Shape:
        """The shape of the crop before resampling."""
        first, second, third = self.box
        return (first[1] - first[0], second[1] - second[0], third[1] - third[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessedCase:
    """A case as networks see it, all arrays in network order.

    ``image`` float32 (channel, n0, n1, n2), contiguous; ``labels`` codes of the smallest unsigned type, which are the label indices but
    for incomplete annotations and regions (:mod:`medseg3d.label_codes`), or None. ``outside`` (bool) is
    where neither the non-zero region nor a label is; kept only with labels and where a channel is normalized inside the mask. ``codes``
    says what the labels mean. ``soft`` float32 (label, n0, n1, n2) are the probabilities of soft labels without the background.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray | None
    restoration: Restoration
    outside: np.ndarray | None = None
    codes: LabelCodes | None = None
    soft: np.ndarray | None = None


def preprocess_case(raw: RawCase, *, plan: Plan, configuration: Configuration, in_place: bool = False) -> PreprocessedCase:
    """Preprocess one case for one configuration; ``raw`` stays as it is, but with ``in_place``, which spares a copy of the image.

    Raises :class:`ChannelCountError`, and :class:`LabelValueError` for label values that the plan does not know.
    """
    return next(preprocess_for(raw, plan=plan, configurations=(configuration,), in_place=in_place))


def preprocess_for(
    raw: RawCase,
    *,
    plan: Plan,
    configurations: Sequence[Configuration],
    in_place: bool = False,
    device: str | None = None,
    as_they_are: Container[str] = (),
) -> Iterator[PreprocessedCase]:
    """Preprocess one raw read for several configurations, one after the other; what they share is computed once.

    ``in_place`` normalizes the image of ``raw`` itself where all configurations do that alike. ``device`` of torch: where images are
    resampled. The configurations that are named ``as_they_are`` get their image at the spacing of the raw case, for :func:`resampled_box`.
    """
    if len(raw.image) != len(plan.channels):
        raise ChannelCountError(
            f"{raw.name}: {len(raw.image)} channels, but the plan was made for {len(plan.channels)} ({', '.join(plan.channels)})."
        )
    image = to_network_order(raw.image, plan.axis_order)
    box = nonzero_box(image)
    image = np.ascontiguousarray(image[(slice(None), *box)])
    labels = None
    if raw.labels is not None:
        cropped = np.ascontiguousarray(to_network_order(raw.labels, plan.axis_order)[box])
        labels = LabelCodes(plan.labels).encode(cropped, raw.name, raw.annotated)
    soft = None if raw.soft is None else np.ascontiguousarray(to_network_order(raw.soft, plan.axis_order)[(slice(1, None), *box)])
    inside = _inside(image, labels, plan.labels) if labels is not None or _needs_mask(configurations) else None
    spacing = permute(raw.spacing, plan.axis_order)
    normalized: tuple[tuple[Normalization, ...], np.ndarray] | None = None
    for configuration in configurations:
        if normalized is None or normalized[0] != configuration.normalization:
            normalized = None  # frees the memory before the next one is made
            may_overwrite = in_place and all(other.normalization == configuration.normalization for other in configurations)
            values = normalize(image, configuration.normalization, mask=inside, in_place=may_overwrite)
            normalized = (configuration.normalization, values)
        target = triple(spacing) if configuration.name in as_they_are else resampled_spacing(spacing, configuration)
        shape = resampled_shape(image.shape[1:], spacing, target)
        resampled = normalized[1]
        if configuration.name not in as_they_are:
            _check_memory(raw.name, image.shape, shape, spacing, target)
            resampled = resample_image(
                resampled, shape, spacing=spacing, new_spacing=target, resampling=configuration.resampling, device=device
            )
        resampled_labels, outside, resampled_soft = None, None, None
        if soft is not None:
            resampled_soft = resample_image(
                soft, shape, spacing=spacing, new_spacing=target, resampling=_as_probabilities(configuration.resampling)
            )
        if labels is not None and inside is not None:
            resampled_labels, outside = _resample_with_outside(labels, inside, shape, spacing, target, configuration.resampling)
        yield PreprocessedCase(
            name=raw.name,
            image=resampled,
            labels=resampled_labels,
            outside=outside if _needs_mask((configuration,)) else None,
            codes=LabelCodes(plan.labels),
            soft=resampled_soft,
            restoration=Restoration(
                original_shape=raw.image.shape[1:],
                axis_order=plan.axis_order,
                box=tuple((s.start, s.stop) for s in box),  # type: ignore[arg-type]
                spacing=spacing,  # type: ignore[arg-type]
                resampled_shape=shape,  # type: ignore[arg-type]
                resampled_spacing=target,
                resampling=configuration.resampling,
            ),
        )


def resampled_box(
    case: PreprocessedCase, box: Sequence[tuple[int, int]], configuration: Configuration, *, device: str | None = None
) -> PreprocessedCase:
    """A box of a case whose image is still at the spacing of the raw case, as a configuration wants it.

    ``box`` is (start, stop) per axis in the permuted raw volume, inside of the case's own.
    """
    given = case.restoration
    places = tuple(slice(low - first, high - first) for (low, high), (first, _) in zip(box, given.box, strict=True))
    part = np.ascontiguousarray(case.image[(slice(None), *places)])
    target = resampled_spacing(given.spacing, configuration)
    shape = resampled_shape(part.shape[1:], given.spacing, target)
    _check_memory(case.name, part.shape, shape, given.spacing, target)
    image = resample_image(part, shape, spacing=given.spacing, new_spacing=target, resampling=configuration.resampling, device=device)
    restoration = replace(given, box=tuple(box), resampled_shape=shape, resampled_spacing=target)  # type: ignore[arg-type]
    return PreprocessedCase(name=case.name, image=image, labels=None, restoration=restoration)


def _as_probabilities(resampling: Resampling) -> Resampling:
    """Linearly, as label maps are, each label by itself: probabilities stay between 0 and 1, and add up to 1 at most."""
    return replace(resampling, image_order=min(1, resampling.label_order), image_coarse_order=resampling.label_coarse_order)


def _check_memory(name: str, shape: Sequence[int], new_shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> None:
    """Raise ``MemoryError`` before an image is resampled that the memory does not hold, most likely as a unit in its header is wrong."""
    needed, free = resampling_bytes(shape, new_shape), free_memory()
    if needed > free:
        here, there = (" x ".join(f"{edge:.4g}" for edge in edges) for edges in (spacing, target))
        raise MemoryError(
            f"{name}: resampled from {here} mm to the plan's {there} mm it would take {needed / 2**30:.3g} GiB, and "
            f"{free / 2**30:.3g} GiB of memory are free. Check the spacing in its header (unit, size)"
        )


def previous_stage_channels(indices: np.ndarray, inside: np.ndarray, case: PreprocessedCase, labels: Labels) -> np.ndarray:
    """The label map of a cascade's first stage as further channels ``(label, n0, n1, n2)`` float32 of a case: one per label, 0 or 1.

    Arguments as for :func:`previous_stage_labels`. Labels come in the order of their values.
    """
    resampled = previous_stage_labels(indices, inside, case.restoration)
    return np.stack([resampled == index for index in in_order_of_values(labels)]).astype(np.float32)


def in_order_of_values(labels: Labels) -> tuple[int, ...]:
    """The foreground's indices by their values in files, as nnU-Net orders the channels of a first stage."""
    return tuple(sorted(labels.foreground, key=lambda index: labels.values[index]))


def previous_stage_labels(indices: np.ndarray, inside: np.ndarray, restoration: Restoration) -> np.ndarray:
    """The label map of a cascade's first stage on the grid of a preprocessed case, indices ``(n0, n1, n2)``.

    ``indices`` ``(S, A, R)`` on the raw grid; ``inside`` is the non-zero region of the crop in network order. Resampled as label maps
    of training are (nnU-Net 2.8.1 resamples the stored label map of the first stage in the same way).
    """
    box = tuple(slice(start, stop) for start, stop in restoration.box)
    crop = np.ascontiguousarray(to_network_order(indices, restoration.axis_order)[box])
    resampled, _ = _resample_with_outside(
        crop, inside | (crop > 0), restoration.resampled_shape, restoration.spacing, restoration.resampled_spacing, restoration.resampling
    )
    return resampled


def resampled_spacing(spacing: Sequence[float], configuration: Configuration) -> Triple:
    """The spacing after resampling, network order; a 2D configuration leaves the distance of slices as it is.

    A 2D plan names the spacing inside a slice only.
    """
    target = configuration.spacing if len(configuration.spacing) == 3 else (spacing[0], *configuration.spacing)
    return triple(target)


def data_digest(plan: Plan, configuration: Configuration) -> str:
    """A digest of the parts of a plan that decide the preprocessed values; a stored case of another digest is out of date."""
    part: dict[str, object] = {
        "labels": to_plain(plan.labels),
        "axis_order": plan.axis_order,
        "orientation": plan.orientation,
        "channels": len(plan.channels),
        "spacing": configuration.spacing,
        "normalization": [to_plain(rule) for rule in configuration.normalization],
        "resampling": to_plain(configuration.resampling),
    }
    if not plan.frame.is_canonical:
        part["frame"] = to_plain(plan.frame)
    return hashlib.blake2b(json.dumps(part, sort_keys=True).encode(), digest_size=16).hexdigest()


def _needs_mask(configurations: Sequence[Configuration]) -> bool:
    return any(rule.use_mask for configuration in configurations for rule in configuration.normalization)


def _inside(image: np.ndarray, labels: np.ndarray | None, known: Labels) -> np.ndarray:
    mask = nonzero_mask(image)
    return mask if labels is None else mask | ~LabelCodes(known).is_background(labels)


def _resample_with_outside(
    labels: np.ndarray, inside: np.ndarray, shape: Sequence[int], spacing: Sequence[float], target: Triple, resampling: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    """Resample with "outside" as one more label below the background, so that it takes part in the vote, as nnU-Net's -1 does."""
    if inside.all():
        result = resample_labels(labels, shape, spacing=spacing, new_spacing=target, resampling=resampling)
        return result, np.zeros(result.shape, bool)
    shifted = labels.astype(np.min_scalar_type(int(labels.max()) + 1))
    shifted += 1
    shifted *= inside
    voted = resample_labels(shifted, shape, spacing=spacing, new_spacing=target, resampling=resampling)
    outside = voted == 0
    return (np.maximum(voted, 1) - 1).astype(labels.dtype, copy=False), outside
