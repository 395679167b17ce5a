"""Optimizers by the plan's name; Muon beside what it is defined as."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from medseg3d.networks.build import build_network
from medseg3d.plan import NetworkPlan, OptimizerName, TrainingPlan
from medseg3d.training.optimizers import BETAS, COEFFICIENTS, OPTIMIZERS, UPDATE_SIZE, Muon, is_mixing, optimizer_of, orthogonalized
from medseg3d.training.state import TrainingState, load_state, restore_state, save_state

NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName)
PLAN = NetworkPlan(
    family="plain_unet",
    dimensions=3,
    in_channels=1,
    num_classes=3,
    features=(8, 16),
    kernel_sizes=((3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (2, 2, 2)),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)
STATE = TrainingState(
    configuration="a",
    fold="0",
    seed=0,
    epochs=1,
    iterations_per_epoch=1,
    hours=None,
    batch_sizes=(2,),
    precision="float32",
    plan_digest="",
)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network(PLAN)


def settings(name: OptimizerName, **numbers: object) -> TrainingPlan:
    return TrainingPlan(optimizer=name, learning_rate=0.01, momentum=0.9, weight_decay=0.1, **numbers)  # type: ignore[arg-type]


def learn(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps on gradients that are drawn from the number of the step."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.named_parameters()}


def test_every_name_of_a_plan_has_its_optimizer() -> None:
    assert tuple(OPTIMIZERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_all_parameters_are_trained_once_with_their_factors(network: nn.Module, name: OptimizerName) -> None:
    groups = optimizer_of(network, settings(name, layer_learning_rates={"encoder": 0.5})).param_groups
    found = [(id(parameter), group["factor"], group["lr"]) for group in groups for parameter in group["params"]]
    expected = [(id(p), 0.5, 0.005) if n.startswith("encoder.") else (id(p), 1.0, 0.01) for n, p in network.named_parameters()]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_parameter_and_one_without_a_gradient_stay(network: nn.Module, name: OptimizerName) -> None:
    frozen, idle, *_ = network.parameters()
    frozen.requires_grad_(False)
    before = weights(network)
    optimizer = optimizer_of(network, settings(name))
    for parameter in network.parameters():
        parameter.grad = None if parameter is idle or parameter is frozen else torch.ones_like(parameter)
    optimizer.step()
    same = [key for key, tensor in network.named_parameters() if tensor.equal(before[key])]
    assert same == list(before)[:2]


@pytest.mark.parametrize("name", NAMES)
def test_a_state_on_disk_goes_on_with_the_same_bits(network: nn.Module, name: OptimizerName, tmp_path: Path) -> None:
    other = copy.deepcopy(network)
    whole = optimizer_of(network, settings(name))
    learn(network, whole, range(4))
    first = optimizer_of(other, settings(name))
    learn(other, first, range(2))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    save_state(tmp_path, STATE, other.state_dict(), first, scaler, averaged={})
    saved = load_state(tmp_path)
    assert saved is not None
    again = build_network(PLAN)
    second = optimizer_of(again, settings(name))
    restore_state(tmp_path, saved[1], saved[2], again, second, scaler)
    learn(again, second, range(2, 4))
    assert all(a.equal(b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_what_is_no_kernel_steps_as_in_adamw(network: nn.Module) -> None:
    other = copy.deepcopy(network)
    learn(network, optimizer_of(network, settings("muon")), range(3))
    learn(other, torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1, betas=BETAS), range(3))
    pairs = [(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True) if not is_mixing(a)]
    assert len(pairs) > 5
    assert all(torch.equal(a, b) for a, b in pairs)


def test_kernels_between_many_channels_are_orthogonalized_and_nothing_else(network: nn.Module) -> None:
    kernels = [name for name, parameter in network.named_parameters() if is_mixing(parameter)]
    several = [name for name, parameter in network.named_parameters() if parameter.ndim == 5]
    stem, *inner, head = several
    assert kernels == inner
    assert (network.get_parameter(stem).shape[1], network.get_parameter(head).shape[0]) == (1, 3)


def test_a_step_is_that_of_nesterov_momentum_orthogonalized() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(8, 16, 3, 3, 3))
    start = parameter.detach().clone()
    optimizer = Muon([{"params": [parameter], "lr": 0.1}], lr=0.1, momentum=0.9, weight_decay=0.5)
    gradients = [torch.randn_like(start), torch.randn_like(start)]
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    expected, kept = start, torch.zeros_like(start)
    for gradient in gradients:
        kept = 0.9 * kept + 0.1 * gradient
        ahead = 0.9 * kept + 0.1 * gradient
        direction = orthogonalized(ahead.reshape(8, -1)).reshape(start.shape)
        expected = (1 - 0.1 * 0.5) * expected - 0.1 * UPDATE_SIZE * (16 * 27) ** 0.5 * direction
    assert torch.allclose(parameter, expected, atol=1e-5)


sides = st.integers(1, 40)


@examples(max_examples=40)
@given(sides, sides, st.integers(0, 2**30), st.floats(1e-12, 1e12))
def test_singular_vectors_stay_and_values_come_near_one_whatever_their_size(rows: int, columns: int, seed: int, scale: float) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = left.T @ orthogonalized(scale * matrix).double() @ right.T
    assert torch.allclose(found, torch.diag(found.diagonal()), atol=0.01)
    is_reached = values > 2e-3 * torch.linalg.vector_norm(values)
    assert ((found.diagonal()[is_reached] - 1).abs() < 0.15).all()
    assert ((found.diagonal() > -0.1) & (found.diagonal() < 1.15)).all()


def test_the_gram_form_is_the_iteration_on_the_matrix_itself() -> None:
    matrix = torch.randn(12, 100, generator=torch.Generator().manual_seed(0))
    expected = matrix.double() / torch.linalg.vector_norm(matrix.double())
    for a, b, c in COEFFICIENTS:
        square = expected @ expected.T
        expected = a * expected + (b * square + c * square @ square) @ expected
    assert torch.allclose(orthogonalized(matrix).double(), expected, atol=1e-4)
    assert torch.allclose(orthogonalized(matrix.T), orthogonalized(matrix).T, atol=1e-5)


def test_a_gradient_of_zeros_gives_no_step() -> None:
    assert orthogonalized(torch.zeros(8, 20)).equal(torch.zeros(8, 20))


@pytest.mark.parametrize("size", [1e-20, 1e-29, 1e-33, 1e-40])
def test_a_momentum_that_fades_gives_a_finite_step(size: float) -> None:
    matrix = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    found = orthogonalized(size * matrix)
    assert torch.isfinite(found).all()
    assert torch.linalg.matrix_norm(found, 2) < 1.15


def test_updates_have_the_size_of_those_of_adamw() -> None:
    """The root mean square of a step in units of the learning rate, for kernels of any shape."""
    for shape in ((32, 32, 3, 3, 3), (64, 16, 1, 1, 1), (16, 64, 2, 2, 2)):
        parameter = nn.Parameter(torch.zeros(shape))
        optimizer = Muon([{"params": [parameter], "lr": 0.1}], lr=0.1, momentum=0.95, weight_decay=0.0)
        parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        assert float(parameter.detach().square().mean().sqrt()) / 0.1 == pytest.approx(UPDATE_SIZE, rel=0.1)
