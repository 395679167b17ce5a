"""What the viewer gets: layers that unpack to what went in, windows in true values, and no slice beyond the labels' box."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.labels import Labels
from medseg3d.reporting.chosen_slices import MAX_SLICES, MIN_SLICES, choose_planes, embed_case
from medseg3d.reporting.scene import Plane, Volumes, color_of, label_indices, middle_pixels, pack_slices, quantize, uncertainty_of
from medseg3d.reporting.viewer_parts import as_data

WHOLE = (slice(0, 6), slice(0, 7), slice(0, 8))


def unpack(data: bytes, plane: Plane, num_channels: int, layers: tuple[str, ...]) -> dict[str, Any]:
    """The loop that ``viewer/slices.js`` runs."""
    rows, columns = plane.shape
    shape = (len(plane.indices), rows, columns)
    size = int(np.prod(shape))
    bytes_ = np.frombuffer(data, np.uint8)
    found: dict[str, Any] = {"channels": []}
    at = 0
    for _ in range(num_channels):
        differences = (bytes_[at : at + size].astype(np.uint16) | (bytes_[at + size : at + 2 * size].astype(np.uint16) << 8)).reshape(shape)
        found["channels"].append(np.cumsum(differences, axis=2, dtype=np.uint16))
        at += 2 * size
    for name in layers:
        found[name] = bytes_[at : at + size].reshape(shape)
        at += size
    assert at == bytes_.size
    return found


def volumes(seed: int = 0) -> Volumes:
    generator = np.random.default_rng(seed)
    shape = (6, 7, 8)
    return Volumes(
        channels=(generator.integers(0, 65536, shape).astype(np.uint16),),
        reference=generator.integers(0, 4, shape).astype(np.uint8),
        prediction=generator.integers(0, 4, shape).astype(np.uint8),
        uncertainty=generator.integers(0, 256, shape).astype(np.uint8),
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_packed_slices_hold_every_voxel_in_screen_order(axis: int) -> None:
    packed = volumes()
    plane = Plane(axis=axis, indices=(1, 4), box=WHOLE)
    found = unpack(pack_slices(packed, plane), plane, 1, packed.layers)
    for place, index in enumerate(plane.indices):
        for array, pixels in ((packed.channels[0], found["channels"][0]), (packed.prediction, found["prediction"])):
            assert array is not None
            assert np.array_equal(pixels[place], np.take(array, index, axis)[::-1, ::-1])


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_description_says_which_voxel_a_pixel_shows(axis: int, stride: int) -> None:
    packed = volumes()
    plane = Plane(axis=axis, indices=(2,), box=WHOLE, stride=stride)
    told = plane.describe((3.0, 1.0, 2.0))
    assert packed.prediction is not None
    pixels = middle_pixels(packed.prediction, plane, 2)
    assert pixels.shape == (told["rows"], told["columns"])
    for row in range(told["rows"]):
        for column in range(told["columns"]):
            voxel = [2, 2, 2]
            voxel[told["row_axis"]] = told["row_from"] - row * stride
            voxel[told["column_axis"]] = told["column_from"] - column * stride
            assert pixels[row, column] == packed.prediction[tuple(voxel)]


@given(seed=st.integers(0, 99), max_pixels=st.floats(0, 1e5))
@settings(max_examples=30)
def test_no_slice_lies_outside_of_the_box_around_the_labels(seed: int, max_pixels: float) -> None:
    generator = np.random.default_rng(seed)
    shape = tuple(int(n) for n in generator.integers(1, 60, 3))
    labels = np.zeros(shape, np.uint8)
    low = [int(generator.integers(n)) for n in shape]
    labels[tuple(slice(start, start + 3) for start in low)] = 1
    planes = choose_planes(shape, [labels], max_pixels=max_pixels)
    assert planes
    for plane in planes:
        side = plane.box[plane.axis]
        assert list(plane.indices) == sorted(set(plane.indices))
        assert len(plane.indices) <= MAX_SLICES
        assert all(side.start <= index < side.stop for index in plane.indices)


def test_of_a_case_without_labels_only_the_middle_is_shown() -> None:
    planes = choose_planes((50, 100, 20), [np.zeros((50, 100, 20), np.uint8)], max_pixels=1e6)
    assert [plane.axis for plane in planes] == [0, 1, 2]
    assert all((side.stop - side.start) <= 0.4 * n + 1 for plane in planes for side, n in zip(plane.box, (50, 100, 20), strict=True))


def test_the_slice_that_differs_most_is_among_the_chosen() -> None:
    reference = np.zeros((64, 32, 32), np.uint8)
    reference[4:60, 8:24, 8:24] = 1
    prediction = reference.copy()
    prediction[37, 8:24, 8:24] = 0
    (axial, *_) = choose_planes(reference.shape, [reference, prediction], max_pixels=1.0)
    assert axial.axis == 0
    assert 37 in axial.indices


def test_an_embedded_case_holds_its_planes_and_nothing_of_the_rest_of_the_image() -> None:
    image = np.zeros((40, 40, 40), np.float32)
    image[:12] = 1000.0  # what must not be in the page
    labels = np.zeros(image.shape, np.uint8)
    labels[26:30, 20:24, 20:24] = 1
    numbers, levels = quantize(image, name="MRI", is_ct=False, num_levels=256)
    packed = Volumes(channels=(numbers,), reference=labels)
    scene = embed_case("a", packed, levels=[levels], labels=["x"], spacing=(1, 1, 1), max_pixels=1e6)
    assert [plane["axis"] for plane in scene["planes"]] == [0, 1, 2]
    for description, plane in zip(scene["planes"], choose_planes(image.shape, [labels], max_pixels=1e6), strict=True):
        found = unpack(zlib.decompress(base64.b64decode(description["data"])), plane, 1, ("reference",))
        assert found["channels"][0].max() == 0
        assert found["reference"].max() == 1


@pytest.mark.parametrize("is_ct", [True, False])
def test_numbers_and_levels_give_the_values_back(is_ct: bool) -> None:
    values = np.random.default_rng(0).normal(0, 300, (5, 20, 20)).astype(np.float32)
    numbers, levels = quantize(values, name="x", is_ct=is_ct, num_levels=1024)
    clipped = np.clip(values, -1024, 3071) if is_ct else values
    assert np.abs(numbers * levels.step + levels.offset - clipped).max() <= levels.step / 2 * 1.001
    assert [window.name for window in levels.windows][-1] == ("whole image" if is_ct else "bright parts")


def test_an_even_image_is_no_division_by_nothing() -> None:
    numbers, levels = quantize(np.full((2, 3, 4), 7.0, np.float32), name="x", is_ct=False, num_levels=256)
    assert (numbers * levels.step + levels.offset == 7.0).all()
    assert levels.windows[0].high > levels.windows[0].low


def test_values_become_indices_and_unknown_ones_are_not_annotated() -> None:
    labels = Labels(names=("background", "b", "a"), values=(0, 9, 4))
    assert label_indices(np.array([0, 4, 9, 255]), labels).tolist() == [0, 2, 1, 3]
    assert label_indices(np.array([0, 5, 9]), None, values=(5,)).tolist() == [0, 1, 2]


def test_uncertainty_is_nothing_where_a_class_is_certain_and_all_where_none_is() -> None:
    probabilities = np.array([[1.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.0]])
    assert uncertainty_of(probabilities).tolist() == [0, 255, 191]
    assert uncertainty_of(np.array([[0.0, 0.5, 1.0]])).tolist() == [0, 255, 0]


def test_no_two_of_the_first_labels_have_one_color() -> None:
    assert len({color_of(place) for place in range(120)}) == 120


def test_data_in_a_page_cannot_end_its_element() -> None:
    assert "</script" not in as_data({"case": "</script><script>alert(1)</script>"})


def test_voxels_that_nobody_annotated_are_no_label_that_slices_are_shown_of() -> None:
    numbers, levels = quantize(
        np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32), name="MRI", is_ct=False, num_levels=256
    )
    everywhere = np.full(numbers.shape, 2, np.uint8)  # of one label: not annotated
    scene = embed_case(
        "a", Volumes(channels=(numbers,), reference=everywhere), levels=[levels], labels=["x"], spacing=(1, 1, 1), max_pixels=1e6
    )
    for plane in scene["planes"]:
        assert len(plane["indices"]) <= MIN_SLICES
        assert plane["rows"] * plane["columns"] < 0.2 * 40 * 40
    everywhere[10:12, 10:14, 10:14] = 1
    scene = embed_case(
        "a", Volumes(channels=(numbers,), reference=everywhere), levels=[levels], labels=["x"], spacing=(1, 1, 1), max_pixels=1e6
    )
    assert all(index < 22 for plane in scene["planes"] for index in plane["indices"])
