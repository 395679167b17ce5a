"""Models that lie in no file: parts whose tensors a test holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medseg3d.models.parts import ModelDescription, ModelParts, Tensors

Weights = Mapping[str, Mapping[str, Tensors]]


def parts_of(description: ModelDescription, weights: Weights) -> ModelParts:
    """``weights`` by configuration and fold."""
    return ModelParts(path=Path("memory"), description=description, identity="", read=lambda name, fold: weights[name][fold])


def weights_of(parts: ModelParts) -> dict[str, dict[str, Tensors]]:
    """All tensors."""
    found: dict[str, dict[str, Tensors]] = {}
    for name, fold in parts.networks():
        found.setdefault(name, {})[fold] = parts.read(name, fold)
    return found
