"""From stored cases to training batches: where patches lie, how they are augmented, and how they are read ahead of time."""

from __future__ import annotations

from medseg3d.patches.further_augmentations import AUGMENTATIONS, Augmentation

__all__ = ["AUGMENTATIONS", "Augmentation"]
