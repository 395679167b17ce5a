"""What an epoch is judged by: measured weights go in; their pseudo-Dice comes out, and whether the last or the averaged ones are better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medseg3d.training.pseudo_dice import PatchValidation, Smoothed, mean_of_known, smoothed


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """By domain what the ``last`` weights of an epoch reached, and the smoothed means of these and of the averaged ones; None where nothing
    can be measured, or nothing is averaged."""

    last: tuple[PatchValidation, ...]
    mean: float | None
    smooth: Smoothed | None
    has_average: bool = False
    averaged_mean: float | None = None
    averaged_smooth: Smoothed | None = None

    @property
    def is_average(self) -> bool:
        """The averaged weights are the better ones: they are so in general, where nothing can be measured."""
        if not self.has_average or self.smooth is None or self.averaged_smooth is None:
            return self.has_average
        return self.averaged_smooth.value >= self.smooth.value

    @property
    def value(self) -> float | None:
        """Of the better ones."""
        better = self.averaged_smooth if self.is_average else self.smooth
        return None if better is None else better.value


def judge(
    last: Sequence[PatchValidation], averaged: Sequence[PatchValidation] | None, *, before: tuple[Smoothed | None, Smoothed | None]
) -> Judged:
    """With the smoothed values ``before`` of the last and the averaged weights."""
    mean = mean_of_known([each.mean for each in last])
    averaged_mean = None if averaged is None else mean_of_known([each.mean for each in averaged])
    return Judged(
        last=tuple(last),
        mean=mean,
        smooth=before[0] if mean is None else smoothed(before[0], mean),
        has_average=averaged is not None,
        averaged_mean=averaged_mean,
        averaged_smooth=before[1] if averaged_mean is None else smoothed(before[1], averaged_mean),
    )
