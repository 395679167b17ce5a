"""Pictures: PNG files of a training's progress, and slices of a case."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.errors import InputError
from medseg3d.reporting.figures import MAX_ELONGATION, case_figure, choose_views, progress_figure


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(BytesIO(png), format="png"))


def epoch(number: int, **changes: object) -> dict[str, object]:
    record: dict[str, object] = {
        "epoch": number,
        "train_loss": 0.5 - 0.1 * number,
        "validation_loss": 0.6 - 0.1 * number,
        "pseudo_dice": {"liver": 0.1 * number, "tumor": None},
        "pseudo_dice_smoothed": 0.1 * number,
        "learning_rate": 0.01,
        "seconds": 3.0,
        "waiting_share": 0.1,
    }
    return record | changes


@pytest.mark.parametrize("count", [1, 3, 30])
def test_progress_is_drawn_after_any_number_of_epochs(tmp_path: Path, count: int) -> None:
    path = progress_figure([epoch(n) for n in range(count)], tmp_path / "progress.png", title="a_b $5$ fold 0")
    assert pixels(path.read_bytes()).shape[:2] == (800, 1000)
    assert [p.name for p in tmp_path.iterdir()] == ["progress.png"]


def test_progress_survives_missing_values_and_odd_names(tmp_path: Path) -> None:
    odd = {f"_label $x_{n}$ {'long ' * 20}": None for n in range(14)}
    history = [
        epoch(0, pseudo_dice=odd, train_loss=None, pseudo_dice_smoothed=None),
        epoch(1, pseudo_dice=odd, validation_loss=None),
    ]
    assert progress_figure(history, tmp_path / "progress.png").exists()


def test_progress_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no epoch"):
        progress_figure([], tmp_path / "progress.png")


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 8.0)] * 3),
    seed=st.integers(0, 99),
    count=st.integers(0, 6),
)
def test_views_lie_inside_the_image_and_one_is_always_shown(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int, count: int
) -> None:
    labels = np.zeros(shape, np.uint8)
    generator = np.random.default_rng(seed)
    for _ in range(count):
        labels[tuple(int(generator.integers(n)) for n in shape)] = generator.integers(1, 4)
    views = choose_views(shape, [labels], spacing=spacing, values=(1, 2, 3))
    assert views
    for view in views:
        assert 0 <= view.index < shape[view.axis]
        assert all(0 <= s.start < s.stop <= n for s, n in zip(view.box, shape, strict=True))
        assert not labels.any() or labels[tuple(view.box)].any()


def test_the_slice_with_the_small_label_is_chosen_over_one_with_more_voxels_of_a_large_label() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:18, 2:18, 2:18] = 1
    labels[5, 5, 5] = 2
    views = {view.axis: view.index for view in choose_views(labels.shape, [labels], spacing=(1, 1, 1), values=(1, 2))}
    assert views == {0: 5, 1: 5, 2: 5}


def test_a_ribbon_is_left_out() -> None:
    views = choose_views((6, 100, 100), [], spacing=(2.0, 1.0, 1.0), values=(1,))
    assert [view.axis for view in views] == [0]
    assert MAX_ELONGATION < 100 / 12


def test_pictures_are_true_to_scale() -> None:
    image = np.zeros((20, 40, 40), np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[9:11, 18:22, 18:22] = 1
    flat = pixels(case_figure(image, labels, labels, spacing=(1.0, 1.0, 1.0), labels={1: "a"})).shape
    tall = pixels(case_figure(image, labels, labels, spacing=(2.0, 1.0, 1.0), labels={1: "a"})).shape
    assert flat[1] / flat[0] > 1.2 * tall[1] / tall[0]


def test_reference_and_prediction_are_both_visible() -> None:
    image = np.zeros((16, 32, 32), np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[4:12, 8:24, 8:24] = 7
    empty = np.zeros_like(labels)
    drawn = {}
    for name, reference, prediction in (("neither", empty, empty), ("reference", labels, empty), ("prediction", empty, labels)):
        png = case_figure(image, reference, prediction, spacing=(2.0, 1.0, 1.0), labels={7: "organ"})
        drawn[name] = pixels(png)[:300, :, :3]  # without the legend
    saturation = {name: (p.max(-1) - p.min(-1)).max() for name, p in drawn.items()}
    assert saturation["prediction"] > 0.5 > saturation["neither"] + 0.3
    assert saturation["reference"] < 0.2
    assert drawn["reference"].mean() > drawn["neither"].mean()


def test_a_single_slice_without_prediction_is_one_view() -> None:
    image = np.random.default_rng(0).normal(size=(1, 30, 20)).astype(np.float32)
    assert case_figure(image, None, None, spacing=(1.0, 1.0, 1.0), labels={}).startswith(b"\x89PNG")


def test_maps_on_another_grid_are_refused() -> None:
    image = np.zeros((4, 5, 6), np.float32)
    with pytest.raises(InputError, match=r"prediction has shape \(4, 5, 5\)"):
        case_figure(image, None, np.zeros((4, 5, 5), np.uint8), spacing=(1, 1, 1), labels={1: "a"})
