"""The loss of a plan is the planner's; what the labels suggest is said beside it, with the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medseg3d.errors import PlanError
from medseg3d.labels import Labels
from medseg3d.planning import DatasetSummary, Explanation, explain, load_planner, make_plan
from medseg3d.planning.loss_rules import LossFacts

ORGAN = LossFacts(foreground_share=0.0423, label_volume_ratio=12.34, absent_share=0.25, elongation=2.5)


def summary_of(facts: LossFacts | None) -> DatasetSummary:
    return DatasetSummary(
        dataset="synthetic",
        num_cases=20,
        spacings=((1.0, 1.0, 1.0),) * 3,
        cropped_shapes=((36, 50, 35),) * 3,
        median_relative_size=1.0,
        intensities=(),
        channel_names=("MRI",),
        labels=Labels(names=("background", "a", "b"), values=(0, 1, 2)),
        num_label_entries=3,
        orientation="canonical",
        digest="0",
        loss_facts=facts,
    )


def loss_row(facts: LossFacts | None, planner: Any = "default") -> Explanation:
    summary, rules = summary_of(facts), load_planner(planner)
    rows = [row for row in explain(make_plan(summary, rules), summary, rules) if row.quantity == "loss"]
    assert [row.configuration for row in rows] == ["dataset"]
    return rows[0]


def planner_file(folder: Path, training: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(f'extends = "default"\n[training]\n{training}\n', encoding="utf-8")
    return path


def test_the_row_names_the_numbers_of_the_labels_and_the_thresholds() -> None:
    row = loss_row(ORGAN)
    assert row.value == "dice_ce"
    for number in ("4.23 %", "12.3 times", "25 % of the cases", ": 2.5"):
        assert number in row.inputs
    for threshold in ("from 6 on", "at most 0.1 %", "from 50 %", "at most 1 %", "1000 times"):
        assert threshold in row.rule
    assert "training.loss" in row.changes_it


def test_another_loss_is_suggested_with_its_reason_and_not_planned() -> None:
    vessel = replace(ORGAN, elongation=8.25)
    row = loss_row(vessel)
    assert row.value == "dice_ce; suggested: skeleton_recall"
    assert "label: 8.2; pieces" in row.inputs
    assert "A label is long and thin (elongation 8.2" in row.inputs
    plan = make_plan(summary_of(vessel), load_planner("default"))
    assert plan == make_plan(summary_of(None), load_planner("default"))
    assert {configuration.training.loss for configuration in plan.configurations.values()} == {"dice_ce"}


def test_the_planners_loss_stands_with_all_its_options(tmp_path: Path) -> None:
    file = planner_file(tmp_path, 'loss = "tversky"\n[training.loss_options]\nbeta = 0.9')
    assert loss_row(ORGAN, file).value == "tversky, alpha 0.3, beta 0.9; suggested: dice_ce"
    assert loss_row(replace(ORGAN, elongation=8.0), planner_file(tmp_path, 'loss = "cldice"')).value == "cldice, weight 1, iterations 3"


def test_nothing_is_suggested_where_labels_were_not_measured() -> None:
    row = loss_row(None)
    assert row.value == "dice_ce"
    assert "no loss is suggested" in row.inputs
    assert "elongation of the longest label: unknown" in loss_row(replace(ORGAN, elongation=None)).inputs


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ('loss = "tversky"\nloss_options = {alpha = 7.0}', r"Loss tversky: alpha is 7\.0, must be a number from 0\.01 to 1"),
        ("loss_options = {alpha = 0.5}", "Loss dice_ce: it has no option 'alpha'; it has none"),
        ('loss = "cldice"\nloss_options = {iterations = 2.5}', "iterations is 2.5, must be a whole number"),
        ('loss = "ohem"\nloss_options = {share = nan}', "share is nan"),
        ('loss = "hinge"', "training.loss"),
    ],
)
def test_a_loss_that_cannot_be_trained_with_is_refused_with_the_files_name(tmp_path: Path, training: str, message: str) -> None:
    with pytest.raises(PlanError, match=rf"mine\.toml: .*{message}"):
        load_planner(planner_file(tmp_path, training))


def test_all_findings_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    file = planner_file(tmp_path, 'loss = "tversky"\nloss_options = {alpha = 7.0, beta = 9.0}')
    with pytest.raises(PlanError, match=r"Loss tversky: alpha is 7.*; beta is 9\.0.*\)\.$"):
        load_planner(file)
