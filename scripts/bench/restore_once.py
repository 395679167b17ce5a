"""Bring one array of logits back to a raw grid with one of the two programs; run in that program's interpreter.

In: ``ours`` or ``peer``, a ``.npy`` file of logits (float16, classes first), the new shape. Out: one line of JSON: seconds, and the
process' memory before and at its peak (MiB); the label map as ``.npy`` beside the logits.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

SPACING = (1.0, 1.0, 1.0)


def main() -> None:
    """Load, restore, report."""
    program, file, *shape = sys.argv[1:]
    new_shape = tuple(int(n) for n in shape)
    restore = {"ours": with_ours, "peer": with_peer}[program](np.load(file), new_shape)
    before = memory_mib("VmRSS:")
    began = time.perf_counter()
    labels = restore()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "before_mib": before, "peak_mib": memory_mib("VmHWM:")}))
    np.save(Path(file).with_name(f"labels_{program}.npy"), np.asarray(labels).astype(np.uint8))


def with_ours(logits, new_shape):
    """``restore_label_maps`` from the array that lies in memory."""
    from medseg3d.plan import Resampling
    from medseg3d.prediction.restore import restore_label_maps
    from medseg3d.preprocessing.preprocess_case import Restoration

    spacing = tuple(s * n / m for s, n, m in zip(SPACING, logits.shape[1:], new_shape, strict=True))
    restoration = Restoration(
        original_shape=new_shape,
        axis_order=(0, 1, 2),
        box=tuple((0, n) for n in new_shape),
        spacing=spacing,
        resampled_shape=logits.shape[1:],
        resampled_spacing=SPACING,
        resampling=Resampling(),
    )
    return lambda: restore_label_maps([logits], len(logits), restoration)


def with_peer(logits, new_shape):
    """nnU-Net's own function of its export, which its predictor calls."""
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    function = {
        "is_seg": False,
        "order": 1,
        "order_z": 0,
        "force_separate_z": None,
    }
    name = "resample_data_or_seg_to_shape"
    configuration = {
        "spacing": list(SPACING),
        "resampling_fn_probabilities": name,
        "resampling_fn_probabilities_kwargs": function,
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},  # asked for, never built
    }
    plans = PlansManager(
        {
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {"3d_fullres": configuration},
            "label_manager": "LabelManager",
        }
    )
    labels = LabelManager({"background": 0, **{f"label_{i}": i for i in range(1, len(logits))}}, None)
    spacing = [s * n / m for s, n, m in zip(SPACING, logits.shape[1:], new_shape, strict=True)]
    properties = {
        "spacing": spacing,
        "shape_after_cropping_and_before_resampling": new_shape,
        "shape_before_cropping": new_shape,
        "bbox_used_for_cropping": [[0, n] for n in new_shape],
    }
    return lambda: convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, plans.get_configuration("3d_fullres"), labels, properties, num_threads_torch=2
    )


def memory_mib(key: str) -> float:
    """A line of ``/proc/self/status`` in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


if __name__ == "__main__":
    main()
