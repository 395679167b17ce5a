"""The way up of a U-Net: the features of all encoder stages go in, logits of every stage come out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg3d.networks.attention_gates import GatedSkip
from medseg3d.networks.blocks import PLAIN, ConvStack
from medseg3d.networks.convolutions import Sizes, convolution
from medseg3d.networks.resizing import resized
from medseg3d.networks.style import Style
from medseg3d.networks.upsampling import UPSAMPLING
from medseg3d.plan import Option

HEADS: tuple[Option, ...] = ("separate", "summed")
"""How the logits of the decoder's stages belong together: each stage's by themselves (nnU-Net), or with those of the coarser ones."""


class Decoder(nn.Module):
    """From the deepest features back to the finest: a way up, the skip beside it, convolutions, a head per stage.

    All arguments list the stages finest first, as the plan does, except ``num_blocks``, which runs coarse to fine. A stage
    convolves with the kernel of the encoder stage that its skip comes from. Heads exist for every stage whether or not deep
    supervision is used, so that weights fit either way. A network of one stage has no decoder, only a head on its encoder.
    With the style's attention gates all skips but the finest pass through them; the next coarser features open them. Where logits are
    summed (``is_summed``), those of a stage are its head's and those of the next coarser stage, interpolated: a finer stage learns what the
    coarser ones do not know, and the loss at full resolution reaches all of them at once.
    """

    def __init__(
        self,
        features: Sizes,
        kernel_sizes: Sequence[Sizes],
        strides: Sequence[Sizes],
        num_blocks: Sizes,
        num_classes: int,
        style: Style = PLAIN,
        *,
        is_summed: bool = False,
    ) -> None:
        super().__init__()
        self.is_summed = is_summed
        depth = len(features) - 1
        unit = (1,) * len(kernel_sizes[0])
        self.up = nn.ModuleList(
            UPSAMPLING[style.upsampling](features[fine + 1], features[fine], strides[fine + 1]) for fine in reversed(range(depth))
        )
        self.stages = nn.ModuleList(
            ConvStack(2 * features[fine], features[fine], kernel_sizes[fine], unit, num_blocks[depth - 1 - fine], style)
            for fine in reversed(range(depth))
        )
        self.gates = nn.ModuleList(
            GatedSkip(features[fine], features[fine + 1], strides[fine + 1], style.attention_gates, style) if fine else nn.Identity()
            for fine in reversed(range(depth if style.attention_gates else 0))
        )
        heads = list(reversed(range(depth))) or [0]
        self.heads = nn.ModuleList(convolution(features[fine], num_classes, unit, unit) for fine in heads)

    def forward(self, skips: Sequence[Tensor], *, all_heads: bool) -> list[Tensor]:
        """Features of all encoder stages, finest first → logits, finest first: of every stage, or of the finest alone."""
        x = skips[-1]
        if not len(self.stages):
            return [self.heads[0](x)]
        logits: list[Tensor] = []
        for place, (up, stage, head) in enumerate(zip(self.up, self.stages, self.heads, strict=True)):
            skip, gate = skips[-2 - place], self.gates[place] if len(self.gates) else None
            x = stage(torch.cat((up(x), gate(skip, x) if isinstance(gate, GatedSkip) else skip), 1))
            if all_heads or self.is_summed or place == len(self.stages) - 1:
                own = head(x)
                if self.is_summed and logits:
                    coarser = resized(logits[-1], own.shape[2:])
                    # in place only where no gradient is asked for: own may be a view, and gradients of changed views are copied
                    own = own + coarser if torch.is_grad_enabled() else own.add_(coarser)
                logits.append(own)
        return logits[::-1]
