"""What several tests of whole commands share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def in_float32() -> Iterator[None]:
    """Training does not ask a process of its own whether bf16 is right here, which takes longer than the training."""
    torch.nn.functional.conv3d(torch.zeros(1, 1, 3, 3, 3), torch.zeros(1, 1, 3, 3, 3))  # oneDNN reads the variable once: before it is set
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
        yield
