"""What a number in a file may be: types that a record's fields name, checked where the record is read.

The bounds are generous, several times what any dataset or network that we know asks for; they keep a damaged or hostile file from
building, allocating or counting without end.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval, Len

MAX_STAGES = 16
Dimension = Annotated[int, Interval(ge=1, le=2**16)]
"""Voxels along an axis."""
Millimeters = Annotated[float, Interval(gt=1e-9, le=1e6)]
"""Down to electron microscopes, 4e-6 mm."""
Features = Annotated[int, Interval(ge=1, le=8192)]
Kernel = Annotated[int, Interval(ge=1, le=63)]
Stride = Annotated[int, Interval(ge=1, le=64)]
Blocks = Annotated[int, Interval(ge=1, le=200)]
Channels = Annotated[int, Interval(ge=1, le=2**16)]
BatchSize = Annotated[int, Interval(ge=1, le=2**20)]
"""A patch of 4 × 4 pixels fits more often than 2**16 times."""
Multiplier = Annotated[float, Interval(gt=0, le=1000)]
Gigabytes = Annotated[float, Interval(gt=0, le=1e5)]
Elements = Annotated[int, Interval(ge=1, le=10**15)]
Steps = Annotated[int, Interval(ge=1, le=10**9)]
Order = Annotated[int, Interval(ge=0, le=5)]
Axis = Annotated[int, Interval(ge=0, le=2)]
Share = Annotated[float, Interval(ge=0, le=1)]
PositiveShare = Annotated[float, Interval(gt=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
Percentile = Annotated[float, Interval(ge=0, le=100)]
AboveOne = Annotated[float, Interval(gt=1, le=1e15)]
NotNegative = Annotated[float, Interval(ge=0, le=1e15)]
Positive = Annotated[float, Interval(gt=0, le=1e15)]
Counted = Annotated[int, Interval(ge=0, le=10**12)]
LabelValue = Annotated[int, Interval(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, Len(1, 200)]
"""Of a configuration, a family or an option."""
Provider = Annotated[str, Len(0, 300)]
"""Where a part that is not built in comes from; see :mod:`medseg3d.extensions`."""
