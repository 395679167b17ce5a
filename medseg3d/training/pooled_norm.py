"""Batch norms whose mean and variance are those of the whole batch where processes share it; without, they are torch's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medseg3d.team import is_shared, pooled_inside


def pool_batch_norms(network: nn.Module) -> None:
    """Replace the batch norms of a network; parameters and buffers stay the same tensors, under the same names."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(parent, name, PooledBatchNorm(child))


class PooledBatchNorm(_BatchNorm):
    """A batch norm over the samples of all processes; torch's own of this kind does not run on a CPU."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``(batch, channel, …)`` by the mean and variance of each channel."""
        if not (self.training and is_shared()):
            return super().forward(input)
        axes = (0, *range(2, input.dim()))
        shape = (1, -1, *[1] * (input.dim() - 2))
        values = input.float()
        count = pooled_inside(values.new_tensor([values.numel() / values.shape[1]]))
        mean = pooled_inside(values.sum(axes)) / count
        centered = values - mean.view(shape)
        variance = pooled_inside(centered.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        scaled = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running numbers as torch's batch norm does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)
