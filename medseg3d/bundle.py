"""Names that MONAI bundles of older versions hold; their functions live in :mod:`medseg3d.models.bundle`."""

from __future__ import annotations

from medseg3d.models.bundle import Segmenter, images, in_region_class_order, network, normalized, weights

painted = in_region_class_order

__all__ = ["Segmenter", "images", "network", "normalized", "painted", "weights"]
