"""How good label maps are: per case, per label, over all cases, with a written policy for what is empty.

``measures`` what is measured of a label · ``evaluate_case`` two arrays → metrics · ``evaluate_folders`` two folders → evaluation ·
``surfaces`` and ``lesions`` what metrics share · ``metrics`` the records, JSON, CSV and table · ``compare`` means with their confidence.
"""

from __future__ import annotations

from medseg3d.evaluation.measures import METRICS, LabelMasks, Metric

__all__ = ["METRICS", "LabelMasks", "Metric"]
