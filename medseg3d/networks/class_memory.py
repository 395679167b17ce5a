"""What each class has looked like in all images so far: features and labels go in, one vector per class comes out (Jin et al. 2021, MCIBI).

The vectors are a buffer of the network: they lie in its weights, are saved and resumed with them, and receive no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks.context_heads import averaged

MOMENTUM = 0.9
"""How much of a vector a step replaces at the highest learning rate, as published; with a lower rate it is as much less."""
TINY = torch.finfo(torch.float32).tiny
"""Instead of a sum of weights that is zero."""


class ClassMemory(nn.Module):
    """One vector per class. ``memory`` ``(num_classes, width)`` is zero for a class that was never seen.

    While training it keeps the features of the last forward pass and, once :func:`note_labels` has named them, their labels, until
    :func:`remember`. ``contents`` bool ``(num_classes, code)`` says which labels belong to a class, where they are not the classes' numbers
    (regions, an ignore label, cases annotated in part).
    """

    memory: Tensor

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(num_classes, width))
        self.contents: Tensor | None = None
        self.features: Tensor | None = None
        self.labels: Tensor | None = None

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """The vectors of the classes as ``logits`` ``(batch, num_classes, …)`` weigh them: ``(batch, width, …)``."""
        if self.training:
            self.features = features.detach()
        recalled: Tensor = logits.softmax(1).movedim(1, -1) @ self.memory.to(features.dtype)
        return recalled.movedim(-1, 1)

    @property
    def is_known(self) -> Tensor:
        """Which classes have been seen, ``(num_classes,)``."""
        return self.memory.any(1)

    def remember(self, rate_share: float) -> None:
        """Update by the features of the last forward pass and their labels, which are then let go; nothing where there are none."""
        if self.features is not None and self.labels is not None:
            self.update(self.features, self.labels, MOMENTUM * rate_share)
        self.features = self.labels = None

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, momentum: float) -> None:
        """The published rule. A class that is new takes the mean of its features. Otherwise ``(1 - momentum) · old + momentum · found``.

        ``found`` is the mean of the features of the class, weighted by ``1 - cos(feature, old)``: what is unlike the memory counts
        more. ``features`` are ``(batch, width, …)``; ``labels`` ``(batch, …)`` of any size, or one-hot ``(batch, num_classes, …)``. Voxels
        with other labels than the classes' belong to none. Labels that are finer than the features give each feature the share that the
        class has in its place; the published code interpolates the features instead, which a volume has no memory for. Several
        processes remember what one would of all their batches; the published code averages their memories.
        """
        vectors, old = features.float().movedim(1, -1).flatten(0, -2), self.memory
        shares = [
            share_of_class(self._members(labels, number, is_one_hot=labels.ndim == features.ndim), features) for number in range(len(old))
        ]
        sums = summed_over_processes(torch.stack([_sums(vectors, share, own) for share, own in zip(shares, old, strict=True)]))
        (unlike, all_alike), amounts = sums[:, :-2].chunk(2, 1), sums[:, -2:]
        is_known, is_weighted, is_there = old.any(1), amounts[:, 0] > 0, amounts[:, 1] > 0
        means = all_alike / amounts[:, 1:].clamp_min(TINY)
        found = torch.where((is_known & is_weighted)[:, None], unlike / amounts[:, :1].clamp_min(TINY), means)
        moved = torch.where(is_known[:, None], (1 - momentum) * old + momentum * found, means)
        self.memory.copy_(torch.where(is_there[:, None], moved, old))

    def _members(self, labels: Tensor, number: int, *, is_one_hot: bool) -> Tensor:
        """Which voxels belong to a class, or how much of them, ``(batch, …)``."""
        if is_one_hot:
            return labels[:, number]
        return labels == number if self.contents is None else self.contents[number].to(labels.device)[labels.long()]


def _sums(vectors: Tensor, share: Tensor, old: Tensor) -> Tensor:
    """Of the features of a class: their sum by how unlike the old vector they are, their plain sum, and the sums of both weights."""
    unlike = (1 - F.cosine_similarity(vectors, old[None], dim=1)).clamp_min(0) * share
    return torch.cat((unlike @ vectors, share @ vectors, unlike.sum()[None], share.sum()[None]))


def share_of_class(members: Tensor, features: Tensor) -> Tensor:
    """Which share of each feature's place belongs to a class, 0 to 1, all in a row."""
    return averaged(members.float()[:, None], tuple(features.shape[2:])).flatten()


def summed_over_processes(sums: Tensor) -> Tensor:
    """The same sums over the batches of all processes, the same in all of them; unchanged where there is one process."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    return sums


def memories(network: nn.Module) -> Iterator[ClassMemory]:
    """All memories of a network."""
    return (module for module in network.modules() if isinstance(module, ClassMemory))


def note_labels(network: nn.Module, labels: Tensor) -> None:
    """Tell every memory of a network the labels of the batch that has just passed."""
    for memory in memories(network):
        memory.labels = labels


def remember(network: nn.Module, *, rate_share: float) -> None:
    """After a step: let every memory learn from its batch. ``rate_share`` is the learning rate as a share of the highest."""
    for memory in memories(network):
        memory.remember(rate_share)
