"""The residual-encoder U-Net: a stem and residual blocks going down, the plain U-Net's decoder going up."""

from __future__ import annotations

from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock, ResidualStack
from medseg3d.networks.decoder import HEADS, Decoder
from medseg3d.networks.family import Family
from medseg3d.networks.style import style_of
from medseg3d.plan import NetworkPlan, Option


class ResidualUNet(nn.Module):
    """nnU-Net's residual-encoder U-Net (M, L and XL differ in patch and batch only), in 2D or 3D.

    Input and output as those of :class:`~medseg3d.networks.plain_unet.PlainUNet`. The stem is one convolution with the
    features and the kernel of the first stage.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.deep_supervision = plan.deep_supervision
        style = style_of(plan.options)
        unit = (1,) * plan.dimensions
        self.stem = ConvBlock(plan.in_channels, plan.features[0], plan.kernel_sizes[0], unit, style)
        self.encoder = nn.ModuleList(
            ResidualStack(in_channels, out_channels, kernel_size, stride, num_blocks, style)
            for in_channels, out_channels, kernel_size, stride, num_blocks in zip(
                (plan.features[0], *plan.features[:-1]),
                plan.features,
                plan.kernel_sizes,
                plan.strides,
                plan.encoder_blocks,
                strict=True,
            )
        )
        is_summed = plan.options["heads"] == "summed"
        self.decoder = Decoder(
            plan.features, plan.kernel_sizes, plan.strides, plan.decoder_blocks, plan.num_classes, style, is_summed=is_summed
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits; a list of them while training with deep supervision."""
        x = self.stem(x)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        all_heads = self.training and self.deep_supervision
        logits = self.decoder(skips, all_heads=all_heads)
        return logits if all_heads else logits[0]


OPTIONS: dict[str, Option] = {"heads": "separate"}
CHOICES: dict[str, tuple[Option, ...]] = {"heads": HEADS}
FAMILY = Family(name="residual_unet", build=ResidualUNet, options=OPTIONS, choices=CHOICES)
