"""A crop cascade is proposed where the foreground is a small part of the cases, and its detector sees a case at a glance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medseg3d.planning import explained_plan, load_planner, make_plan
from medseg3d.planning.crop import CROPPED, DETECTOR
from medseg3d.planning.summary import FocusFacts
from tests.planning.test_make_plan import summary_of

DEFAULT = load_planner("default")
LARGE = summary_of((1.0, 1.0, 1.0), (300, 512, 512), num_cases=40)
SMALL_PART = FocusFacts(foreground_share=0.01, box_share=0.03, box_mm=(80.0, 160.0, 180.0))


def test_the_detector_sees_a_case_with_the_voxels_of_a_patch_and_the_fine_network_only_the_box() -> None:
    plan = make_plan(replace(LARGE, focus=SMALL_PART), DEFAULT)
    detector, cropped, fullres = (plan.configurations[name] for name in (DETECTOR, CROPPED, "3d_fullres"))
    assert plan.stages_of(CROPPED) == (CROPPED, DETECTOR)
    assert cropped.is_cropped
    assert not detector.is_cropped
    assert cropped.data == fullres.data, "both read the same preprocessed cases"
    assert cropped.network.in_channels == fullres.network.in_channels
    assert np.prod(detector.median_shape) <= np.prod(fullres.patch_size) * 1.1
    assert all(edge / spacing >= DEFAULT.crop.detector_edge for edge, spacing in zip((80, 160, 180), detector.spacing, strict=True))
    assert cropped.median_shape == (96.0, 192.0, 216.0), "a tenth of margin on either side"
    assert plan.recommended == "3d_fullres"
    assert any(CROPPED in note and "medseg3d run -c" in note for note in plan.notes)


def test_a_structure_that_is_thin_at_coarse_resolution_keeps_its_voxels() -> None:
    thin = replace(SMALL_PART, box_mm=(8.0, 160.0, 180.0))
    detector = make_plan(replace(LARGE, focus=thin), DEFAULT).configurations[DETECTOR]
    assert max(detector.spacing) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("focus", "words"),
    [
        (replace(SMALL_PART, foreground_share=0.2, box_share=0.3), "foreground is 20.0%"),
        (replace(SMALL_PART, box_share=0.8), "box of the foreground is 80%"),
        (None, "does not tell the box"),
    ],
)
def test_where_little_would_be_left_out_none_is_proposed_and_the_reason_says_why(focus: FocusFacts | None, words: str) -> None:
    decided = explained_plan(replace(LARGE, focus=focus), DEFAULT)
    assert CROPPED not in decided.value.configurations
    (reason,) = [reason for reason in decided.reasons if reason.quantity == "crop cascade"]
    assert reason.value == "not planned"
    assert words in reason.inputs.replace("The", "the", 1) or words in reason.inputs


def test_a_planner_may_recommend_the_cascades_that_are_planned() -> None:
    wanting = replace(DEFAULT, recommend=replace(DEFAULT.recommend, cascades=True))
    assert make_plan(replace(LARGE, focus=SMALL_PART), wanting).recommended == CROPPED
    plan = make_plan(LARGE, wanting)
    assert plan.recommended == "3d_cascade_fullres"
    assert "recommend.cascades" in plan.recommended_reason
    assert make_plan(summary_of(), wanting).recommended == "3d_fullres"


def test_small_cases_and_the_presets_of_nnunet_have_none() -> None:
    assert CROPPED not in make_plan(replace(summary_of(), focus=SMALL_PART), DEFAULT).configurations
    assert CROPPED not in make_plan(replace(LARGE, focus=SMALL_PART), load_planner("nnunet_plain")).configurations
