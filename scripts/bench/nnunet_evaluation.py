"""Evaluate the label maps of ``tests/golden/label_maps.py`` with nnU-Net 2.8.1: regions and labels, both with an ignore label.

Runs in an interpreter that has nnunetv2, and never imports medseg3d: ``PEER/bin/python scripts/bench/nnunet_evaluation.py`` writes
``tests/golden/nnunet_evaluation.json``, which the tests compare ``medseg3d evaluate`` with.
"""

from __future__ import annotations

import json
import runpy
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

GOLDEN = Path(__file__).parents[2] / "tests/golden"
COUNTED = ("Dice", "IoU", "TP", "FP", "FN", "n_pred", "n_ref")


def main() -> None:
    """One entry per kind of labels: the metrics of each case, the means, and the mean of the foreground."""
    made = runpy.run_path(str(GOLDEN / "label_maps.py"))
    result = {}
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / name for name in ("predictions", "references")]
        for case in range(made["CASES"]):
            for folder, array in zip(folders, made["maps"](case), strict=True):
                folder.mkdir(exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"case_{case}.nii.gz")
        for kind in ("REGIONS", "CLASSES"):
            entries = {name: value for name, value in made[kind].items() if name not in ("background", "ignore")}
            asked = [tuple(value) if isinstance(value, list) else value for value in entries.values()]
            if kind == "REGIONS":
                asked = [value if isinstance(value, tuple) else (value,) for value in asked]  # as nnU-Net's label manager gives them
            summary = compute_metrics_on_folder(
                str(folders[1]), str(folders[0]), None, SimpleITKIO(), ".nii.gz", asked, made[kind]["ignore"], num_processes=1
            )
            result[kind.lower()] = _plain(summary, dict(zip(map(_key, asked), entries, strict=True)))
    (GOLDEN / "nnunet_evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _key(asked: object) -> object:
    return asked[0] if isinstance(asked, tuple) and len(asked) == 1 else asked


def _plain(summary: dict, names: dict) -> dict:
    def named(metrics: dict) -> dict:
        return {names[_key(key)]: {name: _number(values[name]) for name in COUNTED} for key, values in metrics.items()}

    return {
        "cases": [named(case["metrics"]) for case in summary["metric_per_case"]],
        "mean": named(summary["mean"]),
        "foreground_mean": _number(summary["foreground_mean"]["Dice"]),
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


if __name__ == "__main__":
    main()
