"""Augmentations that a plan names beside those that every plan has: drawn after all others, applied after all others.

There is none built in. One of an extension is an :class:`Augmentation`; a plan names it in ``training.augmentations``, with its options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from medseg3d.extensions import Registry
from medseg3d.number_options import NumberOption, completed_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """A random change of one sample.

    ``draw(rng, options)`` gives what is to be done, from the numpy generator alone, so that a resumed run repeats it; None where this
    sample stays as it is. ``apply(image, labels, drawn)`` does it on the training device: float32 ``(channel, n0, …)`` and integer
    labels ``(n0, …)`` in, the same out, changed in place or anew. Labels are -1 outside of a mask of normalization, where there is one.
    ``meaning`` is a line for tables.
    """

    meaning: str
    draw: Callable[[np.random.Generator, Mapping[str, float]], object]
    apply: Callable[[Tensor, Tensor, object], tuple[Tensor, Tensor]]
    options: Mapping[str, NumberOption] = field(default_factory=dict)


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentations", Augmentation, {})
"""Those of extensions, by their name in a plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherAugmentation:
    """One that a plan names, with all its options."""

    augmentation: Augmentation
    options: Mapping[str, float]


def further_augmentations(
    named: Mapping[str, Mapping[str, float]], providers: Mapping[str, str] | None = None
) -> tuple[FurtherAugmentation, ...]:
    """Those that a plan names, in its order; ``providers`` as it notes them.

    Raises :class:`~medseg3d.errors.PlanError` for one that is not known, and for options that it does not have or cannot use.
    """
    found = []
    for name, options in named.items():
        augmentation = AUGMENTATIONS.find(name, provider=(providers or {}).get(name, ""))
        numbers = completed_numbers(f"training.augmentations.{name}", augmentation.options, options)
        found.append(FurtherAugmentation(augmentation=augmentation, options=numbers))
    return tuple(found)
