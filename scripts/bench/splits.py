"""The folds of a dataset whose cases come in pairs: both cases of a pair always stand in the same fold.

In: case names that end in a number N, pair index (N + 1) // 2. Out: folds as nnU-Net's ``splits_final.json`` holds them,
``[{"train": [...], "val": [...]}, ...]``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

SPLIT_SEED = 12345
"""The seed of nnU-Net's own five folds; any fixed number would do."""


def paired_folds(case_names: Iterable[str], *, num_folds: int = 5, seed: int = SPLIT_SEED) -> list[dict[str, list[str]]]:
    """Shuffle the sorted pairs once and cut them into ``num_folds`` nearly equal parts; part k is the validation of fold k.

    >>> folds = paired_folds([f"case_{n:03d}" for n in range(1, 21)])
    >>> [len(fold["val"]) for fold in folds]
    [4, 4, 4, 4, 4]
    """
    pairs: dict[int, list[str]] = defaultdict(list)
    for name in sorted(case_names):
        number = re.search(r"(\d+)$", name)
        if number is None:
            raise ValueError(f"{name}: the name does not end in a number, so its pair is not known.")
        pairs[(int(number.group(1)) + 1) // 2].append(name)
    order = np.random.RandomState(seed).permutation(sorted(pairs))
    folds = []
    for part in np.array_split(order, num_folds):
        validation = sorted(name for pair in part for name in pairs[int(pair)])
        train = sorted(name for names in pairs.values() for name in names if name not in set(validation))
        folds.append({"train": train, "val": validation})
    return folds
