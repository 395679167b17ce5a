"""The plain U-Net: stacked convolutions per stage, strided convolutions down, transposed convolutions up."""

from __future__ import annotations

from torch import Tensor, nn

from medseg3d.networks.decoder import HEADS, Decoder
from medseg3d.networks.encoders import STAGES
from medseg3d.networks.family import Family
from medseg3d.networks.style import style_of
from medseg3d.plan import NetworkPlan, Option


class PlainUNet(nn.Module):
    """nnU-Net's plain U-Net in 2D or 3D, with any number of stages, kernels and strides per axis.

    Input ``(batch, in_channels, …)`` with sizes divisible by the total stride. Output ``(batch, num_classes, …)``; while
    training with ``deep_supervision`` a list of logits at the decoder stages' own sizes, finest first. ``encoder`` is of what its stages
    are made, see :data:`~medseg3d.networks.encoders.STAGES`; all but ``plain`` are not nnU-Net's, nor are ``heads`` that are ``summed``.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.deep_supervision = plan.deep_supervision
        style = style_of(plan.options)
        self.encoder = nn.ModuleList(
            STAGES[str(plan.options["encoder"])](in_channels, out_channels, kernel_size, stride, num_blocks, style)
            for in_channels, out_channels, kernel_size, stride, num_blocks in zip(
                (plan.in_channels, *plan.features[:-1]),
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
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        all_heads = self.training and self.deep_supervision
        logits = self.decoder(skips, all_heads=all_heads)
        return logits if all_heads else logits[0]


OPTIONS: dict[str, Option] = {"encoder": "plain", "heads": "separate"}
CHOICES: dict[str, tuple[Option, ...]] = {"encoder": tuple(STAGES), "heads": HEADS}
FAMILY = Family(name="plain_unet", build=PlainUNet, options=OPTIONS, choices=CHOICES)
