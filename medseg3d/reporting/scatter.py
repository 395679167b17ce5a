"""Scores against what may explain them: one dot per case and label over the reference's volume, and over the coarsest spacing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medseg3d.reporting.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Line, ticks
from medseg3d.reporting.scores import Score

MAX_LABELS = 8
"""More colors in one chart cannot be told apart; then the labels with the lowest mean are shown."""
MAX_DOTS = 300
"""Per label; of more, every n-th, which keeps the page small."""


def explaining_charts(scores: Sequence[Score]) -> list[Chart]:
    """Dice over volume (logarithmic) and over spacing; a chart of which nothing varies is left out."""
    names = _lowest_labels(scores)
    which = f", the {MAX_LABELS} lowest labels" if len({score.label for score in scores}) > MAX_LABELS else ""
    volumes = [[(score.volume_ml, score.dice) for score in scores if score.label == name] for name in names]
    spacings = [[(max(score.spacing_mm, default=None), score.dice) for score in scores if score.label == name] for name in names]
    charts = (
        _chart(f"Dice over the reference's volume (ml){which}", names, volumes, is_log=True),
        _chart(f"Dice over the coarsest spacing (mm){which}", names, spacings, is_log=False),
    )
    return [chart for chart in charts if chart is not None]


def _lowest_labels(scores: Sequence[Score]) -> list[str]:
    names = list(dict.fromkeys(score.label for score in scores))
    if len(names) <= MAX_LABELS:
        return names

    def mean(name: str) -> float:
        dice = [score.dice for score in scores if score.label == name and score.dice is not None]
        return sum(dice) / len(dice) if dice else math.inf

    lowest = set(sorted(names, key=mean)[:MAX_LABELS])
    return [name for name in names if name in lowest]


def _chart(
    title: str, names: Sequence[str], points: Sequence[Sequence[tuple[float | None, float | None]]], *, is_log: bool
) -> Chart | None:
    drawn = [[(x, y) for x, y in own if x is not None and y is not None and x > 0] for own in points]
    xs = [x for own in drawn for x, _ in own]
    if len(set(xs)) < 2:
        return None
    low, high = min(xs), max(xs)
    if is_log:
        low, high = math.log10(low), math.log10(high)
    margin = 0.04 * (high - low)
    low, high = low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = ((math.log10(x) if is_log else x) - low) / (high - low)
        up = min(max(y, 0.0), 1.0)
        return (round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1))

    values = _log_ticks(low, high) if is_log else [x for x in ticks(low, high) if low <= x <= high]
    lines = [
        Line(name=name, color=color, style="dots", path="", dots=tuple(place(x, y) for x, y in own[:: max(1, len(own) // MAX_DOTS)]))
        for color, (name, own) in enumerate(zip(names, drawn, strict=True))
        if own
    ]
    return Chart(
        title=title,
        lines=tuple(lines),
        x_ticks=tuple((place(x, 0.0)[0], f"{x:g}") for x in values),
        y_ticks=tuple((place(10**low if is_log else low, y)[1], f"{y:g}") for y in ticks(0.0, 1.0)),
    )


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in the range, with 2 and 5 between them where there are few.

    >>> _log_ticks(-0.1, 2.1), _log_ticks(0.0, 0.8)
    ([1.0, 10.0, 100.0], [1.0, 2.0, 5.0])
    """
    factors = (1, 2, 5) if high - low < 2 else (1,)
    found = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    return [value for value in found if low <= math.log10(value) <= high]
