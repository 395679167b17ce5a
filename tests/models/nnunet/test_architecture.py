"""The network in the plans: both forms say the same, and every option that we do not have is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from medseg3d.errors import InputError, UnsupportedError
from medseg3d.models.nnunet.architecture import network_of
from medseg3d.plan import NetworkPlan

Json = dict[str, Any]
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


@pytest.fixture
def configuration(plans: Json) -> Json:
    return dict(plans["configurations"]["3d_fullres"])


def read(configuration: Json) -> NetworkPlan:
    return network_of(configuration, dimensions=3, in_channels=1, num_classes=3, source="plans.json")


def test_the_plain_network_is_read(configuration: Json, plain_plan: NetworkPlan) -> None:
    assert read(configuration) == plain_plan


@pytest.mark.parametrize("path", [RESIDUAL, RESIDUAL.replace(".unet.", ".residual_unet.")])
def test_the_residual_network_is_read(path: str, configuration: Json, residual_plan: NetworkPlan) -> None:
    architecture = configuration["architecture"]
    architecture["network_class_name"] = path
    del architecture["arch_kwargs"]["n_conv_per_stage"]
    architecture["arch_kwargs"] |= {"n_blocks_per_stage": [1, 2], "n_conv_per_stage_decoder": [1]}
    assert read(configuration) == residual_plan


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_the_older_form_says_the_same(name: str, configuration: Json, plain_plan: NetworkPlan, residual_plan: NetworkPlan) -> None:
    del configuration["architecture"]
    expected = plain_plan if name == "PlainConvUNet" else residual_plan
    configuration |= {
        "UNet_class_name": name,
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": list(expected.encoder_blocks),
        "n_conv_per_stage_decoder": list(expected.decoder_blocks),
        "num_pool_per_axis": [0, 1, 1],
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2]],
        "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3]],
    }
    assert read(configuration) == expected
    with pytest.raises(UnsupportedError, match="MyNet"):
        read(configuration | {"UNet_class_name": "MyNet"})


def test_one_number_stands_for_all_stages_and_axes(configuration: Json) -> None:
    listed = copy.deepcopy(configuration)
    listed["architecture"]["arch_kwargs"] |= {"features_per_stage": [5, 5], "kernel_sizes": [[3, 3, 3]] * 2, "strides": [[1] * 3, [2] * 3]}
    configuration["architecture"]["arch_kwargs"] |= {
        "features_per_stage": 5,
        "kernel_sizes": 3,
        "strides": [1, 2],
        "n_conv_per_stage": 2,
        "n_conv_per_stage_decoder": 2,
    }
    assert read(configuration) == read(listed)


@pytest.mark.parametrize(
    "change",
    [
        {"conv_bias": False},
        {"conv_op": "torch.nn.modules.conv.Conv2d"},
        {"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"},
        {"norm_op": None},
        {"norm_op_kwargs": {"eps": 1e-3, "affine": True}},
        {"norm_op_kwargs": {"eps": 1e-5}},
        {"norm_op_kwargs": None},
        {"dropout_op": "torch.nn.Dropout3d"},
        {"nonlin": "torch.nn.ReLU"},
        {"nonlin_kwargs": {"negative_slope": 0.2}},
        {"nonlin_first": True},
        {"stem_channels": 8},
        {"block": "BottleneckD"},
        {"squeeze_excitation": True},
    ],
)
def test_options_that_our_networks_lack_are_refused_by_name(change: Json, configuration: Json) -> None:
    configuration["architecture"]["arch_kwargs"] |= change
    with pytest.raises(UnsupportedError, match=f"{next(iter(change))} "):
        read(configuration)


@pytest.mark.parametrize("left_out", ["conv_bias", "norm_op", "norm_op_kwargs", "nonlin"])
def test_what_is_left_out_has_the_value_of_their_constructors(left_out: str, configuration: Json) -> None:
    del configuration["architecture"]["arch_kwargs"][left_out]
    with pytest.raises(UnsupportedError, match=left_out):
        read(configuration)


@pytest.mark.parametrize(
    "change",
    [
        {"nonlin_kwargs": None},
        {"nonlin_kwargs": {"negative_slope": 0.01}},
        {"norm_op": "torch.nn.InstanceNorm3d"},
        {"deep_supervision": True},
        {"stem_channels": 4},
        {"dropout_op_kwargs": {"p": 0.5}},
    ],
)
def test_options_that_mean_the_same_are_accepted(change: Json, configuration: Json, plain_plan: NetworkPlan) -> None:
    configuration["architecture"]["arch_kwargs"] |= change
    assert read(configuration) == plain_plan


def test_all_findings_are_listed_at_once(configuration: Json) -> None:
    configuration["architecture"]["arch_kwargs"] |= {"conv_bias": False, "nonlin": "torch.nn.ReLU", "strides": [[2, 2, 2], [1, 1, 1]]}
    with pytest.raises(UnsupportedError, match=r"conv_bias.*nonlin.*strides"):
        read(configuration)


def test_a_single_stage_has_no_logits_in_nnunet(configuration: Json) -> None:
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": 1,
        "features_per_stage": [4],
        "kernel_sizes": [[3, 3, 3]],
        "strides": [[1, 1, 1]],
        "n_conv_per_stage": [2],
        "n_conv_per_stage_decoder": [],
    }
    with pytest.raises(UnsupportedError, match="n_stages is 1"):
        read(configuration)


@pytest.mark.parametrize(
    "change",
    [{"strides": [[1, 1, 1]]}, {"kernel_sizes": [[3, 3], [3, 3]]}, {"n_conv_per_stage": [2, 2, 2]}, {"features_per_stage": [4, 0]}],
)
def test_lists_of_another_length_are_refused(change: Json, configuration: Json) -> None:
    configuration["architecture"]["arch_kwargs"] |= change
    with pytest.raises(InputError, match=next(iter(change))):
        read(configuration)


def test_other_networks_are_refused(configuration: Json) -> None:
    configuration["architecture"]["network_class_name"] = "dynamic_network_architectures.architectures.primus.PrimusM"
    with pytest.raises(UnsupportedError, match="PrimusM"):
        read(configuration)
