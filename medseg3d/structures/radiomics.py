"""The features of pyradiomics, where it is installed: an image and a mask go in, numbers by name come out.

They follow the Image Biomarker Standardisation Initiative as far as pyradiomics does; its version and settings decide, not ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from medseg3d.errors import UnsupportedError

Extractor = Callable[[np.ndarray, np.ndarray, tuple[float, ...]], dict[str, float]]
"""An image and a bool mask on one grid ``(x, y, z)``, and the spacing in mm; features by name."""

MARGIN = 5
"""Voxels around the mask that filters would see; a box that is cropped to the mask is padded by repeating its edge."""
LEAST_VOXELS = 2
"""pyradiomics has no texture of a single voxel and refuses the mask."""


def radiomics_extractor() -> Extractor:
    """All features of the original image with pyradiomics' own defaults; raises :class:`UnsupportedError` where it is not installed."""
    try:
        from radiomics import featureextractor
    except ImportError as error:
        raise UnsupportedError(
            f"--radiomics needs pyradiomics, which is not installed here ({error}). pip install pyradiomics; where that fails for this "
            "Python, use its conda package, or leave --radiomics out."
        ) from None
    logging.getLogger("radiomics").setLevel(logging.ERROR)  # it warns of every missing setting
    extractor = featureextractor.RadiomicsFeatureExtractor(additionalInfo=False)

    def features(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
        if np.count_nonzero(mask) < LEAST_VOXELS:
            return {}
        measured = extractor.execute(
            _sitk(np.pad(image, MARGIN, mode="edge"), spacing), _sitk(np.pad(mask, MARGIN).astype(np.uint8), spacing)
        )
        return {name.removeprefix("original_"): float(value) for name, value in measured.items()}

    return features


def _sitk(array: np.ndarray, spacing: tuple[float, ...]) -> Any:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing([float(each) for each in spacing])
    return image
