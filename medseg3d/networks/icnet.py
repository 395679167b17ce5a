"""ICNet: three resolutions of the image, the coarser the deeper, joined by cascade feature fusion (Zhao et al. 2018).

The middle and the coarse branch share a :class:`~medseg3d.networks.resnet.ResNet`: its first stages see the image at the
scale of the plan's first stride, the others that once more.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks import encoders, resnet
from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.context_heads import PyramidPooling
from medseg3d.networks.convolutions import Sizes, convolution
from medseg3d.networks.family import Family
from medseg3d.networks.resizing import resized
from medseg3d.networks.style import Style, style_of, whole
from medseg3d.plan import NetworkPlan, Option

FINE_STAGES, SHARED_STAGES, BINS = 3, 2, (1, 2, 3, 6)


class ICNet(nn.Module):
    """Logits at twice the size of the fine branch, brought to that of the input; with ``deep_supervision`` those of the fusions follow."""

    head_weights = (1.0, 0.4, 0.4)
    """As published; the published fourth, of the main logits before the last interpolation, is left out."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit, kernels = style_of(plan.options), (1,) * plan.dimensions, plan.kernel_sizes
        self.deep_supervision = plan.deep_supervision
        self.scale = tuple(1 / stride for stride in plan.strides[1])
        width = whole(plan.options, "context_features")
        fine = min(FINE_STAGES, len(plan.features) - 1)
        channels = (plan.in_channels, *(width // 4,) * (fine - 1), width // 2)
        self.fine = nn.Sequential(
            *(
                ConvBlock(channels[stage - 1], channels[stage], kernels[stage], plan.strides[stage], style, bias=False)
                for stage in range(1, fine + 1)
            )
        )
        self.encoder = encoders.encoder_of(plan)
        widths = self.encoder.widths
        self.num_shared = min(SHARED_STAGES, len(widths) - 2)
        inner = max(1, widths[-1] // len(BINS))
        self.pyramid = PyramidPooling(widths[-1], inner, BINS, plan.dimensions, style, is_activated=False)
        self.merge = nn.Sequential(ConvBlock(widths[-1] + len(BINS) * inner, inner, kernels[-1], unit, style, bias=False), nn.Dropout(0.1))
        self.of_coarse = ConvBlock(inner, 2 * width, unit, unit, style, bias=False)
        self.of_middle = ConvBlock(widths[self.num_shared], 2 * width, unit, unit, style, bias=False)
        self.first = CascadeFusion(2 * width, 2 * width, width, kernels[-1], plan.num_classes, style, has_head=plan.deep_supervision)
        self.second = CascadeFusion(width, width // 2, width, kernels[-1], plan.num_classes, style, has_head=plan.deep_supervision)
        self.head = convolution(width, plan.num_classes, unit, unit, bias=False)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(batch, num_classes, …)`` of the input's size."""
        middle = self.encoder.stem(_scaled(x, self.scale))
        for stage in range(self.num_shared):
            middle = self.encoder.stage(stage, middle)
        coarse = _scaled(middle, self.scale)
        for stage in range(self.num_shared, len(self.encoder.stages)):
            coarse = self.encoder.stage(stage, coarse)
        joined, first = self.first(self.of_coarse(self.merge(self.pyramid(coarse))), self.of_middle(middle))
        fine = self.fine(x)
        joined, second = self.second(joined, fine)
        larger = tuple(min(n * round(1 / s), most) for n, s, most in zip(joined.shape[2:], self.scale, x.shape[2:], strict=True))
        logits = resized(self.head(resized(joined, larger)), x.shape[2:])
        if first is None or second is None or not (self.training and self.deep_supervision):
            return logits
        return [logits, second, first]


class CascadeFusion(nn.Module):
    """Coarse features, brought to the size of finer ones and convolved with a dilation of 2, added to these; and logits of the coarse."""

    def __init__(self, coarse: int, fine: int, width: int, kernel: Sizes, num_classes: int, style: Style, *, has_head: bool) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        self.of_coarse = ConvBlock(coarse, width, kernel, unit, style, bias=False, is_activated=False)
        resnet.dilate(self.of_coarse, tuple(2 if k > 1 else 1 for k in kernel))
        self.of_fine = ConvBlock(fine, width, unit, unit, style, bias=False, is_activated=False)
        self.head = convolution(width, num_classes, unit, unit, bias=False) if has_head else None

    def forward(self, coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor | None]:
        """The sum at the size of ``fine``, and the coarse one's logits where there is a head."""
        brought = self.of_coarse(resized(coarse, fine.shape[2:]))
        return F.relu(brought + self.of_fine(fine)), None if self.head is None or not self.training else self.head(brought)


def _scaled(x: Tensor, scale: tuple[float, ...]) -> Tensor:
    """Linear interpolation to a fraction of the size, at least a voxel."""
    return resized(x, tuple(max(1, round(length * share)) for length, share in zip(x.shape[2:], scale, strict=True)))


OPTIONS: dict[str, Option] = {**encoders.OPTIONS, "stem": "deep", "context_features": 128}
FAMILY = Family(name="icnet", build=ICNet, options=OPTIONS, choices=encoders.CHOICES, problems=resnet.problems)
