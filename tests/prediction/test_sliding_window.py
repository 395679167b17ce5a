"""The sliding window against what must hold for any shape, window and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.devices import Device
from medseg3d.errors import NotFiniteError
from medseg3d.patches.sampling import reflected
from medseg3d.prediction import sliding_window
from medseg3d.prediction.mirroring import mean_over_flips
from medseg3d.prediction.sliding_window import importance_map, predict_logits, window_starts

CPU = Device(device=torch.device("cpu"), precision="float32")
sizes = st.integers(1, 23)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(sizes, sizes, sizes), st.tuples(*(st.integers(1, 12),) * 3), st.sampled_from([0.25, 0.5, 1.0]), st.sampled_from([(), (0, 2)])
)
def test_an_identity_network_returns_the_image(
    shape: tuple[int, ...], window: tuple[int, ...], step: float, mirror_axes: tuple[int, ...]
) -> None:
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    logits = predict_logits([torch.nn.Identity()], image, case="x", window=window, device=CPU, step=step, mirror_axes=mirror_axes)
    assert torch.allclose(logits, image, atol=1e-5)
    assert torch.equal(image, before)


@settings(max_examples=20, deadline=None)
@given(st.tuples(sizes, sizes, sizes), st.tuples(*(st.integers(1, 12),) * 2))
def test_an_identity_network_in_2d_returns_the_image(shape: tuple[int, ...], window: tuple[int, ...]) -> None:
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    logits = predict_logits([torch.nn.Identity()], image, case="x", window=window, device=CPU, mirror_axes=(0, 1))
    assert torch.allclose(logits, image, atol=1e-5)


@given(st.integers(1, 300), st.integers(1, 200), st.floats(0.1, 1.0))
def test_windows_cover_every_voxel_and_stay_inside(size: int, window: int, step: float) -> None:
    starts = window_starts(size, window, step)
    covered = {voxel for start in starts for voxel in range(start, start + window)}
    assert covered >= set(range(size))
    assert starts[0] == 0
    assert starts[-1] + window <= max(size, window)


def test_folds_are_averaged() -> None:
    image = torch.ones(1, 8, 8, 8)
    networks = [torch.nn.Identity(), lambda x: 3 * x]
    assert torch.allclose(predict_logits(networks, image, case="x", window=(8, 8, 8), device=CPU), 2 * image)  # type: ignore[arg-type]


def test_mirroring_turns_the_logits_back() -> None:
    batch = torch.randn(1, 1, 4, 5, 6)
    assert torch.allclose(mean_over_flips(lambda x: 2 * x, batch, (0, 1, 2)), 2 * batch)


def test_weights_are_highest_in_the_middle_and_never_zero() -> None:
    weights = importance_map((16, 20, 24))
    assert weights.min() > 0
    assert weights[8, 10, 12] == weights.max() == 1


def test_nan_logits_name_the_case() -> None:
    with pytest.raises(NotFiniteError, match="case_7"):
        predict_logits([lambda x: x * float("nan")], torch.ones(1, 4, 4, 4), case="case_7", window=(4, 4, 4), device=CPU)  # type: ignore[list-item]


def test_logits_that_the_device_cannot_hold_are_added_up_in_main_memory(monkeypatch, caplog) -> None:
    image = torch.randn(1, 9, 8, 7)
    expected = predict_logits([torch.nn.Identity()], image, case="x", window=(4, 4, 4), device=CPU)
    inner, calls = sliding_window._predict_logits, []

    def full(*arguments, **options):
        calls.append(options["results"])
        if len(calls) == 1:
            raise torch.OutOfMemoryError("full")
        return inner(*arguments, **options)

    monkeypatch.setattr(sliding_window, "_predict_logits", full)
    found = predict_logits([torch.nn.Identity()], image, case="scan_7", window=(4, 4, 4), device=CPU)
    assert torch.equal(found, expected)
    assert calls == [torch.device("cpu")] * 2
    assert "scan_7" in caplog.text


def test_windows_that_the_device_cannot_hold_are_a_memory_error(monkeypatch) -> None:
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(sliding_window, "_predict_logits", full)
    with pytest.raises(MemoryError, match="scan_7"):
        predict_logits([torch.nn.Identity()], torch.zeros(1, 4, 4, 4), case="scan_7", window=(4, 4, 4), device=CPU)


@pytest.mark.parametrize("shape", [(9, 14, 11), (3, 5, 20), (1, 7, 6)])
@pytest.mark.parametrize("step", [0.5, 1.0])
def test_overlap_tile_is_one_pass_over_the_mirrored_image(shape: tuple[int, int, int], step: float) -> None:
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    blur = torch.nn.Conv3d(1, 2, (3, 5, 3), bias=False)  # unpadded: loses 1, 2 and 1 voxels on each side
    window, output = (6, 10, 8), (4, 6, 6)
    found = predict_logits([blur], image, case="x", window=window, output=output, device=CPU, step=step)
    mirrored = image.numpy()[0]
    for axis, margin in enumerate((1, 2, 1)):
        mirrored = np.take(mirrored, reflected(-margin, shape[axis] + 2 * margin, shape[axis]), axis)
    with torch.no_grad():
        expected = blur(torch.from_numpy(mirrored)[None, None])[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_overlap_tile_goes_slice_by_slice_with_a_2d_network() -> None:
    image = torch.randn(1, 3, 9, 12)
    conv = torch.nn.Conv2d(1, 2, 3, bias=False)
    found = predict_logits([conv], image, case="x", window=(6, 6), output=(4, 4), device=CPU)
    with torch.no_grad():
        padded = torch.nn.functional.pad(image[0][:, None], (1, 1, 1, 1), mode="reflect")
        expected = conv(padded).movedim(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
