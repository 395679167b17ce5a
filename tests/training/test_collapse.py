"""A label that is predicted nowhere for five epochs is named once, with what to try."""

from __future__ import annotations

from dataclasses import replace

import torch

from medseg3d.losses.supervision import Counts
from medseg3d.training.collapse import PATIENCE, silent_since, warnings
from medseg3d.training.domains import NO_NAME, TrainingDomain
from tests.test_plan import PLAN


def domain(**training: object) -> TrainingDomain:
    configuration = PLAN.configuration(None)
    changed = replace(configuration, training=replace(configuration.training, **training))  # type: ignore[arg-type]
    return TrainingDomain(name=NO_NAME, plan=PLAN, configuration=changed, training=(), validation=())


def said(epochs: list[list[str]], **training: object) -> list[str]:
    since: dict[str, int] = {}
    found = []
    for silent in epochs:
        since = silent_since(since, silent)
        found += list(warnings(since, [domain(**training)]))
    return found


def test_a_label_is_named_once_after_five_epochs_in_a_row() -> None:
    assert said([["left"]] * (PATIENCE - 1)) == []
    assert said([["left"]] * (PATIENCE - 1) + [[]] + [["left"]] * (PATIENCE - 1)) == []
    (message,) = said([["left"]] * (PATIENCE + 3))
    assert message.startswith("left: predicted nowhere in the validation patches of the last 5 epochs, which hold it. ")
    for advice in ("foreground_oversampling = 0.67 (now 0.33)", "balanced_classes = true", "dice_focal", "cc_dice_ce"):
        assert advice in message


def test_what_is_in_use_already_is_not_advised() -> None:
    (message,) = said([["left"]] * PATIENCE, balanced_classes=True, loss="cc_dice_ce", foreground_oversampling=0.7)
    assert not any(advice in message for advice in ("oversampling", "balanced_classes", "loss ="))
    assert "a larger patch or a finer spacing" in message


def test_where_nothing_is_predicted_the_rate_and_the_data_are_suspected() -> None:
    (message,) = said([["left", "right"]] * PATIENCE)
    assert "left, right: predicted nowhere" in message
    assert "train --learning-rate 0.001" in message
    assert "medseg3d doctor" in message


def test_a_label_is_silent_where_the_reference_has_it_and_nothing_is_predicted_as_it() -> None:
    counts = Counts(
        true_positives=torch.tensor([9, 0, 0, 0]), false_positives=torch.tensor([5, 0, 2, 0]), false_negatives=torch.tensor([0, 3, 3, 0])
    )
    assert [counts.is_silent(label) for label in range(4)] == [False, True, False, False]
