"""Read models that nnU-Net v2 trained: a result folder goes in, a whole model that predicts the same voxels comes out.

The rules are those of nnU-Net 2.8.1. What its records can say and ours cannot is refused by name, never approximated.
"""

from __future__ import annotations

from medseg3d.models.nnunet.folder import is_nnunet_model, read_nnunet_model

__all__ = ["is_nnunet_model", "read_nnunet_model"]
