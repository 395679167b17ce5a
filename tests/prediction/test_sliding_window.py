"""The sliding window against what must hold for any shape, window and step."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d import devices
from medseg3d.devices import Device
from medseg3d.errors import InputError, NotFiniteError
from medseg3d.patches.sampling import reflected
from medseg3d.prediction import sliding_window
from medseg3d.prediction.mirroring import flipped_logits
from medseg3d.prediction.sliding_window import SlidingWindow, axis_weights, copied_to_host, stream_logits, window_starts

CPU = Device(device=torch.device("cpu"), precision="float32")
sizes = st.integers(1, 23)


def predict_logits(networks, image: torch.Tensor, **options) -> torch.Tensor:
    """The slabs in one tensor."""
    return torch.cat([copied_to_host(slab) for slab in stream_logits(networks, image, **options)], 1)


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


@settings(deadline=None)
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
    assert torch.allclose(predict_logits(networks, image, case="x", window=(8, 8, 8), device=CPU), 2 * image)


def test_mirroring_turns_the_logits_back() -> None:
    batch = torch.randn(1, 1, 4, 5, 6)
    found = list(flipped_logits(lambda x: 2 * x, batch, (0, 1, 2)))
    assert len(found) == 8
    assert all(torch.equal(logits, 2 * batch) for logits in found)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 24), st.floats(0.1, 1.0))
def test_the_weights_of_all_windows_sum_to_one_everywhere(size: int, window: int, step: float) -> None:
    size = max(size, window)
    total = torch.zeros(size)
    for start, weights in axis_weights(size, window, window_starts(size, window, step)).items():
        assert weights.min() > 0
        total[start : start + window] += weights
    torch.testing.assert_close(total, torch.ones(size))


def test_weights_are_gaussians_of_an_eighth_of_the_window_before_they_are_divided() -> None:
    first, second = axis_weights(24, 16, (0, 8)).values()
    ratio = first[8:] / second[:8]
    places = torch.arange(8.0)
    expected = torch.exp(-0.5 * ((places / 2) ** 2 - ((places - 8) / 2) ** 2))
    torch.testing.assert_close(ratio, expected, rtol=1e-4, atol=0)


def test_nan_logits_name_the_case() -> None:
    with pytest.raises(NotFiniteError, match="case_7"):
        predict_logits([lambda x: x * float("nan")], torch.ones(1, 4, 4, 4), case="case_7", window=(4, 4, 4), device=CPU)


class Full(torch.nn.Module):
    """Doubles its input; out of memory for more than ``most`` windows, and ``failures`` times for any."""

    def __init__(self, most: int = 99, failures: int = 0) -> None:
        super().__init__()
        self.most, self.failures, self.batches = most, failures, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most or self.failures > 0:
            self.failures -= 1
            raise torch.OutOfMemoryError("full")
        self.batches.append(len(x))
        return 2 * x


@pytest.mark.parametrize("most", [1, 2, 3, 5, 9])
def test_fewer_windows_at_once_give_the_same_where_memory_is_short(most: int, caplog: pytest.LogCaptureFixture) -> None:
    image = torch.randn(2, 19, 8, 7)
    network = Full(most)
    with caplog.at_level("INFO"):
        found = predict_logits([network], image, case="scan_7", window=(4, 4, 4), device=CPU, windows_at_once=16)
    torch.testing.assert_close(found, 2 * image, rtol=1e-5, atol=1e-5)
    assert max(network.batches) <= most
    assert "scan_7" in caplog.text


def test_the_sums_move_to_main_memory_then_the_networks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The device ``meta`` stands for a GPU; nothing is computed on it, as everything there is out of memory."""
    monkeypatch.setattr(torch.Tensor, "to", moving_nothing_to_meta(torch.Tensor.to))
    network = Full(failures=2)
    image = torch.randn(1, 9, 8, 7)
    meta = Elsewhere(device=torch.device("meta"), precision="float32")
    found = predict_logits([network], image, case="scan_7", window=(4, 4, 4), device=meta, windows_at_once=1)
    torch.testing.assert_close(found, 2 * image, rtol=1e-5, atol=1e-5)
    assert "main memory" in caplog.text
    assert "going on without it" in caplog.text


def test_a_gpu_without_memory_waits_for_the_image_that_is_resampled_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "to", moving_nothing_to_meta(torch.Tensor.to))
    monkeypatch.setattr(devices, "GPU_TYPES", ("meta",))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(sliding_window, "free_bytes", lambda device: 2**30)
    waited = []

    class Watched:
        def __enter__(self) -> None:
            waited.append(True)

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(sliding_window, "RESAMPLING_ON_GPU", Watched())
    meta = Elsewhere(device=torch.device("meta"), precision="float32")
    network = Full(failures=1)
    place = sliding_window._Place([network], meta, 4)
    place.fall_back(None, "x")
    assert (waited, place.per_batch) == ([True], 4)  # once as before
    place.fall_back(None, "x")
    assert (waited, place.per_batch) == ([True], 2)
    place.has_waited = False  # after windows that fitted
    place.fall_back(None, "x")
    assert (len(waited), place.per_batch) == (2, 2)


@pytest.mark.parametrize(
    "words",
    [
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_libraries_that_lack_memory_are_understood(words: str) -> None:
    assert devices.is_out_of_memory(RuntimeError(words))
    assert not devices.is_out_of_memory(ValueError(words))


def test_slabs_are_copied_whole() -> None:
    slab = torch.randn(3, 6, 7, 8)[:, 1:4, :, 2:5]
    copy = copied_to_host(slab)
    assert torch.equal(copy, slab)
    assert copy.is_contiguous()
    slab.zero_()
    assert copy.abs().max() > 0


class Elsewhere(Device):
    """A device that autocast does not know."""

    def autocast(self):  # type: ignore[no-untyped-def]
        return nullcontext()


def moving_nothing_to_meta(to):  # type: ignore[no-untyped-def]
    def same(tensor, *arguments, **options):  # type: ignore[no-untyped-def]
        return tensor if arguments and arguments[0] == torch.device("meta") else to(tensor, *arguments, **options)

    return same


def test_windows_that_main_memory_cannot_hold_are_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="scan_7"):
        predict_logits([Full(0)], torch.zeros(1, 4, 4, 4), case="scan_7", window=(4, 4, 4), device=CPU)


def test_main_memory_that_is_full_is_recognized_by_its_words() -> None:
    """torch has no error of its own for it."""

    def full(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    with pytest.raises(MemoryError, match="scan_7"):
        predict_logits([full], torch.zeros(1, 4, 4, 4), case="scan_7", window=(4, 4, 4), device=CPU)


def test_other_errors_of_a_network_surface_as_they_are() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        predict_logits([broken], torch.zeros(1, 4, 4, 4), case="x", window=(4, 4, 4), device=CPU)


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 40), sizes, sizes), st.integers(1, 12), st.sampled_from([2, 3]), st.sampled_from([0.3, 0.5, 1.0]))
def test_slabs_are_consecutive_rows_and_few_are_held(shape: tuple[int, ...], edge: int, dimensions: int, step: float) -> None:
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    window = (edge,) * dimensions
    held: list[int] = []
    make = sliding_window._Sums.for_tiles
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sliding_window._Sums, "for_tiles", staticmethod(lambda *a: held.append(0) or (s := make(*a), held.append(s.values.shape[1]))[0])
        )
        streamed = stream_logits([torch.nn.Identity()], image, case="x", window=window, device=CPU, step=step, windows_at_once=1)
        slabs = [slab.clone() for slab in streamed]
    torch.testing.assert_close(torch.cat(slabs, 1), image, rtol=1e-5, atol=1e-5)
    assert max(held) <= (edge if dimensions == 3 else 1)


def test_a_copy_in_main_memory_stays_when_the_slab_changes() -> None:
    slab = torch.ones(2, 6, 4, 5)[:, ::2]
    copy = copied_to_host(slab)
    slab.zero_()
    assert (copy == 1).all()
    assert copy.is_contiguous()


def test_logits_without_mirroring_come_beside_those_with_it() -> None:
    image = torch.randn(1, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    shift = torch.nn.Conv3d(1, 2, 3, padding=1)  # not symmetric
    options = {"case": "x", "window": (4, 8, 4), "device": CPU}
    both = torch.cat(
        [s.clone() for s in stream_logits([shift, shift], image, **options, mirror_axes=(0, 2), with_unmirrored=True)], 1  # type: ignore[arg-type]
    )  # fmt: skip
    torch.testing.assert_close(both[:2], predict_logits([shift], image, **options, mirror_axes=(0, 2)))
    torch.testing.assert_close(both[2:], predict_logits([shift], image, **options))


@pytest.mark.parametrize("scale", [1.0, 3e4])
def test_sums_in_half_precision_round_and_never_overflow(scale: float) -> None:
    image = scale * torch.randn(1, 17, 9, 9, generator=torch.Generator().manual_seed(0))
    slabs = stream_logits([torch.nn.Identity()], image, case="x", window=(8, 8, 8), device=CPU, max_bytes=0)
    found = torch.cat([slab.float() for slab in slabs], 1)
    torch.testing.assert_close(found, image, rtol=4e-3, atol=4e-3 * scale)
    first = next(stream_logits([torch.nn.Identity()], image, case="x", window=(8, 8, 8), device=CPU, max_bytes=0))
    assert first.dtype == (torch.float16 if scale == 1 else torch.float32)


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


@pytest.mark.parametrize("window", [(4, 6, 5), (6, 5)])
def test_a_sliding_window_gives_the_logits_that_prediction_gives(window: tuple[int, ...]) -> None:
    image = torch.randn(1, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    conv = torch.nn.Conv3d if len(window) == 3 else torch.nn.Conv2d
    network = torch.nn.Sequential(conv(1, 2, 3, padding=1), torch.nn.Dropout(0.5))
    found = SlidingWindow(window=window, overlap=0.25, mirror_axes=(1,))(network.train(), image)
    assert network.training
    expected = predict_logits([network.eval()], image, case="x", window=window, device=CPU, step=0.75, mirror_axes=(1,))
    assert torch.equal(found, expected)


def test_a_sliding_window_refuses_an_overlap_that_never_ends() -> None:
    with pytest.raises(InputError, match=r"overlap is 1\.0, expected a share of the window from 0 to below 1"):
        SlidingWindow(window=(4, 4, 4), overlap=1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"window": (0, 8, 8)}, r"window is \(0, 8, 8\), expected two or three whole numbers above 0"),
        ({"window": (8,)}, "window is"),
        ({"window": 8}, "window is 8"),
        ({"window": (8, 8, 8.5)}, "window is"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"overlap": float("nan")}, "overlap is nan"),
        ({"overlap": "half"}, "overlap is half"),
        ({"mirror_axes": (3,)}, r"mirror_axes are \(3,\), expected axes of the window"),
        ({"mirror_axes": (-1,)}, "mirror_axes are"),
        ({"output": (9, 8, 8)}, r"output is \(9, 8, 8\), expected a middle part of the window"),
        ({"output": (8, 8)}, "output is"),
    ],
)
def test_a_sliding_window_that_cannot_be_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SlidingWindow(**{"window": (8, 8, 8), **arguments})


@pytest.mark.parametrize("image", [torch.zeros(8, 8, 8), torch.zeros(1, 8, 8, 8, dtype=torch.int16), torch.zeros(1, 0, 8, 8), [1.0]])
def test_a_sliding_window_says_which_image_it_goes_over(image: Any) -> None:
    with pytest.raises(InputError, match=r"expected a float32 tensor \(channel, n0, n1, n2\)"):
        SlidingWindow(window=(4, 4, 4))(torch.nn.Conv3d(1, 2, 1), image)
