"""Read models that nnU-Net v2 trained: a result folder or a zip of it goes in, a model that predicts the same voxels comes out.

The rules are those of nnU-Net 2.8.1. What its records can say and ours cannot is refused by name, never approximated.
"""

from __future__ import annotations

from medseg3d.models.nnunet.folder import NNUNET_FOLDER
from medseg3d.models.nnunet.zip import NNUNET_ZIP

__all__ = ["NNUNET_FOLDER", "NNUNET_ZIP"]
