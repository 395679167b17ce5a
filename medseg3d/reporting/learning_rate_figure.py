"""Draw what a search for the learning rate found: the loss over the rate, what is suggested, and where training diverged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medseg3d.errors import InputError
from medseg3d.files import replacing


class Curve(Protocol):
    """The fields of ``LearningRateCurve`` that are drawn; reporting does not import training."""

    @property
    def rates(self) -> Sequence[float]:
        """Ascending, above 0."""

    @property
    def losses(self) -> Sequence[float]:
        """One per rate."""

    @property
    def smoothed(self) -> Sequence[float]:
        """One per rate."""

    @property
    def suggested(self) -> float | None:
        """One of the rates, or None."""

    @property
    def diverged(self) -> float | None:
        """The rate from which on the loss stays above its start, or None."""


HEADROOM = 0.1
"""Free space below and above the losses up to where they diverged, as a share of their range; what lies beyond is cut off, as a single
exploded loss would flatten all others."""
LEFT_PART = 0.35
"""In this share of the axis, from the left, the suggestion's text stands right of its mark, elsewhere left of it, below the curve."""


def learning_rate_figure(curve: Curve, path: Path, *, planned: float | None = None, title: str = "") -> Path:
    """Draw raw and smoothed loss over a logarithmic learning rate; write the PNG atomically.

    The suggestion is marked with its value, the rates from ``diverged`` on are shaded, and ``planned``, the plan's learning rate,
    is a dashed line. Raises :class:`InputError` for fewer than two rates and :class:`StorageError` where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(curve.rates) < 2:
        raise InputError(f"{path}: a curve needs two learning rates at least, this one has {len(curve.rates)}.")
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set_xscale("log")
    right = _limit(axis, curve)
    axis.plot(curve.rates, curve.losses, color="#1c7ed6", alpha=0.35, linewidth=1.0, marker="o", markersize=2.5, label="loss of each step")
    axis.plot(curve.rates, curve.smoothed, color="#1c7ed6", linewidth=2.0, label="smoothed")
    if curve.suggested is not None:
        _mark_suggestion(axis, curve, curve.suggested)
    if curve.diverged is not None:
        axis.axvspan(curve.diverged, right, color="#e8590c", alpha=0.13, linewidth=0, label=f"diverged from {_number(curve.diverged)}")
    if planned is not None:
        axis.axvline(planned, color="#495057", linewidth=1.2, linestyle=(0, (4, 3)), label=f"plan {_number(planned)}")
    axis.grid(visible=True, color="#dee2e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("learning rate")
    axis.set_ylabel("loss")
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=5)
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=13)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    return path


def _limit(axis: Any, curve: Curve) -> float:
    """Set what is shown; returns the highest rate of it."""
    num_seen = len(curve.rates) if curve.diverged is None else max(1, sum(rate < curve.diverged for rate in curve.rates))
    seen = [min(curve.smoothed), *curve.smoothed[:num_seen], *np.percentile(curve.losses[:num_seen], (2, 98)).tolist()]
    low, high = min(seen), max(seen)
    free = HEADROOM * (high - low) or 1.0
    right = max(curve.rates[-1], curve.diverged or 0.0) * 1.5
    axis.set_ylim(low - free, high + free)
    axis.set_xlim(curve.rates[0] / 1.5, right)
    return right


def _mark_suggestion(axis: Any, curve: Curve, suggested: float) -> None:
    height = float(np.interp(math.log(suggested), np.log(curve.rates), curve.smoothed))
    share = math.log(suggested / curve.rates[0]) / math.log(curve.rates[-1] / curve.rates[0])
    is_left = share < LEFT_PART
    axis.plot(suggested, height, "*", color="#212529", markersize=14, zorder=3, linestyle="none", label="steepest descent")
    axis.annotate(
        f"suggested {_number(suggested)}",
        (suggested, height),
        xytext=(14, 6) if is_left else (-14, -6),
        textcoords="offset points",
        ha="left" if is_left else "right",
        va="bottom" if is_left else "top",
        fontsize=11,
        color="#212529",
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
    )


def _number(rate: float) -> str:
    return f"{rate:.2g}"
