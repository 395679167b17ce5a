"""Detect, then segment: the fine network sees the box that the coarse one finds, the whole case where it finds nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg3d.axes import to_network_order
from medseg3d.data.reading import RawCase
from medseg3d.geometry import AS_STORED, geometry_of
from medseg3d.images import ImageHeader
from medseg3d.prediction.predict_case import Member, PreparedCase, locate, prepare_case, segment, segment_with_and_without_mirroring
from medseg3d.validation.box import BoxRule
from tests.prediction.test_predict_case import CPU, FULL, LABELS, LOW, Fake, plan_of

SHAPE = (28, 30, 40)
CROPPED = replace(FULL, name="3d_crop_fullres", previous_stage="3d_lowres", is_cropped=True)


class Bright(torch.nn.Module):
    """Label 1 where the image is brighter than two standard deviations."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), x - 2, torch.full_like(x, -9)], 1)


def case_with(bright: float) -> RawCase:
    image = np.random.default_rng(0).normal(100, 1, (1, *SHAPE)).astype(np.float32)
    image[:, :2] = 0  # a border that is cropped
    image[:, 11:15, 12:16, 20:28] += bright
    geometry = geometry_of(SHAPE[::-1], np.diag([0.8, 2.0, 1.0, 1.0]))
    header = ImageHeader(geometry=geometry, stored_shape=geometry.shape, format="nifti", num_volumes=1, dtype="float32", nifti=None)
    return RawCase(name="case", image=image, labels=None, spacing=(1.0, 2.0, 0.8), orientation=AS_STORED, header=header)


def cropping(rule: BoxRule) -> Member:
    first = Member(configuration=LOW, networks=(Bright(),), mirroring=False)
    return Member(configuration=CROPPED, networks=(Fake(3, 1),), mirroring=False, previous=first, box=rule)


def prepared_for(raw: RawCase, *members: Member) -> PreparedCase:
    return prepare_case(raw, plan_of(*(m.configuration for m in members), LOW), members)


def test_everything_beyond_the_box_is_background_and_the_foreground_lies_within() -> None:
    one = cropping(BoxRule(margin_mm=3.0, min_share=0.0))
    located = locate(prepared_for(case_with(60.0), one), [one], LABELS, CPU)
    assert located.notes == ()
    box = located.images[CROPPED.name].restoration.box
    inside = np.zeros(SHAPE, bool)
    to_network_order(inside, (1, 0, 2))[tuple(slice(*edge) for edge in box)] = True
    assert inside[8:18, 11:17, 17:31].all(), "the bright block with three millimeters around it"
    assert inside.mean() < 0.4
    labels = segment(located, [one], LABELS, CPU)
    assert not labels[~inside].any()
    assert len(np.unique(labels[inside])) == 3
    assert np.array_equal(labels, segment(prepared_for(case_with(60.0), one), [one], LABELS, CPU)), "asked for or not"


def test_a_case_where_nothing_is_found_is_segmented_as_if_there_were_no_first_stage(caplog: pytest.LogCaptureFixture) -> None:
    one, plain = cropping(BoxRule(margin_mm=3.0, min_share=0.0)), Member(configuration=FULL, networks=(Fake(3, 1),), mirroring=False)
    raw = case_with(0.0)
    raw.image[raw.image > 0] = 100 + np.sign(raw.image[raw.image > 0] - 100)  # no voxel beyond two standard deviations
    located = locate(prepared_for(raw, one), [one], LABELS, CPU)
    assert located.notes == ("3d_lowres found nothing, so 3d_crop_fullres saw the whole case",)
    assert f"case: {located.notes[0]}." in caplog.text
    assert np.array_equal(segment(located, [one], LABELS, CPU), segment(prepared_for(raw, plain), [plain], LABELS, CPU))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_ensemble_with_the_plain_way_is_the_mean_of_both(order: tuple[int, int]) -> None:
    """Beyond the box the crop cascade is sure of the background."""
    both = [cropping(BoxRule(margin_mm=3.0, min_share=0.0)), Member(configuration=FULL, networks=(Fake(3, 2),), mirroring=False)]
    members = [both[place] for place in order]
    raw = case_with(60.0)

    def chances(*chosen: Member) -> np.ndarray:
        found = np.zeros((3, *SHAPE), np.float32)
        labels = segment(prepared_for(raw, *chosen), chosen, LABELS, CPU, probabilities=found)
        assert np.array_equal(labels, segment(prepared_for(raw, *chosen), chosen, LABELS, CPU))
        return found

    np.testing.assert_allclose(chances(*members), (chances(members[0]) + chances(members[1])) / 2, atol=1e-6)


def test_both_ways_of_mirroring_see_the_same_box() -> None:
    one = cropping(BoxRule(margin_mm=3.0, min_share=0.0))
    _, plain = segment_with_and_without_mirroring(prepared_for(case_with(60.0), one), one, LABELS, CPU)
    assert np.array_equal(plain, segment(prepared_for(case_with(60.0), one), [one], LABELS, CPU))
