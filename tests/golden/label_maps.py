"""The label maps whose evaluation by nnU-Net is in ``nnunet_evaluation.json``: made from a seed, by numpy alone, here and there."""

from __future__ import annotations

import numpy as np

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "edge": 3, "ignore": 4}
CLASS_ORDER = [1, 2, 3]
CLASSES = {"background": 0, "edema": 1, "necrosis": 2, "edge": 3, "ignore": 4}
CASES = 4
SHAPE = (9, 11, 8)


def maps(case: int) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and reference of a case, (x, y, z): nested balls that are shifted against each other, in slices that are not annotated.

    Case 1 has no edge in the reference, case 2 no edge at all, case 3 is annotated completely.
    """
    rng = np.random.default_rng(case)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")).astype(float)
    found = []
    for shift in rng.uniform(-1, 1, (2, 3)):
        middle = np.array([4, 5, 4]) + shift
        distance = np.sqrt(((grid - middle[:, None, None, None]) ** 2).sum(0)) + rng.normal(0, 0.3, SHAPE)
        found.append(np.select([distance < 1.5, distance < 2.5, distance < 4], [3, 2, 1], 0).astype(np.uint8))
    prediction, reference = found
    if case in (1, 2):
        reference[reference == 3] = 2
    if case == 2:
        prediction[prediction == 3] = 2
    if case != 3:
        reference[..., rng.permutation(SHAPE[2])[:5]] = 4
    return prediction, reference
