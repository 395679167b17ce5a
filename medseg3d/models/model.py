"""A loaded model: arrays or files in, label maps on the same grid out. It stays warm between calls.

The command line predicts through this class as well, so that both give the same voxels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg3d.data.dataset import Case
from medseg3d.data.prediction_cases import prediction_cases
from medseg3d.data.reading import RawCase, read_to_predict
from medseg3d.devices import Device, is_out_of_memory, use_all_cores, wait_for
from medseg3d.errors import ChannelCountError, InputError
from medseg3d.fingerprint.familiarity import CHECK, REFUSED, doubts_about, in_words, look_of
from medseg3d.frame import grid_of, orientation_in
from medseg3d.geometry import AS_STORED, Orientation, canonical_spacing, from_canonical, geometry_of, to_canonical
from medseg3d.images import ImageHeader, write_label_map
from medseg3d.images.image_objects import array_and_affine
from medseg3d.labels import Labels
from medseg3d.networks.levels import EveryLevel, Levelled, levels_of, set_level
from medseg3d.networks.packed import can_pack, packed
from medseg3d.plan import Configuration, Plan
from medseg3d.precision import checked_precision, wrong_convolution
from medseg3d.prediction.empty_windows import Survey
from medseg3d.prediction.predict_case import (
    Member,
    PreparedCase,
    locate,
    prepare_case,
    segment,
    segment_every_level,
    segment_with_and_without_mirroring,
    with_networks,
)
from medseg3d.prediction.sliding_window import OnWindows
from medseg3d.validation.postprocessing import NO_POSTPROCESSING, Postprocessing, apply_postprocessing

logger = logging.getLogger(__name__)

TIMED_WINDOWS = 3
"""After a first one, which sets up kernels; the fastest is what a window takes where nothing else runs."""
MIN_VOLUME_OF_AXES = 0.1
"""Of the box of the three unit axes, as for files: a sheared grid has less than 1, two axes that point the same way 0."""


class Model:
    """Networks with everything that is needed to use them; made by :func:`load_model`."""

    def __init__(
        self,
        plan: Plan,
        members: Sequence[Member],
        device: Device,
        *,
        postprocessing: Postprocessing = NO_POSTPROCESSING,
        step: float = 0.5,
        identity: str = "",
    ) -> None:
        self.plan = plan
        self.members = tuple(members)
        self.device = device
        self._precision = device.precision  # the device goes on in float32 where the check on the first image fails
        self.postprocessing = postprocessing
        self.step = step
        self.weights_identity = identity
        self._is_precision_checked = False
        self._is_strict = False
        self._used = self.members  # converted for the device when the first image comes
        self._converted: dict[str, tuple[Member, ...]] = {}

    def __getstate__(self) -> dict[str, object]:
        """Without the converted networks, which cannot be copied; they are made again."""
        return {**self.__dict__, "_used": self.members, "_converted": {}, "_is_precision_checked": False}

    def for_one_image(self) -> Model:
        """The same model before it has seen an image: what the first image decides is decided anew, what was converted is shared.

        Of a model that has seen none itself; so a server's answers do not depend on what came before.
        """
        other = copy(self)
        other._converted = self._converted
        return other

    def strictly(self) -> Model:
        """The same model, which refuses images that are unlike those that it was trained on instead of warning."""
        other = copy(self)
        other._is_strict = True
        return other

    def __repr__(self) -> str:
        members = ", ".join(f"{m.configuration.name} of {len(m.networks)} networks" for m in self.members)
        return f"<Model for {', '.join(self.plan.labels.names[1:])}: {members}, on {self.device.device} in {self.device.precision}>"

    def survey_windows(self) -> Survey:
        """Count, from the first image on, which windows could have been left out."""
        survey = Survey(is_regions=bool(self.plan.labels.regions), num_outputs=self.plan.labels.num_outputs)
        self.members = self._used = tuple(replace(member, survey=survey) for member in self.members)
        return survey

    @property
    def identity(self) -> str:
        """Changes when anything changes that changes a prediction."""
        mirroring = ",".join(str(member.mirroring) for member in self.members)
        skipping = "".join(f";skip={member.skipping.level}" for member in self.members if member.skipping is not None)
        exact = ";float32" if self._precision == "float32" else ""
        return f"{self.weights_identity};tta={mirroring};step={self.step}{exact}{skipping}"

    def predict(self, image: Any, affine: np.ndarray | None = None) -> np.ndarray:
        """Label values of an image, on its own axes ``(x, y, z)``: of a nibabel or SimpleITK image, or of an array with its affine.

        An array is ``(x, y, z)`` or ``(channel, x, y, z)`` as nibabel gives it, its ``affine`` leads to RAS+ mm. The result has the axes
        of ``image.dataobj``; of a SimpleITK image those of ``image[x, y, z]``, so that ``sitk.GetImageFromArray(labels.T)`` is its label
        map. The input is not changed. Raises :class:`ChannelCountError` and :class:`InputError` for what does not fit the model.
        """
        if affine is None and not isinstance(image, np.ndarray):
            image, affine = array_and_affine(image)
        channels = np.asarray(image)
        if channels.ndim == 3:
            channels = channels[None]
        if channels.ndim != 4 or 0 in channels.shape:
            raise InputError(f"An array of shape {np.shape(image)}; expected (x, y, z) or (channel, x, y, z).")
        if channels.dtype.kind not in "biuf":
            raise InputError(f"An array of type {channels.dtype}; expected real numbers.")
        matrix = _checked_affine(affine)
        geometry = geometry_of(channels.shape[1:], matrix)
        frame = self.plan.reading_frame
        orientation = AS_STORED if frame is None else orientation_in(frame, grid_of(geometry))
        copied = np.array(to_canonical(channels, orientation), np.float32, order="C")  # in any case: it will be overwritten
        if not np.isfinite(copied).all():
            raise InputError("The array holds NaN or infinite voxels; replace them before predicting.")
        header = ImageHeader(
            geometry=geometry, stored_shape=geometry.shape, format="nifti", num_volumes=1, dtype=str(channels.dtype), nifti=None
        )
        raw = RawCase(
            name="array",
            image=copied,
            labels=None,
            spacing=canonical_spacing(geometry, orientation),
            orientation=orientation,
            header=header,
        )
        return self.finish(self.segment(self.prepare(raw, in_place=True)), raw.orientation)

    def predict_file(self, image: Path | str, output: Path | str) -> Path:
        """Predict one file (or a folder with the channels of one case) and write ``output`` on its grid."""
        cases = prediction_cases(Path(image), num_channels=len(self.plan.channels))
        if len(cases) != 1:
            raise InputError(f"{image}: {len(cases)} cases found, expected one. For a folder of cases run medseg3d predict.")
        return self.predict_case(cases[0], Path(output))

    def predict_case(self, case: Case, output: Path) -> Path:
        """Read, predict and write one case."""
        prepared = self.prepare(self.read(case), in_place=True)
        return write_label_map(output, self.finish(self.segment(prepared), prepared.orientation), prepared.header)

    def read(self, case: Case) -> RawCase:
        """Read a case with the axes that the model's plan was made for."""
        return read_to_predict(case, self.plan)

    def prepare(self, raw: RawCase, *, in_place: bool = False) -> PreparedCase:
        """Preprocess a case that is read already; with ``in_place`` its image is overwritten, which spares a copy.

        What speaks against relying on the label map (:meth:`doubts`) is logged and kept as the case's ``warnings``; a model that is
        strict raises :class:`InputError` for it.
        """
        self._check_channels(raw)
        warnings = self.doubts(raw)
        if warnings and self._is_strict:
            raise InputError(f"{in_words(raw.name, warnings)} {REFUSED}")
        if warnings:
            logger.warning("%s %s", in_words(raw.name, warnings), CHECK)
        prepared = prepare_case(raw, self.plan, self.members, in_place=in_place, device=self.device.for_resampling)
        return replace(prepared, warnings=warnings)

    def doubts(self, raw: RawCase) -> tuple[str, ...]:
        """Why the model may not fit an image: it is unlike those that it was trained on, or no image at all. Empty where it fits."""
        found = doubts_about(look_of(raw), self.plan)
        if _looks_like_labels(raw.image, self.plan.labels):
            found = ("holds nothing but label values of this model: is it a label map in the place of the image?",)
        if 1 in raw.image.shape[1:] and any(member.configuration.dimensions == 3 for member in self.members):
            advice = "give the whole volume (of DICOM files, the folder of the series)"
            found = (f"has a single slice, and the model was trained on volumes: {advice}", *found)
        return found

    def locate(self, prepared: PreparedCase, *, max_bytes: int | None = None) -> PreparedCase:
        """A crop cascade's first stage, where the model has one: the case cut to what it finds, with a note where that is nothing."""
        self._check_precision(prepared)
        return locate(prepared, self._used, self.plan.labels, self.device, step=self.step, max_bytes=max_bytes)

    def segment(
        self,
        prepared: PreparedCase,
        *,
        probabilities: np.ndarray | None = None,
        max_bytes: int | None = None,
        on_windows: OnWindows | None = None,
    ) -> np.ndarray:
        """Label indices ``(S, A, R)`` before postprocessing; ``probabilities``, ``max_bytes`` and ``on_windows`` as for
        :func:`medseg3d.prediction.predict_case.segment`.

        Several configurations are averaged as probabilities; the folds of one configuration as logits.
        """
        self._check_precision(prepared)
        return segment(
            prepared,
            self._used,
            self.plan.labels,
            self.device,
            step=self.step,
            probabilities=probabilities,
            max_bytes=max_bytes,
            on_windows=on_windows,
        )

    def segment_both(self, prepared: PreparedCase) -> tuple[np.ndarray, np.ndarray]:
        """Label indices with mirroring and without, of one pass; for a model of one configuration."""
        self._check_precision(prepared)
        (member,) = self._used
        return segment_with_and_without_mirroring(prepared, member, self.plan.labels, self.device, step=self.step)

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that the networks of a model of one configuration can predict with; none where there is nothing to choose."""
        return levels_of(self.members[0].networks[0]) if len(self.members) == 1 else ()

    def segment_every_level(self, prepared: PreparedCase, *, both_ways: bool) -> list[np.ndarray]:
        """Label indices of every level, deepest first, of one pass; with ``both_ways`` those without mirroring behind them."""
        self._check_precision(prepared)
        (member,) = self._used
        every = replace(member, networks=tuple(map(_every_level, member.networks)))  # a first stage predicts as it does elsewhere
        return segment_every_level(
            prepared, every, self.plan.labels, self.device, num_levels=len(self.levels), step=self.step, both_ways=both_ways
        )

    def seconds_per_window(self) -> dict[int, float]:
        """By level, how long one window takes a network here: the fastest of some. For a model that has seen an image."""
        (member,) = self._used
        network, found = member.networks[0], {}
        window = _noise(member.configuration).to(self.device.device)
        try:
            for level in self.levels:
                set_level(network, level)
                found[level] = self._seconds(network, window)
        finally:
            set_level(network, self.levels[-1])
        return found

    def _seconds(self, network: torch.nn.Module, window: torch.Tensor) -> float:
        seconds = []
        with torch.inference_mode(), self.device.autocast():
            for _ in range(1 + TIMED_WINDOWS):
                began = time.perf_counter()
                network(window)
                wait_for(self.device.device)
                seconds.append(time.perf_counter() - began)
        return min(seconds[1:])

    def finish(self, indices: np.ndarray, orientation: Orientation) -> np.ndarray:
        """Label indices ``(S, A, R)`` → postprocessed label values on the file's axes ``(x, y, z)``."""
        cleaned = apply_postprocessing(indices, self.postprocessing)
        return from_canonical(self.plan.labels.decode(cleaned), orientation)

    def _check_precision(self, prepared: PreparedCase) -> None:
        """Convert the networks for the device; compare those with float32 on a window of the first image that comes."""
        use_all_cores()
        if self._is_precision_checked:
            return
        self._use_fast_kernels()
        try:
            self.device = self._checked_device(prepared)
        except RuntimeError as error:  # float32 takes twice the memory; whether half precision fits will be seen
            if not is_out_of_memory(error):
                raise
            logger.info(
                "A window in float32 does not fit the memory of %s; going on in %s unchecked.", self.device.device, self.device.precision
            )
        self._use_fast_kernels()
        self._is_precision_checked = True

    def _checked_device(self, prepared: PreparedCase) -> Device:
        """The device in the precision in which every configuration gives the logits of float32."""
        device = self.device
        for stage, used in zip(_stages(self.members), _stages(self._used), strict=True):
            window = _first_window(prepared.images[stage.configuration.name].image, stage.configuration).to(device.device)
            converted = None if used is stage else used.networks[0]
            device = checked_precision(stage.networks[0], window, device, used=converted)
        return device

    def _use_fast_kernels(self) -> None:
        """Convert the networks for the CPU, where they then give the convolutions of float32 but for rounding.

        They are compared on noise, once for each precision: what is found does not depend on an image.
        """
        if self.device.precision not in self._converted:
            self._converted[self.device.precision] = self._converted_members()
        self._used = self._converted[self.device.precision]

    def _converted_members(self) -> tuple[Member, ...]:
        device = self.device
        if device.device.type != "cpu" or not can_pack():
            return self.members
        try:
            members = tuple(with_networks(member, lambda network: packed(network, device.dtype)) for member in self.members)
            wrong = [
                found
                for stage, used in zip(_stages(self.members), _stages(members), strict=True)
                if (found := wrong_convolution(stage.networks[0], _noise(stage.configuration), device, used=used.networks[0]))
            ]
        except RuntimeError as error:  # the kernels are not part of torch's public interface
            logger.warning(
                "oneDNN with prepacked weights cannot compute this network (%s); going on with torch.", str(error).splitlines()[0]
            )
            return self.members
        if wrong:
            logger.warning("oneDNN with prepacked weights is wrong on this CPU: %s; going on with torch.", wrong[0])
            return self.members
        return members

    def _check_channels(self, raw: RawCase) -> None:
        if raw.image.shape[0] != len(self.plan.channels):
            raise ChannelCountError(
                f"{raw.name}: {raw.image.shape[0]} channels, but the model was trained on {len(self.plan.channels)} "
                f"({', '.join(self.plan.channels)})."
            )


def _every_level(network: torch.nn.Module) -> torch.nn.Module:
    return EveryLevel(network) if isinstance(network, Levelled) else network


def _stages(members: Sequence[Member]) -> list[Member]:
    """All members, the earlier stages of cascades before them."""
    return [stage for member in members for stage in (*_stages([member.previous] if member.previous else []), member)]


def _first_window(image: np.ndarray, configuration: Configuration) -> torch.Tensor:
    """The corner of an image as a batch of one; zeros where it is smaller, and for the label map of an earlier stage."""
    patch = configuration.patch_size
    size = (1,) * (3 - len(patch)) + patch
    window = torch.zeros((configuration.network.in_channels, *size))
    box = tuple(slice(0, min(n, have)) for n, have in zip(size, image.shape[1:], strict=True))
    window[(slice(0, len(image)), *box)] = torch.from_numpy(image[(slice(None), *box)])
    return window[None, :, 0] if len(patch) == 2 else window[None]


def _noise(configuration: Configuration) -> torch.Tensor:
    shape = (1, configuration.network.in_channels, *configuration.patch_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _looks_like_labels(image: np.ndarray, labels: Labels) -> bool:
    """Whether some ten slices have label values only, and more than one of them; a few voxels mostly settle it."""
    few = image[(slice(None), *(slice(None, None, max(1, n // 16)) for n in image.shape[1:]))]
    if not np.isin(few, labels.values).all():
        return False
    slices = image[:, :: max(1, image.shape[1] // 10)]
    return bool((slices != slices.flat[0]).any() and np.isin(slices, labels.values).all())


def _checked_affine(affine: Any) -> np.ndarray:
    """4x4 float64; raises :class:`InputError` where it is no affine or its axes have no length or do not span the space."""
    expected = "expected 4 x 4 numbers, voxel index to mm in RAS+, as nibabel's image.affine"
    try:
        matrix = np.asarray(affine, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"The affine is no array of numbers; {expected}.") from None
    if matrix.shape != (4, 4):
        raise InputError(f"The affine has the shape {matrix.shape}; {expected}.")
    edges = np.sqrt((matrix[:3, :3] ** 2).sum(0))
    if not np.isfinite(matrix).all() or not (edges > 0).all():
        found = " x ".join(f"{edge:g}" for edge in edges)
        raise InputError(f"The affine gives voxel edges of {found} mm; every axis needs a finite number above 0.")
    if abs(np.linalg.det(matrix[:3, :3] / edges)) < MIN_VOLUME_OF_AXES:
        raise InputError("Two axes of the affine point the same way; expected three that span the space.")
    return matrix
