"""The less time a training has, the cheaper its steps are planned: narrower networks first, then coarser voxels, then smaller patches."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg3d.axes import Triple
from medseg3d.options import PlanOptions
from medseg3d.plan import Plan
from medseg3d.planning import Planner, explain, explained_plan, load_planner, make_plan
from medseg3d.planning.candidates import Speed
from medseg3d.planning.fit_to_time import coarsest_resolution, fitted_to_time, seconds_of_step
from medseg3d.planning.loss_rules import LossFacts
from medseg3d.planning.planner import Fitted
from medseg3d.planning.spacing import coarsened
from medseg3d.records import read_record, write_record
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.plan import plan
from medseg3d.workflows.plan_time import rules_for_time, tell_of_unplanned_time
from tests.planning.test_make_plan import summary_of

DEFAULT = load_planner("default")
RULES = replace(DEFAULT, time=replace(DEFAULT.time, least_steps=1000, least_features=8, least_patch=0.25, least_resolution=0.6))
FACTS = LossFacts(foreground_share=0.15, label_volume_ratio=2.0, absent_share=0.0, elongation=3.0)
SHARES = {"loss_facts": FACTS, "class_shares": (0.85, 0.1, 0.05)}
LARGE = summary_of((1.0, 1.0, 1.0), (160, 200, 180), num_cases=40, **SHARES)
SMALL = summary_of((1.0, 1.0, 1.0), (36, 50, 35), num_cases=40, **SHARES)
SPEEDS = [1e9, 1e11, 3e12, 1e15]


def speed(multiply_adds: float) -> Speed:
    return Speed(device="synthetic", multiply_adds=multiply_adds, bytes=multiply_adds / 10, augmented_voxels=1e9)


def fitted(multiply_adds: float, rules: Planner = RULES, summary=LARGE, hours: float = 0.25) -> Fitted:
    found = fitted_to_time(rules, summary, hours=hours, speed=speed(multiply_adds)).fitted
    assert found is not None
    return found


def test_slower_devices_get_cheaper_steps_in_the_stated_order() -> None:
    found = [fitted(each) for each in SPEEDS]
    factors = [(each.width, each.resolution, each.patch) for each in found]
    assert factors == sorted(factors)
    assert factors[0] == pytest.approx((0.25, 0.64, 0.25))
    assert factors[-1] == (1.0, 1.0, 1.0)
    assert all(each.patch == 1 for each in found if each.resolution > 0.65)


def test_voxels_are_coarsened_where_a_width_has_its_steps_but_a_large_image_takes_more() -> None:
    found = [fitted(multiply_adds) for multiply_adds in np.geomspace(1e10, 1e13, 13)]
    both = [each for each in found if each.width < 1 and each.resolution == 1]
    assert all(each.steps >= RULES.time.least_steps for each in both)
    coarse = [each for each in found if 0.65 < each.resolution < 1]
    assert coarse
    assert all(each.steps >= RULES.time.least_steps for each in coarse)
    assert all(each.resolution == 1 for each in found if each.width == 1)


@pytest.mark.parametrize("multiply_adds", SPEEDS)
def test_enough_steps_fit_unless_nothing_cheaper_is_allowed(multiply_adds: float) -> None:
    rules = fitted_to_time(RULES, LARGE, hours=0.25, speed=speed(multiply_adds))
    assert rules.fitted is not None
    seconds = seconds_of_step(make_plan(LARGE, rules).configuration(None), 2, speed(multiply_adds))
    assert rules.fitted.steps == round(900 / seconds)
    assert rules.fitted.steps >= 1000 * rules.fitted.width or rules.fitted.patch == 0.25


@pytest.mark.parametrize("summary", [LARGE, SMALL])
def test_a_narrower_network_has_the_spacing_and_the_patch_of_the_wide_one(summary) -> None:
    wide = make_plan(summary, RULES).configuration(None)
    narrow = make_plan(summary, replace(RULES, fitted=Fitted(hours=1, device="", steps=1, width=0.5))).configuration(None)
    assert narrow.network.features == tuple(n // 2 for n in wide.network.features)
    assert (narrow.spacing, narrow.batch_size) == (wide.spacing, wide.batch_size)
    stride = [a * b for a, b in zip(*wide.network.strides[-2:], strict=True)]
    assert all(abs(a - b) <= 8 * s for a, b, s in zip(narrow.patch_size, wide.patch_size, stride, strict=True))


def test_the_finest_stage_is_thinned_before_anything_else_and_the_patch_stays() -> None:
    seconds = seconds_of_step(make_plan(SMALL, RULES).configuration(None), 2, speed(1e12))
    some, few, fewer = (fitted(1e12, summary=SMALL, hours=steps * seconds / 3600) for steps in (1001, 950, 500))
    assert (some.finest_blocks, some.width, few.finest_blocks, few.width) == (0, 1.0, 1, 1.0)
    assert few.steps > RULES.time.least_steps
    assert fewer.finest_blocks == 1
    assert fewer.width < 1
    whole = make_plan(LARGE, RULES).configuration(None)
    thin = make_plan(LARGE, replace(RULES, fitted=Fitted(hours=1, device="", steps=1, finest_blocks=1))).configuration(None)
    assert (thin.network.encoder_blocks, thin.network.decoder_blocks) == ((1, 2, 2, 2, 2, 2), (2, 2, 2, 2, 1))
    assert (thin.patch_size, thin.batch_size, thin.network.features) == (whole.patch_size, whole.batch_size, whole.network.features)


@pytest.mark.parametrize(("finest", "encoder", "decoder"), [(0, (3, 2), (2,)), (1, (1, 2), (1,)), (2, (2, 2), (2,)), (5, (3, 2), (2,))])
def test_the_finest_stage_has_at_most_so_many_blocks(finest: int, encoder: tuple[int, ...], decoder: tuple[int, ...]) -> None:
    network = replace(DEFAULT.network, encoder_blocks=(3, 2), decoder_blocks=(2,), max_stages=2, finest_blocks=finest)
    planned = make_plan(SMALL, replace(DEFAULT, network=network)).configuration(None).network
    assert (planned.encoder_blocks, planned.decoder_blocks) == (encoder, decoder)


def test_enough_time_leaves_the_plan_as_it_is_and_the_reason_says_so() -> None:
    rules = fitted_to_time(RULES, SMALL, hours=1000, speed=speed(1e12))
    decided = explained_plan(SMALL, rules)
    assert decided.value == make_plan(SMALL, DEFAULT)
    (reason,) = [reason for reason in decided.reasons if reason.quantity == "time"]
    assert reason.value == "the planner's numbers"
    assert "60,000 minutes" in reason.inputs.replace("6e+04", "60,000")


def test_a_finest_stage_of_one_block_is_as_thin_as_it_can_be() -> None:
    rules = fitted_to_time(load_planner("residual_m"), SMALL, hours=0.001, speed=speed(1e9)).fitted
    assert rules is not None
    assert rules.finest_blocks == 0
    assert rules.width < 1


def test_presets_of_nnunet_and_published_networks_stay_whatever_the_time() -> None:
    for name in ("nnunet_plain", "vnet"):
        rules = load_planner(name)
        assert fitted_to_time(rules, SMALL, hours=0.001, speed=speed(1e9)) == rules


def test_the_reason_can_be_asked_for_again(tmp_path: Path) -> None:
    rules = fitted_to_time(RULES, LARGE, hours=0.25, speed=speed(1e11))
    write_record(tmp_path / "planner.json", rules, "planner")
    assert read_record(tmp_path / "planner.json", Planner, "planner") == rules
    assert any(reason.quantity == "time" for reason in explain(make_plan(LARGE, rules), LARGE, rules))


def test_what_was_fitted_stays_until_another_time_is_said_or_something_is_trained(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path)
    first = fitted_to_time(RULES, SMALL, hours=0.1, speed=replace(speed(1e10), device="cpu"))
    write_record(folder.planner, first, "planner")
    for hours in (None, 0.1):
        assert rules_for_time(RULES, folder, SMALL, hours=hours, gpu_memory_gb=None, device="cpu") == first
    again = rules_for_time(RULES, folder, SMALL, hours=900, gpu_memory_gb=None, device="cpu")
    assert again.fitted is not None
    assert again.fitted.width == 1
    (tmp_path / "models/3d_fullres/fold_0").mkdir(parents=True)
    assert rules_for_time(RULES, folder, SMALL, hours=900, gpu_memory_gb=None) == first
    other = replace(RULES, training=replace(RULES.training, learning_rate=0.5))
    assert rules_for_time(other, folder, SMALL, hours=None, gpu_memory_gb=None) == other


@pytest.mark.fault("D", "plan --minutes of a work folder that was planned for the same minutes on another device", "planned for this one")
def test_what_was_fitted_for_another_device_is_fitted_again(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path)
    first = fitted_to_time(RULES, SMALL, hours=900, speed=replace(speed(1e5), device="cuda:0"))
    write_record(folder.planner, first, "planner")
    again = rules_for_time(RULES, folder, SMALL, hours=900, gpu_memory_gb=None, device="cpu").fitted
    assert first.fitted is not None
    assert again is not None
    assert (first.fitted.width, again.width, again.device) == (0.25, 1, "cpu")
    assert rules_for_time(RULES, folder, SMALL, hours=None, gpu_memory_gb=None, device="cpu") == first


def test_plan_with_minutes_writes_a_network_that_later_calls_keep(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('extends = "default"\n[time]\nleast_steps = 1_000_000_000\nleast_features = 8\n', encoding="utf-8")
    made = plan(tiny, tmp_path / "work", PlanOptions(planner=file, minutes=1))
    assert features(made.plan)[0] == 8
    assert any(reason.quantity == "time" and "width × 0.25" in reason.value for reason in made.explanations)
    assert features(plan(tiny, tmp_path / "work", PlanOptions()).plan)[0] == 8
    assert features(plan(tiny, tmp_path / "work", PlanOptions(planner="default")).plan)[0] == 32


def test_a_network_that_was_planned_without_a_time_is_pointed_out(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="medseg3d")
    for planner, minutes, is_told in (("default", None, True), ("default", 600, False), ("nnunet_plain", None, False)):
        work = tmp_path / f"{planner}_{minutes}"
        plan(tiny, work, PlanOptions(planner=planner, minutes=minutes))
        caplog.clear()
        tell_of_unplanned_time(WorkFolder(work), 0.5)
        assert ("plan --minutes 30" in caplog.text) is is_told


def features(made: Plan) -> tuple[int, ...]:
    return made.configuration(None).network.features


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25, 0.05])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (10.0, 1.5, 1.5), (0.8, 5.0, 0.7)])
def test_a_share_of_the_voxels_is_kept_and_thick_slices_go_last(spacing: Triple, share: float) -> None:
    edges = coarsened(spacing, share, 2)
    assert math.prod(spacing) / math.prod(edges) == pytest.approx(share)
    thick = spacing.index(max(spacing))
    others = [edge for axis, edge in enumerate(edges) if axis != thick]
    assert edges[thick] == pytest.approx(spacing[thick]) or edges[thick] <= 2 * 1.03 * min(others)


def test_less_resolution_leaves_thick_slices_as_they_are() -> None:
    summary = summary_of((10.0, 1.5, 1.5), (10, 256, 216), num_cases=40, **SHARES)
    rules = replace(DEFAULT, fitted=Fitted(hours=0.1, device="cpu", steps=1, resolution=0.8))
    before, after = (make_plan(summary, each).configuration("3d_fullres") for each in (DEFAULT, rules))
    assert before.spacing[0] == after.spacing[0] == 10.0
    assert math.prod(before.spacing) / math.prod(after.spacing) == pytest.approx(0.8**3)


def test_voxels_stay_where_labels_are_small_thin_in_pieces_or_unknown() -> None:
    rules = replace(RULES, time=replace(RULES.time, least_resolution=0.1))
    edge = (0.05 * 160 * 200 * 180) ** (1 / 3)
    found = coarsest_resolution(rules, LARGE)
    assert found * edge >= rules.time.least_label_edge > 0.8 * found * edge
    assert coarsest_resolution(replace(rules, time=replace(rules.time, least_resolution=1.0)), LARGE) == 1
    others = (
        replace(LARGE, class_shares=(0.9998, 0.0001, 0.0001)),
        replace(LARGE, loss_facts=replace(FACTS, components=500.0)),
        replace(LARGE, loss_facts=replace(FACTS, elongation=8.0)),
        replace(LARGE, loss_facts=replace(FACTS, elongation=None)),
        replace(LARGE, loss_facts=None),
        replace(LARGE, class_shares=None),
    )
    assert [coarsest_resolution(rules, each) for each in others] == [1.0] * len(others)


def test_a_thin_sheet_keeps_its_voxels() -> None:
    def coarsest(thickness_mm: float, spacing: Triple = (1.0, 1.0, 1.0)) -> float:
        facts = replace(FACTS, elongation=5.2, thickness_mm=thickness_mm)  # both of a sheet of 2 by 100 by 100 voxels
        return coarsest_resolution(RULES, summary_of(spacing, (160, 200, 180), num_cases=40, **{**SHARES, "loss_facts": facts}))

    assert [coarsest(thickness) for thickness in (2.0, 3.0, 3.8, 4.7, 50.0)] == pytest.approx([1, 1, 0.8, 0.64, 0.64])
    assert coarsest(6.0, (5.0, 1.0, 1.0)) < 1  # two slices that stay
    assert coarsest(2.0, (5.0, 1.0, 1.0)) == 1


@pytest.mark.parametrize("least", [0.5, 0.7])
@pytest.mark.parametrize("spacing", [(5.0, 0.8, 0.8), (3.0, 1.0, 1.0), (1.0, 1.0, 1.0)])
def test_no_axis_is_coarser_than_the_rule_says(spacing: Triple, least: float) -> None:
    summary = summary_of(spacing, (60, 300, 300), num_cases=40, **SHARES)
    rules = replace(RULES, time=replace(RULES.time, least_resolution=least))
    coarsest = coarsest_resolution(rules, summary)
    assert coarsest < 1
    before, after = (
        make_plan(summary, replace(rules, fitted=Fitted(hours=1, device="", steps=1, resolution=each))).configuration("3d_fullres").spacing
        for each in (1.0, coarsest)
    )
    assert all(b >= least * a * 0.999 for a, b in zip(after, before, strict=True))


def test_slices_that_are_planned_as_slices_stay_so() -> None:
    summary = summary_of((10.0, 1.0, 1.0), (10, 256, 256), num_cases=40, **SHARES)
    rules = fitted_to_time(RULES, summary, hours=0.01, speed=speed(1e9))
    assert rules.fitted is not None
    assert (rules.fitted.resolution, make_plan(summary, rules).recommended) == (1.0, "2d")
