"""Every loss of MONAI that fits can be named, is lower for a better prediction and teaches one; the others are refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from medseg3d.errors import PlanError
from medseg3d.losses import LossSettings, check_loss, make_loss, provider_of
from medseg3d.losses.monai_losses import monai_loss_names
from medseg3d.planning import load_planner

NAMES = monai_loss_names()
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")


def blocks(dimensions: int, num_classes: int) -> torch.Tensor:
    labels = torch.zeros(2, *[8] * dimensions, dtype=torch.uint8)
    for label in range(1, num_classes):
        labels[(slice(None), *[slice(label, 7 - label)] * dimensions)] = label
    return labels


def test_the_usual_ones_are_there() -> None:
    assert {
        f"monai.{name}" for name in ("DiceLoss", "DiceCELoss", "DiceFocalLoss", "FocalLoss", "TverskyLoss", "GeneralizedDiceLoss")
    } <= set(NAMES)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_better_prediction_costs_less_and_gradients_are_finite(name: str, dimensions: int, num_classes: int) -> None:
    torch.manual_seed(0)
    labels = blocks(dimensions, num_classes)
    loss = make_loss(name, LossSettings(num_classes=num_classes))
    right = F.one_hot(labels.long(), num_classes).movedim(-1, 1).float()
    logits = torch.randn(right.shape).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, labels)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() > 0
    assert float(loss(9 * right, labels)) < min(float(value), float(loss(-9 * right, labels)))


@pytest.mark.parametrize("name", ["monai.DiceLoss", "monai.TverskyLoss"])
def test_the_batch_is_pooled_where_the_plan_pools_it(name: str) -> None:
    torch.manual_seed(0)
    labels, logits = blocks(2, 3), torch.randn(2, 3, 8, 8)
    labels[1, :4] = 0
    pooled, apart = (float(make_loss(name, LossSettings(num_classes=3, batch_dice=pools))(logits, labels)) for pools in (True, False))
    assert pooled != pytest.approx(apart, rel=1e-4)


def test_numbers_are_handed_on_in_their_type() -> None:
    labels, logits = blocks(2, 2), torch.randn(2, 2, 8, 8)
    plain = make_loss("monai.DiceLoss", LossSettings(num_classes=2))(logits, labels)
    squared = make_loss("monai.DiceLoss", LossSettings(num_classes=2, options={"squared_pred": 1}))(logits, labels)
    assert float(plain) != pytest.approx(float(squared))
    assert check_loss("monai.TverskyLoss", {"alpha": 0.2})["alpha"] == 0.2
    assert provider_of("monai.TverskyLoss") == ""
    with pytest.raises(PlanError, match=r"squared_pred is 0.5, must be a whole number from 0 to 1 \(squared_pred of monai.DiceLoss"):
        check_loss("monai.DiceLoss", {"squared_pred": 0.5})
    with pytest.raises(PlanError, match=r"Loss monai.DiceLoss: it has no option 'softmax'"):
        check_loss("monai.DiceLoss", {"softmax": 0})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("monai.DiceLos", "MONAI has no loss 'DiceLos'; of its losses monai"),
        ("monai.SSIMLoss", "monai.SSIMLoss cannot train a segmentation here: it needs spatial_dims"),
        ("monai.MaskedDiceLoss", "it is given input, target, mask, and not only logits and labels"),
        ("monai.ContrastiveLoss", "it does not make one channel per class of labels, or no softmax"),
    ],
)
def test_others_are_refused_where_they_are_planned(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(f'extends = "default"\n[training]\nloss = "{name}"\n', encoding="utf-8")
    with pytest.raises(PlanError, match=rf"mine\.toml: .*training\.loss: .*{message}"):
        load_planner(tmp_path / "mine.toml")
