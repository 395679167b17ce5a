"""Options that keep the published networks small in tests: as few features as their parts can have."""

from __future__ import annotations

from medseg3d.plan import Option

SMALL: dict[str, dict[str, Option]] = {
    "fcn": {"classifier_kernel": 3},
    "deeplab_v3": {"head_features": 8},
    "dfnet": {"decoder_features": 8},
    "fast_scnn": {"context_features": 8},
    "bisenet": {"context_features": 8},
    "icnet": {"context_features": 8},
    "swiftnet": {"decoder_features": 8},
    "msfnet": {"decoder_features": 8},
    "isnet": {"head_features": 8, "attention_features": 8},
    "mcibi": {"head_features": 8, "attention_features": 8},
}
