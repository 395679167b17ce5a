"""A short run: its own training numbers, averaged weights, and that a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medseg3d.devices import Device
from medseg3d.errors import InputError
from medseg3d.models.checkpoints import load_tensors
from medseg3d.options import TrainingOptions
from medseg3d.patches.augmentation import REDUCED, AugmentationDraw, augmentation_policy, draw_augmentation
from medseg3d.patches.sampling import generator
from medseg3d.plan import Configuration, Plan, TrainingPlan
from medseg3d.planning.recipe_rules import SHORT_RUN, recipe_for
from medseg3d.preprocessing.store import StoredCase
from medseg3d.records import read_record
from medseg3d.signals import StopRequest
from medseg3d.training.averaging import STEPS_BETWEEN, AveragedWeights
from medseg3d.training.domains import NO_NAME, TrainingDomain
from medseg3d.training.growth import SIZES, growing_sizes, grown_batch
from medseg3d.training.judging import judge
from medseg3d.training.loop import train_domains
from medseg3d.training.pseudo_dice import PatchValidation
from medseg3d.training.state import EpochRecord, TrainingState
from medseg3d.training.tiles import fixed_tiles

FLOAT32 = Device(device=torch.device("cpu"), precision="float32")
SHORT = TrainingPlan(follows_budget=True)
Material = tuple[Plan, Configuration, list[StoredCase]]


def train(
    material: Material, folder: Path, training: TrainingPlan, *, stop_after: int | None = None, **options: object
) -> list[EpochRecord]:
    """The records of the epochs; with ``stop_after`` the run is asked to stop after so many steps."""
    plan, configuration, cases = material
    stop, steps = StopRequest(), []

    def count(*place: int) -> None:
        steps.append(place)
        if len(steps) == stop_after:
            stop.set(15)

    configuration = replace(configuration, training=training)
    domain = TrainingDomain(name=NO_NAME, plan=plan, configuration=configuration, training=cases[:4], validation=cases[4:])
    return list(
        train_domains(
            [domain],
            name=configuration.name,
            fold="0",
            folder=folder,
            device=FLOAT32,
            options=TrainingOptions(**options),  # type: ignore[arg-type]
            plan_digest="x",
            stop=stop,
            on_step=count,
        )
    )


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "last.safetensors")[0]


def test_a_long_run_and_one_that_does_not_follow_keep_the_plan() -> None:
    assert recipe_for(SHORT, steps=SHORT_RUN).value == SHORT
    assert recipe_for(TrainingPlan(), steps=100).value == TrainingPlan()


def test_a_short_run_trains_with_muon_and_a_cosine_and_says_so() -> None:
    decided = recipe_for(SHORT, steps=2750)
    assert (decided.value.optimizer, decided.value.momentum, decided.value.schedule) == ("muon", 0.95, "cosine")
    assert decided.value.learning_rate == pytest.approx(2e-3)
    assert "optimizer muon" in decided.reasons[0].value
    assert "2,800 steps" in decided.reasons[0].inputs


def test_a_plan_that_chose_its_optimizer_and_a_user_who_chose_a_rate_keep_them() -> None:
    chosen = replace(SHORT, optimizer="adamw", learning_rate=4e-3)
    assert recipe_for(chosen, steps=100).value.learning_rate == 4e-3
    kept = recipe_for(replace(SHORT, learning_rate=0.5), steps=100, keeps_rate=True).value
    assert (kept.optimizer, kept.learning_rate) == ("sgd", 0.5)


@pytest.mark.parametrize("mean_age", [0.1, 0.25, 0.5])
def test_the_mean_age_of_averaged_weights_is_the_share_that_was_asked_for(mean_age: float) -> None:
    network = nn.Linear(1, 1, bias=False)
    average, steps = AveragedWeights(network, mean_age, _NoLock()), 4000
    for step in range(1, steps + 1):
        nn.init.constant_(network.weight, float(step))
        average.note(step)
    assert 1 - float(average.averaged["weight"]) / steps == pytest.approx(mean_age, rel=0.05)


def test_a_network_has_its_own_weights_again_after_the_averaged_ones_were_in_its_place() -> None:
    network = nn.BatchNorm1d(2)
    average = AveragedWeights(network, 0.1, _NoLock())
    average.note(STEPS_BETWEEN)
    nn.init.constant_(network.weight, 5.0)
    with average.in_place():
        assert network.weight.tolist() == [1.0, 1.0]
        assert average.last["weight"].tolist() == [5.0, 5.0]
    assert network.weight.tolist() == [5.0, 5.0]
    assert average.averaged["weight"].tolist() == [1.0, 1.0]


class _NoLock:
    """Nothing else runs."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


@pytest.mark.parametrize(("last", "averaged", "is_average"), [(0.5, 0.6, True), (0.6, 0.5, False), (None, None, True)])
def test_the_better_weights_are_kept_and_the_averaged_ones_where_nothing_is_measured(
    last: float | None, averaged: float | None, is_average: bool
) -> None:
    found = [[PatchValidation(loss=None, dice={} if dice is None else {"a": dice})] for dice in (last, averaged)]
    judged = judge(found[0], found[1], before=(None, None))
    assert judged.is_average == is_average
    assert judged.value == (None if last is None else 0.6)


def test_a_short_run_that_was_stopped_gives_the_bits_of_one_that_was_not(material: Material, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    records = train(material, whole, SHORT, epochs=2, iterations=4)
    assert train(material, parts, SHORT, epochs=2, iterations=4, stop_after=6)[0].epoch == 0
    train(material, parts, SHORT, epochs=2, iterations=4)
    first, second = tensors_of(whole), tensors_of(parts)
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    state = read_record(parts / "training.json", TrainingState, "training")
    assert state.recipe is not None
    assert state.recipe.optimizer == "muon"
    assert state.averaged_steps == 8
    assert records[-1].averaged_dice_mean is not None


def test_patches_grow_to_their_full_size_and_a_stopped_run_goes_on_with_the_same(material: Material, tmp_path: Path) -> None:
    growing = TrainingPlan(patch_growth=0.7)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(material, whole, growing, epochs=2, iterations=2)
    train(material, parts, growing, epochs=2, iterations=2, stop_after=1)
    train(material, parts, growing, epochs=2, iterations=2)
    first, second = tensors_of(whole), tensors_of(parts)
    assert all(first[name].equal(second[name]) for name in first)


@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from((1, 2, 4, 8, 16))), min_size=2, max_size=3))
def test_growing_sizes_rise_to_the_full_one_in_strides_that_the_network_can_halve(axes: list[tuple[int, int]]) -> None:
    stride = [step for _, step in axes]
    full = [count * step for count, step in axes]
    sizes = growing_sizes(full, stride)
    assert sizes[-1] == tuple(full)
    assert len(sizes) <= SIZES
    for small, large in pairwise(sizes):
        assert all(a <= b for a, b in zip(small, large, strict=True))
        assert small != large
    assert all(edge % step == 0 for size in sizes for edge, step in zip(size, stride, strict=True))
    assert all(grown_batch(3, full, size) * math.prod(size) <= 3 * math.prod(full) for size in sizes)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5),
    st.tuples(st.integers(1, 16), st.integers(1, 16), st.integers(1, 16)),
    st.integers(1, 60),
)
def test_fixed_tiles_cover_whole_cases_and_stay_within_their_number(
    shapes: list[tuple[int, int, int]], patch: tuple[int, int, int], most: int
) -> None:
    tiles = fixed_tiles(shapes, patch, (0, 0, 0), most=most)
    assert 0 < sum(len(boxes) for _, boxes in tiles) <= most
    for case, boxes in tiles:
        covered = np.zeros(shapes[case], bool)
        for box in boxes:
            covered[tuple(slice(max(0, start), start + size) for start, size in zip(box.start, box.size, strict=True))] = True
        assert covered.all() or (len(tiles) == 1 and len(boxes) == most)


@pytest.mark.parametrize("most", [1, 2, 4, 8, 20])
def test_few_tiles_of_a_large_case_lie_apart_and_first_in_its_middle(most: int) -> None:
    ((_, boxes),) = fixed_tiles([(36, 36, 36)], (9, 9, 9), (0, 0, 0), most=most)
    starts = np.array([box.start for box in boxes]) // 9
    assert len({tuple(start) for start in starts}) == most
    assert any(set(start) <= {1, 2} for start in starts.tolist())
    for axis in range(3):
        assert len(set(starts[:, axis])) >= min(most, 2), "not all in one row"
    apart = [np.abs(a - b).max() for k, a in enumerate(starts) for b in starts[:k]]
    assert not apart or most > 8 or min(apart) >= 2, "no two that touch, while there is room"


def test_augmentations_that_are_reduced_are_fewer_and_otherwise_the_same() -> None:
    policy = augmentation_policy((16, 16, 16), num_channels=1, mirror_axes=(0, 1, 2))
    draws = [
        (draw_augmentation(policy, generator(0, k)), draw_augmentation(replace(policy, reduction=0.5), generator(0, k))) for k in range(400)
    ]
    assert all(few.mirror == full.mirror for full, few in draws)
    for name in REDUCED:
        made = [(getattr(full, name), getattr(few, name)) for full, few in draws if getattr(full, name)]
        assert all(few in (full, getattr(AugmentationDraw(), name)) for full, few in made)
        assert 0.25 < sum(few == full for full, few in made) / len(made) < 0.75


def test_minutes_are_hours() -> None:
    assert TrainingOptions(minutes=30) == TrainingOptions(hours=0.5)
    with pytest.raises(InputError, match="at most one"):
        TrainingOptions(minutes=30, hours=1)


def test_averaging_does_not_change_what_is_trained(material: Material, tmp_path: Path) -> None:
    for mean_age in (0.0, 0.1):
        train(material, tmp_path / str(mean_age), TrainingPlan(weight_averaging=mean_age), epochs=1, iterations=4)
    plain, averaged = tensors_of(tmp_path / "0.0"), tensors_of(tmp_path / "0.1")
    assert all(tensor.equal(averaged[name]) for name, tensor in plain.items())
    assert any(name.startswith("averaged.") for name in averaged)


@pytest.mark.parametrize(("schedule", "is_kept"), [("cosine", True), ("poly", False)])
def test_the_last_epoch_of_a_cosine_is_kept_whatever_few_patches_say(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, is_kept: bool
) -> None:
    falling = count(9, -1)
    found = lambda *_, **__: PatchValidation(loss=0.0, dice={"ball": next(falling) / 10})  # noqa: E731
    monkeypatch.setattr("medseg3d.training.loop.validate_patches", found)
    training = replace(material[1].training, schedule=schedule, follows_budget=False, weight_averaging=0.0)
    records = train(material, tmp_path, training, epochs=3, iterations=1)
    assert [record.is_best for record in records] == [True, False, is_kept]
    prolonged = train(material, tmp_path, training, epochs=4, iterations=1)
    assert [record.is_best for record in prolonged] == [is_kept]
