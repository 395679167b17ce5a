"""What several datasets in one network need beside their batches."""

from __future__ import annotations

import math

import pytest
import torch

from medseg3d.networks.build import build_universal
from medseg3d.networks.u2net import SHARING, U2Net
from medseg3d.plan import NetworkPlan
from medseg3d.training.domains import LARGEST_RISE, NORM_MEMORY, with_unit_gradients

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


def step(network: U2Net, domain: str, scale: float) -> None:
    """Gradients of one step."""
    network.zero_grad(set_to_none=True)
    image = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    outputs = network(image, domain)
    (scale * (outputs[0] if isinstance(outputs, list) else outputs).square().mean()).backward()


def shared_norm(network: U2Net) -> float:
    return math.sqrt(sum(float(p.grad.square().sum()) for p in SHARING.shared_parameters(network) if p.grad is not None))


def test_gradients_have_one_size_whatever_the_loss_of_a_domain_is(network: U2Net) -> None:
    norms: tuple[float, ...] = (0.0, 0.0)
    for index, (domain, scale) in enumerate((("a", 1.0), ("b", 1000.0))):
        step(network, domain, scale)
        before = shared_norm(network)
        own = [p.grad.clone() for p in network.domains[domain].parameters() if p.grad is not None]
        norms = with_unit_gradients(network, index, norms, SHARING.shared_parameters(network))
        assert shared_norm(network) == pytest.approx(1, rel=1e-4)
        assert norms[index] == pytest.approx(before, rel=1e-4)
        after = [p.grad for p in network.domains[domain].parameters() if p.grad is not None]
        assert all(torch.allclose(x / before, y, rtol=1e-3) for x, y in zip(own, after, strict=True)), "its own parts as well"
    assert norms[1] > 100 * norms[0]


def test_the_norm_of_a_domain_runs_slowly(network: U2Net) -> None:
    step(network, "a", 1.0)
    usual = shared_norm(network)
    norms = with_unit_gradients(network, 0, (0.0, 5.0), SHARING.shared_parameters(network))
    step(network, "a", 100.0)
    norms = with_unit_gradients(network, 0, norms, SHARING.shared_parameters(network))
    expected = NORM_MEMORY * usual + (1 - NORM_MEMORY) * LARGEST_RISE * usual  # a spike of 100 counts as one of 10
    assert norms == (pytest.approx(expected, rel=1e-3), 5.0)
    assert shared_norm(network) == pytest.approx(100 * usual / expected, rel=1e-3)


def test_gradients_that_are_not_finite_leave_the_norms_alone(network: U2Net) -> None:
    step(network, "a", math.inf)
    assert with_unit_gradients(network, 0, (2.0, 3.0), SHARING.shared_parameters(network)) == (2.0, 3.0)
    step(network, "a", 0.0)
    assert with_unit_gradients(network, 0, (2.0, 3.0), SHARING.shared_parameters(network)) == (2.0, 3.0)
