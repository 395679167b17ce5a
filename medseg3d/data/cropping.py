"""The box and the mask of the voxels that are not zero: an image goes in, slices or a mask come out.

The rule is nnU-Net's ``crop_to_nonzero``: a voxel counts where any channel differs from zero, holes inside count as well. Filling
holes cannot move the bounding box, so the box is found from projections alone, and the mask is made only where it is asked for.
"""

from __future__ import annotations

import numpy as np

Box = tuple[slice, slice, slice]


def nonzero_box(image: np.ndarray) -> Box:
    """The smallest box around the voxels of ``image`` (channel, three spatial axes) where any channel is not zero.

    An image of zeros has nothing to crop to: its box is the whole volume.
    """
    shape = image.shape[1:]
    used = [np.zeros(length, bool) for length in shape]
    for channel in image:
        nonzero = channel != 0
        rows = nonzero.any(axis=2)
        used[0] |= rows.any(axis=1)
        used[1] |= rows.any(axis=0)
        used[2] |= nonzero.any(axis=(0, 1))
        if all(u[0] and u[-1] for u in used):
            break  # the box cannot grow any more, whatever the other channels hold
    if not used[0].any():
        return (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    first, second, third = (np.flatnonzero(u) for u in used)
    return (
        slice(int(first[0]), int(first[-1]) + 1),
        slice(int(second[0]), int(second[-1]) + 1),
        slice(int(third[0]), int(third[-1]) + 1),
    )


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Where any channel of ``image`` (channel, three spatial axes) is not zero, with the holes filled; bool, three spatial axes.

    A hole is a region of zeros that no path over voxel faces connects with the border of the volume, as in
    ``scipy.ndimage.binary_fill_holes``. In an image of zeros nothing is inside.
    """
    mask = np.asarray(image[0] != 0)
    for channel in image[1:]:
        mask |= channel != 0
    if mask.all() or not mask.any():
        return mask
    box = nonzero_box(mask[np.newaxis])
    _fill_holes(mask[box])
    return mask


def _fill_holes(mask: np.ndarray) -> None:
    """Fill in place. The mask touches all six faces, so a region of zeros is outside exactly if it reaches one of them."""
    import cc3d

    zeros = ~mask
    if not zeros.any():
        return
    regions, count = cc3d.connected_components(zeros, connectivity=6, return_N=True)
    is_hole = np.ones(count + 1, bool)
    is_hole[0] = False
    for axis in range(3):
        for end in (0, -1):
            is_hole[np.unique(regions.take(end, axis))] = False
    if is_hole.any():
        mask |= is_hole[regions]
