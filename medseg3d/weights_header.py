"""The metadata of a weights file, without torch and without its tensors."""

from __future__ import annotations

import json
from pathlib import Path

MAX_HEADER_BYTES = 100 << 20
"""As safetensors itself: a longer header is a damaged one."""
METADATA_KEY = "medseg3d"
DIGEST_KEY = "medseg3d_digest"
"""Of the metadata, and of names, types, shapes and bits of all tensors."""


def weights_metadata(path: Path) -> dict[str, str]:
    """Keys and texts from the header of a safetensors file: eight bytes of length, then JSON. Empty where it is damaged.

    Raises :class:`OSError` where the file cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            return {}
        try:
            found = json.loads(file.read(length))["__metadata__"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}
