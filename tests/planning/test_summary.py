"""Summaries from nnU-Net's files: what is read, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medseg3d.errors import InputError
from medseg3d.fingerprint.records import CaseFingerprint, Fingerprint, LabelStatistics
from medseg3d.labels import Labels
from medseg3d.planning import load_planner, make_plan, read_nnunet_fingerprint, summarize

ROW = {"mean": 1.0, "median": 1.0, "std": 2.0, "min": 0.0, "max": 9.0, "percentile_00_5": 0.1, "percentile_99_5": 8.0}


def label(voxels: int, elongation: float | None) -> LabelStatistics:
    """A label in voxels of 3 mm³."""
    volume = 3.0 * voxels
    return LabelStatistics(
        voxels=voxels,
        volume_mm3=volume,
        components=1,
        largest_mm3=volume,
        smallest_mm3=volume,
        touches_border=False,
        center=(0.5, 0.5, 0.5),
        elongation=elongation,
    )


def fingerprint_of(*labels: dict[int, LabelStatistics], edge: int = 64) -> Fingerprint:
    """A case per entry, ``edge``³ voxels after cropping."""
    cases = tuple(
        CaseFingerprint(
            name=f"c{number}",
            digest=str(number),
            shape=(2 * edge, edge, edge),
            spacing=(3.0, 1.0, 1.0),
            orientation="RAS",
            crop=((0, edge), (0, edge), (0, edge)),
            relative_size=0.5,
            channels=(),
            labels=of_case,
        )
        for number, of_case in enumerate(labels)
    )
    return Fingerprint(dataset="d", channel_names=("T1",), background=0, cases=cases, intensities=())


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
    assert summary.labels.ignore is not None
    plan = make_plan(summary, load_planner("nnunet_plain"))
    assert plan.configurations["3d_fullres"].network.in_channels == 2
    assert plan.configurations["3d_fullres"].normalization[1].use_mask


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"fingerprint": {"spacings": None}}, InputError, r"dataset_fingerprint\.json: spacings: Field required"),
        ({"fingerprint": {"spacings": [[1, 1]], "shapes_after_crop": [[1, 1, 1]]}}, InputError, r"spacings\.0\.2: Field required"),
        ({"fingerprint": {"spacings": [[1, 1, 1]]}}, InputError, "1 spacings and 2 shapes_after_crop, expected one of each per case"),
        ({"fingerprint": {"spacings": [[0, 1, 1]] * 2}}, InputError, r"spacings\.0\.0: expected greater than"),
        (
            {"fingerprint": {"foreground_intensity_properties_per_channel": {"0": {}}}},
            InputError,
            r"foreground_intensity_properties_per_channel\.0\.mean: Field required",
        ),
        ({"dataset": {"labels": {"background": 0, "whole": [1, 2]}}}, InputError, "regions_class_order is None"),
        ({"dataset": {"labels": {"a": 1}}}, InputError, "background must be listed"),
        ({"dataset": {"channel_names": None}}, InputError, "channel_names"),
        ({"dataset": {"numTraining": "many"}}, InputError, r"dataset\.json: numTraining: expected a valid integer.*found 'many'"),
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
    fingerprint = fingerprint_of({}, {})
    labels = Labels(names=("background", "a"), values=(0, 7))
    summary = summarize(fingerprint, labels)
    assert (summary.orientation, summary.num_cases, summary.median_relative_size) == ("canonical", 2, 0.5)
    assert summary.digest == summarize(fingerprint, labels).digest
    with pytest.raises(InputError, match="no cases"):
        summarize(replace(fingerprint, cases=()), labels)


def test_the_labels_of_a_made_up_dataset_have_the_numbers_one_writes_down() -> None:
    fingerprint = fingerprint_of(
        {3: label(100, 2.0), 7: label(10, 5.0)},
        {3: label(200, 3.0)},
        {3: label(300, 2.5), 7: label(30, 9.0)},
        edge=10,
    )
    labels = Labels(names=("background", "a", "b", "never"), values=(0, 7, 3, 9))
    summary = summarize(fingerprint, labels)
    facts = summary.loss_facts
    assert facts is not None
    assert facts.foreground_share == pytest.approx(0.2)  # of 0.11, 0.2 and 0.33
    assert facts.label_volume_ratio == pytest.approx(200 / 20)
    assert facts.absent_share == pytest.approx(1 / 3)
    assert facts.elongation == 7.0  # the median of 5 and 9, above that of 2, 3 and 2.5
    assert summary.class_shares == pytest.approx((1 - 0.64 / 3, 0.04 / 3, 0.6 / 3, 0.0))


def test_elongations_that_were_not_measured_are_left_out() -> None:
    labels = Labels(names=("background", "a"), values=(0, 3))
    facts = summarize(fingerprint_of({3: label(10, None)}, {3: label(10, 4.0)}), labels).loss_facts
    assert facts is not None
    assert facts.elongation == 4.0
    assert summarize(fingerprint_of({3: label(10, None)}), labels).loss_facts == replace(facts, elongation=None)


def test_a_disk_in_a_single_slice_is_not_called_long() -> None:
    fingerprint = fingerprint_of({3: label(100, 9.0)})
    slices = tuple(replace(case, shape=(1, 64, 64), crop=((0, 1), (0, 64), (0, 64))) for case in fingerprint.cases)
    facts = summarize(replace(fingerprint, cases=slices), Labels(names=("background", "a"), values=(0, 3))).loss_facts
    assert facts is not None
    assert facts.elongation is None


def test_labels_outside_the_crop_box_leave_shares_below_one() -> None:
    fingerprint = fingerprint_of({3: label(60, 2.0), 7: label(20, 2.0)}, edge=4)
    summary = summarize(fingerprint, Labels(names=("background", "a", "b"), values=(0, 3, 7)))
    assert summary.loss_facts is not None
    assert summary.loss_facts.foreground_share == 1
    assert summary.class_shares == pytest.approx((0, 0.75, 0.25))


def test_cases_without_any_label_give_no_facts(tmp_path: Path) -> None:
    labels = Labels(names=("background", "a"), values=(0, 3))
    for summary in (summarize(fingerprint_of({}, {}), labels), read_nnunet_fingerprint(write(tmp_path))):
        assert summary.loss_facts is None
        assert summary.class_shares is None


@pytest.mark.fault("A1", "nnU-Net's fingerprint with labels that have no names", "not mirrored from left to right by planners of ours")
def test_labels_without_names_and_places_are_in_doubt(tmp_path: Path) -> None:
    description = {"channel_names": {"0": "CT", "1": "T1"}, "labels": {"background": 0, "label_1": 1, "label_2": 2}, "numTraining": 8}
    assert "label_1, label_2 could be left and right" in read_nnunet_fingerprint(write(tmp_path, dataset=description)).left_right_doubt
    named = {**description, "labels": {"background": 0, "liver": 1, "spleen": 2}}
    assert read_nnunet_fingerprint(write(tmp_path, dataset=named)).left_right_doubt == ""


@pytest.mark.parametrize("labels", [{"0": "background", "3": "a", "1": "b"}, {"a": [3], "background": 0, "b": 1}])
def test_labels_of_nnunet_come_in_the_order_of_their_values(tmp_path: Path, labels: dict[str, Any]) -> None:
    summary = read_nnunet_fingerprint(write(tmp_path, dataset={"labels": labels}))
    assert (summary.labels.names, summary.labels.values) == (("background", "b", "a"), (0, 1, 3))
    assert (summary.num_label_entries, summary.notes) == (3, ())
