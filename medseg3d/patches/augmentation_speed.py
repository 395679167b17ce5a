"""How fast a device augments: the time budget of a plan is estimated with it."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from medseg3d.devices import wait_for
from medseg3d.patches.augmentation import Batch, SpatialCrop, augment, augmentation_policy, crop_box, draw_augmentation
from medseg3d.patches.sampling import PatchBox

MEASURED_PATCH, MEASURED_SAMPLES = (32, 64, 64), 16
"""What the speed of augmentation is measured on."""


def measure_augmentation(device: torch.device) -> float:
    """Voxels of one channel and its labels that are augmented per second, in the mean of fixed draws; takes a second."""
    policy = augmentation_policy(MEASURED_PATCH, num_channels=1, mirror_axes=(0, 1, 2))
    rng = np.random.default_rng(0)
    box = PatchBox(start=(0, 0, 0), size=MEASURED_PATCH)
    batches = []
    for _ in range(MEASURED_SAMPLES):
        draw, crop = draw_augmentation(policy, rng), None
        if draw.matrix is not None:
            part, center = crop_box(box, draw.matrix, None)
            crop = SpatialCrop(image=torch.rand(1, *part.size), labels=torch.zeros(part.size, dtype=torch.int16), center=center)
        image, labels = torch.rand(1, 1, *MEASURED_PATCH), torch.zeros(1, *MEASURED_PATCH, dtype=torch.int16)
        batches.append(Batch(image=image, labels=labels, names=("",), draws=(draw,), crops=(crop,)))
    seconds = 0.0
    for batch in batches:
        runs = []
        for _ in range(2):  # the first one makes kernels
            began = time.perf_counter()
            augment(batch, policy, device)
            wait_for(device)
            runs.append(time.perf_counter() - began)
        seconds += min(runs)
    return MEASURED_SAMPLES * math.prod(MEASURED_PATCH) / seconds
