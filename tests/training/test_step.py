"""A training step, against one written out; and gradients that are normalized, alone and where domains share weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from medseg3d.devices import Device
from medseg3d.networks.build import build_universal
from medseg3d.networks.u2net import SHARING, U2Net
from medseg3d.plan import NetworkPlan
from medseg3d.training.step import LARGEST_RISE, NORM_MEMORY, Learner, normalize_gradients, scaler_for, take_step

PLAN = NetworkPlan(
    family="u2net",
    dimensions=3,
    in_channels=1,
    num_classes=2,
    features=(4, 8),
    kernel_sizes=((3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (2, 2, 2)),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)


@pytest.fixture
def network() -> U2Net:
    torch.manual_seed(0)
    made = build_universal({"a": PLAN, "b": PLAN})
    assert isinstance(made, U2Net)
    return made


def backward(network: U2Net, domain: str, scale: float) -> None:
    """Gradients of one step."""
    network.zero_grad(set_to_none=True)
    image = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    outputs = network(image, domain)
    (scale * (outputs[0] if isinstance(outputs, list) else outputs).square().mean()).backward()


def shared_norm(network: U2Net) -> float:
    return math.sqrt(sum(float(p.grad.square().sum()) for p in SHARING.shared_parameters(network) if p.grad is not None))


def test_gradients_have_one_size_whatever_the_loss_of_a_domain_is(network: U2Net) -> None:
    shared, norms = SHARING.shared_parameters(network), {}
    for domain, scale in (("a", 1.0), ("b", 1000.0)):
        backward(network, domain, scale)
        before = shared_norm(network)
        own = [p.grad.clone() for p in network.domains[domain].parameters() if p.grad is not None]
        norms[domain] = normalize_gradients(network, 0.0, shared=shared)
        assert shared_norm(network) == pytest.approx(1, rel=1e-4)
        assert norms[domain] == pytest.approx(before, rel=1e-4)
        after = [p.grad for p in network.domains[domain].parameters() if p.grad is not None]
        assert all(torch.allclose(x / before, y, rtol=1e-3) for x, y in zip(own, after, strict=True)), "its own parts as well"
    assert norms["b"] > 100 * norms["a"]


def test_the_norm_of_a_domain_runs_slowly(network: U2Net) -> None:
    shared = SHARING.shared_parameters(network)
    backward(network, "a", 1.0)
    usual = shared_norm(network)
    norm = normalize_gradients(network, 0.0, shared=shared)
    backward(network, "a", 100.0)
    norm = normalize_gradients(network, norm, shared=shared)
    expected = NORM_MEMORY * usual + (1 - NORM_MEMORY) * LARGEST_RISE * usual  # a spike of 100 counts as one of 10
    assert norm == pytest.approx(expected, rel=1e-3)
    assert shared_norm(network) == pytest.approx(100 * usual / expected, rel=1e-3)


@pytest.mark.parametrize("scale", [math.inf, 0.0])
def test_gradients_without_a_size_leave_the_norm_alone(network: U2Net, scale: float) -> None:
    backward(network, "a", scale)
    assert normalize_gradients(network, 2.0, shared=SHARING.shared_parameters(network)) == 2.0


class Line(nn.Module):
    """Logits of two classes that move with one number."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.tensor([3.0, 4.0]))

    def forward(self, image: Tensor) -> Tensor:
        return self.place.view(1, 2, 1, 1) * image


def learner(*, gradient_clip: float = math.inf, normalizes: bool = False) -> Learner:
    network, device = Line(), Device(device=torch.device("cpu"), precision="float32")
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    return Learner(
        network=network,
        optimizer=optimizer,
        scaler=scaler_for(device),
        device=device,
        gradient_clip=gradient_clip,
        normalizes_gradients=normalizes,
    )


IMAGE, LABELS = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)


def half_square(logits: Tensor, labels: Tensor) -> Tensor:
    """Its gradient is the place itself: of norm 5 at the start."""
    return logits.square().sum() / 2


@pytest.mark.parametrize(
    ("gradient_clip", "normalizes", "left", "norm"), [(math.inf, False, 0.0, 5.0), (1.0, False, 0.8, 5.0), (0.5, True, 0.9, 1.0)]
)
def test_a_step_goes_down_the_gradient_normalized_and_clipped(gradient_clip: float, normalizes: bool, left: float, norm: float) -> None:
    line = learner(gradient_clip=gradient_clip, normalizes=normalizes)
    step = take_step(line, IMAGE, LABELS, half_square)
    assert (step.loss, step.is_finite, step.running_norm) == (12.5, True, 5.0 if normalizes else 0.0)
    assert step.gradient_norm == pytest.approx(norm)
    assert line.network.place.tolist() == pytest.approx([3 * left, 4 * left], abs=1e-5)  # type: ignore[union-attr, operator]


def test_a_loss_or_gradient_that_is_not_finite_changes_nothing() -> None:
    def no_loss(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.sum() * math.nan

    def no_gradient(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - logits.detach()).abs().sqrt().sum()

    for loss, value in ((no_loss, math.nan), (no_gradient, 0.0)):
        line = learner(normalizes=True)
        step = take_step(line, IMAGE, LABELS, loss, running_norm=2.0)
        assert not step.is_finite
        assert math.isnan(step.gradient_norm)
        assert step.loss == pytest.approx(value, nan_ok=True)
        assert step.running_norm == 2.0
        assert line.network.place.tolist() == [3.0, 4.0]  # type: ignore[union-attr, operator]
