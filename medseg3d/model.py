"""A loaded model: arrays or files in, label maps on the same grid out. It stays warm between calls.

The command line predicts through this class as well, so that both give the same voxels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medseg3d.checkpoints import load_network, read_card
from medseg3d.dataset import Case, prediction_cases
from medseg3d.devices import Device, checked_precision, choose_device, use_all_cores
from medseg3d.errors import ChannelCountError, InputError, PlanMismatchError
from medseg3d.files import file_digest
from medseg3d.geometry import AS_STORED, canonical_spacing, from_canonical, geometry_of, orientation_of, to_canonical
from medseg3d.images import ImageHeader, write_label_map
from medseg3d.networks.build import output_size
from medseg3d.plan import Configuration, Plan
from medseg3d.postprocessing import NO_POSTPROCESSING, Postprocessing, apply_postprocessing
from medseg3d.prediction.restore import restore_labels, restore_probabilities
from medseg3d.prediction.sliding_window import predict_logits
from medseg3d.preprocessing.preprocess_case import Restoration, preprocess_case
from medseg3d.reading import RawCase, read_case
from medseg3d.records import read_record
from medseg3d.selection import Selection
from medseg3d.work_folder import Folds, WorkFolder, fold_names

logger = logging.getLogger(__name__)


MIN_VOLUME_OF_AXES = 0.1
"""Of the box of the three unit axes, as for files: a sheared grid has less than 1, two axes that point the same way 0."""


@dataclass(frozen=True, slots=True)
class Member:
    """One configuration of a model with the networks of its folds."""

    configuration: Configuration
    networks: tuple[torch.nn.Module, ...]


class Model:
    """Networks with everything that is needed to use them; made by :func:`load_model`."""

    def __init__(
        self,
        plan: Plan,
        members: Sequence[Member],
        device: Device,
        *,
        postprocessing: Postprocessing = NO_POSTPROCESSING,
        mirroring: bool = True,
        step: float = 0.5,
        identity: str = "",
    ) -> None:
        self.plan = plan
        self.members = tuple(members)
        self.device = device
        self.postprocessing = postprocessing
        self.mirroring = mirroring
        self.step = step
        self.identity = identity
        self._is_precision_checked = False

    def predict(self, array: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Label values ``(x, y, z)`` of an image ``(x, y, z)`` or ``(channel, x, y, z)`` as nibabel gives it; the input is not changed.

        Raises :class:`ChannelCountError` and :class:`InputError` for arrays that do not fit the model.
        """
        channels = np.asarray(array)
        if channels.ndim == 3:
            channels = channels[None]
        if channels.ndim != 4 or 0 in channels.shape:
            raise InputError(f"An array of shape {np.shape(array)}; expected (x, y, z) or (channel, x, y, z).")
        if channels.dtype.kind not in "biuf":
            raise InputError(f"An array of type {channels.dtype}; expected real numbers.")
        matrix = _checked_affine(affine)
        geometry = geometry_of(channels.shape[1:], matrix)
        orientation = AS_STORED if self.plan.orientation == "as_stored" else orientation_of(matrix)
        image = np.ascontiguousarray(to_canonical(channels, orientation), np.float32)
        if not np.isfinite(image).all():
            raise InputError("The array holds NaN or infinite voxels; replace them before predicting.")
        header = ImageHeader(
            geometry=geometry, stored_shape=geometry.shape, format="nifti", num_volumes=1, dtype=str(channels.dtype), nifti=None
        )
        raw = RawCase(
            name="array",
            image=image,
            labels=None,
            spacing=canonical_spacing(geometry, orientation),
            orientation=orientation,
            header=header,
        )
        return self.predict_raw(raw)

    def predict_file(self, image: Path | str, output: Path | str) -> Path:
        """Predict one file (or a folder with the channels of one case) and write ``output`` on its grid."""
        cases = prediction_cases(Path(image), num_channels=len(self.plan.channels))
        if len(cases) != 1:
            raise InputError(f"{image}: {len(cases)} cases found, expected one. For a folder of cases run medseg3d predict.")
        return self.predict_case(cases[0], Path(output))

    def predict_case(self, case: Case, output: Path) -> Path:
        """Read, predict and write one case."""
        raw = read_case(case, with_label=False)
        return write_label_map(output, self.predict_raw(raw), raw.header)

    def predict_raw(self, raw: RawCase) -> np.ndarray:
        """Label values on the file's axes ``(x, y, z)`` of a case that is already read."""
        indices, _ = self.predict_indices(raw)
        return from_canonical(self.plan.labels.decode(indices), raw.orientation)

    def predict_indices(self, raw: RawCase, *, with_probabilities: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Label indices ``(S, A, R)``, postprocessed, and the probabilities ``(class, S, A, R)`` float16 when asked for.

        Several configurations are averaged as probabilities; the folds of one configuration as logits.
        """
        self._check_channels(raw)
        if 1 in raw.image.shape[1:] and any(member.configuration.dimensions == 3 for member in self.members):
            logger.warning(
                "%s: has a single slice; the model was trained on volumes, so do not rely on this label map. Give the whole volume (of "
                "DICOM files, the folder of the series).",
                raw.name,
            )
        dtype = self.plan.labels.index_dtype
        if len(self.members) == 1:
            logits, restoration = self._logits(raw, self.members[0])
            indices = restore_labels(logits, restoration)
            probabilities = restore_probabilities(logits, restoration) if with_probabilities else None
        else:
            total = np.zeros((self.plan.labels.num_classes, *raw.image.shape[1:]), np.float32)
            for member in self.members:
                logits, restoration = self._logits(raw, member)
                total += restore_probabilities(logits, restoration)
            total /= len(self.members)
            indices = total.argmax(0)
            probabilities = total.astype(np.float16) if with_probabilities else None
        return apply_postprocessing(indices.astype(dtype, copy=False), self.postprocessing), probabilities

    def _logits(self, raw: RawCase, member: Member) -> tuple[torch.Tensor, Restoration]:
        configuration = member.configuration
        case = preprocess_case(raw, plan=self.plan, configuration=configuration)
        image = torch.from_numpy(case.image)
        use_all_cores()
        if not self._is_precision_checked:
            self._check_precision(image, member)
        logits = predict_logits(
            member.networks,
            image,
            case=raw.name,
            window=configuration.patch_size,
            output=output_size(configuration.network, configuration.patch_size),
            device=self.device,
            step=self.step,
            mirror_axes=configuration.mirror_axes if self.mirroring else (),
        )
        return logits, case.restoration

    def _check_precision(self, image: torch.Tensor, member: Member) -> None:
        patch = member.configuration.patch_size
        window = torch.zeros((image.shape[0], *(1,) * (3 - len(patch)), *patch))
        box = tuple(slice(0, min(n, have)) for n, have in zip(window.shape[1:], image.shape[1:], strict=True))
        window[(slice(None), *box)] = image[(slice(None), *box)]
        batch = window[None, :, 0] if len(patch) == 2 else window[None]
        self.device = checked_precision(member.networks[0], batch.to(self.device.device), self.device)
        self._is_precision_checked = True

    def _check_channels(self, raw: RawCase) -> None:
        if raw.image.shape[0] != len(self.plan.channels):
            raise ChannelCountError(
                f"{raw.name}: {raw.image.shape[0]} channels, but the model was trained on {len(self.plan.channels)} "
                f"({', '.join(self.plan.channels)})."
            )


def _checked_affine(affine: np.ndarray) -> np.ndarray:
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


def load_model(
    path: Path | str,
    *,
    configuration: str | None = None,
    folds: Folds = None,
    device: str = "auto",
    mirroring: bool = True,
    step: float = 0.5,
) -> Model:
    """Load a work folder, or one ``weights.safetensors``, or a fold's folder that holds one.

    A work folder gives its selected configuration (or the recommended one, or ``configuration``) with all trained folds (or
    ``folds``), and the selected postprocessing. Raises :class:`InputError` where nothing is trained there.
    """
    place = Path(path)
    chosen = choose_device(device)
    if (place / "weights.safetensors").is_file():
        place = place / "weights.safetensors"
    if place.is_file():
        network, card = load_network(place, chosen.device)
        member = Member(card.plan.configuration(card.configuration), (network,))
        return Model(card.plan, [member], chosen, mirroring=mirroring, step=step, identity=file_digest(place))
    if not place.exists():
        raise InputError(f"{place}: no such model. Name a work folder (the one that holds models/) or a weights.safetensors file.")
    work = WorkFolder(place if (place / "models").exists() else place / "medseg3d-work")
    plan = work.read_plan()
    postprocessing = NO_POSTPROCESSING
    names = [configuration] if configuration else []
    if work.selection.exists():
        selection = read_record(work.selection, Selection, "selection")
        names = names or list(selection.configurations)
        if names == list(selection.configurations):  # it was validated with these and no others
            postprocessing = selection.postprocessing
    if not names:
        trained = [name for name in plan.configurations if work.trained_folds(name)]
        names = [plan.recommended] if plan.recommended in trained else trained[:1]
    if not names:
        raise InputError(f"{work.root}: nothing is trained here yet. Run medseg3d train --fold 0 first.")
    return load_models(work, names, folds=folds, device=device, mirroring=mirroring, step=step, postprocessing=postprocessing)


def _usual_folds(work: WorkFolder, configuration: str) -> tuple[str, ...]:
    """All finished folds; where none is, those that have weights at all, with a warning.

    A network trained on all cases would see nothing new from the folds, and the folds' mean is what was validated.
    """
    found = work.finished_folds(configuration)
    if not found:
        found = work.trained_folds(configuration)
        if found:
            logger.warning("%s: training of fold %s is not finished; its best weights so far are used.", configuration, ", ".join(found))
    return tuple(fold for fold in found if fold != "all") or found


def _common_plan(plans: Mapping[Path, Plan], names: Sequence[str]) -> Plan:
    """The plan that weights were trained with; raises :class:`PlanMismatchError` where they were trained with different ones."""
    (first, plan), *others = plans.items()
    for file, other in others:
        if not _fits(plan, other, names):
            raise PlanMismatchError(
                f"{file}: was trained with another plan than {first}, so they cannot predict together. Train one of them again with "
                "--restart, or name the folds to use with --fold."
            )
    return plan


def _fits(plan: Plan, other: Plan, names: Sequence[str]) -> bool:
    """Both plans mean the same for the networks of these configurations."""
    return (plan.labels, plan.axis_order, plan.orientation, plan.channels) == (
        other.labels,
        other.axis_order,
        other.orientation,
        other.channels,
    ) and all(plan.configurations.get(name) == other.configurations.get(name) for name in names)


def load_models(
    work: WorkFolder,
    names: Sequence[str],
    *,
    folds: Folds = None,
    device: str = "auto",
    mirroring: bool = True,
    step: float = 0.5,
    postprocessing: Postprocessing = NO_POSTPROCESSING,
) -> Model:
    """A model of the named configurations of a work folder, averaged. Raises as :func:`load_model`."""
    planned = work.read_plan()
    chosen = choose_device(device)
    named = fold_names(folds)
    members, identity = [], []
    plans: dict[Path, Plan] = {}
    for name in names:
        available = work.trained_folds(name)
        wanted = named or _usual_folds(work, name)
        missing = [fold for fold in wanted if fold not in available]
        if missing or not wanted:
            raise InputError(
                f"{work.root}: {name} has no finished fold {', '.join(missing) or 'at all'}; trained: {', '.join(available) or 'none'}."
            )
        files = [work.weights(name, fold) for fold in wanted]
        plans |= {file: read_card(file).plan for file in files}
        members.append(Member(plans[files[0]].configuration(name), tuple(load_network(file, chosen.device)[0] for file in files)))
        identity += [f"{name}/{fold}/{file_digest(file)}" for fold, file in zip(wanted, files, strict=True)]
    plan = _common_plan(plans, names)
    if not _fits(plan, planned, names):
        logger.warning(
            "%s was changed since %s was trained: the plan of the training is used. Train again with --restart to follow the new one.",
            work.plan,
            " and ".join(names),
        )
    return Model(
        plan,
        members,
        chosen,
        postprocessing=postprocessing,
        mirroring=mirroring,
        step=step,
        identity=";".join([*identity, repr(postprocessing)]),
    )
