"""plans.json becomes a plan with the same meaning, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medseg3d.errors import InputError, UnsupportedError
from medseg3d.models.nnunet.plans import read_plan
from medseg3d.plan import Configuration, Normalization, Plan, Resampling

Json = dict[str, Any]


def read(folder: Path, plans: Json, dataset: Json, name: str = "3d_fullres", mirror_axes: tuple[int, ...] = (0, 1)) -> Plan:
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    return read_plan(folder, name, mirror_axes=mirror_axes)


def test_lists_over_axes_stay_in_the_transposed_order(tmp_path: Path, plans: Json, dataset: Json) -> None:
    plan = read(tmp_path, plans, dataset)
    configuration = plan.configuration(None)
    assert plan.axis_order == (1, 0, 2)
    assert (configuration.patch_size, configuration.spacing) == ((4, 8, 8), (3.0, 1.0, 1.0))
    assert (configuration.mirror_axes, configuration.batch_size, configuration.batch_dice) == ((0, 1), 2, True)
    assert configuration.resampling == Resampling()


def test_a_configuration_inherits_through_several_others(tmp_path: Path, plans: Json, dataset: Json) -> None:
    plans["configurations"]["mine"] = {"inherits_from": "3d_lowres", "batch_size": 9}
    configuration = read(tmp_path, plans, dataset, "mine").configuration(None)
    assert (configuration.name, configuration.batch_size, configuration.spacing) == ("mine", 9, (3.0, 2.0, 2.0))


@pytest.mark.parametrize(("parent", "message"), [("3d_lowres", "circle"), ("nobody", "has no configuration 'nobody'")])
def test_inheritance_that_leads_nowhere_is_refused(parent: str, message: str, tmp_path: Path, plans: Json, dataset: Json) -> None:
    plans["configurations"]["3d_fullres"]["inherits_from"] = parent
    with pytest.raises(InputError, match=message):
        read(tmp_path, plans, dataset)


@pytest.mark.parametrize(
    ("reader", "orientation"),
    [
        ("SimpleITKIO", "as_stored"),
        ("NibabelIO", "as_stored"),
        ("NibabelIOWithReorient", "canonical"),
        ("SimpleITKIOWithReorient", "canonical"),
    ],
)
def test_the_reader_decides_how_arrays_lie(reader: str, orientation: str, tmp_path: Path, plans: Json, dataset: Json) -> None:
    assert read(tmp_path, plans | {"image_reader_writer": reader}, dataset).orientation == orientation


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("ZScoreNormalization", Normalization(scheme="zscore", use_mask=True)),
        ("CTNormalization", Normalization(scheme="ct", mean=90.0, std=20.0, lower=10.0, upper=200.0)),
        ("RescaleTo01Normalization", Normalization(scheme="rescale_0_1")),
        ("RGBTo01Normalization", Normalization(scheme="rgb_0_1")),
        ("NoNormalization", Normalization(scheme="none")),
    ],
)
def test_every_normalization_has_its_rule_and_only_zscore_a_mask(
    scheme: str, expected: Normalization, tmp_path: Path, plans: Json, dataset: Json
) -> None:
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = [scheme]
    assert read(tmp_path, plans, dataset).configuration(None).normalization == (expected,)


def test_older_names_of_the_intensities_are_read(tmp_path: Path, plans: Json, dataset: Json) -> None:
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    assert read(tmp_path, plans, dataset).configuration(None).normalization[0].mean == 90.0


def test_a_2d_configuration_has_lists_of_two(tmp_path: Path, plans: Json, dataset: Json) -> None:
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [8, 8], "spacing": [1.0, 1.0], "median_image_size_in_voxels": [9.0, 9.0]}
    configuration["architecture"]["arch_kwargs"] |= {
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "kernel_sizes": [[3, 3], 3],
        "strides": [1, 2],
    }
    found: Configuration = read(tmp_path, plans, dataset).configuration(None)
    assert (found.dimensions, found.network.kernel_sizes, found.network.strides) == (2, ((3, 3), (3, 3)), ((1, 1), (2, 2)))
    with pytest.raises(InputError, match="mirrors the axes"):
        read(tmp_path, plans, dataset, mirror_axes=(0, 2))


def test_a_cascade_sees_a_channel_for_every_foreground_label(tmp_path: Path, plans: Json, dataset: Json) -> None:
    assert read(tmp_path, plans, dataset, "3d_cascade_fullres").configuration(None).network.in_channels == 1 + 2
    dataset |= {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3}, "regions_class_order": [1, 2, 3]}
    found = read(tmp_path, plans, dataset, "3d_cascade_fullres").configuration(None)
    assert (found.network.in_channels, found.network.num_classes) == (1 + 3, 3)
    with pytest.raises(UnsupportedError, match="cascade with the region class order"):
        read(tmp_path, plans, dataset | {"regions_class_order": [2, 1, 3]}, "3d_cascade_fullres")


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("image_reader_writer", "NaturalImage2DIO", UnsupportedError, "NaturalImage2DIO"),
        ("label_manager", "MyLabels", UnsupportedError, "MyLabels"),
        ("transpose_forward", [0, 0, 1], InputError, "transpose_forward"),
        ("transpose_forward", [0, 1], InputError, "transpose_forward"),
        ("configurations", 3, InputError, "configurations"),
    ],
)
def test_other_plans_are_refused(
    key: str, value: object, error: type[Exception], message: str, tmp_path: Path, plans: Json, dataset: Json
) -> None:
    with pytest.raises(error, match=message):
        read(tmp_path, plans | {key: value}, dataset)


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("preprocessor_name", "MyPreprocessor", UnsupportedError, "MyPreprocessor"),
        ("normalization_schemes", ["MyNormalization"], UnsupportedError, "MyNormalization"),
        ("normalization_schemes", [], InputError, "dataset.json has 1 channels"),
        ("spacing", [1.0, 1.0], InputError, "expected two or three numbers"),
        ("patch_size", [4], InputError, "expected two or three numbers"),
        ("batch_size", None, InputError, "batch_size"),
    ],
)
def test_other_configurations_are_refused(
    key: str, value: object, error: type[Exception], message: str, tmp_path: Path, plans: Json, dataset: Json
) -> None:
    plans["configurations"]["3d_fullres"][key] = value
    with pytest.raises(error, match=message):
        read(tmp_path, plans, dataset)
