"""Turn a fingerprint into a plan, by the numbers of a planner.

``summary`` what planning needs to know of a dataset · ``planner`` the numbers to plan by · the rules, each of which returns its value
with the reason (``reasons``): ``spacing`` the target resolution · ``patch`` patch and batch, by ``topology`` (pooling and kernels),
``stages`` (the network) and ``budget`` (what fits, by the formula of ``memory`` or a trace) · ``lowres`` a second resolution ·
``preprocessing_rules`` · ``training_rules`` · ``loss_rules`` · ``make_plan`` puts them together. Nothing here imports torch.
"""

from __future__ import annotations

from medseg3d.planning.make_plan import explain, explained_plan, make_plan, recommending
from medseg3d.planning.nnunet_fingerprint import read_nnunet_fingerprint
from medseg3d.planning.planner import Planner, load_planner, planner_names
from medseg3d.planning.reasons import Explanation
from medseg3d.planning.summary import DatasetSummary, summarize

__all__ = [
    "DatasetSummary",
    "Explanation",
    "Planner",
    "explain",
    "explained_plan",
    "load_planner",
    "make_plan",
    "planner_names",
    "read_nnunet_fingerprint",
    "recommending",
    "summarize",
]
