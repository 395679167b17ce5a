"""medseg3d: from a folder of 3D medical images to a trained, measured, explained segmentation model.

One data's way through the package, a stage per name:

``images`` raw files, read and written · ``data`` what belongs together, and what is wrong with it · ``fingerprint`` what the data is
like · ``planning`` → ``plan`` what was decided · ``preprocessing`` → store · ``patches`` → ``networks`` → ``training`` · ``prediction``
logits → label map on the original grid · ``validation`` what validation decides, such as postprocessing · ``evaluation`` metrics ·
``structures`` their volumes and places · ``dicom_objects`` results as DICOM · ``models`` what is carried away and predicts again ·
``reporting`` the page. ``workflows`` holds each verb of the ``commandline`` on one page.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medseg3d.version import __version__

__all__ = [
    "Dataset",
    "Evaluation",
    "Fingerprint",
    "Model",
    "Plan",
    "ProgressBars",
    "SlidingWindow",
    "Store",
    "__version__",
    "build_network",
    "compare",
    "demo",
    "dry_run",
    "evaluate",
    "load_model",
    "make_fingerprint",
    "measure",
    "open_dataset",
    "plan_dataset",
    "preprocess_dataset",
    "read_plan",
    "run",
    "save_model",
    "training_patches",
    "use_extension",
]

HOMES = {
    "Dataset": "data.dataset",
    "Evaluation": "evaluation.metrics",
    "Fingerprint": "fingerprint.records",
    "Model": "models.model",
    "Plan": "plan",
    "ProgressBars": "commandline.notebook",
    "SlidingWindow": "prediction.sliding_window",
    "Store": "preprocessing.store",
    "build_network": "networks.build",
    "compare": "workflows.compare",
    "demo": "workflows.demo",
    "dry_run": "workflows.dry_run",
    "evaluate": "workflows.evaluate",
    "load_model": "models.loading",
    "make_fingerprint": "fingerprint.make_fingerprint",
    "measure": "workflows.measure",
    "open_dataset": "data.open_dataset",
    "plan_dataset": "workflows.plan_dataset",
    "preprocess_dataset": "workflows.preprocess",
    "read_plan": "work_folder",
    "run": "workflows.run",
    "save_model": "models.checkpoints",
    "training_patches": "training.training_patches",
    "use_extension": "extensions",
}
"""The module of each public name. It is imported when the name is first used, so that ``import medseg3d`` is instant."""

if TYPE_CHECKING:
    from medseg3d.commandline.notebook import ProgressBars
    from medseg3d.data.dataset import Dataset
    from medseg3d.data.open_dataset import open_dataset
    from medseg3d.evaluation.metrics import Evaluation
    from medseg3d.extensions import use_extension
    from medseg3d.fingerprint.make_fingerprint import make_fingerprint
    from medseg3d.fingerprint.records import Fingerprint
    from medseg3d.models.checkpoints import save_model
    from medseg3d.models.loading import load_model
    from medseg3d.models.model import Model
    from medseg3d.networks.build import build_network
    from medseg3d.plan import Plan
    from medseg3d.prediction.sliding_window import SlidingWindow
    from medseg3d.preprocessing.store import Store
    from medseg3d.training.training_patches import training_patches
    from medseg3d.work_folder import read_plan
    from medseg3d.workflows.compare import compare
    from medseg3d.workflows.demo import demo
    from medseg3d.workflows.dry_run import dry_run
    from medseg3d.workflows.evaluate import evaluate
    from medseg3d.workflows.measure import measure
    from medseg3d.workflows.plan_dataset import plan_dataset
    from medseg3d.workflows.preprocess import preprocess_dataset
    from medseg3d.workflows.run import run


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(importlib.import_module(f"medseg3d.{HOMES[name]}"), name)
    raise AttributeError(f"module 'medseg3d' has no attribute {name!r}")
