"""MONAI bundles: the parts of a model → a folder that MONAI runs, and what the bundle's configuration names when it runs.

``configs/inference.json`` of every bundle names :func:`network`, :func:`weights`, :func:`images`, :func:`normalized`,
:func:`in_region_class_order` and :class:`Segmenter` by their path: their names and arguments are part of that format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg3d.axes import CANONICAL
from medseg3d.data.cropping import nonzero_mask
from medseg3d.data.dataset import Case
from medseg3d.data.prediction_cases import prediction_cases
from medseg3d.errors import InputError, UnsupportedError
from medseg3d.extensions import needed_arguments
from medseg3d.files import storage, write_text
from medseg3d.frame import Frame, grid_of, orientation_in
from medseg3d.geometry import orientation_of
from medseg3d.images import read_header
from medseg3d.images.dicom import dicom_files
from medseg3d.models.model_card import model_card, providers_of
from medseg3d.models.parts import MemberDescription, ModelDescription, ModelParts
from medseg3d.networks.build import build_network, output_size
from medseg3d.plan import Configuration, NetworkPlan, Normalization, Plan
from medseg3d.prediction.mirroring import flips
from medseg3d.prediction.sliding_window import SIGMA_SHARE
from medseg3d.preprocessing.normalization import normalize
from medseg3d.records import from_plain, to_plain
from medseg3d.torch_archive import check_archive
from medseg3d.validation.postprocessing import Step
from medseg3d.version import __version__

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""Which schema MONAI's ``verify_metadata`` compares ``metadata.json`` with."""
BUNDLE_VERSION = "0.1.0"
"""Of the bundle itself, not of its tools; whoever publishes the bundle counts on from here."""
OVERLAP = 0.5
"""Share of a window that the next one covers, as ``predict`` does."""
NOT_STATED = "Not stated. To be filled in by whoever shares this bundle."


def write_bundle(folder: Path, parts: ModelParts, *, name: str) -> tuple[Path, ...]:
    """Write a bundle called ``name`` into an empty folder; gives the files. Raises :class:`InputError` for several configurations.

    Raises :class:`UnsupportedError` for cascades and for networks that give logits for the middle of their window only.
    """
    description = parts.description
    member, configuration = _only_member(description)
    tensors = {
        f"networks.{number}.{key}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for number, fold in enumerate(member.folds)
        for key, tensor in parts.tensors(member.configuration, fold).items()
    }
    files = {
        "configs/metadata.json": _json(_metadata(description, configuration)),
        "configs/inference.json": _json(inference_configuration(description)),
        "docs/README.md": f"{model_card(description)}\n{_as_a_bundle(name, description)}",
        "LICENSE": LICENSE,
    }
    written = [write_text(folder / file, text) for file, text in files.items()]
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


def inference_configuration(description: ModelDescription) -> dict[str, Any]:
    """``configs/inference.json``: preprocessing, windows and postprocessing by MONAI's own transforms, where it has them."""
    plan = description.plan
    member, configuration = _only_member(description)
    mirror_axes = configuration.mirror_axes if member.mirroring else ()
    return {
        "imports": ["$import torch", "$import medseg3d.models.bundle as medseg3d_bundle"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "network_def": {
            "_target_": "medseg3d.models.bundle.network",
            "plan": to_plain(configuration.network),
            "num_folds": len(member.folds),
            "mirror_axes": list(mirror_axes),
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(plan, configuration)},
        "dataset": {
            "_target_": "Dataset",
            "data": {"_target_": "medseg3d.models.bundle.images", "folder": "@dataset_dir", **_expected(plan)},
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer" if configuration.dimensions == 3 else "SliceInferer",
            **({} if configuration.dimensions == 3 else {"spatial_dim": 0}),
            "roi_size": list(configuration.patch_size),
            "sw_batch_size": 1,
            "overlap": OVERLAP,
            "mode": "gaussian",
            "sigma_scale": SIGMA_SHARE,
        },
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(plan, description.postprocessing.steps)},
        "evaluator": {
            "_target_": "medseg3d.models.bundle.Segmenter",
            "dataset": "@dataset",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "device": "@device",
        },
        "run": [
            "$@network.load_state_dict(medseg3d_bundle.weights(@checkpoint, @device))",
            "$@evaluator.run()",
        ],
    }


def _expected(plan: Plan) -> dict[str, Any]:
    """The arguments of :func:`images`."""
    frame = {} if plan.reading_frame is None else {"frame": to_plain(plan.reading_frame)}
    return {"num_channels": len(plan.channels), **frame}


def _only_member(description: ModelDescription) -> tuple[MemberDescription, Configuration]:
    if len(description.members) > 1:
        names = ", ".join(member.configuration for member in description.members)
        raise InputError(f"A MONAI bundle holds one configuration, the model has {names}. Name one of them with -c.")
    member = description.members[0]
    configuration = description.plan.configurations[member.configuration]
    if configuration.previous_stage is not None or description.previous:
        raise UnsupportedError(f"{member.configuration} is a stage of a cascade, which a MONAI bundle cannot hold. Export to .medseg3d.")
    if description.plan.orientation == "canonical" and not description.plan.frame.is_canonical:
        raise UnsupportedError(
            "The model was trained on oblique slices with axes of their own, which MONAI does not know. Export to .medseg3d."
        )
    if output_size(configuration.network, configuration.patch_size) != configuration.patch_size:
        raise UnsupportedError(
            f"{configuration.network.family} gives logits for the middle of its window only, which MONAI's windows do not know. "
            "Export to .medseg3d or ONNX."
        )
    return member, configuration


SPLINE_ORDER = 3
"""Of images and, on the way back, of logits: MONAI inverts a resampling with the order that it was made with."""


def _preprocessing(plan: Plan, configuration: Configuration) -> list[dict[str, Any]]:
    """As ``preprocess_case``: orientation, crop, normalization, resampling, and the axes in network order."""
    spacing = configuration.spacing if configuration.dimensions == 3 else (-1.0, *configuration.spacing)  # -1: as it is
    is_canonical = plan.orientation == "canonical"
    file_axes = [2 - axis for axis in plan.axis_order]
    load = [{"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True}]
    orient = [{"_target_": "Orientationd", "keys": "image", "axcodes": "".join(CANONICAL[axis] for axis in plan.axis_order)}]
    crop = {
        "_target_": "CropForegroundd",
        "keys": "image",
        "source_key": "image",
        "select_fn": "$lambda x: x != 0",
        "allow_smaller": True,
    }
    resample = {
        "_target_": "Spacingd",
        "keys": "image",
        "pixdim": list(spacing) if is_canonical else [spacing[file_axes.index(axis)] for axis in range(3)],
        "mode": SPLINE_ORDER,
        "padding_mode": "nearest",
    }
    permute = [] if is_canonical else [{"_target_": "Transposed", "keys": "image", "indices": [0, *(1 + axis for axis in file_axes)]}]
    return [*load, *(orient if is_canonical else []), crop, *_normalization(configuration.normalization), resample, *permute]


def _normalization(rules: Sequence[Normalization]) -> list[dict[str, Any]]:
    """MONAI's transform where all channels have the same rule and MONAI has it; else :func:`normalized`."""
    rule = rules[0]
    target: dict[str, Any] | None = None
    if any(other != rule for other in rules):
        pass
    elif rule.scheme == "none":
        return []
    elif rule.scheme == "ct" and None not in (rule.lower, rule.upper, rule.mean, rule.std):
        low, high, mean, std = (float(value) for value in (rule.lower, rule.upper, rule.mean, rule.std) if value is not None)
        if high > low and std > 0:
            limits = {"a_min": low, "a_max": high, "b_min": (low - mean) / std, "b_max": (high - mean) / std}
            target = {"_target_": "ScaleIntensityRanged", **limits, "clip": True}
    elif rule.scheme == "zscore" and not rule.use_mask:
        target = {"_target_": "NormalizeIntensityd", "channel_wise": True}
    elif rule.scheme == "rescale_0_1":
        target = {"_target_": "ScaleIntensityd", "minv": 0.0, "maxv": 1.0, "channel_wise": True}
    elif rule.scheme == "rgb_0_1":
        target = {"_target_": "ScaleIntensityRanged", "a_min": 0.0, "a_max": 255.0, "b_min": 0.0, "b_max": 1.0}
    if target is None:
        function = {"_target_": "medseg3d.models.bundle.normalized", "rules": [to_plain(other) for other in rules]}
        target = {"_target_": "Lambdad", "func": function}
    return [{**target, "keys": "image"}]


def _postprocessing(plan: Plan, steps: Sequence[Step]) -> list[dict[str, Any]]:
    back = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False}
    labels: dict[str, Any] = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    if plan.labels.regions:
        labels = {
            "_target_": "Lambdad",
            "keys": "pred",
            "func": {"_target_": "medseg3d.models.bundle.in_region_class_order", "_mode_": "callable"},
        }
    values = {
        "_target_": "MapLabelValued",
        "keys": "pred",
        "orig_labels": list(range(plan.labels.num_classes)),
        "target_labels": list(plan.labels.values),
    }
    save = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "seg",
        "output_dtype": plan.labels.value_dtype.name,
        "separate_folder": False,
    }
    needs_values = plan.labels.values != tuple(range(plan.labels.num_classes))
    return [back, labels, *(_step(step) for step in steps), *([values] if needs_values else []), save]


def _step(step: Step) -> dict[str, Any]:
    region: dict[str, Any] = {"index": step.index, "parts": list(step.parts)}
    if step.operation == "fill_holes" and step.parts:
        function = {"_target_": "medseg3d.validation.postprocessing.RegionHoles", **region}
        return {"_target_": "Lambdad", "keys": "pred", "func": function}
    if step.enclosing:
        function = {"_target_": "medseg3d.validation.postprocessing.RegionLargest", **region, "enclosing": step.enclosing}
        return {"_target_": "Lambdad", "keys": "pred", "func": function}
    if step.operation == "fill_holes":
        return {"_target_": "FillHolesd", "keys": "pred", "applied_labels": [step.index], "connectivity": 1}
    largest = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "is_onehot": False, "connectivity": 3}
    if step.operation == "keep_largest_foreground":
        return {**largest, "independent": False}
    return (
        {**largest, "applied_labels": list(step.parts), "independent": False} if step.parts else {**largest, "applied_labels": [step.index]}
    )


def _metadata(description: ModelDescription, configuration: Configuration) -> dict[str, Any]:
    plan = description.plan
    names = list(plan.labels.names[1:] if plan.labels.regions else plan.labels.names)
    shape = list(configuration.patch_size)
    kind = "segmentation of " + ", ".join(plan.labels.names[1:])
    is_ct = all(channel.upper() == "CT" for channel in plan.channels)
    common = {"type": "image", "spatial_shape": shape, "dtype": "float32", "value_range": [], "is_patch_data": True}
    return {
        "schema": SCHEMA,
        "version": BUNDLE_VERSION,
        "changelog": {BUNDLE_VERSION: f"exported by medseg3d {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"medseg3d": __version__, "nibabel": version("nibabel"), "scipy": version("scipy")},
        "name": plan.dataset,
        "task": kind[0].upper() + kind[1:],
        "description": f"{configuration.network.family} network for the {kind} in 3D images ({', '.join(plan.channels)})",
        "authors": NOT_STATED,
        "copyright": NOT_STATED,
        "intended_use": "For research; no medical device. See docs/README.md.",
        "network_data_format": {
            "inputs": {
                "image": {
                    **common,
                    "format": "hounsfield" if is_ct else "magnitude",
                    "modality": ", ".join(plan.channels),
                    "num_channels": configuration.network.in_channels,
                    "channel_def": {str(number): channel for number, channel in enumerate(plan.channels)},
                }
            },
            "outputs": {
                "pred": {
                    **common,
                    "format": "segmentation",
                    "num_channels": len(names),
                    "channel_def": {str(number): name for number, name in enumerate(names)},
                }
            },
        },
    }


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=4, allow_nan=False) + "\n"


LICENSE = """No license has been stated for these weights.

Whoever shares this bundle replaces this text: the right to share weights depends on the agreements about the images that they were trained
on. Until then nothing but what the law allows anyway is allowed. medseg3d, which runs the bundle, is under the Apache License 2.0.
"""


def _as_a_bundle(name: str, description: ModelDescription) -> str:
    channels = len(description.plan.channels)
    parts = [f"medseg3d.use_extension({file!r})" for file in needed_arguments(providers_of(description))[1::2]]
    first = f"import medseg3d; {'; '.join(parts)}; " if parts else ""
    loads = "".join(f"{line}\n" for line in ("import medseg3d", *parts, "")) if parts else ""
    files = "one file per image" if channels == 1 else f"{channels} files per image, CASE_0000.nii.gz, CASE_0001.nii.gz, …"
    return f"""## As a MONAI bundle

It needs the packages of `required_packages_version` in `configs/metadata.json`, medseg3d among them: the network is not one of MONAI's.
In this folder:

```sh
python -c "{first}import monai.bundle; monai.bundle.run(config_file='configs/inference.json', dataset_dir='IMAGES', output_dir='LABELS')"
```

`IMAGES` holds {files}; `IMAGES` and `LABELS` are absolute paths, or relative to this folder. Outputs are called
`CASE_0000_seg.nii.gz`: name them like your references before you measure them with `medseg3d evaluate`.

The network alone, with its weights:

```python
{loads}network = monai.bundle.load("{name}", bundle_dir="FOLDER OF THE BUNDLE", workflow_type="inference")
```

The folds and the mirrorings are averaged inside the network. Orientation, cropping, normalization, windows and postprocessing are those of
`medseg3d predict`; **resampling is MONAI's**. It places voxels slightly differently, resamples a coarse axis like the others, and
brings logits back by cubic instead of linear interpolation; MONAI also lays its windows differently. So label maps are close to those of
`medseg3d predict`, not identical: they differ along the borders of structures. Measures of the one are not exactly those of the other.
Filling holes, where it is among the steps, leaves a hole open that touches another label.

Images whose axes lie far from those of the body are another matter: MONAI brings each image to the nearest anatomical axes, medseg3d
assigns the axes as for the training images. Where the two differ the bundle refuses the image; `medseg3d predict` takes it.
"""
