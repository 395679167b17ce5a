"""DeepLabv3: a dilated ResNet and atrous spatial pyramid pooling (Chen et al. 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from medseg3d.networks import encoders, resnet
from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.context_heads import AtrousPyramid, auxiliary_head
from medseg3d.networks.convolutions import convolution
from medseg3d.networks.family import Family
from medseg3d.networks.resizing import resized
from medseg3d.networks.style import share, style_of, whole
from medseg3d.plan import NetworkPlan, Option

RATES = (6, 12, 18)
"""Of the pyramid at an output stride of 16; at 8 they double."""


class DeepLabV3(nn.Module):
    """Logits at the output stride, brought to the size of the input; with ``deep_supervision`` those of an auxiliary head follow."""

    head_weights = (1.0, 0.4)
    """As in the reference implementation of torchvision."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit, kernel = style_of(plan.options), (1,) * plan.dimensions, plan.kernel_sizes[-1]
        self.deep_supervision = plan.deep_supervision
        self.encoder = encoders.encoder_of(plan)
        width, rates = whole(plan.options, "head_features"), tuple(rate * 16 // whole(plan.options, "output_stride") for rate in RATES)
        before = self.encoder.widths[-1]
        self.pyramid = AtrousPyramid(before, width, kernel, rates, style, dropout=share(plan.options, "head_dropout"))
        self.head = nn.Sequential(
            ConvBlock(width, width, kernel, unit, style, bias=False), convolution(width, plan.num_classes, unit, unit)
        )
        self.auxiliary = (
            auxiliary_head(self.encoder.widths[-2], self.encoder.widths[-2] // 4, plan.kernel_sizes[-2], plan.num_classes, style)
            if plan.deep_supervision
            else None
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(batch, num_classes, …)`` of the input's size."""
        features = self.encoder(x)
        logits = resized(self.head(self.pyramid(features[-1])), x.shape[2:])
        if self.auxiliary is None or not (self.training and self.deep_supervision):
            return logits
        return [logits, self.auxiliary(features[-2])]


OPTIONS: dict[str, Option] = {**encoders.OPTIONS, "head_features": 256, "head_dropout": 0.5}
FAMILY = Family(name="deeplab_v3", build=DeepLabV3, options=OPTIONS, choices=encoders.CHOICES, problems=resnet.problems)
