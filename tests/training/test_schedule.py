"""The learning rate over a run, beside torch's schedulers, and per part of a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from medseg3d.errors import PlanError
from medseg3d.plan import ScheduleName, TrainingPlan
from medseg3d.training.schedule import CYCLICAL_RATIO, SCHEDULES, WARMUP_START, learning_rate, parameter_groups, poly

STEPS = 240
RATE = 0.01


def torch_rates(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]) -> list[float]:
    """The rates that a scheduler of torch gives for steps 0 … STEPS - 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = make(optimizer)
    rates = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*optimizer.step.*")  # nothing is trained here
        for _ in range(STEPS):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            scheduler.step()
    return rates


def our_rates(training: TrainingPlan) -> list[float]:
    return [learning_rate(training, step / STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("exponent", [0.5, 0.9, 2.0])
def test_poly_is_that_of_torch(exponent: float) -> None:
    training = TrainingPlan(learning_rate=RATE, schedule="poly", poly_exponent=exponent)
    theirs = torch_rates(lambda o: lr_scheduler.PolynomialLR(o, total_iters=STEPS, power=exponent))
    assert our_rates(training) == pytest.approx(theirs, rel=1e-9)


def test_cosine_is_that_of_torch() -> None:
    theirs = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS))
    assert our_rates(TrainingPlan(learning_rate=RATE, schedule="cosine")) == pytest.approx(theirs, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("cycles", [1, 3, 8])
def test_restarts_are_those_of_torch(cycles: int) -> None:
    theirs = torch_rates(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=STEPS // cycles))
    assert our_rates(TrainingPlan(learning_rate=RATE, schedule="cosine_restarts", cycles=cycles)) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("cycles", [1, 3, 8])
def test_cycles_are_those_of_torch(cycles: int) -> None:
    half = STEPS // cycles // 2
    theirs = torch_rates(lambda o: lr_scheduler.CyclicLR(o, RATE / CYCLICAL_RATIO, RATE, step_size_up=half, cycle_momentum=False))
    assert our_rates(TrainingPlan(learning_rate=RATE, schedule="cyclical", cycles=cycles)) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_is_linear_and_the_schedule_follows_it_whole(schedule: ScheduleName) -> None:
    after = STEPS // 4
    training = TrainingPlan(learning_rate=RATE, schedule=schedule, warmup=0.25, cycles=2)
    rates = our_rates(training)
    theirs = torch_rates(lambda o: lr_scheduler.LinearLR(o, start_factor=WARMUP_START, total_iters=after))
    assert rates[:after] == pytest.approx(theirs[:after], rel=1e-9)
    unwarmed = replace(training, warmup=0.0)
    expected = [learning_rate(unwarmed, step / (STEPS - after)) for step in range(STEPS - after)]
    assert rates[after:] == pytest.approx(expected, abs=1e-9)


@given(
    schedule=st.sampled_from(list(SCHEDULES)),
    warmup=st.floats(0, 1),
    cycles=st.integers(1, 20),
    progress=st.floats(0, 1.5),
)
def test_a_rate_lies_between_zero_and_the_plans(schedule: ScheduleName, warmup: float, cycles: int, progress: float) -> None:
    training = TrainingPlan(learning_rate=RATE, schedule=schedule, warmup=warmup, cycles=cycles)
    assert 0 <= learning_rate(training, progress) <= RATE * (1 + 1e-12)


@given(progress=st.floats(0, 1))
def test_the_default_plan_trains_with_the_same_bits_as_poly_alone(progress: float) -> None:
    assert learning_rate(TrainingPlan(), progress) == poly(0.01, progress, 0.9)


@pytest.mark.parametrize(("schedule", "last"), [("poly", 0), ("cosine", 0), ("cosine_restarts", 0), ("cyclical", RATE / CYCLICAL_RATIO)])
def test_a_run_ends_low_even_where_a_cycle_would_begin(schedule: ScheduleName, last: float) -> None:
    training = TrainingPlan(learning_rate=RATE, schedule=schedule, cycles=3, warmup=0.1)
    assert learning_rate(training, 1.0) == pytest.approx(last)
    assert learning_rate(training, 1.2) == pytest.approx(last)


@given(cycles=st.integers(1, 30), warmup=st.sampled_from([0.0, 0.05, 0.1, 0.3]), data=st.data())
def test_a_cycle_begins_at_the_top_whatever_the_rounding(cycles: int, warmup: float, data: st.DataObject) -> None:
    cycle = data.draw(st.integers(0, cycles - 1))
    training = TrainingPlan(learning_rate=RATE, schedule="cosine_restarts", cycles=cycles, warmup=warmup)
    assert learning_rate(training, warmup + (1 - warmup) * cycle / cycles) == pytest.approx(RATE)


class Network(nn.Module):
    """Parts named as in our networks, with numbers beyond 9."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(nn.Conv3d(1, 1, 1) for _ in range(12))
        self.decoder = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.scale = nn.Parameter(torch.ones(1))


def names_of(network: nn.Module, group: dict[str, object]) -> set[str]:
    members = {id(p) for p in group["params"]}  # type: ignore[attr-defined]
    return {name for name, p in network.named_parameters() if id(p) in members}


def test_without_factors_there_is_one_group_in_the_networks_order() -> None:
    network = Network()
    (group,) = parameter_groups(network, TrainingPlan())
    assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]
    assert group["factor"] == 1.0


def test_the_longest_name_wins_and_every_parameter_has_one_group() -> None:
    network = Network()
    factors = {"encoder": 0.1, "encoder.1": 0.5, "decoder.1.weight": 2.0}
    groups = parameter_groups(network, TrainingPlan(layer_learning_rates=factors))
    found = {group["factor"]: names_of(network, group) for group in groups}
    assert found[0.5] == {"encoder.1.weight", "encoder.1.bias"}
    assert found[2.0] == {"decoder.1.weight"}
    assert found[0.1] == {f"encoder.{i}.{kind}" for i in range(12) if i != 1 for kind in ("weight", "bias")}
    assert found[1.0] == {"decoder.0.weight", "decoder.0.bias", "decoder.1.bias", "scale"}
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    optimizer = torch.optim.SGD(groups, lr=RATE)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([RATE * g["factor"] for g in groups])


def test_frozen_parameters_are_left_out() -> None:
    network = Network()
    network.decoder.requires_grad_(False)
    groups = parameter_groups(network, TrainingPlan(layer_learning_rates={"decoder": 0.1, "scale": 3.0}))
    assert [group["factor"] for group in groups] == [1.0, 3.0]
    assert not any(name.startswith("decoder") for group in groups for name in names_of(network, group))


def test_unknown_names_are_refused_all_at_once() -> None:
    with pytest.raises(PlanError, match=r"'head', 'enc'.*encoder, decoder, scale|'head', 'enc'.*scale, encoder, decoder"):
        parameter_groups(Network(), TrainingPlan(layer_learning_rates={"head": 0.1, "enc": 0.5, "decoder": 1.0}))
