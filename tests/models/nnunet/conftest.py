"""Tiny result folders as nnU-Net writes them; the names of the tensors are written down from checkpoints of its networks."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg3d.networks.build import build_network
from medseg3d.plan import NetworkPlan

Json = dict[str, Any]
MakeModel = Callable[..., Path]

PLAIN_BLOCKS = {
    "encoder.0.0": "encoder.stages.0.0.convs.0",
    "encoder.0.1": "encoder.stages.0.0.convs.1",
    "encoder.1.0": "encoder.stages.1.0.convs.0",
    "encoder.1.1": "encoder.stages.1.0.convs.1",
    "decoder.stages.0.0": "decoder.stages.0.convs.0",
    "decoder.stages.0.1": "decoder.stages.0.convs.1",
}
RESIDUAL_BLOCKS = {
    "stem": "encoder.stem.convs.0",
    "encoder.0.0.first": "encoder.stages.0.blocks.0.conv1",
    "encoder.0.0.second": "encoder.stages.0.blocks.0.conv2",
    "encoder.1.0.first": "encoder.stages.1.blocks.0.conv1",
    "encoder.1.0.second": "encoder.stages.1.blocks.0.conv2",
    "encoder.1.0.projection": "encoder.stages.1.blocks.0.skip.1",
    "encoder.1.1.first": "encoder.stages.1.blocks.1.conv1",
    "encoder.1.1.second": "encoder.stages.1.blocks.1.conv2",
    "decoder.stages.0.0": "decoder.stages.0.convs.0",
}
SINGLE = {"decoder.up.0": "decoder.transpconvs.0", "decoder.heads.0": "decoder.seg_layers.0"}


def state_of(network: torch.nn.Module, blocks: dict[str, str]) -> OrderedDict[str, torch.Tensor]:
    """A network of ours under nnU-Net's names, with all the duplicates that its modules give."""
    own = network.state_dict()
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for ours, theirs in blocks.items():
        copies = [theirs, f"decoder.{theirs}"] if theirs.startswith("encoder.") else [theirs]
        for name in copies:
            for part, place in (("conv", 0), ("norm", 1)):
                for kind in ("weight", "bias"):
                    if f"{ours}.{part}.{kind}" in own:
                        state[f"{name}.{part}.{kind}"] = own[f"{ours}.{part}.{kind}"]
                        state[f"{name}.all_modules.{place}.{kind}"] = own[f"{ours}.{part}.{kind}"]
    for ours, theirs in SINGLE.items():
        for kind in ("weight", "bias"):
            state[f"{theirs}.{kind}"] = own[f"{ours}.{kind}"]
    return state


def random_network(plan: NetworkPlan, seed: int = 0) -> torch.nn.Module:
    """Every tensor random, so that none can stand in for another."""
    generator = torch.Generator().manual_seed(seed)
    network = build_network(plan)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
    return network.eval()


@pytest.fixture
def plain_plan() -> NetworkPlan:
    return NetworkPlan(
        family="plain_unet",
        dimensions=3,
        in_channels=1,
        num_classes=3,
        features=(4, 6),
        kernel_sizes=((1, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2)),
        encoder_blocks=(2, 2),
        decoder_blocks=(2,),
    )


@pytest.fixture
def residual_plan(plain_plan: NetworkPlan) -> NetworkPlan:
    from dataclasses import replace

    return replace(plain_plan, family="residual_unet", encoder_blocks=(1, 2), decoder_blocks=(1,))


@pytest.fixture
def dataset() -> Json:
    return {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "left": 1, "right": 2}, "numTraining": 5, "file_ending": ".nii.gz"}


@pytest.fixture
def plans() -> Json:
    resampling: Json = {}
    for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        resampling[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{kind}_kwargs"] = {"is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None}
    fullres = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [4, 8, 8],
        "median_image_size_in_voxels": [5.0, 9.0, 9.0],
        "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [True],
        **resampling,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [4, 6],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
                "strides": [[1, 1, 1], [1, 2, 2]],
                "n_conv_per_stage": [2, 2],
                "n_conv_per_stage_decoder": [2],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }
    return {
        "dataset_name": "Dataset009_Tiny",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "configurations": {
            "3d_fullres": fullres,
            "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [3.0, 2.0, 2.0]},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 90.0, "std": 20.0, "percentile_00_5": 10.0, "percentile_99_5": 200.0, "min": 0.0, "max": 255.0, "median": 88.0}
        },
    }


@pytest.fixture
def checkpoint_of() -> Callable[..., Json]:
    """What nnU-Net puts into a checkpoint, for a network of ours."""

    def make(network: torch.nn.Module, configuration: str = "3d_fullres", **changes: object) -> Json:
        blocks = RESIDUAL_BLOCKS if hasattr(network, "stem") else PLAIN_BLOCKS
        checkpoint: Json = {
            "network_weights": state_of(network, blocks),
            "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0]}]},
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "train_losses": [np.float32(-0.5)], "epochs": [np.int64(3)]},
            "_best_ema": np.float32(0.75),
            "current_epoch": 12,
            "init_args": {"configuration": configuration, "fold": 0, "device": torch.device("cpu")},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": (0, 2),
        }
        return {**checkpoint, **changes}

    return make


@pytest.fixture
def make_model(
    tmp_path: Path, plans: Json, dataset: Json, plain_plan: NetworkPlan, checkpoint_of: Callable[..., Json]
) -> Callable[..., Path]:
    """Write a trained folder; ``checkpoint`` may replace what the folds hold."""

    def make(
        configuration: str = "3d_fullres",
        *,
        plan: NetworkPlan = plain_plan,
        folds: tuple[str, ...] = ("0",),
        file: str = "checkpoint_final.pth",
        root: Path = tmp_path / "Dataset009_Tiny",
        **changes: object,
    ) -> Path:
        folder = root / f"nnUNetTrainer__nnUNetPlans__{configuration}"
        for number, fold in enumerate(folds):
            (folder / f"fold_{fold}").mkdir(parents=True)
            torch.save(checkpoint_of(random_network(plan, number), configuration, **changes), folder / f"fold_{fold}" / file)
        (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
        (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def network_with() -> Callable[..., torch.nn.Module]:
    return random_network
