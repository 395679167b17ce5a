"""Properties of plans over geometries of all kinds, and the rules at their edges."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.data.side_names import left_right_pairs
from medseg3d.errors import PlanError
from medseg3d.fingerprint.intensities import IntensityStatistics
from medseg3d.labels import Labels
from medseg3d.plan import Plan, total_stride
from medseg3d.planning import DatasetSummary, explain, explained_plan, load_planner, make_plan
from medseg3d.records import from_plain, to_plain

DEFAULT = load_planner("default")
STATISTICS = IntensityStatistics(
    mean=50.0, std=20.0, median=48.0, minimum=-100.0, maximum=300.0, percentile_00_5=-10.0, percentile_99_5=200.0, count=1000
)


def summary_of(spacing: Any = (1.0, 1.0, 1.0), shape: Any = (36, 50, 35), **changes: Any) -> DatasetSummary:
    """A dataset of like cases; keyword arguments replace fields."""
    names = changes.pop("names", ("background", "first", "second"))
    labels = Labels(names=names, values=tuple(range(len(names))), pairs=left_right_pairs(names))
    fields: dict[str, Any] = {
        "dataset": "synthetic",
        "num_cases": 20,
        "spacings": (tuple(spacing),) * 3,
        "cropped_shapes": (tuple(shape),) * 3,
        "median_relative_size": 1.0,
        "intensities": (STATISTICS,),
        "channel_names": ("MRI",),
        "labels": labels,
        "num_label_entries": len(names),
        "orientation": "canonical",
        "digest": "0",
    }
    return DatasetSummary(**(fields | changes))


SPACING = st.floats(0.3, 10)
EDGE = st.one_of(st.integers(1, 600), st.just(1), st.integers(1, 12))
SUMMARIES = st.builds(
    summary_of,
    st.tuples(SPACING, SPACING, SPACING),
    st.tuples(EDGE, EDGE, EDGE),
    num_cases=st.integers(1, 500),
    num_label_entries=st.integers(2, 100),
    channel_names=st.sampled_from([("MRI",), ("T1", "T2")]),
)
PLANNERS = st.sampled_from([load_planner(name) for name in ("default", "residual_m", "residual_xl", "nnunet_plain", "nnunet_resenc_l")])


@settings(max_examples=60, deadline=None)
@given(SUMMARIES, PLANNERS)
def test_every_configuration_can_be_built_and_trained(summary: DatasetSummary, planner: Any) -> None:
    plan = make_plan(summary, planner)
    assert plan.recommended in plan.configurations
    for configuration in plan.configurations.values():
        network, dimensions = configuration.network, configuration.dimensions
        assert configuration.batch_size >= 2
        assert len(configuration.spacing) == len(configuration.median_shape) == dimensions == network.dimensions
        assert all(n >= 1 and n % d == 0 for n, d in zip(configuration.patch_size, total_stride(network.strides), strict=True))
        lengths = {len(network.features), len(network.strides), len(network.kernel_sizes), len(network.encoder_blocks)}
        assert lengths == {len(network.decoder_blocks) + 1}
        assert max(network.features) <= (512 if dimensions == 2 else 320)
        assert network.strides[0] == (1,) * dimensions
        for edge, pooled in zip(configuration.patch_size, total_stride(network.strides), strict=True):
            assert pooled == 1 or edge // pooled >= 4


@settings(max_examples=60, deadline=None)
@given(SUMMARIES)
def test_a_patch_exceeds_the_median_case_only_by_padding(summary: DatasetSummary) -> None:
    for configuration in make_plan(summary, DEFAULT).configurations.values():
        divisors = total_stride(configuration.network.strides)
        for edge, limit, divisor in zip(configuration.patch_size, configuration.median_shape, divisors, strict=True):
            assert edge < limit + divisor


@settings(max_examples=30, deadline=None)
@given(st.tuples(SPACING, SPACING, SPACING), st.tuples(EDGE, EDGE, EDGE), st.integers(0, 2))
def test_the_place_of_the_coarse_axis_does_not_matter(spacing: Any, shape: Any, place: int) -> None:
    spacing = (max(spacing) * 1.01, *spacing[1:])
    order = [1, 2]
    order.insert(place, 0)
    planner = load_planner("nnunet_plain")
    first = make_plan(summary_of(spacing, shape), planner)
    moved = make_plan(summary_of([spacing[a] for a in order], [shape[a] for a in order]), planner)
    assert moved.axis_order[0] == place
    for name, configuration in first.configurations.items():
        assert replace(moved.configurations[name], data="", mirror_axes=()) == replace(configuration, data="", mirror_axes=())


@settings(max_examples=30, deadline=None)
@given(SUMMARIES, PLANNERS)
def test_every_number_is_explained_and_plans_survive_json(summary: DatasetSummary, planner: Any) -> None:
    plan = make_plan(summary, planner)
    assert from_plain(to_plain(plan), Plan, "plan") == plan
    reasons = explain(plan, summary, planner)
    wanted = {"spacing", "median shape", "initial patch", "shrink steps", "patch size", "strides", "kernels", "features"}
    wanted |= {"network", "batch size", "batch dice", "resampling", "mirror axes", "training"}
    for name, configuration in plan.configurations.items():
        found = {reason.quantity: reason for reason in reasons if reason.configuration == name}
        if configuration.previous_stage:
            continue
        assert wanted <= set(found)
        assert found["batch size"].value == str(configuration.batch_size)
        assert found["patch size"].value == " x ".join(map(str, configuration.patch_size))
    assert all(
        text.strip() for reason in reasons for text in (reason.quantity, reason.value, reason.rule, reason.inputs, reason.changes_it)
    )


def test_single_slices_are_planned_in_2d_only() -> None:
    plan = make_plan(summary_of((1.0, 2.0, 2.0), (1, 256, 200)), DEFAULT)
    assert list(plan.configurations) == ["2d"]
    assert plan.recommended == "2d"
    assert plan.axis_order == (0, 1, 2)
    assert plan.configurations["2d"].patch_size == (256, 224)


def test_tiny_images_give_a_network_of_one_stage_and_a_note() -> None:
    plan = make_plan(summary_of(shape=(7, 6, 5)), DEFAULT)
    assert plan.configurations["3d_fullres"].network.features == (32,)
    assert plan.configurations["3d_fullres"].network.decoder_blocks == ()
    assert plan.configurations["3d_fullres"].patch_size == (7, 6, 5)
    assert any("only 1 stage" in note for note in plan.notes)


def test_very_thick_and_few_slices_are_recommended_in_2d() -> None:
    assert make_plan(summary_of((10.0, 1.0, 1.0), (8, 256, 256)), DEFAULT).recommended == "2d"
    assert make_plan(summary_of((10.0, 1.56, 1.56), (9, 237, 208)), DEFAULT).recommended == "3d_fullres"


def test_large_cases_get_a_low_resolution_and_a_cascade_that_shares_data() -> None:
    plan = make_plan(summary_of((1.0, 0.77, 0.77), (432, 512, 512), num_cases=131), DEFAULT)
    assert set(plan.configurations) == {"2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"}
    cascade, fullres = plan.configurations["3d_cascade_fullres"], plan.configurations["3d_fullres"]
    assert cascade.previous_stage == "3d_lowres"
    assert cascade.network.in_channels == fullres.network.in_channels + len(plan.labels.foreground)
    assert plan.stages_of("3d_cascade_fullres") == ("3d_cascade_fullres", "3d_lowres")
    assert cascade.data == fullres.data != plan.configurations["3d_lowres"].data
    assert fullres.data.startswith("3d-")
    assert plan.configurations["2d"].data.startswith("2d-")
    assert "3d_lowres" in plan.recommended_reason


def test_the_plan_of_a_version_that_could_not_train_cascades_is_explained() -> None:
    summary = summary_of((1.0, 0.77, 0.77), (432, 512, 512), num_cases=131)
    plan = make_plan(summary, DEFAULT)
    old = replace(plan.configurations["3d_cascade_fullres"], network=plan.configurations["3d_fullres"].network)
    assert explain(replace(plan, configurations={**plan.configurations, "3d_cascade_fullres": old}), summary, DEFAULT)


def test_left_and_right_labels_are_never_mirrored_into_each_other() -> None:
    names = ("background", "left kidney", "right kidney")
    sagittal = make_plan(summary_of((1.0, 1.0, 4.0), (100, 100, 30), names=names), DEFAULT)
    assert sagittal.axis_order == (2, 0, 1)
    assert sagittal.configurations["3d_fullres"].mirror_axes == (1, 2)
    assert sagittal.configurations["2d"].mirror_axes == (0, 1)
    axial = make_plan(summary_of((4.0, 1.0, 1.0), (30, 100, 100), names=names), load_planner("nnunet_plain"))
    assert axial.configurations["3d_fullres"].mirror_axes == (0, 1)
    assert axial.configurations["2d"].mirror_axes == (0,)
    assert any("left and right" in note for note in axial.notes)
    assert make_plan(summary_of(), DEFAULT).configurations["3d_fullres"].mirror_axes == (0, 1, 2)


def test_normalization_follows_the_name_of_the_channel() -> None:
    names = ("ct", "T2", "nonorm", "rescale_to_0_1", "RGB_to_0_1")
    summary = summary_of(channel_names=names, intensities=(STATISTICS,) * 5, median_relative_size=0.74)
    normalization = make_plan(summary, DEFAULT).configurations["3d_fullres"].normalization
    assert [n.scheme for n in normalization] == ["ct", "zscore", "none", "rescale_0_1", "rgb_0_1"]
    assert [n.use_mask for n in normalization] == [False, True, False, False, False]
    assert (normalization[0].lower, normalization[0].upper) == (-10.0, 200.0)
    whole = make_plan(replace(summary, median_relative_size=0.75), DEFAULT).configurations["3d_fullres"].normalization
    assert not any(n.use_mask for n in whole)


def test_ct_without_statistics_is_refused() -> None:
    with pytest.raises(PlanError, match="CT is normalized by the intensities"):
        make_plan(summary_of(channel_names=("CT",), intensities=()), DEFAULT)


def test_memory_scales_the_batch_and_too_little_of_it_is_refused() -> None:
    small = make_plan(summary_of(num_cases=10000), DEFAULT)
    large = make_plan(summary_of(num_cases=10000), DEFAULT, gpu_memory_gb=16)
    ratio = large.configurations["3d_fullres"].batch_size / small.configurations["3d_fullres"].batch_size
    assert ratio == pytest.approx(2, abs=0.05)
    assert large.gpu_memory_gb == 16
    with pytest.raises(PlanError, match="fits the GPU memory"):
        make_plan(summary_of(), DEFAULT, gpu_memory_gb=1e-7)
    with pytest.raises(PlanError, match="above 0"):
        make_plan(summary_of(), DEFAULT, gpu_memory_gb=0)


def test_a_dataset_planned_twice_has_the_same_data_name_and_other_labels_another() -> None:
    first = make_plan(summary_of(), DEFAULT).configurations["3d_fullres"].data
    assert make_plan(summary_of(), load_planner("nnunet_resenc_l")).configurations["3d_fullres"].data == first
    assert make_plan(summary_of(names=("background", "one")), DEFAULT).configurations["3d_fullres"].data != first


def test_planning_does_not_import_torch() -> None:
    code = (
        "import sys; from medseg3d.planning import load_planner, make_plan, explain; load_planner('default'); "
        "print(sorted({'torch', 'monai', 'SimpleITK', 'matplotlib'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_reasons_are_sentences_that_name_what_they_count() -> None:
    summary = summary_of(num_cases=1)
    plan = make_plan(summary, DEFAULT)
    assert not plan.recommended_reason.startswith(plan.recommended)
    assert (
        "2d is recommended only where slices are more than 8 times as thick as pixels are wide and fewer than 12."
        in plan.recommended_reason
    )
    inputs = [reason.inputs for reason in explain(plan, summary, DEFAULT)]
    assert "None." not in inputs
    assert any("the dataset allows less than one" in text for text in inputs)


def test_the_reasons_of_a_plan_are_those_that_its_rules_returned() -> None:
    summary = summary_of((1.0, 0.77, 0.77), (432, 512, 512), num_cases=131)
    decided = explained_plan(summary, DEFAULT)
    assert decided.value == make_plan(summary, DEFAULT)
    assert decided.reasons == explain(decided.value, summary, DEFAULT)
    assert list(dict.fromkeys(reason.configuration for reason in decided.reasons)) == ["dataset", *decided.value.configurations]


def test_a_plan_is_not_explained_by_rules_that_give_other_numbers() -> None:
    summary = summary_of()
    with pytest.raises(PlanError, match="planner nnunet_resenc_l now gives synthetic other numbers than those of the plan"):
        explain(make_plan(summary, DEFAULT), summary, load_planner("nnunet_resenc_l"))


def test_another_recommendation_than_the_rules_keeps_its_own_reason() -> None:
    summary = summary_of()
    plan = replace(make_plan(summary, DEFAULT), recommended="2d", recommended_reason="Another dataset has slices only.")
    (row,) = (reason for reason in explain(plan, summary, DEFAULT) if reason.quantity == "recommended configuration")
    assert (row.value, row.inputs) == ("2d", "Another dataset has slices only.")
