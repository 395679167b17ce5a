"""A planner whose networks train a step in milliseconds."""

from __future__ import annotations


def tiny_planner(
    extends: str = "default", *, features: tuple[int, int] = (4, 8), epochs: int = 2, iterations: int = 4, validations: int = 2
) -> str:
    """A planner file that extends a preset; ``features`` are those of the first stage and the most. Its last table is ``[training]``."""
    first, most = features
    return f"""
extends = "{extends}"
description = "A network that trains a step in milliseconds."
[network]
base_features = {first}
max_features_3d = {most}
max_features_2d = {most}
[training]
epochs = {epochs}
iterations_per_epoch = {iterations}
validation_iterations = {validations}
"""
