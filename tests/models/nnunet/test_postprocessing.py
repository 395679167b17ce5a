"""postprocessing.json becomes steps where they mean the same; all else is ignored, and said."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from medseg3d.labels import Labels
from medseg3d.models.nnunet.postprocessing import KEEP_LARGEST, postprocessing_places, read_postprocessing
from medseg3d.validation.postprocessing import NO_POSTPROCESSING, Step

LABELS = Labels(names=("background", "a", "b", "c"), values=(0, 1, 2, 3))
REGIONS = Labels(names=("background", "whole", "core"), values=(0, 1, 3), regions=((1, 2, 3), (3,)))


def write(folder: Path, *calls: tuple[str, dict[str, Any]], place: str = "crossval_results_folds_0_1") -> Path:
    path = folder / place / "postprocessing.json"
    path.parent.mkdir(exist_ok=True)
    document = {"postprocessing_fns": [name for name, _ in calls], "postprocessing_kwargs": [keywords for _, keywords in calls]}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_the_steps_are_taken_over_in_their_order(tmp_path: Path) -> None:
    write(tmp_path, (KEEP_LARGEST, {"labels_or_regions": [1, 2, 3]}), (KEEP_LARGEST, {"labels_or_regions": 2}))
    steps = read_postprocessing(postprocessing_places(tmp_path, ("0", "1")), LABELS).steps
    assert steps == (Step(operation="keep_largest_foreground"), Step(operation="keep_largest", index=2))


@pytest.mark.parametrize(
    ("given", "step"),
    [([1, 2, 3], ("keep_largest_foreground", None)), ([[1, 2, 3]], ("keep_largest_foreground", None)), ([3], ("keep_largest", 2))],
)
def test_regions_count_by_the_values_that_are_painted(given: list[Any], step: tuple[Any, int | None], tmp_path: Path) -> None:
    write(tmp_path, (KEEP_LARGEST, {"labels_or_regions": given}))
    assert read_postprocessing(postprocessing_places(tmp_path, ("0", "1")), REGIONS).steps == (Step(operation=step[0], index=step[1]),)


def test_several_labels_are_kept_together(tmp_path: Path) -> None:
    write(tmp_path, (KEEP_LARGEST, {"labels_or_regions": [[2, 3]]}))
    assert read_postprocessing(postprocessing_places(tmp_path, ("0", "1")), LABELS).steps == (
        Step(operation="keep_largest", index=2, parts=(2, 3)),
    )
    labels = Labels(names=("background", "whole", "core", "edge"), values=(0, 1, 2, 3), regions=((1, 2, 3), (2, 3), (3,)))
    assert read_postprocessing(postprocessing_places(tmp_path, ("0", "1")), labels).steps == (
        Step(operation="keep_largest", index=2, parts=(2, 3)),
    )


@pytest.mark.parametrize(
    ("function", "keywords"),
    [
        (KEEP_LARGEST, {"labels_or_regions": 1, "background_label": 2}),
        (KEEP_LARGEST, {"labels_or_regions": 9}),
        (KEEP_LARGEST, {"labels_or_regions": [0, 1]}),
        (KEEP_LARGEST, {"labels_or_regions": "1"}),
        (KEEP_LARGEST, {"labels_or_regions": 1, "connectivity": 1}),
        (KEEP_LARGEST, {}),
        ("my_function", {"labels_or_regions": 1}),
    ],
)
def test_a_step_without_an_equal_here_ends_all_of_them_with_a_warning(
    function: str, keywords: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, (KEEP_LARGEST, {"labels_or_regions": 1}), (function, keywords))
    assert read_postprocessing(postprocessing_places(tmp_path, ("0", "1")), LABELS) == NO_POSTPROCESSING
    assert function in caplog.text


def test_postprocessing_of_other_folds_is_not_used(tmp_path: Path) -> None:
    write(tmp_path, (KEEP_LARGEST, {"labels_or_regions": 1}))
    assert read_postprocessing(postprocessing_places(tmp_path, ("0",)), LABELS) == NO_POSTPROCESSING


def test_a_pickle_is_ignored_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "postprocessing.pkl").write_bytes(b"not even a pickle")
    with caplog.at_level(logging.INFO):
        assert read_postprocessing(postprocessing_places(tmp_path, ("0",)), LABELS) == NO_POSTPROCESSING
    assert "postprocessing.pkl" in caplog.text


@pytest.mark.parametrize("text", ["{", "[]", '{"postprocessing_fns": [3]}'])
def test_a_damaged_file_is_ignored_with_a_warning(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path).write_text(text, encoding="utf-8")
    assert read_postprocessing(postprocessing_places(tmp_path, ("0", "1")), LABELS) == NO_POSTPROCESSING
    assert "postprocessing.json" in caplog.text
