"""Which families are proposed for a dataset, what traced planning decides, and what is said where nothing fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medseg3d.errors import PlanError
from medseg3d.labels import Labels
from medseg3d.networks.build import output_size
from medseg3d.networks.cost import step_cost
from medseg3d.plan import total_stride
from medseg3d.planning import DatasetSummary, explain, load_planner, make_plan
from medseg3d.planning.budget import GIB, RESERVED_GB
from medseg3d.planning.candidates import Speed, candidates, step_seconds

SPEED = Speed(device="synthetic", multiply_adds=1e12, bytes=1e11, augmented_voxels=1e8)


def summary_of(*, spacing: Any = (1.0, 1.0, 1.0), shape: Any = (36, 50, 35), num_cases: int = 20) -> DatasetSummary:
    """A dataset of like cases."""
    return DatasetSummary(
        dataset="synthetic",
        num_cases=num_cases,
        spacings=(spacing,) * 3,
        cropped_shapes=(shape,) * 3,
        median_relative_size=1.0,
        intensities=(),
        channel_names=("MRI",),
        labels=Labels(names=("background", "first", "second"), values=(0, 1, 2)),
        num_label_entries=3,
        orientation="canonical",
        digest="0",
    )


def proposed(**changes: Any) -> dict[tuple[str, str], bool]:
    found = candidates(summary_of(**changes), gpu_memory_gb=8, speed=SPEED)
    return {(c.planner, c.configuration): c.is_proposed for c in found}


@pytest.mark.slow
def test_thick_slices_few_cases_and_large_cases_propose_what_suits_them() -> None:
    thick = proposed(spacing=(8.0, 1.2, 1.2), shape=(20, 96, 96), num_cases=9)
    assert thick["default", "2d"]
    assert thick["u2net", "3d_fullres"]
    assert not thick["residual_m", "3d_fullres"]
    isotropic = proposed(shape=(40, 50, 40), num_cases=200)
    assert not isotropic["default", "2d"]
    assert isotropic["default", "3d_fullres"]
    assert isotropic["residual_m", "3d_fullres"]
    assert isotropic["vnet_batch_norm", "3d_fullres"]
    large = make_plan(summary_of(shape=(500, 500, 500)), load_planner("default"))
    assert "3d_lowres" in large.configurations


def test_the_proposed_come_first_and_every_number_is_there() -> None:
    found = candidates(summary_of(), gpu_memory_gb=8, speed=SPEED, num_datasets=3)
    assert [c.is_proposed for c in found] == sorted((c.is_proposed for c in found), reverse=True)
    assert "universal" in {c.planner for c in found if c.is_proposed}
    counted = [c for c in found if c.is_proposed or c.planner == "default"]
    assert all(c.parameters == 0 for c in found if c not in counted)  # counting takes seconds
    for candidate in counted:
        assert candidate.parameters > 0
        assert 0 < candidate.memory_gb < 8
        assert candidate.disk_gb > 0
        assert candidate.seconds_per_epoch is not None
        assert candidate.seconds_per_epoch > 3 * 250 * candidate.multiply_adds_per_step / SPEED.multiply_adds
    speeds = (replace(SPEED, bytes=1e10), replace(SPEED, augmented_voxels=1e7), None)
    slow, augmenting, unknown = (candidates(summary_of(), gpu_memory_gb=8, speed=speed)[0] for speed in speeds)
    assert (slow.seconds_per_epoch or 0) > (found[0].seconds_per_epoch or 0)
    assert (augmenting.seconds_per_epoch or 0) > (found[0].seconds_per_epoch or 0)
    assert unknown.seconds_per_epoch is None


@pytest.mark.parametrize("name", ["vnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("u2net", "unet_wide", "unet_3d"))])
@pytest.mark.parametrize("gpu_memory_gb", [pytest.param(4.0, marks=pytest.mark.slow), 8.0])
def test_traced_plans_fill_the_memory_and_no_more(name: str, gpu_memory_gb: float) -> None:
    summary = summary_of(shape=(120, 200, 200), num_cases=500)
    configuration = make_plan(summary, load_planner(name), gpu_memory_gb=gpu_memory_gb).configurations["3d_fullres"]
    allowed = (gpu_memory_gb - RESERVED_GB) * GIB
    batch = configuration.batch_size
    optimizer = configuration.training.optimizer
    assert step_cost(configuration.network, configuration.patch_size, batch, optimizer=optimizer).peak_bytes <= allowed
    patch = output_size(configuration.network, configuration.patch_size)
    assert all(n >= 4 for n in patch)
    stride = total_stride(configuration.network.strides)
    if patch == configuration.patch_size:
        assert all(n % s == 0 for n, s in zip(configuration.patch_size, stride, strict=True))


def test_a_network_that_cannot_fit_is_refused_with_what_would_make_it_fit() -> None:
    with pytest.raises(PlanError, match=r"vnet does not fit 1.5 GB.*Give --gpu-memory (\d+\.\d)") as refused:
        make_plan(summary_of(shape=(120, 200, 200)), load_planner("vnet"), gpu_memory_gb=1.5)
    needed = float(str(refused.value).split("--gpu-memory ")[1].split()[0])
    make_plan(summary_of(shape=(120, 200, 200)), load_planner("vnet"), gpu_memory_gb=needed + 0.1)


def test_reasons_of_traced_plans_speak_of_bytes() -> None:
    summary, planner = summary_of(), load_planner("u2net")
    reasons = {(e.configuration, e.quantity): e for e in explain(make_plan(summary, planner), summary, planner)}
    assert "GB" in reasons["3d_fullres", "batch size"].inputs
    assert "feature-map elements" not in reasons["3d_fullres", "shrink steps"].inputs


def test_multipliers_act_on_width_and_resolution(tmp_path: Path) -> None:
    file = tmp_path / "thin.toml"
    file.write_text('extends = "default"\n[network]\nwidth_multiplier = 0.5\n[spacing]\nresolution_multiplier = 0.5\n')
    summary = summary_of(shape=(64, 64, 64))
    thin, full = (make_plan(summary, load_planner(name)).configurations["3d_fullres"] for name in (str(file), "default"))
    assert thin.spacing == tuple(2 * s for s in full.spacing)
    assert thin.median_shape == tuple(n / 2 for n in full.median_shape)
    assert thin.network.features == tuple(f // 2 for f in full.network.features)[: len(thin.network.features)]
    assert len(thin.network.strides) < len(full.network.strides)


def test_the_depth_can_be_capped(tmp_path: Path) -> None:
    file = tmp_path / "flat.toml"
    file.write_text('extends = "default"\n[network]\nmax_stages = 3\n')
    assert len(make_plan(summary_of(), load_planner(str(file))).configurations["3d_fullres"].network.strides) == 3


def test_a_processor_takes_as_long_for_few_channels_as_for_all_that_it_works_on_at_once() -> None:
    summary, rules = summary_of(shape=(64, 64, 64), num_cases=40), load_planner("default")
    seconds = {}
    for device in ("cpu", "cuda"):
        speed = Speed(device=device, multiply_adds=1e9, bytes=1e15, augmented_voxels=1e15)
        for width in (0.25, 0.5):
            made = make_plan(summary, replace(rules, network=replace(rules.network, width_multiplier=width))).configuration(None)
            made = replace(made, patch_size=(64, 64, 64))
            seconds[device, width] = step_seconds(step_cost(made.network, made.patch_size, 2), made, 2, speed)
    assert seconds["cpu", 0.5] == seconds["cuda", 0.5]
    assert 1.5 * seconds["cuda", 0.25] < seconds["cpu", 0.25] < seconds["cpu", 0.5]
