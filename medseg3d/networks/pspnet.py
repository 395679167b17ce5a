"""PSPNet: a dilated ResNet and pyramid pooling (Zhao et al. 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from medseg3d.networks import encoders, resnet
from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.context_heads import PyramidPooling, auxiliary_head
from medseg3d.networks.convolutions import convolution
from medseg3d.networks.family import Family
from medseg3d.networks.resizing import resized
from medseg3d.networks.style import style_of
from medseg3d.plan import NetworkPlan, Option

BINS = (1, 2, 3, 6)


class PSPNet(nn.Module):
    """Logits at the output stride, brought to the size of the input; with ``deep_supervision`` those of an auxiliary head follow."""

    head_weights = (1.0, 0.4)
    """As published."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit, kernel = style_of(plan.options), (1,) * plan.dimensions, plan.kernel_sizes[-1]
        self.deep_supervision = plan.deep_supervision
        self.encoder = encoders.encoder_of(plan)
        before = self.encoder.widths[-1]
        width = max(1, before // len(BINS))
        self.pyramid = PyramidPooling(before, width, BINS, plan.dimensions, style)
        self.head = nn.Sequential(
            ConvBlock(before + len(BINS) * width, width, kernel, unit, style, bias=False),
            nn.Dropout(0.1),
            convolution(width, plan.num_classes, unit, unit),
        )
        self.auxiliary = (
            auxiliary_head(self.encoder.widths[-2], width, plan.kernel_sizes[-2], plan.num_classes, style, bias=True)
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


OPTIONS: dict[str, Option] = {**encoders.OPTIONS, "stem": "deep"}
FAMILY = Family(name="pspnet", build=PSPNet, options=OPTIONS, choices=encoders.CHOICES, problems=resnet.problems)
