"""The nnunet_* presets give nnU-Net 2.8.1's plans: every recorded row, through its own fingerprint format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medseg3d.plan import Plan
from medseg3d.planning import load_planner, make_plan, read_nnunet_fingerprint
from medseg3d.records import from_plain, to_plain

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "nnunet_plans.json").read_text(encoding="utf-8"))
ROWS = GOLDEN["rows"]


def write_fingerprint(folder: Path, dataset: dict[str, Any]) -> Path:
    statistics = {"mean": 1.0, "median": 1.0, "std": 2.0, "min": 0.0, "max": 9.0, "percentile_00_5": 0.1, "percentile_99_5": 8.0}
    fingerprint = {
        # All cases are alike, so a few of them have the percentiles of all; numTraining says how many there are.
        "spacings": [dataset["spacing"]] * 3,
        "shapes_after_crop": [dataset["shape"]] * 3,
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": statistics},
    }
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "first": 1, "second": 2},
        "numTraining": dataset["num_cases"],
        "file_ending": ".nii.gz",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    path = folder / "dataset_fingerprint.json"
    path.write_text(json.dumps(fingerprint), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Plan]:
    folder = tmp_path_factory.mktemp("golden")
    return {
        (name, planner): make_plan(read_nnunet_fingerprint(write_fingerprint(folder / name, dataset)), load_planner(planner))
        for name, dataset in GOLDEN["datasets"].items()
        for planner in {row["planner"] for row in ROWS}
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['dataset']}-{row['planner']}-{row['configuration']}")
def test_every_recorded_number_is_planned(plans: dict[tuple[str, str], Plan], row: dict[str, Any]) -> None:
    configuration = plans[row["dataset"], row["planner"]].configurations[row["configuration"]]
    if "previous_stage" in row:
        assert configuration.previous_stage == row["previous_stage"]
        fullres = plans[row["dataset"], row["planner"]].configurations[row["inherits_from"]]
        added = len(plans[row["dataset"], row["planner"]].labels.foreground)  # nnU-Net adds them when it builds the network
        assert configuration.network == replace(fullres.network, in_channels=fullres.network.in_channels + added)
        assert configuration.patch_size == fullres.patch_size
        return
    assert configuration.batch_size == row["batch_size"]
    assert list(configuration.patch_size) == row["patch_size"]
    assert [round(s, 3) for s in configuration.spacing] == row["spacing"]
    assert [list(s) for s in configuration.network.strides] == row["strides"]
    assert [list(k) for k in configuration.network.kernel_sizes] == row["kernel_sizes"]
    assert list(configuration.network.features) == row["features"]
    assert configuration.batch_dice == row["batch_dice"]


def test_no_configuration_is_planned_beyond_the_recorded_ones(plans: dict[tuple[str, str], Plan]) -> None:
    for (dataset, planner), plan in plans.items():
        recorded = {row["configuration"] for row in ROWS if (row["dataset"], row["planner"]) == (dataset, planner)}
        assert set(plan.configurations) == recorded


@pytest.mark.parametrize("name", GOLDEN["datasets"])
@pytest.mark.parametrize("size", ["m", "l", "xl"])
def test_our_residual_presets_differ_from_nnunets_only_in_summed_heads_and_a_smaller_batch(
    plans: dict[tuple[str, str], Plan], tmp_path: Path, name: str, size: str
) -> None:
    summary = read_nnunet_fingerprint(write_fingerprint(tmp_path, GOLDEN["datasets"][name]))
    ours = make_plan(summary, load_planner(f"residual_{size}"))
    for key, theirs in plans[name, f"nnunet_resenc_{size}"].configurations.items():
        assert ours.configurations[key].patch_size == theirs.patch_size
        assert ours.configurations[key].network == replace(theirs.network, options={"heads": "summed"})
        assert 2 <= ours.configurations[key].batch_size <= theirs.batch_size


def test_every_plan_lies_within_the_ranges_that_reading_checks(tmp_path: Path) -> None:
    for name, dataset in GOLDEN["datasets"].items():
        summary = read_nnunet_fingerprint(write_fingerprint(tmp_path / name, dataset))
        for planner in ("default", "residual_l"):
            plan = make_plan(summary, load_planner(planner))
            assert from_plain(to_plain(plan), Plan, name) == plan
