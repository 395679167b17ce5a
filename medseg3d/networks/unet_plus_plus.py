"""UNet++: a U-Net whose decoder is a triangle of nodes, with heads at full resolution, that can be pruned after training.

Zhou et al. 2018 and 2020. Node X(i, j) stands in row i (stage i of the plan, the finest is 0) and column j; column 0 is the encoder.
Level k is the U-Net of the nodes with ``i + j <= k``, whose head stands on X(0, k): a level contains all lower ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvStack
from medseg3d.networks.convolutions import convolution
from medseg3d.networks.encoders import STAGES
from medseg3d.networks.family import Family, too_few_stages
from medseg3d.networks.levels import Levelled
from medseg3d.networks.normalization import channels_last
from medseg3d.networks.resizing import pooled
from medseg3d.networks.style import style_of
from medseg3d.networks.upsampling import unprojected, way_up
from medseg3d.plan import NetworkPlan, Option


class UNetPlusPlus(Levelled):
    """Convolutions and max pooling down, transposed convolutions up to every node, skips to all later nodes of a row.

    With ``skips`` ``dense`` a node sees all earlier nodes of its row (UNet++); with ``short`` the one before it (UNet+); with ``shared``
    the encoder's only, so that the levels are U-Nets of growing depth with one encoder (U-Net^e). With ``deep_supervision`` there is a head
    of every level, all at full resolution; otherwise that of the deepest alone. ``level`` is the level that predicts: lower ones compute
    the nodes that they need and no others, with the same numbers as the whole network gives at that head.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style = style_of(plan.options)
        features, depth, unit = plan.features, len(plan.features) - 1, (1,) * plan.dimensions
        self.depth, self.level, self.strides = depth, depth, plan.strides
        self.deep_supervision = plan.deep_supervision
        self.skips = str(plan.options["skips"])
        self.ensembles = plan.options["prediction"] == "mean"
        projects = bool(plan.options["up_projection"])
        stage_of = STAGES[str(plan.options["encoder"])]
        self.nodes, self.up, self.heads = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for row in range(depth + 1):
            before = features[row - 1] if row else plan.in_channels
            self.nodes[f"{row}_0"] = stage_of(before, features[row], plan.kernel_sizes[row], unit, plan.encoder_blocks[row], style)
            for column in range(1, depth - row + 1):
                num_skips = column if self.skips == "dense" else 1
                blocks = plan.decoder_blocks[depth - 1 - row]
                up, brought = way_up(style.upsampling, features[row + 1], features[row], plan.strides[row + 1], projects=projects)
                self.up[f"{row}_{column}"] = up
                self.nodes[f"{row}_{column}"] = ConvStack(
                    num_skips * features[row] + brought, features[row], plan.kernel_sizes[row], unit, blocks, style
                )
        for level in range(1, depth + 1) if plan.deep_supervision else (depth,):
            self.heads[str(level)] = convolution(features[0], plan.num_classes, unit, unit)

    @property
    def head_weights(self) -> tuple[float, ...]:
        """All heads count alike, as published."""
        return (1 / len(self.heads),) * len(self.heads)

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that have a head."""
        return tuple(int(level) for level in self.heads)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of ``level``, or with ``prediction`` ``mean`` the mean of all up to it; while training with deep supervision those of
        all levels, deepest first."""
        every = [level for level in self.levels if level <= self.level]
        if self.training and self.deep_supervision:
            return [logits for _, logits in self._logits(x, every)][::-1]
        if self.ensembles:
            return torch.stack([logits for _, logits in self._logits(x, every)]).mean(0)
        return dict(self._logits(x, [self.level]))[self.level]

    def level_logits(self, x: Tensor) -> list[Tensor]:
        """What each level predicts, of one pass, deepest first."""
        heads = [logits for _, logits in self._logits(x, self.levels)]
        return [torch.stack(heads[: n + 1]).mean(0) if self.ensembles else heads[n] for n in range(len(heads))][::-1]

    def _logits(self, x: Tensor, levels: Iterable[int]) -> Iterable[tuple[int, Tensor]]:
        """Diagonal after diagonal, each of which makes the next level; what no later node needs is let go."""
        wanted = set(levels)
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=channels_last(x))  # convolutions are several times faster so
        rows: list[list[Tensor]] = []
        for level in range(max(wanted) + 1):
            x = self.nodes[f"{level}_0"](pooled(x, self.strides[level]) if level else x)
            rows.append([x])
            for column in range(1, level + 1):
                row = level - column
                x_up = self.up[f"{row}_{column}"](rows[row + 1][-1])
                seen = {"dense": rows[row], "short": rows[row][-1:], "shared": rows[row][:1]}[self.skips]
                rows[row].append(self.nodes[f"{row}_{column}"](torch.cat((*seen, x_up), 1)))
            x = rows[level][0]
            if level in wanted:
                yield level, self.heads[str(level)](rows[0][-1])


def pruned_plan(plan: NetworkPlan, level: int) -> NetworkPlan:
    """The plan of a level alone: its network takes the tensors of the whole one that have the same names."""
    kept = level + 1
    return replace(
        plan,
        features=plan.features[:kept],
        kernel_sizes=plan.kernel_sizes[:kept],
        strides=plan.strides[:kept],
        encoder_blocks=plan.encoder_blocks[:kept],
        decoder_blocks=plan.decoder_blocks[len(plan.decoder_blocks) - level :],
    )


def _levels(plan: NetworkPlan) -> tuple[int, ...]:
    """Those with a head; a single one is no choice."""
    return tuple(range(1, len(plan.features))) if plan.deep_supervision and len(plan.features) > 2 else ()


def _problems(plan: NetworkPlan) -> Iterable[str]:
    yield from too_few_stages(plan, 2)
    yield from unprojected(plan.options)


OPTIONS: dict[str, Option] = {
    "norm": "none",
    "activation": "relu",
    "encoder": "plain",
    "skips": "dense",
    "prediction": "level",
    "up_projection": True,
}
CHOICES: dict[str, tuple[Option, ...]] = {
    "encoder": tuple(STAGES),  # of what the first column is made; plain as published
    "skips": ("dense", "short", "shared"),
    "up_projection": (True, False),  # False: an interpolation keeps all channels, as in ports of the paper
    "prediction": ("level", "mean"),  # mean: of all heads, the paper's accurate mode; level: of one, its fast mode
}
FAMILY = Family(
    name="unet_plus_plus",
    build=UNetPlusPlus,
    options=OPTIONS,
    choices=CHOICES,
    problems=_problems,
    levels=_levels,
    prune=pruned_plan,
)
