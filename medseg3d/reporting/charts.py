"""Lay out line charts and strips of dots as numbers and SVG path strings; the template draws them in the page's own colors.

In: series of (x, y). Out: frozen records in pixels. Nothing is drawn here: dark mode and print stay with the style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 24
"""Pixels around the plot: room for the numbers of the axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: NaN and None leave gaps. ``color`` is the number of a color of the page; ``style`` solid, dashed or faint."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    color: int
    style: str = "solid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A series in pixels; ``dots`` holds points that stand alone and that a path would not show."""

    name: str
    color: int
    style: str
    path: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart in pixels: ticks are (position, text)."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM

    @property
    def legend(self) -> tuple[Line, ...]:
        """The lines that have a name of their own."""
        return tuple(line for line in self.lines if line.name)


def line_chart(title: str, series: Sequence[Series], *, y_range: tuple[float, float] | None = None) -> Chart | None:
    """A chart of all series that have a finite value; None where there is none. ``y_range`` fixes the vertical axis."""
    points = [[(x, y) for x, y in zip(s.xs, s.ys, strict=True) if _is_finite(y)] for s in series]
    flat = [point for line in points for point in line]
    if not flat:
        return None
    x_ticks = ticks(min(x for x, _ in flat), max(x for x, _ in flat), integers=True)
    y_ticks = ticks(*(y_range or (min(float(y or 0) for _, y in flat), max(float(y or 0) for _, y in flat))))
    x_low, x_high = min(x for x, _ in flat), max(x for x, _ in flat)
    y_low, y_high = y_range or (y_ticks[0], y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (min(max(y, y_low), y_high) - y_low) / (y_high - y_low) if y_high > y_low else 0.5
        return (round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1))

    lines = []
    for s in series:
        runs = _runs([(x, y) if _is_finite(y) else None for x, y in zip(s.xs, s.ys, strict=True)])
        placed = [[place(x, y) for x, y in run] for run in runs]
        path = " ".join("M" + "L".join(f"{x:g},{y:g}" for x, y in run) for run in placed if len(run) > 1)
        dots = tuple(run[0] for run in placed if len(run) == 1)
        if path or dots:
            lines.append(Line(name=s.name, color=s.color, style=s.style, path=path, dots=dots))
    return Chart(
        title=title,
        lines=tuple(lines),
        x_ticks=tuple((place(x, y_low)[0], f"{x:g}") for x in x_ticks if x_low <= x <= x_high),
        y_ticks=tuple((place(x_low, y)[1], f"{y:g}") for y in y_ticks if y_low <= y <= y_high),
    )


NEGLIGIBLE = 1e-9
"""A range narrower than this share of its values (or of 1) is drawn as a single value."""


def ticks(low: float, high: float, *, integers: bool = False, count: int = 5) -> tuple[float, ...]:
    """Round numbers that enclose [low, high], about ``count`` steps of 1, 2, 2.5 or 5 times a power of ten.

    >>> ticks(0, 1)
    (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    >>> ticks(3, 3, integers=True)
    (3.0,)
    """
    if high - low <= NEGLIGIBLE * max(1.0, abs(low), abs(high)):
        if integers:
            return (float(low),)
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    if integers:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(number * step, 10) for number in range(first, last + 1))


MAX_DOTS = 120
"""Dots per strip; of more values, evenly spaced ones of the sorted list are shown, which keeps the picture and the page small."""


def strip(values: Sequence[float], *, width: float = 150, margin: float = 4) -> tuple[float, ...]:
    """Horizontal pixel positions of values in [0, 1], at most :data:`MAX_DOTS` of them."""
    ordered = sorted(values)
    if len(ordered) > MAX_DOTS:
        ordered = [ordered[round(i * (len(ordered) - 1) / (MAX_DOTS - 1))] for i in range(MAX_DOTS)]
    return tuple(round(margin + min(max(v, 0.0), 1.0) * (width - 2 * margin), 1) for v in ordered)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _runs(points: Sequence[tuple[float, float | None] | None]) -> list[list[tuple[float, float]]]:
    """Points between gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None or point[1] is None:
            if runs[-1]:
                runs.append([])
        else:
            runs[-1].append((point[0], point[1]))
    return [run for run in runs if run]
