"""The stages one by one in Python give what the commands write into a work folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medseg3d
from medseg3d.errors import DatasetError, InputError
from medseg3d.records import read_record, to_plain


@pytest.fixture
def planner(tiny_source: Path) -> Path:
    return tiny_source / "tiny.toml"


def test_the_plan_of_a_dataset_is_that_of_the_command(trained: Path, planner: Path) -> None:
    dataset = medseg3d.open_dataset(str(trained))
    plan = medseg3d.plan_dataset(dataset, medseg3d.make_fingerprint(dataset), planner=planner)
    assert to_plain(plan) == to_plain(medseg3d.read_plan(trained / "medseg3d-work"))


def test_the_store_of_a_dataset_is_that_of_the_command(trained: Path, tmp_path: Path) -> None:
    work = trained / "medseg3d-work"
    plan = medseg3d.read_plan(work)
    store = medseg3d.preprocess_dataset(medseg3d.open_dataset(trained), plan, tmp_path / "work", "2d")
    same = medseg3d.Store(work / "preprocessed" / plan.configuration("2d").data)
    assert store.names() == same.names() != ()
    for (image, labels), (same_image, same_labels) in zip(store, same, strict=True):
        assert image.equal(same_image)
        assert labels.equal(same_labels)


def test_a_case_that_fails_is_left_out_of_the_store(tiny: Path, planner: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = medseg3d.open_dataset(tiny)
    plan = medseg3d.plan_dataset(dataset, medseg3d.make_fingerprint(dataset), planner=planner)
    (tiny / "imagesTr/ball_0_0000.nii.gz").write_bytes(b"nothing")
    with caplog.at_level(logging.ERROR, logger="medseg3d"):
        store = medseg3d.preprocess_dataset(dataset, plan, tmp_path / "work")
    assert len(store) == len(dataset.training) - 1
    assert "ball_0" in caplog.text
    shutil.rmtree(tiny / "imagesTr")
    with pytest.raises(DatasetError, match="no training case could be preprocessed"):
        medseg3d.preprocess_dataset(dataset, plan, tmp_path / "other")


def test_doubts_about_a_dataset_are_logged(tiny: Path, planner: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = medseg3d.open_dataset(tiny)
    with caplog.at_level(logging.WARNING, logger="medseg3d"):
        plan = medseg3d.plan_dataset(dataset, medseg3d.make_fingerprint(dataset), planner=planner, label_names={9: "nothing"})
    assert "label values 9, which no label file holds" in caplog.text
    assert plan.given_names == {9: "nothing"}


def test_a_folder_without_a_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no plan\.json here"):
        medseg3d.read_plan(str(tmp_path))


def test_evaluation_takes_folders_by_name(tiny_source: Path, tmp_path: Path) -> None:
    evaluation = medseg3d.evaluate(str(tiny_source / "labelsTr"), str(tiny_source / "labelsTr"), output=str(tmp_path))
    assert (tmp_path / "metrics.json").exists()
    assert {label.name: label.dice.mean for label in evaluation.labels} == {"shell": 1.0, "core": 1.0}
    assert np.isclose(evaluation.foreground_dice.mean or 0, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gpu_memory_gb": -1}, "--gpu-memory -1: expected a number above 0"),
        ({"gpu_memory_gb": "8"}, "--gpu-memory 8: expected"),
        ({"label_names": {1: 2}}, r"--labels \{1: 2\}: expected names by label value"),
        ({"label_names": "shell"}, "--labels shell: expected"),
    ],
)
def test_a_plan_of_what_cannot_be_is_refused(trained: Path, planner: Path, arguments: dict[str, Any], said: str) -> None:
    fingerprint = read_record(trained / "medseg3d-work/fingerprint.json", medseg3d.Fingerprint, "fingerprint")
    with pytest.raises(InputError, match=said):
        medseg3d.plan_dataset(medseg3d.open_dataset(trained), fingerprint, planner=planner, **arguments)


def test_a_text_names_the_only_channel(trained: Path) -> None:
    assert medseg3d.open_dataset(trained, channels="CT").channel_names == ("CT",)
    with pytest.raises(DatasetError, match=r"channel names given are \(3,\), expected texts"):
        medseg3d.open_dataset(trained, channels=(3,))  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, -1, 1.5, "2"])
def test_less_than_one_case_at_once_is_refused(trained: Path, number: Any) -> None:
    with pytest.raises(InputError, match=f"num_workers is {number}, expected a whole number of at least 1"):
        medseg3d.make_fingerprint(medseg3d.open_dataset(trained), num_workers=number)
    with pytest.raises(InputError, match=f"num_workers is {number}, expected a whole number of at least 1"):
        medseg3d.evaluate(trained / "labelsTr", trained / "labelsTr", num_workers=number)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tolerance_mm": -1}, "tolerance_mm is -1, expected a number of at least 0"),
        ({"tolerance_mm": float("nan")}, "tolerance_mm is nan"),
        ({"tolerance_mm": "1"}, "tolerance_mm is 1"),
        ({"seed": -1}, "--seed -1: expected"),
    ],
)
def test_an_evaluation_of_what_cannot_be_is_refused(tiny_source: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        medseg3d.evaluate(tiny_source / "labelsTr", tiny_source / "labelsTr", **arguments)


def test_a_network_is_built_from_the_network_of_a_configuration(trained: Path) -> None:
    plan = medseg3d.read_plan(trained / "medseg3d-work")
    with pytest.raises(InputError, match=r"plan\.configuration\(\)\.network\), not a Configuration"):
        medseg3d.build_network(plan.configuration(None))  # type: ignore[arg-type]


def test_a_demo_has_a_seed_that_can_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--seed -1: expected"):
        medseg3d.demo(tmp_path / "demo", seed=-1)
    assert not (tmp_path / "demo").exists()
