"""Several scales, chosen flips and whole images: each is what its plain computation gives, and refused where it cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medseg3d.errors import InputError, UnsupportedError
from medseg3d.models import inference_mode
from medseg3d.models.inference_mode import InferenceMode, in_mode
from medseg3d.prediction import predict_case
from medseg3d.prediction.predict_case import Member, prepare_case, segment
from tests.prediction.test_predict_case import CPU, FULL, LABELS, SHAPE, member, plan_of
from tests.prediction.test_predict_case import raw as raw_case

raw = raw_case
PLAN = plan_of(FULL)


def chances(case: predict_case.RawCase, *members: Member) -> np.ndarray:
    found = np.zeros((3, *SHAPE), np.float32)
    segment(prepare_case(case, PLAN, members), members, LABELS, CPU, probabilities=found)
    return found


def test_several_scales_are_the_mean_of_each(raw: predict_case.RawCase) -> None:
    """A scale is a network that was planned for another spacing."""
    one = member(FULL, 0)
    several = in_mode([one], PLAN, InferenceMode(scales=(0.5, 1.0, 1.25)))
    spacings = [tuple(edge / scale for edge in FULL.spacing) for scale in (0.5, 1.0, 1.25)]
    alone = [chances(raw, replace(one, configuration=replace(FULL, spacing=spacing))) for spacing in spacings]
    np.testing.assert_allclose(chances(raw, *several), np.mean(alone, 0), atol=1e-6)
    assert in_mode([one], PLAN, InferenceMode(scales=(1.0,))) == (one,)


def test_flips_along_chosen_axes_are_those_of_a_plan_that_mirrors_along_them(raw: predict_case.RawCase) -> None:
    one = member(FULL, 0)
    (flipped,) = in_mode([one], PLAN, InferenceMode(flips=("R",)))
    assert flipped.configuration.mirror_axes == (2,), "the plan's order of axes is A, S, R"
    expected = chances(raw, replace(one, mirroring=True, configuration=replace(FULL, mirror_axes=(2,))))
    np.testing.assert_allclose(chances(raw, flipped), expected, atol=1e-6)
    (both,) = in_mode([one], PLAN, InferenceMode(flips=("S", "A")))
    assert both.configuration.mirror_axes == (0, 1)


def test_axes_that_are_unknown_or_were_not_mirrored_in_training_are_refused() -> None:
    with pytest.raises(InputError, match="no such axis; expected some of S, A, R"):
        in_mode([member(FULL, 0)], PLAN, InferenceMode(flips=("x",)))
    with pytest.raises(InputError, match="trained without mirroring"):
        in_mode([member(replace(FULL, mirror_axes=(0, 1)), 0)], PLAN, InferenceMode(flips=("R",)))


def test_a_whole_image_is_what_one_window_of_its_size_gives(raw: predict_case.RawCase) -> None:
    one = member(FULL, 0)
    (whole,) = in_mode([one], PLAN, InferenceMode(is_whole=True))
    large = replace(one, configuration=replace(FULL, patch_size=(40, 40, 40)))
    np.testing.assert_allclose(chances(raw, whole), chances(raw, large), atol=1e-5)
    assert not np.allclose(chances(raw, whole), chances(raw, one), atol=1e-3), "windows see less around them"


def test_an_image_that_the_memory_does_not_hold_at_once_is_refused_with_what_it_takes(
    raw: predict_case.RawCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_case, "free_bytes", lambda device: 1 << 10)
    (whole,) = in_mode([member(FULL, 0)], PLAN, InferenceMode(is_whole=True))
    with pytest.raises(MemoryError, match=r"case: the whole image at once, .* GiB are free\. Leave --whole-image out"):
        chances(raw, whole)


def test_a_network_without_padding_sees_no_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_mode, "output_size", lambda network, patch: tuple(n - 4 for n in patch))
    with pytest.raises(UnsupportedError, match="the middle of its window"):
        in_mode([member(FULL, 0)], PLAN, InferenceMode(is_whole=True))


def test_a_mode_changes_the_identity_and_the_sliding_window_does_not() -> None:
    modes = [
        InferenceMode(),
        InferenceMode(scales=(1.0,)),
        InferenceMode(scales=(1.0, 1.5)),
        InferenceMode(flips=()),
        InferenceMode(flips=("R",)),
        InferenceMode(is_whole=True),
    ]
    assert [mode.identity for mode in modes[:2]] == ["", ""]
    assert len({mode.identity for mode in modes}) == 5
