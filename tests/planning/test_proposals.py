"""Every preset has an opinion with a reason, and each fact of a dataset moves the opinions that it should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from medseg3d.planning import make_plan
from medseg3d.planning.loss_rules import LossFacts
from medseg3d.planning.planner import load_planner, planner_names
from medseg3d.planning.proposals import FEW_CASES, MANY_CASES, RULES, Facts, facts_of, opinions
from tests.planning.test_candidates import summary_of

ORDINARY = Facts(
    cases=50,
    labels=3,
    gpu_memory_gb=8,
    thickness=1.0,
    is_isotropic=True,
    smallest_edge=30.0,
    foreground_share=0.1,
    label_volume_ratio=5.0,
    elongation=2.5,
    lacks_context=False,
    on_gpu=True,
)


def proposed(**changes: Any) -> set[str]:
    return {name for name, opinion in opinions(replace(ORDINARY, **changes)).items() if opinion.is_proposed}


def test_every_preset_is_judged_or_judged_elsewhere() -> None:
    assert set(RULES) == set(planner_names()) - {"default", "universal"}


def test_nothing_is_proposed_beside_the_default_for_an_ordinary_dataset() -> None:
    assert proposed() == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cases": FEW_CASES - 1}, {"u2net"}),
        ({"cases": MANY_CASES}, {"residual_m"}),
        ({"cases": MANY_CASES, "gpu_memory_gb": 24.0}, {"residual_l", "mednext"}),
        ({"cases": MANY_CASES, "gpu_memory_gb": 40.0, "is_isotropic": False}, {"residual_xl"}),
        ({"cases": MANY_CASES, "lacks_context": True}, {"residual_m", "transunet", "deeplab_v3"}),
        (
            {"cases": MANY_CASES, "lacks_context": True, "gpu_memory_gb": 24.0},
            {"residual_l", "transunet", "deeplab_v3", "mednext", "swinunetr"},
        ),
        ({"gpu_memory_gb": 4.0}, {"small"}),
        ({"on_gpu": False}, {"small"}),
        ({"elongation": 9.0}, {"unet_plus_plus"}),
        ({"label_volume_ratio": 200.0}, {"unet_plus_plus"}),
        ({"foreground_share": 0.002}, {"attention_unet"}),
        ({"labels": 1}, {"vnet_batch_norm"}),
        ({"labels": 1, "is_isotropic": False, "thickness": 8.0}, set()),
        ({"real_time": True}, {"unet_plus_plus", "fast_scnn", "espnet"}),
        ({"real_time": True, "smallest_edge": 5.0}, {"unet_plus_plus"}),
        ({"real_time": True, "elongation": 9.0}, {"unet_plus_plus"}),
        ({"real_time": True, "smallest_edge": None}, {"unet_plus_plus"}),
        ({"real_time": True, "thinnest": 2.0}, {"unet_plus_plus"}),
        ({"real_time": True, "thinnest": 13.2}, {"unet_plus_plus", "fast_scnn", "espnet"}),
        ({"lacks_context": True, "smallest_edge": 5.0}, set()),
    ],
)
def test_a_fact_proposes_what_suits_it(changes: dict[str, Any], expected: set[str]) -> None:
    assert proposed(**changes) == expected


def test_reasons_say_what_was_found() -> None:
    found = opinions(replace(ORDINARY, cases=12, real_time=True, smallest_edge=5.0, is_isotropic=False, thickness=6.4))
    assert found["u2net"].reason.startswith("12 training cases are few")
    sheet = opinions(replace(ORDINARY, real_time=True, smallest_edge=27.0, thinnest=2.0))["fast_scnn"].reason
    assert "where a label of 2.0 voxels of thickness is lost" in sheet
    assert "the smallest label is 5 voxels wide, below 16" in found["fast_scnn"].reason
    assert "slices are 6.4 times as thick" in found["segresnet"].reason


def test_facts_are_those_of_the_fingerprint_and_of_the_default_plan() -> None:
    loss = LossFacts(foreground_share=0.02, label_volume_ratio=8.0, absent_share=0.0, elongation=3.0)
    summary = replace(summary_of(), class_shares=(0.98, 0.016, 0.004), loss_facts=loss)
    facts = facts_of(summary, make_plan(summary, load_planner("default")), gpu_memory_gb=8)
    assert facts.smallest_edge == pytest.approx((0.004 * 36 * 50 * 35) ** (1 / 3))
    assert (facts.cases, facts.labels, facts.thickness, facts.is_isotropic) == (20, 2, 1.0, True)
    assert (facts.foreground_share, facts.label_volume_ratio, facts.elongation) == (0.02, 8.0, 3.0)
    unknown = facts_of(summary_of(), make_plan(summary_of(), load_planner("default")), gpu_memory_gb=8)
    assert (unknown.smallest_edge, unknown.foreground_share) == (None, None)
    assert not unknown.bears_coarse_logits


def test_a_label_is_as_thin_as_measured_unless_that_may_be_the_thickness_of_a_slice() -> None:
    loss = LossFacts(foreground_share=0.02, label_volume_ratio=8.0, absent_share=0.0, elongation=3.0, thickness_mm=5.0)
    for spacing, shape, expected in (((1.0, 1.0, 1.0), (64, 64, 64), 5.0), ((5.0, 1.0, 1.0), (20, 128, 128), None)):
        summary = replace(summary_of(spacing=spacing, shape=shape), class_shares=(0.98, 0.016, 0.004), loss_facts=loss)
        facts = facts_of(summary, make_plan(summary, load_planner("default")), gpu_memory_gb=8)
        assert (facts.thinnest, facts.is_sheet) == (expected, expected is not None)


def test_a_dataset_of_single_slices_has_facts_as_well() -> None:
    summary = replace(summary_of(shape=(1, 96, 96)), class_shares=(0.9, 0.1, 0.0))
    facts = facts_of(summary, make_plan(summary, load_planner("default")), gpu_memory_gb=8)
    assert facts.smallest_edge == pytest.approx((0.1 * 96 * 96) ** 0.5)
    assert not facts.is_isotropic
    assert opinions(facts)["swinunetr"].reason.startswith("halves all axes alike")
