"""The work folder of a dataset: where each stage finds and leaves its files.

```
fingerprint.json  plan.json  planner.json  splits.json
preprocessed/<data>/<case>/…
models/<configuration>/fold_<k>/  weights.safetensors  last.safetensors  training.json  history.jsonl  progress.png
                                  run.json
                                  validation/<case>.nii.gz  validation/metrics.json
selection.json  predictions/  report.html  timings.json
```
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg3d.errors import InputError
from medseg3d.options import FoldChoice
from medseg3d.plan import Plan
from medseg3d.records import read_json, read_record
from medseg3d.weights_header import weights_metadata

logger = logging.getLogger(__name__)

DEFAULT_NAME = "medseg3d-work"


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """Paths below ``root``; nothing is made here."""

    root: Path

    @property
    def fingerprint(self) -> Path:
        """What the data is like."""
        return self.root / "fingerprint.json"

    @property
    def plan(self) -> Path:
        """What was decided."""
        return self.root / "plan.json"

    @property
    def planner(self) -> Path:
        """The numbers that the plan was made by, a preset's or a user's."""
        return self.root / "planner.json"

    @property
    def splits(self) -> Path:
        """Which cases train and validate in each fold."""
        return self.root / "splits.json"

    @property
    def selection(self) -> Path:
        """The chosen configuration or ensemble of two, and the postprocessing."""
        return self.root / "selection.json"

    @property
    def predictions(self) -> Path:
        """Label maps of the test images."""
        return self.root / "predictions"

    @property
    def report(self) -> Path:
        """The page."""
        return self.root / "report.html"

    @property
    def timings(self) -> Path:
        """Seconds per stage."""
        return self.root / "timings.json"

    def store(self, data: str) -> Path:
        """The preprocessed cases of the configurations that share ``data``."""
        return self.root / "preprocessed" / data

    def previous_maps(self, configuration: str) -> Path:
        """The label maps of an earlier stage that a configuration learns from, on the grid of its preprocessed cases."""
        return self.root / "previous_stage" / configuration

    def fold(self, configuration: str, fold: str) -> Path:
        """A trained fold; ``fold`` is a number or ``all``."""
        return self.root / "models" / configuration / f"fold_{fold}"

    def weights(self, configuration: str, fold: str) -> Path:
        """The best weights of a fold."""
        return self.fold(configuration, fold) / "weights.safetensors"

    def validation(self, configuration: str, fold: str) -> Path:
        """Label maps and metrics of the cases that a fold was validated on."""
        return self.fold(configuration, fold) / "validation"

    @property
    def has_trainings(self) -> bool:
        """Something is trained, or was begun."""
        return any(self.root.glob("models/*/fold_*"))

    def trained_folds(self, configuration: str) -> tuple[str, ...]:
        """Folds with weights, in order, ``all`` last."""
        folders = (self.root / "models" / configuration).glob("fold_*")
        names = [folder.name.removeprefix("fold_") for folder in folders if (folder / "weights.safetensors").exists()]
        return tuple(sorted(names, key=lambda name: (not name.isdigit(), name.zfill(4))))

    def finished_folds(self, configuration: str) -> tuple[str, ...]:
        """Trained folds whose training came to its end; weights without a ``training.json`` were put there on purpose."""

        def is_finished(fold: str) -> bool:
            state = self.training_state(configuration, fold)
            return state is None or bool(state.get("is_finished"))

        return tuple(fold for fold in self.trained_folds(configuration) if is_finished(fold))

    def training_state(self, configuration: str, fold: str) -> dict[str, Any] | None:
        """Where the training of a fold stands, as ``training.json`` says it; None where there is none.

        Where that file is damaged ``last.safetensors``, which holds the same, is asked. Raises :class:`InputError` where it is as well.
        """
        file = self.fold(configuration, fold) / "training.json"
        if not file.exists():
            return None
        try:
            state = read_json(file)
            if isinstance(state, dict):
                return state
            problem = f"{file}: not a record of a training"
        except InputError as error:
            problem = str(error).removesuffix(".")
        try:
            state = json.loads(weights_metadata(file.with_name("last.safetensors"))["medseg3d"])["state"]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{problem}. Delete it if the training of this fold is finished, or train the fold with --restart.") from None
        logger.warning(
            "%s. last.safetensors beside it says the same and is used; delete the file, and training will write it again.", problem
        )
        return dict(state)

    def read_plan(self) -> Plan:
        """The plan; raises :class:`InputError` saying how to make one."""
        if not self.plan.exists():
            raise InputError(
                f"{self.root}: there is no plan.json here. Run medseg3d plan first (with the same -w, if you gave one), or medseg3d run "
                "for all steps."
            )
        try:
            return read_record(self.plan, Plan, "plan")
        except InputError as error:
            raise InputError(
                f"{str(error).removesuffix('.')}. Bring the file back from a copy, or delete it and run medseg3d plan with the options "
                "that it was made with: the same images and options give the same plan."
            ) from error


def read_plan(work: Path | str) -> Plan:
    """The plan in a work folder; raises :class:`InputError` where there is none, or a damaged one."""
    return WorkFolder(Path(work)).read_plan()


def work_folder(dataset: Path, work: Path | None) -> WorkFolder:
    """The work folder that belongs to a dataset, or the one that was named."""
    return WorkFolder(work if work is not None else dataset / DEFAULT_NAME)


def fold_names(folds: FoldChoice) -> tuple[str, ...] | None:
    """Folds as the work folder names them, each once; None for none at all. Raises :class:`InputError` for what is no fold.

    >>> fold_names([0, "1", "all"]), fold_names(0), fold_names([])
    (('0', '1', 'all'), ('0',), None)
    """
    several = [folds] if isinstance(folds, str) or not isinstance(folds, Iterable) else list(folds)
    names = []
    for fold in several if folds is not None else ():
        text = str(fold).strip()
        if text != "all" and not (text.isascii() and text.isdecimal()):
            raise InputError(f"Fold {text!r}: expected a number from 0 on, or all.")
        names.append(text if text == "all" else str(int(text)))
    return tuple(dict.fromkeys(names)) or None
