"""What dcmjs, with which OHIF reads, makes of our SEGs; needs node and ``NODE_PATH`` with its package (``npm install dcmjs``)."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from medseg3d.dicom_objects.result import Result
from medseg3d.dicom_objects.seg import segmentation
from medseg3d.options import SegmentationType

READER = Path(__file__).with_name("read_seg.cjs")


@cache
def has_dcmjs() -> bool:
    """Whether node finds it."""
    node = shutil.which("node")
    return node is not None and not subprocess.run([node, "-e", "require('dcmjs')"], capture_output=True, check=False).returncode


@pytest.mark.parametrize("kind", ["binary", "labelmap", "fractional"])
def test_dcmjs_reads_the_voxels_and_names(result: Result, tmp_path: Path, kind: SegmentationType) -> None:
    if not has_dcmjs():
        pytest.skip("needs node and dcmjs")
    segmentation(result, kind).save_as(tmp_path / "result.seg.dcm")
    command = ["node", str(READER), str(tmp_path / "result.seg.dcm"), str(tmp_path / "voxels")]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    frames = np.fromfile(tmp_path / "voxels", np.uint8).reshape(-1, found["rows"], found["columns"])
    positions = [tuple(map(float, file.text("ImagePositionPatient").split("\\"))) for file in result.source.slices]
    names = {int(number): name for number, name in found["segments"].items()}
    volumes = {name: np.zeros(result.values.shape, np.uint8) for name in names.values()}
    for frame, pixels in zip(found["frames"], frames, strict=True):
        (index,) = (number for number, position in enumerate(positions) if np.allclose(position, frame["position"]))
        shown = names.items() if frame["segment"] is None else [(None, names[frame["segment"]])]
        for value, name in shown:
            volumes[name][:, :, index] = (pixels if value is None else pixels == value).T
    assert found["series"] == result.source.first.text("SeriesInstanceUID")
    for segment, mask in result.masks():
        np.testing.assert_array_equal(volumes[segment.name], mask * (found["largest"] if kind == "fractional" else 1))
