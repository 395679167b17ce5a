"""While a fold is validated: the label maps and metrics of every level of a network that can be pruned, of one pass over each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medseg3d.data.dataset import Case
from medseg3d.evaluation.metrics import Evaluation, write_evaluation
from medseg3d.events import Event, Listener
from medseg3d.images import write_label_map
from medseg3d.models.model import Model
from medseg3d.prediction.predict_case import PreparedCase
from medseg3d.provenance import METRICS
from medseg3d.records import write_record
from medseg3d.validation.levels import LEVELS, MIRRORED, PLAIN, FoldLevels, LevelScore, choose_level, level_folder

Evaluate = Callable[[Path], Evaluation]
"""The label maps of a folder."""


class LevelMeasurement:
    """The levels of a model in the validation of a fold; ``ways`` are those that its cases are predicted in, mirrored or plain or both."""

    def __init__(self, model: Model, target: Path, *, both_ways: bool, is_mirrored: bool) -> None:
        self.model, self.target = model, target
        self.ways = (MIRRORED, PLAIN) if both_ways else (MIRRORED if is_mirrored else PLAIN,)

    def segment(self, prepared: PreparedCase, case: Case) -> list[np.ndarray]:
        """The label indices of the whole network, one map per way; those of the lower levels are written."""
        maps = self.model.segment_every_level(prepared, both_ways=len(self.ways) > 1)
        levels = self.model.levels[::-1]  # deepest first
        for number, way in enumerate(self.ways):
            for level, indices in zip(levels[1:], maps[number * len(levels) + 1 : (number + 1) * len(levels)], strict=True):
                file = level_folder(self.target, level, way) / f"{case.name}.nii.gz"
                write_label_map(file, self.model.finish(indices, prepared.orientation), prepared.header)
        return maps[:: len(levels)]

    def finish(self, whole: Sequence[Evaluation], evaluate: Evaluate, on: Listener) -> None:
        """Evaluate the lower levels, time all, and write ``levels.json``; ``whole`` are the evaluations of the whole network by way."""
        seconds = self.model.seconds_per_window()
        scores = [self._score(level, seconds[level], evaluate) for level in self.model.levels[:-1]]
        deepest = self.model.levels[-1]
        dice = {way: evaluation.dice_per_case() for way, evaluation in zip(self.ways, whole, strict=True)}
        scores.append(LevelScore(level=deepest, dice=dice, seconds_per_window=seconds[deepest]))
        device = self.model.device
        found = FoldLevels(scores=tuple(scores), device=str(device.device), precision=device.precision)
        write_record(self.target / LEVELS, found, "levels")
        choice = choose_level([found], is_mirrored=self.ways[0] == MIRRORED)
        if choice is not None:
            on(Event(stage="validate", message=f"Levels: {choice.table()}. L{choice.level} predicts: {choice.reason}."))

    def _score(self, level: int, seconds: float, evaluate: Evaluate) -> LevelScore:
        dice = {}
        for way in self.ways:
            folder = level_folder(self.target, level, way)
            evaluation = evaluate(folder)
            write_evaluation(evaluation, folder / METRICS)
            dice[way] = dict(evaluation.dice_per_case())
        return LevelScore(level=level, dice=dice, seconds_per_window=seconds)
