"""How each family is made small enough to train on one core: presets, widths, resolutions and learning rates go out as planner files.

Every preset is trained alike (Dice and cross-entropy, Muon for kernels and AdamW for the rest, the same fold), in a width that gives about
16 features in the first stage that works at full resolution. Each number that differs has its reason beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from medseg3d.planning.recipe_rules import MOMENTUM, WEIGHT_DECAY

ALIKE = f"""
[training]
loss = "dice_ce"
optimizer = "muon"
momentum = {MOMENTUM}
weight_decay = {WEIGHT_DECAY}
"""
WITH_NORMS, WITHOUT_NORMS, TRANSFORMER = 2e-3, 5e-4, 1e-3
"""Learning rates, the same for both: a quarter where no norm takes back what a large step did, half where attention is learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """``alpha`` multiplies the features, ``rho`` the resolution; ``configuration`` is trained in place of the recommended one;
    ``changes`` are further lines of the planner file."""

    alpha: float = 1.0
    rho: float = 1.0
    rate: float = WITH_NORMS
    configuration: str | None = None
    changes: str = ""

    def planner(self, preset: str, *, is_published: bool = False) -> str:
        """The planner file; ``is_published`` leaves the further changes out."""
        spacing = "" if self.rho == 1 else f"\n[spacing]\nresolution_multiplier = {self.rho}\n"
        network = f"\n[network]\nwidth_multiplier = {self.alpha}\n"
        return f'extends = "{preset}"\n{spacing}{network}{"" if is_published else self.changes}{ALIKE}learning_rate = {self.rate}\n'


FINER = 1.5
"""Logits at a quarter or an eighth of the resolution cannot hold the phantom's smallest labels, 2 to 4 voxels wide; these networks are
cheap enough for three times as many voxels."""
COARSER, FASTER = 0.75, 4e-3
"""Networks that decide at full resolution alone are long in telling left from right: two fifths of the voxels give them more than twice the
steps, and twice the rate makes more of each."""
SETTINGS = {
    "default": Setting(alpha=0.5),
    "residual_m": Setting(alpha=0.5),
    "unet_2015": Setting(alpha=0.25, rate=WITHOUT_NORMS, configuration="2d"),  # made for slices
    # padded: without, a patch of five times the voxels gives the same logits, which is more than a core has time for
    "unet_3d": Setting(alpha=0.25, changes='[network.options]\npadding = "same"\n'),
    # made for slices; its dropout of a half takes more steps than a core has time for, as no norm takes back what it does
    "unet_wide": Setting(alpha=0.46, rate=WITHOUT_NORMS, configuration="2d", changes="[network.options]\ndropout = 0.0\n"),
    "vnet": Setting(alpha=0.25, rate=1e-3),  # kernels of 5 voxels have five times the work: fewer features; the preset's own rate
    "vnet_batch_norm": Setting(alpha=0.25),  # as for vnet
    "u2net": Setting(rate=4e-3),  # the preset's own
    # 8 features: nine nodes stand at full resolution or half of it
    "unet_plus_plus": Setting(alpha=0.25, rho=COARSER, rate=FASTER),
    "attention_unet": Setting(),
    "fcn": Setting(alpha=0.5),
    "segnet": Setting(alpha=0.25),
    "dla": Setting(alpha=0.5, rho=COARSER, rate=FASTER),  # 8 features: its aggregating decoder works at full resolution
    "transunet": Setting(alpha=0.5, rho=COARSER),
    "deeplab_v3": Setting(rho=FINER),
    "pspnet": Setting(alpha=0.5, rho=FINER),
    "icnet": Setting(rho=FINER),
    "bisenet": Setting(alpha=0.25, rho=FINER),
    "dfanet": Setting(alpha=0.5, rho=FINER),
    "espnet": Setting(rate=FASTER),  # its logits are refined at full resolution, unlike those of its neighbors here
    "swiftnet": Setting(alpha=0.5, rho=FINER),
    "fast_scnn": Setting(rho=FINER),
    "dfnet": Setting(rho=FINER),
    "msfnet": Setting(alpha=0.5, rho=FINER),
    "isnet": Setting(alpha=0.5, rho=FINER),
    "mcibi": Setting(alpha=0.5, rho=FINER),
    "dynunet": Setting(alpha=0.5),
    "segresnet": Setting(alpha=0.5),
    "monai_attention_unet": Setting(),
    "mednext": Setting(alpha=0.5, rate=TRANSFORMER),  # its authors' rate
    "swinunetr": Setting(alpha=0.25, rate=TRANSFORMER),  # 12 features, the fewest that its heads divide
}
"""By preset, every family once."""
