"""Sums over a softmax's probabilities, block by block, against those of the whole; and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medseg3d.losses.class_sums import class_sums


def sums_of_the_whole(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_probabilities = logits.double().log_softmax(1).flatten(2)
    labels = torch.nn.functional.one_hot(index.flatten(1), logits.shape[1]).movedim(-1, 1)
    probabilities = log_probabilities.exp()
    return probabilities.sum(2), (probabilities * labels).sum(2), (log_probabilities * labels).sum((1, 2))


def as_given(logits: Tensor) -> Tensor:
    return logits


def classes_last(logits: Tensor) -> Tensor:
    return logits.movedim(1, -1).contiguous().movedim(-1, 1)


def cropped(logits: Tensor) -> Tensor:
    return torch.nn.functional.pad(logits, (1, 2) * (logits.ndim - 2))[(..., *[slice(1, -2)] * (logits.ndim - 2))]


def of_equal_planes(logits: Tensor) -> Tensor:
    return logits[:, :, :1].expand_as(logits)


LAYOUTS = [as_given, classes_last, cropped, of_equal_planes]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("classes", "shape"), [(2, (9, 7)), (3, (48, 50, 52)), (15, (4, 5, 6)), (16, (4, 5, 6)), (40, (24, 25, 26))])
def test_sums_and_gradients_are_those_of_the_whole(layout, classes: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = layout(3 * torch.randn(2, classes, *shape, generator=generator)).detach().requires_grad_()
    index = torch.randint(classes, (2, *shape), generator=generator)
    weights = [torch.randn(2, classes, generator=generator) for _ in range(2)] + [torch.randn(2, generator=generator)]
    gradients = []
    for sums in (class_sums(logits, index), sums_of_the_whole(logits, index)):
        (gradient,) = torch.autograd.grad(sum((weight * each).sum() for weight, each in zip(weights, sums, strict=True)), logits)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], gradients[1].float(), rtol=1e-4, atol=2e-6)
    for found, expected in zip(class_sums(logits, index), sums_of_the_whole(logits, index), strict=True):
        torch.testing.assert_close(found, expected.float(), rtol=2e-6, atol=1e-4)


@pytest.mark.parametrize("classes", [3, 20])
def test_bfloat16_is_taken_as_it_is_and_the_gradient_has_its_type_and_layout(classes: int) -> None:
    logits = classes_last(torch.randn(2, classes, 4, 5, 6)).to(torch.bfloat16).requires_grad_()
    index = torch.randint(classes, (2, 4, 5, 6))
    with torch.autocast("cpu", torch.bfloat16):
        found = class_sums(logits, index)
        (gradient,) = torch.autograd.grad((found[0] * torch.arange(classes)).sum() + found[1].sum() + found[2].sum(), logits)
    whole = logits.detach().float().requires_grad_()
    predicted, overlap, likelihood = sums_of_the_whole(whole, index)
    (expected,) = torch.autograd.grad((predicted * torch.arange(classes)).sum() + overlap.sum() + likelihood.sum(), whole)
    torch.testing.assert_close(gradient.float(), expected, rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(found, tuple(each.float() for each in sums_of_the_whole(logits.float(), index)), rtol=2e-6, atol=1e-4)
    assert (gradient.dtype, gradient.stride()) == (torch.bfloat16, logits.stride())


def test_a_class_that_is_ruled_out_has_no_probability_and_no_gradient() -> None:
    logits = torch.randn(1, 4, 3, 3, 3)
    logits[:, 2] = -torch.inf
    logits.requires_grad_()
    predicted, overlap, _ = class_sums(logits, torch.randint(2, (1, 3, 3, 3)))
    (gradient,) = torch.autograd.grad((predicted * torch.arange(4.0)).sum() + overlap.sum(), logits)
    assert predicted[0, 2] == overlap[0, 2] == 0
    assert gradient[:, 2].abs().max() == 0
    assert torch.isfinite(gradient).all()
