"""Windows that hold nothing: what validation says of them, and that leaving them out changes no label."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.commandline.cli import main
from medseg3d.devices import Device
from medseg3d.models.loading import load_model
from medseg3d.prediction import sliding_window
from medseg3d.prediction.empty_windows import MARGIN, Skipping, Survey
from medseg3d.prediction.sliding_window import stream_logits
from medseg3d.records import read_record
from medseg3d.validation.empty_window_record import EmptyWindows, combined

CPU = Device(device=torch.device("cpu"), precision="float32")


class Brighter(torch.nn.Module):
    """Class 1 where the first channel exceeds ``threshold``, with a margin that is the voxel's; counts its calls."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold, self.calls = threshold, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        over = x[:, :1] - self.threshold
        return torch.cat([-over, over], 1)


def logits_of(network: torch.nn.Module, image: torch.Tensor, at_once: int = 1, **changes: object) -> torch.Tensor:
    with patch.object(sliding_window, "_windows_at_once", return_value=at_once):  # many of these small windows fit otherwise
        slabs = stream_logits([network], image, case="x", window=(8, 8, 8), device=CPU, **changes)  # type: ignore[arg-type]
        return torch.cat([slab.clone() for slab in slabs], 1)


def labels_of(network: torch.nn.Module, image: torch.Tensor, at_once: int = 1, **changes: object) -> torch.Tensor:
    return logits_of(network, image, at_once, **changes).argmax(0)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*(st.integers(8, 40),) * 3), st.floats(-3, 1), st.integers(0, 1000), st.sampled_from([0.5, 1.0]), st.sampled_from([1, 4]))
def test_labels_are_those_of_all_windows(shape: tuple[int, ...], level: float, seed: int, step: float, at_once: int) -> None:
    source = torch.Generator().manual_seed(seed)
    image = torch.randn(1, *shape, generator=source) * 0.1 - 2
    corner = [int(torch.randint(0, n, (), generator=source)) for n in shape]
    image[(0, *(slice(c, c + 6) for c in corner))] = 2
    skipping = Skipping(level=level, is_regions=False)
    expected = labels_of(Brighter(1.0), image, step=step)
    assert torch.equal(labels_of(Brighter(1.0), image, at_once, step=step, skipping=skipping), expected)


@pytest.mark.parametrize(("at_once", "calls", "skipped"), [(1, 2, 62), (4, 2, 59)])
def test_the_network_sees_an_empty_window_and_those_with_something(
    at_once: int, calls: int, skipped: int, caplog: pytest.LogCaptureFixture
) -> None:
    image = torch.full((1, 32, 32, 32), -2.0)
    image[0, 16:20, :4, 8:12] = 2
    network = Brighter(1.0)
    with caplog.at_level(logging.INFO, logger="medseg3d"):
        labels = labels_of(network, image, at_once, step=1.0, skipping=Skipping(level=0.0, is_regions=False))
    assert network.calls == calls  # the first windows, and those that are not empty alone
    assert int(labels.sum()) == 64
    assert f"{skipped} of 64 windows left out as empty" in caplog.text


def test_an_image_that_is_dark_all_over_is_predicted_whole() -> None:
    network = Brighter(1.0)
    labels_of(network, torch.full((1, 32, 8, 8), -2.0), skipping=Skipping(level=0.0, is_regions=False))
    assert network.calls == 7


@pytest.mark.parametrize("is_regions", [False, True])
def test_windows_in_which_the_network_finds_something_are_not_left_out(is_regions: bool) -> None:
    image = torch.randn(1, 24, 24, 24, generator=torch.Generator().manual_seed(0)) - 5
    image[0, -1, -1, -1] = 1
    network, every = Brighter(-5.0), Brighter(-5.0)  # it finds what is darker than the level
    found = labels_of(network, image, skipping=Skipping(level=0.0, is_regions=is_regions))
    assert torch.equal(found, labels_of(every, image))
    assert every.calls > 100
    assert network.calls == every.calls


def test_probabilities_and_neighbours_get_what_the_network_says_of_an_empty_window() -> None:
    image = torch.full((1, 32, 8, 8), -2.0)
    image[0, -1, -1, -1] = 0.5
    logits = logits_of(Brighter(1.0), image, skipping=Skipping(level=0.0, is_regions=False))
    assert torch.allclose(logits[0, :20], torch.tensor(3.0), atol=1e-5)
    assert torch.allclose(logits[1, :20], torch.tensor(-3.0), atol=1e-5)


def window(found: int) -> torch.Tensor:
    """Logits of one window of 2×5 voxels, ``found`` of them with class 1."""
    logits = torch.zeros(1, 2, 2, 5)
    logits[0, 1] = -1
    logits[0, 1].view(-1)[:found] = 1
    return logits


def test_the_level_lies_below_the_darkest_window_with_a_label_and_is_tried_without_the_case() -> None:
    survey = Survey(is_regions=False)
    for case, darkest in (("a", 5.0), ("b", 4.0), ("c", 2.5), ("d", 6.0), ("e", 7.0)):
        survey.add(case, survey.seen([darkest, 9.0], [torch.cat([window(2), window(1)])]))
        survey.add(case, survey.seen([0.5], [window(0)]))
    result = survey.result()
    assert result.level == 2.5 - MARGIN
    assert result.windows == 15
    assert not result.is_safe
    assert replace(result, agreement=1.0).is_safe
    assert not replace(result, agreement=None).is_safe
    # without c the level is 3, and c's window at 2.5 with two labelled voxels of ten would have been lost
    assert result.empty == 6
    assert result.agreement == pytest.approx(1 - 2 / 60)
    assert "6 of 15 windows" in str(result)
    assert "96.667 %" in str(result)


def test_what_is_found_without_mirroring_counts_as_well() -> None:
    assert Survey(is_regions=False).seen([1.0], [window(0), window(3)]) == [(1.0, 3, 10)]


def test_too_few_cases_or_no_label_at_all_give_no_level() -> None:
    survey = Survey(is_regions=True)
    for case in "abcd":
        survey.add(case, survey.seen([5.0], [torch.ones(1, 1, 2, 5)]))
    assert survey.result() == EmptyWindows(level=None, windows=4, empty=0, agreement=None)
    for case in "efghi":
        survey.add(case, survey.seen([1.0], [-torch.ones(1, 1, 2, 5)]))
    assert survey.result().level is None


def test_folds_are_combined_cautiously() -> None:
    first = EmptyWindows(level=1.0, windows=10, empty=4, agreement=1.0)
    second = EmptyWindows(level=0.5, windows=10, empty=1, agreement=0.5)
    assert combined([first, second]) == EmptyWindows(level=0.5, windows=20, empty=5, agreement=0.9)
    unknown = EmptyWindows(level=None, windows=10, empty=0, agreement=None)
    both = combined([first, unknown])
    assert both is not None
    assert both.level is None
    assert combined([first, None]) is None
    assert combined([]) is None


def test_validation_writes_what_it_saw_and_prediction_follows_it(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = trained / "medseg3d-work"
    record = work / "models/3d_fullres/fold_0/validation/windows.json"
    seen = read_record(record, EmptyWindows, "empty windows")
    assert seen.windows > 0
    assert seen.level is None  # two cases are too few
    words = ["predict", str(trained), "-i", str(trained / "imagesTs"), "--device", "cpu", "--skip-empty"]
    assert main([*words, "-o", str(tmp_path / "all")]) == 0
    assert "held no windows that were known to be empty" in caplog.text
    before = record.read_text(encoding="utf-8")
    try:
        document = json.loads(before)
        record.write_text(json.dumps({**document, "level": 1000.0}), encoding="utf-8")
        assert load_model(work, skip_empty=True, device="cpu").members[0].skipping is None, "no window was ever seen to be empty"
        every_window = {**document, "level": 1000.0, "empty": 3, "agreement": 1.0}  # is dark
        record.write_text(json.dumps(every_window), encoding="utf-8")
        assert main([*words, "-o", str(tmp_path / "skipped")]) == 0
        assert "windows darker than 1e+03 are left out as empty" in caplog.text
        assert main([*words[:-1], "-o", str(tmp_path / "skipped")]) == 2  # made with another setting
        assert load_model(work, skip_empty=True, device="cpu").identity != load_model(work, device="cpu").identity
        record.write_text(json.dumps({**document, "level": 1000.0, "empty": 3, "agreement": 0.99}), encoding="utf-8")
        assert load_model(work, skip_empty=True, device="cpu").identity == load_model(work, device="cpu").identity
        assert "would not have been safe: dark windows were 3 of" in caplog.text
        origin = work / "models/3d_fullres/fold_0/validation/origin.json"
        made_from = origin.read_text(encoding="utf-8")
        origin.unlink()  # an older version's: the time alone tells
        os.utime(record, (0, 0))  # before the weights
        caplog.clear()
        assert load_model(work, skip_empty=True, device="cpu").members[0].skipping is None
        assert "held no windows" in caplog.text
        origin.write_text(made_from, encoding="utf-8")
    finally:
        record.write_text(before, encoding="utf-8")
    for file in (tmp_path / "all").glob("*.nii.gz"):  # one window each, and the network finds something in it
        other = np.asarray(nibabel.load(tmp_path / "skipped" / file.name).dataobj)
        assert np.array_equal(np.asarray(nibabel.load(file).dataobj), other)
