"""MONAI bundles: the parts of a model → a folder that MONAI runs, and what the bundle's configuration names when it runs.

``configs/inference.json`` of every bundle names :func:`network`, :func:`weights`, :func:`images`, :func:`normalized`,
:func:`in_region_class_order` and :class:`Segmenter` by their path: their names and arguments are part of that format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg3d.data.cropping import nonzero_mask
from medseg3d.data.dataset import Case
from medseg3d.data.prediction_cases import prediction_cases
from medseg3d.errors import InputError
from medseg3d.files import storage, write_text
from medseg3d.frame import Frame, grid_of, orientation_in
from medseg3d.geometry import orientation_of
from medseg3d.images import read_header
from medseg3d.images.dicom import dicom_files
from medseg3d.models.bundle_texts import bundle_texts, only_member
from medseg3d.models.parts import ModelParts
from medseg3d.networks.build import build_network
from medseg3d.plan import NetworkPlan, Normalization
from medseg3d.prediction.mirroring import flips
from medseg3d.preprocessing.normalization import normalize
from medseg3d.records import from_plain
from medseg3d.torch_archive import check_archive


def write_bundle(folder: Path, parts: ModelParts, *, name: str) -> tuple[Path, ...]:
    """Write a bundle called ``name`` into an empty folder; gives the files. Raises :class:`InputError` for several configurations.

    Raises :class:`UnsupportedError` for cascades and for networks that give logits for the middle of their window only.
    """
    description = parts.description
    member, _ = only_member(description)
    tensors = {
        f"networks.{number}.{key}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for number, fold in enumerate(member.folds)
        for key, tensor in parts.tensors(member.configuration, fold).items()
    }
    written = [write_text(folder / file, text) for file, text in bundle_texts(name, description).items()]
    checkpoint = folder / "models" / "model.pt"
    storage().make_folder(checkpoint.parent)  # under its own name, which torch writes into the file; the folder is a temporary one
    torch.save(tensors, checkpoint)  # MONAI's loader reads nothing else; tensors only, so it loads with weights_only=True
    storage().finish(checkpoint)
    return (*written, checkpoint)


def weights(checkpoint: str, device: torch.device) -> dict[str, torch.Tensor]:
    """The tensors of a bundle's ``model.pt``, by names of :func:`network`; raises :class:`InputError` for a file that is damaged."""
    check_archive(Path(checkpoint), "Get the bundle again from where it came from.")
    tensors: dict[str, torch.Tensor] = torch.load(checkpoint, map_location=device, weights_only=True)
    return tensors


def network(plan: Mapping[str, Any], *, num_folds: int = 1, mirror_axes: Sequence[int] = ()) -> nn.Module:
    """The mean of the networks of all folds and mirrorings, in eval mode; ``plan`` is a :class:`NetworkPlan` in plain values."""
    parsed = from_plain(dict(plan), NetworkPlan, "network_def")
    return MeanOfNetworks([build_network(parsed) for _ in range(num_folds)], mirror_axes).eval()


class MeanOfNetworks(nn.Module):
    """Logits ``(batch, class, …)``, float32: the mean over networks and mirrorings. For prediction, not for training."""

    def __init__(self, networks: Iterable[nn.Module], mirror_axes: Sequence[int]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.mirror_axes = tuple(mirror_axes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Add up, then divide: the memory of one network's logits more."""
        total = None
        for subset in flips(self.mirror_axes):
            dims = [axis + 2 for axis in subset]
            flipped = image.flip(dims)
            for single in self.networks:
                logits = single(flipped).float().flip(dims)
                total = logits if total is None else total.add_(logits)
        if total is None:
            raise ValueError("no network")
        return total / (len(self.networks) * 2 ** len(self.mirror_axes))


def images(folder: str, num_channels: int, frame: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """MONAI's list of data: the images of a folder (or one file), found as ``predict`` finds them; ``image`` is a file or one per channel.

    ``frame`` is the model's :class:`Frame` in plain values: cases whose axes MONAI would assign otherwise are refused. Empty where nothing
    is there: MONAI builds the list also to look at a bundle. Raises :class:`InputError` for images that do not fit.
    """
    found: list[dict[str, Any]] = []
    if not Path(folder).exists():
        return found
    parsed = None if frame is None else from_plain(dict(frame), Frame, "frame")
    for case in prediction_cases(Path(folder), num_channels=num_channels):
        if parsed is not None:
            _check_axes(case, parsed)
        for channel in case.channels:
            if channel.files and set(channel.files) != set(dicom_files(channel.path)):  # MONAI takes all that lies in a folder
                raise InputError(f"{channel.path}: holds more than the slices of one DICOM series; give each series a folder of its own.")
        files = list(dict.fromkeys(str(channel.path) for channel in case.channels))  # a 4D file is each of its channels
        found.append({"image": files[0] if len(files) == 1 else files})
    return found


def _check_axes(case: Case, frame: Frame) -> None:
    """Training assigned the axes of a strongly oblique case by its frame, MONAI takes the nearest ones."""
    channel = case.channels[0]
    geometry = read_header(channel.path, files=channel.files).geometry
    if orientation_in(frame, grid_of(geometry)) != orientation_of(geometry.matrix):
        raise InputError(
            f"{channel.path}: lies so obliquely that MONAI reads it with other axes than those that the network was trained with. Predict "
            "it with medseg3d predict, and take it out of this folder."
        )


def normalized(rules: Sequence[Mapping[str, Any]]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that normalizes ``(channel, …)`` as training did; each rule is a :class:`Normalization` in plain values."""
    parsed = [from_plain(dict(rule), Normalization, "normalization") for rule in rules]

    def apply(image: torch.Tensor) -> torch.Tensor:
        array = image.detach().cpu().numpy()
        mask = nonzero_mask(array) if any(rule.use_mask for rule in parsed) else None
        result = image.clone()  # keeps what MONAI has noted about the image
        result[...] = torch.from_numpy(normalize(array, parsed, mask=mask))
        return result

    return apply


def in_region_class_order(logits: torch.Tensor) -> torch.Tensor:
    """Logits of overlapping regions → indices ``(1, …)``: region ``i`` where its logit is above 0, with ``i + 1``, later over earlier."""
    indices = torch.zeros_like(logits[:1])
    for number, region in enumerate(logits):
        indices[0][region > 0] = number + 1
    return indices


class Segmenter:
    """The ``evaluator`` of a bundle, without pytorch-ignite: each item of a dataset through the network, then the postprocessing."""

    def __init__(
        self,
        dataset: Iterable[dict[str, Any]],
        network: nn.Module,
        inferer: Callable[..., torch.Tensor],
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
        device: torch.device,
    ) -> None:
        self.dataset, self.network, self.inferer, self.postprocessing, self.device = dataset, network, inferer, postprocessing, device

    def run(self) -> list[dict[str, Any]]:
        """What postprocessing gives for each item; the label maps are files by then. Raises :class:`InputError` without items."""
        results = [self.segment(item) for item in self.dataset]
        if not results:
            raise InputError("No images found. Name the folder that holds them: dataset_dir='IMAGES'.")
        return results

    @torch.inference_mode()
    def segment(self, item: dict[str, Any]) -> dict[str, Any]:
        """One item."""
        logits = self.inferer(item["image"][None].to(self.device), self.network.eval())
        return self.postprocessing({**item, "pred": logits[0].cpu()})
