"""What stands in a MONAI bundle beside its weights: the description of a model → the texts of its files.

``configs/inference.json`` names functions of :mod:`medseg3d.models.bundle`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from medseg3d.axes import CANONICAL
from medseg3d.errors import InputError, UnsupportedError
from medseg3d.extensions import needed_arguments
from medseg3d.models.model_card import model_card, providers_of
from medseg3d.models.parts import MemberDescription, ModelDescription
from medseg3d.networks.build import output_size
from medseg3d.plan import Configuration, Normalization, Plan
from medseg3d.prediction.sliding_window import SIGMA_SHARE
from medseg3d.records import to_plain
from medseg3d.validation.postprocessing import Step
from medseg3d.version import __version__

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""Which schema MONAI's ``verify_metadata`` compares ``metadata.json`` with."""
BUNDLE_VERSION = "0.1.0"
"""Of the bundle itself, not of its tools; whoever publishes the bundle counts on from here."""
OVERLAP = 0.5
"""Share of a window that the next one covers, as ``predict`` does."""
NOT_STATED = "Not stated. To be filled in by whoever shares this bundle."


def bundle_texts(name: str, description: ModelDescription) -> dict[str, str]:
    """The files of a bundle called ``name`` by their paths in it; raises as :func:`only_member`."""
    _, configuration = only_member(description)
    return {
        "configs/metadata.json": _json(_metadata(description, configuration)),
        "configs/inference.json": _json(inference_configuration(description)),
        "docs/README.md": f"{model_card(description)}\n{_as_a_bundle(name, description)}",
        "LICENSE": LICENSE,
    }


def inference_configuration(description: ModelDescription) -> dict[str, Any]:
    """``configs/inference.json``: preprocessing, windows and postprocessing by MONAI's own transforms, where it has them."""
    plan = description.plan
    member, configuration = only_member(description)
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


def only_member(description: ModelDescription) -> tuple[MemberDescription, Configuration]:
    """The one configuration of a model; raises :class:`InputError` for several, :class:`UnsupportedError` for what no bundle can hold."""
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
