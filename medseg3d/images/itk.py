"""What ITK says and how it counts: its axes against NIfTI's, and its errors in one line."""

from __future__ import annotations

import re

from medseg3d.images.text_header import LPS_TO_RAS

__all__ = ["LPS_TO_RAS", "reason_of"]


def reason_of(error: RuntimeError) -> str:
    """The one line of an ITK error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = re.sub(r"^(sitk::ERROR:|ITK ERROR:)\s*|\w+\(0x[0-9a-f]+\):\s*", "", lines[-1]) if lines else "unknown"
    return last.removeprefix("ITK ERROR:").strip().rstrip(".")
