"""Charts: numbers to pixels."""

from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from medseg3d.reporting.charts import BOTTOM, HEIGHT, LEFT, MAX_DOTS, RIGHT, TOP, WIDTH, Series, line_chart, strip, ticks

VALUES = st.floats(-1e6, 1e6, allow_nan=False)


@given(VALUES, st.floats(1e-3, 1e6))
def test_ticks_enclose_the_range_with_few_round_steps(low: float, width: float) -> None:
    found = ticks(low, low + width)
    slack = (found[1] - found[0]) * 1e-6
    assert found[0] <= low + slack
    assert found[-1] >= low + width - slack
    assert 2 <= len(found) <= 9


@given(st.lists(st.one_of(st.none(), VALUES, st.just(math.nan)), min_size=1, max_size=30))
def test_every_point_lies_in_the_plot_and_gaps_stay_gaps(ys: list[float | None]) -> None:
    chart = line_chart("loss", [Series(name="a", xs=[float(x) for x in range(len(ys))], ys=ys, color=0)])
    finite = [y for y in ys if y is not None and math.isfinite(y)]
    assert (chart is None) == (not finite)
    if chart is None:
        return
    (line,) = chart.lines
    points = [tuple(map(float, p)) for p in re.findall(r"(-?[\d.]+),(-?[\d.]+)", line.path)] + list(line.dots)
    assert len(points) == len(finite)
    for x, y in points:
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1


def test_a_fixed_range_keeps_values_outside_at_its_edge() -> None:
    chart = line_chart("dice", [Series(name="", xs=[0.0, 1.0], ys=[0.0, 3.0], color=0)], y_range=(0.0, 1.0))
    assert chart is not None
    assert chart.lines[0].path == f"M{LEFT},{HEIGHT - BOTTOM}L{WIDTH - RIGHT},{TOP}"
    assert chart.legend == ()


def test_a_strip_keeps_both_ends_of_many_values() -> None:
    values = [i / 999 for i in range(1000)]
    dots = strip(values)
    assert len(dots) == MAX_DOTS
    assert (dots[0], dots[-1]) == (strip([0.0])[0], strip([1.0])[0])
