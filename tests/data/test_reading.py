"""A case that is read with the axes of its file: channels and label come to lie on the first channel's."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.reading import read_case
from medseg3d.frame import CANONICAL_FRAME, Frame

SHAPE = (4, 5, 6)


def stored(path: Path, array: np.ndarray, order: tuple[int, ...], flips: tuple[int, ...]) -> Path:
    """The volume in the same place of the world, its axes stored in another order and direction."""
    affine = np.diag([1.0, 1.2, 2.0, 1.0])[:, [*order, 3]]
    result = array.transpose(order)
    for axis, flip in enumerate(flips):
        if flip < 0:
            result = np.flip(result, axis)
            affine[:, 3] += affine[:, axis] * (result.shape[axis] - 1)
            affine[:, axis] *= -1
    nibabel.save(nibabel.Nifti1Image(result, affine), path)
    return path


ORIENTATIONS = [(order, flips) for order in ((0, 1, 2), (2, 0, 1)) for flips in itertools.product((1, -1), repeat=3)]


@pytest.mark.parametrize("first", ORIENTATIONS[::3])
@pytest.mark.parametrize("second", ORIENTATIONS)
@pytest.mark.parametrize("frame", [CANONICAL_FRAME, None], ids=["canonical", "as_stored"])
def test_channels_and_label_lie_on_the_first_channels_axes(tmp_path: Path, first: tuple, second: tuple, frame: Frame | None) -> None:
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    one, other = stored(tmp_path / "a.nii.gz", array, *first), stored(tmp_path / "b.nii.gz", array, *second)
    case = Case(name="x", channels=(ChannelFile(path=one), ChannelFile(path=other)), label=other)
    raw = read_case(case, frame=frame)
    expected = np.asarray(nibabel.load(one).dataobj).T if frame is None else array.T
    assert np.array_equal(raw.image[0], expected)
    assert np.array_equal(raw.image[1], expected)
    assert np.array_equal(raw.labels, expected)
    assert read_case(case, frame=frame).spacing == raw.spacing
