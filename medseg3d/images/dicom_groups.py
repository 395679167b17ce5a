"""The functional groups of an enhanced multi-frame file (PS3.3, C.7.6.16): bytes of one of their two sequences in, what each item says of a
slice out, under the names that single slices have for it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from medseg3d.images.dicom_elements import ITEM, ITEM_END, MAX_DEPTH, SEQUENCE_END, UNDEFINED, Coding, Source, after_sequence, element
from medseg3d.images.dicom_tags import MAX_VALUE_BYTES

SHARED, PER_FRAME = 0x5200_9229, 0x5200_9230
MAX_ELEMENTS = 2_000_000
"""Of both: ten thousand frames of 200 elements each."""
_POSITION, _ORIENTATION, _MEASURES, _TRANSFORMATION = 0x0020_9113, 0x0020_9116, 0x0028_9110, 0x0028_9145
_CONTENT, _ECHO, _DIFFUSION = 0x0020_9111, 0x0018_9114, 0x0018_9117
_TIMING, _MODIFIER, _HEART = 0x0018_9112, 0x0018_9115, 0x0018_9118
_FRAME_TYPES = (0x0018_9226, 0x0018_9329, 0x0018_9732)
"""Of MR, CT and PET."""
_TYPE = 0x0008_9007
WANTED: dict[tuple[int, int], tuple[str, str]] = {
    (_POSITION, 0x0020_0032): ("ImagePositionPatient", ""),
    (_ORIENTATION, 0x0020_0037): ("ImageOrientationPatient", ""),
    (_MEASURES, 0x0028_0030): ("PixelSpacing", ""),
    (_MEASURES, 0x0018_0050): ("SliceThickness", ""),
    (_TRANSFORMATION, 0x0028_1052): ("RescaleIntercept", ""),
    (_TRANSFORMATION, 0x0028_1053): ("RescaleSlope", ""),
    (_TRANSFORMATION, 0x0028_1054): ("RescaleType", ""),
    (_ECHO, 0x0018_9082): ("EchoTime", "d"),
    (_DIFFUSION, 0x0018_9087): ("DiffusionBValue", "d"),
    (_CONTENT, 0x0020_9056): ("StackID", ""),
    (_CONTENT, 0x0020_9128): ("TemporalPositionIdentifier", "I"),
    (_TIMING, 0x0018_1314): ("FlipAngle", ""),
    (_MODIFIER, 0x0018_9079): ("InversionTime", "d"),
    (_HEART, 0x0020_9153): ("TriggerTime", "d"),
    **{(sequence, _TYPE): ("ImageType", "") for sequence in _FRAME_TYPES},
    **{(sequence, 0x0008_9208): ("ComplexImageComponent", "") for sequence in _FRAME_TYPES},
}
"""By sequence and tag: the name that a single slice has for it, and how a number is written (empty for text)."""
_SEQUENCES = frozenset(sequence for sequence, _ in WANTED)


@dataclass(slots=True)
class _Open:
    """A sequence, or an item (tag 0), that the walk is in; ``end`` is None where a delimiter says it."""

    tag: int
    end: int | None
    coding: Coding


def read_groups(source: Source, offset: int, length: int, coding: Coding) -> tuple[list[dict[str, str]], int]:
    """What each item of the sequence says, and where the sequence ends. Raises :class:`ImageReadError` for a damaged one."""
    source.allow(MAX_ELEMENTS)
    items: list[dict[str, str]] = []
    stack = [_Open(0, None if length == UNDEFINED else offset + length, coding)]
    while stack:
        inside = stack[-1]
        if inside.end is not None and offset >= inside.end:
            stack.pop()
            continue
        tag, vr, size, value = element(source, offset, inside.coding)
        end = None if size == UNDEFINED else value + size
        if end is not None and end > source.size:
            raise source.damaged("is cut off")
        offset = value
        if tag in (ITEM_END, SEQUENCE_END):
            stack.pop()
        elif tag == ITEM:
            if len(stack) == 1:
                items.append({})
            _push(source, stack, _Open(0, end, inside.coding))
        elif tag in _SEQUENCES:
            _push(source, stack, _Open(tag, end, Coding(coding.order, inside.coding.is_explicit and vr != b"UN")))
        elif end is None:
            offset = after_sequence(source, value, Coding(coding.order, inside.coding.is_explicit and vr != b"UN"))
        else:
            wanted = WANTED.get((stack[-2].tag if len(stack) > 1 else 0, tag))
            if wanted is not None and items and size <= MAX_VALUE_BYTES:
                items[-1].setdefault(wanted[0], _text(source.at(value, size), wanted[1], coding.order))
            offset = end
    return items, offset


def _push(source: Source, stack: list[_Open], opened: _Open) -> None:
    if len(stack) >= MAX_DEPTH:
        raise source.damaged(f"has sequences nested more than {MAX_DEPTH // 2} deep")
    stack.append(opened)


def _text(value: bytes, kind: str, order: str) -> str:
    if not kind:
        return value.decode("latin-1").strip(" \0")
    return f"{struct.unpack(order + kind, value)[0]:g}" if len(value) == struct.calcsize(kind) else ""
