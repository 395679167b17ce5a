"""Turn a fingerprint into a plan, by the numbers of a planner.

``summary`` what planning needs to know of a dataset · ``planner`` the numbers to plan by · ``spacing`` the target resolution ·
``topology`` pooling and kernels · ``memory`` what feature maps take · ``make_plan`` puts them together · ``explain`` says why.
Nothing here imports torch.
"""

from __future__ import annotations

from medseg3d.planning.explain import Explanation, explain
from medseg3d.planning.make_plan import make_plan
from medseg3d.planning.planner import Planner, load_planner, planner_names
from medseg3d.planning.summary import DatasetSummary, read_nnunet_fingerprint, summarize

__all__ = [
    "DatasetSummary",
    "Explanation",
    "Planner",
    "explain",
    "load_planner",
    "make_plan",
    "planner_names",
    "read_nnunet_fingerprint",
    "summarize",
]
