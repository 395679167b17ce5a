"""Options of distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from medseg3d.options.option import Option
from medseg3d.options.resources import DeviceOptions

DEFAULT_SHARE = 0.4
"""Below one half: where the teacher is sure of a wrong label, the user's stays the most probable one."""


@dataclass(frozen=True, kw_only=True)
class DistillOptions(DeviceOptions):
    """Options of ``distill``."""

    share: Annotated[
        float,
        Option(
            "--share",
            "of the teacher in what is learned; the rest is the label map; from 0.5 on the student is measured against the teacher "
            "(default: 0.4)",
            metavar="P",
            above=0,
            at_most=1,
        ),
    ] = DEFAULT_SHARE
