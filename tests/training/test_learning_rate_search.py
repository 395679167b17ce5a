"""The search for a learning rate, on bowls whose limit of stability is known, and on a fold of the tiny dataset."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg3d.devices import Device, Precision
from medseg3d.errors import DivergedError, InputError
from medseg3d.losses import LossSettings, make_loss, supervised_loss
from medseg3d.records import read_record
from medseg3d.reporting.learning_rate_figure import learning_rate_figure
from medseg3d.training.learning_rate_search import MIN_STEPS, LearningRateCurve, find_learning_rate
from medseg3d.training.step import Learner, scaler_for
from medseg3d.workflows import find_lr as find_lr_workflow

Batches = Iterator[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small spend their time on waking threads, most of all where other work takes the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Bowl(nn.Module):
    """Coordinates in a parabola; an image moves them, as a batch moves a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.full((8,), 3.0))

    def forward(self, image: Tensor) -> Tensor:
        return self.place + image


def learner(network: nn.Module, optimizer: torch.optim.Optimizer, *, precision: Precision = "float32", **rules: Any) -> Learner:
    device = Device(device=torch.device("cpu"), precision=precision)
    return Learner(network=network, optimizer=optimizer, scaler=scaler_for(device), device=device, **rules)


def bowl_curve(sharpness: float, *, offset: float = 0.0, noise: float = 0.1) -> LearningRateCurve:
    """The curve of loss ``Σ cᵢ xᵢ² / 2`` with the largest c ``sharpness``: gradient descent is stable below ``2 / sharpness``."""
    curvature = torch.linspace(0.1, 1.0, 8) * sharpness
    generator = torch.Generator().manual_seed(0)
    batches = ((noise * torch.randn(8, generator=generator), torch.zeros(1)) for _ in itertools.count())
    network = Bowl()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    return find_learning_rate(learner(network, optimizer), batches, lambda x, _: (curvature * x**2).sum() / 2 + offset)


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("limit", [0.02, 0.2, 1.0])
def test_the_suggestion_is_stable_and_the_divergence_near_the_limit(limit: float, noise: float) -> None:
    curve = bowl_curve(2 / limit, noise=noise)
    assert curve.suggested is not None
    assert limit / 200 < curve.suggested < limit
    assert curve.diverged is not None
    # without noise the loss is nearly 0 at the limit, and takes some more steps to come back
    assert limit < curve.diverged < limit * (4 if noise else 10)


def test_a_loss_below_zero_is_searched_like_any_other() -> None:
    above, below = bowl_curve(10.0), bowl_curve(10.0, offset=-500.0)
    assert max(below.losses[:80]) < 0
    assert below.suggested == above.suggested
    assert below.diverged == above.diverged


def pictures(count: int | None = None) -> Batches:
    generator = torch.Generator().manual_seed(0)
    for _ in itertools.count() if count is None else range(count):
        image = torch.randn(2, 1, 4, 4, 4, generator=generator)
        yield image, (image[:, 0] > 0).long()


class Heads(nn.Module):
    """Two outputs, as with deep supervision, and parts that have a state or a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout(0.1))
        self.fine, self.coarse = nn.Conv3d(4, 2, 1), nn.Conv3d(4, 2, 2, stride=2)

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.body(image)
        return [self.fine(features), self.coarse(features)]


LOSS = make_loss("dice_ce", LossSettings(num_classes=2, batch_dice=True))


def trained_heads(kind: type[torch.optim.Optimizer]) -> tuple[Heads, torch.optim.Optimizer]:
    """A network in mixed modes and an optimizer that has a state already."""
    torch.manual_seed(0)
    network = Heads()
    groups: list[dict[str, Any]] = [{"params": network.body.parameters(), "factor": 0.5}, {"params": network.fine.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9) if kind is torch.optim.SGD else torch.optim.AdamW(groups, lr=0.01)
    for image, labels in pictures(2):
        supervised_loss(network(image), labels, LOSS).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.body[1].eval()
    return network, optimizer


def snapshot(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    state = optimizer.state_dict()
    tensors = {f"network.{name}": tensor.clone() for name, tensor in network.state_dict().items()}
    slots = {f"{i}.{name}": torch.as_tensor(value).clone() for i, slot in state["state"].items() for name, value in slot.items()}
    modes = [module.training for module in network.modules()]
    return {**tensors, **slots, "groups": state["param_groups"], "modes": modes}


def assert_same(now: dict[str, object], before: dict[str, object]) -> None:
    assert now.keys() == before.keys()
    for name, value in before.items():
        same = now[name]
        assert value.equal(same) if isinstance(value, Tensor) else value == same, name  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_network_and_optimizer_are_as_before_to_the_bit(kind: type[torch.optim.Optimizer]) -> None:
    network, optimizer = trained_heads(kind)
    before = snapshot(network, optimizer)
    find_learning_rate(learner(network, optimizer), pictures(), LOSS, num_steps=40)
    assert_same(snapshot(network, optimizer), before)
    with pytest.raises(InputError, match="ended after 5"):
        find_learning_rate(learner(network, optimizer), pictures(5), LOSS, num_steps=40)
    assert_same(snapshot(network, optimizer), before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_every_step_draws_one_batch_and_takes_its_rate_times_the_factor(precision: Precision) -> None:
    network, optimizer = trained_heads(torch.optim.SGD)
    used: list[tuple[float, float]] = []
    optimizer.register_step_pre_hook(lambda o, *_: used.append((o.param_groups[0]["lr"], o.param_groups[1]["lr"])))
    batches = pictures(60)
    heads = learner(network, optimizer, precision=precision, gradient_clip=12.0)
    steps: list[tuple[int, int]] = []
    curve = find_learning_rate(heads, batches, LOSS, highest=0.1, num_steps=50, on_step=lambda *s: steps.append(s))
    assert len(list(batches)) == 10
    assert curve.rates == pytest.approx(np.geomspace(1e-6, 0.1, 50))
    assert [second for _, second in used] == pytest.approx(curve.rates)
    assert [first for first, _ in used] == pytest.approx([rate / 2 for rate in curve.rates])
    assert steps == [(number, 50) for number in range(1, 51)]
    assert curve.diverged is None


def test_gradients_are_normalized_where_training_normalizes_them() -> None:
    """The size of the loss decides where gradient descent goes, unless only the direction of its gradient counts."""

    def losses(scale: float, *, normalizes: bool) -> list[float]:
        network = Bowl()
        taught = learner(network, torch.optim.SGD(network.parameters(), lr=1.0), normalizes_gradients=normalizes)
        batches = itertools.repeat((torch.zeros(8), torch.zeros(1)))
        curve = find_learning_rate(taught, batches, lambda x, _: scale * (x**2).sum(), highest=1.0)
        return [loss / scale for loss in curve.losses]

    assert losses(64.0, normalizes=True) == pytest.approx(losses(1.0, normalizes=True))
    assert min(losses(64.0, normalizes=False)) < 0.1 * losses(1.0, normalizes=False)[60]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_search(bad: float) -> None:
    network = Bowl()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    images = itertools.chain([torch.zeros(8)] * 40, itertools.repeat(torch.full((8,), bad)))
    batches = ((image, torch.zeros(1)) for image in images)
    curve = find_learning_rate(learner(network, optimizer), batches, lambda x, _: (x**2).sum())
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed) == 40
    assert curve.diverged == pytest.approx(np.geomspace(1e-6, 10, 100)[40])
    assert np.isfinite(curve.losses).all()


def test_nan_from_the_first_step_is_an_error() -> None:
    network = Bowl()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    with pytest.raises(DivergedError, match="after 0 steps"):
        find_learning_rate(learner(network, optimizer), itertools.repeat((torch.zeros(8), torch.zeros(1))), lambda x, _: x.sum() * math.nan)


def test_too_few_steps_and_rates_that_fall_are_refused() -> None:
    network = Bowl()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    with pytest.raises(InputError, match=f"at least {MIN_STEPS} steps, not {MIN_STEPS - 1}"):
        find_learning_rate(learner(network, optimizer), iter(()), lambda x, _: x.sum(), num_steps=MIN_STEPS - 1)
    with pytest.raises(InputError, match="lowest < highest"):
        find_learning_rate(learner(network, optimizer), iter(()), lambda x, _: x.sum(), lowest=1.0, highest=0.1)


def test_nothing_is_suggested_where_the_loss_never_falls() -> None:
    network = Bowl()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    generator = torch.Generator().manual_seed(0)
    batches = ((torch.rand(8, generator=generator), torch.zeros(1)) for _ in itertools.count())
    curve = find_learning_rate(learner(network, optimizer), batches, lambda x, _: (x - network.place).mean() + 0 * x.sum())
    assert len(curve.losses) == 100
    assert curve.suggested is None
    assert curve.diverged is None


@pytest.mark.parametrize(("suggested", "diverged"), [(1e-3, 0.3), (2e-6, None), (None, 20.0), (None, None)])
def test_a_curve_is_drawn_with_and_without_its_marks(tmp_path: Path, suggested: float | None, diverged: float | None) -> None:
    from matplotlib.image import imread

    rates = tuple(np.geomspace(1e-6, 10, 40).tolist())
    losses = tuple(1 / (1 + rate * 100) + rate for rate in rates)
    curve = LearningRateCurve(rates=rates, losses=losses, smoothed=losses, suggested=suggested, diverged=diverged)
    path = learning_rate_figure(curve, tmp_path / "learning_rate.png", planned=0.01, title="$3d_fullres$ fold 0")
    assert imread(BytesIO(path.read_bytes()), format="png").shape[:2] == (550, 900)
    assert [p.name for p in tmp_path.iterdir()] == ["learning_rate.png"]


def test_a_curve_of_one_rate_is_refused(tmp_path: Path) -> None:
    curve = LearningRateCurve(rates=(1.0,), losses=(1.0,), smoothed=(1.0,), suggested=None, diverged=None)
    with pytest.raises(InputError, match="two learning rates"):
        learning_rate_figure(curve, tmp_path / "learning_rate.png")


def test_a_fold_is_searched_and_its_training_stays_as_it_is(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_lr_workflow, "use_all_cores", lambda: None)  # see one_thread
    folder = trained / "medseg3d-work/models"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = find_lr_workflow.find_lr(trained, device="cpu", num_steps=MIN_STEPS)
    assert read_record(result.record, LearningRateCurve, "learning_rate") == result.curve
    assert result.planned == 0.01
    new = {path for path in folder.rglob("*") if path.is_file()} - before.keys()
    assert new == {result.figure, result.record}
    assert result.record.parent == folder / result.configuration / "fold_0"
    assert {path: path.read_bytes() for path in before} == before
