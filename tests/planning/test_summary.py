"""Summaries from nnU-Net's files: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medseg3d.errors import InputError, UnsupportedError
from medseg3d.labels import Labels
from medseg3d.planning import load_planner, make_plan, read_nnunet_fingerprint, summarize

ROW = {"mean": 1.0, "median": 1.0, "std": 2.0, "min": 0.0, "max": 9.0, "percentile_00_5": 0.1, "percentile_99_5": 8.0}


def write(folder: Path, *, fingerprint: dict[str, Any] | None = None, dataset: dict[str, Any] | None = None) -> Path:
    first = {
        "spacings": [[3.0, 1.0, 1.0], [3.0, 1.0, 1.0]],
        "shapes_after_crop": [[20, 64, 64], [22, 64, 64]],
        "median_relative_size_after_cropping": 0.7,
        "foreground_intensity_properties_per_channel": {"0": ROW, "1": ROW},
    }
    second = {"channel_names": {"0": "CT", "1": "T1"}, "labels": {"background": 0, "a": 1, "ignore": 2}, "numTraining": 8}
    for name, body in (("dataset_fingerprint.json", first | (fingerprint or {})), ("dataset.json", second | (dataset or {}))):
        (folder / name).write_text(json.dumps({k: v for k, v in body.items() if v is not None}), encoding="utf-8")
    return folder / "dataset_fingerprint.json"


def test_nnunets_files_are_read(tmp_path: Path) -> None:
    summary = read_nnunet_fingerprint(write(tmp_path))
    assert summary == read_nnunet_fingerprint(tmp_path)
    assert (summary.num_cases, summary.channel_names, summary.orientation) == (8, ("CT", "T1"), "as_stored")
    assert summary.labels.names == ("background", "a")
    assert summary.num_label_entries == 3
    assert "ignore label" in summary.notes[0]
    plan = make_plan(summary, load_planner("nnunet_plain"))
    assert plan.configurations["3d_fullres"].network.in_channels == 2
    assert plan.configurations["3d_fullres"].normalization[1].use_mask


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"fingerprint": {"spacings": None}}, InputError, '"spacings" is missing'),
        ({"fingerprint": {"spacings": [[1, 1]], "shapes_after_crop": [[1, 1, 1]]}}, InputError, "three numbers"),
        ({"fingerprint": {"spacings": [[1, 1, 1]]}}, InputError, "one of each per case"),
        ({"fingerprint": {"spacings": [[0, 1, 1]] * 2}}, InputError, "above 0 mm"),
        ({"fingerprint": {"foreground_intensity_properties_per_channel": {"0": {}}}}, InputError, "lacks"),
        ({"dataset": {"labels": {"background": 0, "whole": [1, 2]}}}, UnsupportedError, "'whole' is a region"),
        ({"dataset": {"labels": {"a": 1}}}, InputError, "background must be listed"),
        ({"dataset": {"channel_names": None}}, InputError, "channel_names"),
        ({"dataset": {"numTraining": "many"}}, InputError, "numTraining"),
    ],
)
def test_what_cannot_be_planned_from_is_refused(tmp_path: Path, changes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_nnunet_fingerprint(write(tmp_path, **changes))


def test_a_missing_description_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"dataset\.json: no such file"):
        read_nnunet_fingerprint(path)


def test_our_fingerprint_is_summarized_in_canonical_axes() -> None:
    case = SimpleNamespace(name="a", digest="1", spacing=(3.0, 1.0, 1.0), cropped_shape=(9, 64, 64), relative_size=0.5)
    fingerprint: Any = SimpleNamespace(dataset="d", cases=(case, case), channel_names=("T1",), intensities=())
    labels = Labels(names=("background", "a"), values=(0, 7))
    summary = summarize(fingerprint, labels)
    assert (summary.orientation, summary.num_cases, summary.median_relative_size) == ("canonical", 2, 0.5)
    assert summary.digest == summarize(fingerprint, labels).digest
    with pytest.raises(InputError, match="no cases"):
        summarize(SimpleNamespace(dataset="d", cases=()), labels)  # type: ignore[arg-type]
