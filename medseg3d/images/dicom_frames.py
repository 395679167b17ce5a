"""An enhanced multi-frame file as the slices that it holds: one header in, one header per frame out, each with its own place and pixels."""

from __future__ import annotations

from dataclasses import replace

from medseg3d.images.dicom_file import DEFLATED, DicomFile, PixelData

MAX_FRAMES = 10_000
"""Of a file; whole bodies in thin slices over several phases have some thousands."""


def frames_of(file: DicomFile) -> tuple[DicomFile, ...]:
    """The slices of a file: itself, where it says nothing of frames. What does not fit together is told as the file's damage."""
    if not file.frames or file.damage or file.pixels is None:
        return (file,)
    count = file.integer("NumberOfFrames", 1)
    if count != len(file.frames) or count > MAX_FRAMES:
        return (_damaged(file, f"{count} frames, and places for {len(file.frames)} of them (at most {MAX_FRAMES})"),)
    pieces = _pieces(file, file.pixels, count)
    if isinstance(pieces, str):
        return (_damaged(file, pieces),)
    shared = {name: text for name, text in file.tags.items() if name != "NumberOfFrames"}
    return tuple(
        replace(file, tags={**shared, **own, "InstanceNumber": str(number)}, pixels=piece, frames=(), frame=number)
        for number, (own, piece) in enumerate(zip(file.frames, pieces, strict=True), 1)
    )


def _damaged(file: DicomFile, what: str) -> DicomFile:
    return replace(
        file, frames=(), damage=f"{file.path}: a multi-frame DICOM file with {what}. Export it as single slices, or convert it to NIfTI."
    )


def _pieces(file: DicomFile, pixels: PixelData, count: int) -> list[PixelData] | str:
    """The pixel data of each frame, or why they cannot be told apart."""
    if pixels.fragments is not None:
        if len(pixels.fragments) != count:
            return f"{count} compressed frames in {len(pixels.fragments)} pieces"
        return [replace(pixels, length=length, offset=offset, fragments=((offset, length),)) for offset, length in pixels.fragments]
    if file.syntax == DEFLATED:
        return "deflated frames"  # each would be inflated anew
    size = file.integer("Rows", 0) * file.integer("Columns", 0) * file.integer("BitsAllocated", 0) // 8
    if size < 1 or not 0 <= pixels.length - count * size <= 1:  # an odd number of bytes is padded
        return f"{pixels.length} bytes of pixel data for {count} frames of {size}"
    return [replace(pixels, offset=pixels.offset + place * size, length=size) for place in range(count)]
