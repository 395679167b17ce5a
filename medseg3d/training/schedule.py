"""The learning rate over a run: polynomial decay, by epochs or by the share of a time budget that is used."""

from __future__ import annotations


def poly(initial: float, progress: float, exponent: float) -> float:
    """``initial * (1 - progress) ** exponent`` with progress from 0 to 1 (nnU-Net 2.8.1 ``PolyLRScheduler``, exponent 0.9).

    >>> poly(0.01, 0.0, 0.9)
    0.01
    >>> poly(0.01, 1.0, 0.9)
    0.0
    """
    return float(initial * max(0.0, 1.0 - progress) ** exponent)
