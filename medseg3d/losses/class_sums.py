"""The sums over voxels that Dice and cross-entropy are made of: logits and labels in, three sums per sample out, with their gradient.

What a softmax of many classes takes is many times as large as the images. So the logits are gone through in blocks that stay in a
processor's cache, and in the layout that they have: nothing of their size is made but their gradient, and nothing is kept for it but they
themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ON_CPU, BLOCK_ELSEWHERE = 2**18, 2**26
"""Probabilities of a block: a megabyte, which fits a core's cache; on a GPU each block costs launches, and there is no such cache."""
FEW_CLASSES = 16
"""Below so many classes a vector unit is filled better by voxels than by classes."""


def class_sums(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of the softmax's probabilities per class, of those where the label is the class, and of log-probabilities of the labels.

    ``logits`` are ``(batch, class, n0, …)`` of any float type and layout, ``index`` ``(batch, n0, …)`` int64 with values below the number
    of classes; the sums are ``(batch, class)`` twice and ``(batch,)``, float32.
    """
    with torch.autocast(logits.device.type, enabled=False):
        predicted, overlap, log_likelihood = _ClassSums.apply(logits, index)  # type: ignore[no-untyped-call]
    return predicted, overlap, log_likelihood


class _ClassSums(torch.autograd.Function):
    """Probabilities are computed twice, as keeping them takes more time than a softmax in the cache."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(logits, index)
        batch, num_classes = logits.shape[:2]
        predicted, overlap = (torch.zeros(batch, num_classes, device=logits.device) for _ in range(2))
        log_likelihood = torch.zeros(batch, device=logits.device)
        for sample, voxels, labels in _blocks(logits, index):
            axis = _class_axis(num_classes)
            log_probabilities = F.log_softmax(_laid_out(voxels), axis)
            true = log_probabilities.gather(axis, labels.reshape(-1).unsqueeze(axis)).view(labels.shape)
            predicted[sample] += log_probabilities.exp_().sum(1 - axis)
            # row by row, then over the rows: one float32 sum over many voxels would round each addend
            overlap[sample] += torch.zeros(len(labels), num_classes, device=logits.device).scatter_add_(1, labels, true.exp()).sum(0)
            log_likelihood[sample] += true.sum()
        return predicted, overlap, log_likelihood

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, index = ctx.saved_tensors
        with torch.autocast(logits.device.type, enabled=False):  # whoever asks for gradients may be inside of it
            return _gradient(logits, index, *gradients), None


def _gradient(logits: Tensor, index: Tensor, of_predicted: Tensor, of_overlap: Tensor, of_log_likelihood: Tensor) -> Tensor:
    """With p the probabilities, y a voxel's label, a, b and c the gradients of the three sums: p (a - p·a - b_y p_y - c) at every class,
    and b_y p_y + c more at y."""
    result = _room_for_gradient(logits)
    axis = _class_axis(logits.shape[1])
    for (sample, voxels, labels), (_, target, _) in zip(_blocks(logits, index), _blocks(result, index), strict=True):
        probabilities, labels = F.softmax(_laid_out(voxels), axis), labels.reshape(-1)
        per_class = of_predicted[sample]
        mean = probabilities @ per_class if axis else per_class @ probabilities
        extra = probabilities.gather(axis, labels.unsqueeze(axis)).squeeze(axis) * of_overlap[sample][labels] + of_log_likelihood[sample]
        probabilities *= per_class.unsqueeze(1 - axis) - (mean + extra).unsqueeze(axis)
        probabilities.scatter_add_(axis, labels.unsqueeze(axis), extra.unsqueeze(axis))
        target.copy_((probabilities if axis else probabilities.T).view(target.shape))
    return result


def _room_for_gradient(logits: Tensor) -> Tensor:
    """Room for it, in a layout that :func:`_blocks` has views of: classes last where the logits have them so, as convolutions like it."""
    if logits.stride(1) == 1:
        return logits.new_empty((logits.shape[0], *logits.shape[2:], logits.shape[1])).movedim(-1, 1)
    return logits.new_empty(logits.shape)


def _class_axis(num_classes: int) -> int:
    return 0 if num_classes < FEW_CLASSES else 1


def _laid_out(voxels: Tensor) -> Tensor:
    """A block ``(…, class)`` as float32 ``(voxel, class)``, or ``(class, voxel)`` where classes are few."""
    num_classes = voxels.shape[-1]
    flat = voxels.reshape(-1, num_classes)
    return (flat if _class_axis(num_classes) else flat.T).float().contiguous()


def _blocks(logits: Tensor, index: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Sample by sample some rows along the last axis: ``(sample, logits (row, voxel, class), labels (row, voxel))``, views where the layout
    allows it."""
    last = logits.movedim(1, -1)
    size = BLOCK_ON_CPU if logits.device.type == "cpu" else BLOCK_ELSEWHERE
    rows = max(1, size // (logits.shape[1] * index.shape[-1]))
    for sample in range(len(logits)):
        voxels, labels = last[sample].flatten(0, -3), index[sample].reshape(-1, index.shape[-1])
        for first in range(0, len(labels), rows):
            yield sample, voxels[first : first + rows], labels[first : first + rows]
