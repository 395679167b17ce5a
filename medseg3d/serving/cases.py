"""From uploaded files to the one case that they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.prediction_cases import prediction_cases
from medseg3d.errors import ChannelCountError, ImageReadError, InputError
from medseg3d.images import case_name, ending_of, is_image, read_header, refusal
from medseg3d.images.dicom_intake import find_dicom_cases
from medseg3d.images.readers import READERS
from medseg3d.serving.attached import check_attached, taken
from medseg3d.unpack import unpack
from medseg3d.wording import counted, listed

_CHANNEL = re.compile(r"(.+)_(\d{4})")


def uploaded_case(files: Sequence[Path], *, num_channels: int, max_unpacked_bytes: int, channels: Sequence[str] = ()) -> Case:
    """One image; one file per channel, by their numbers (``CASE_0000``) or in the order in which they came; or a zip of either, or of
    a DICOM study with one series that fits the model's channel. ``channels`` are the names of the model's.

    Reads headers, no voxels. Raises the :class:`InputError` of what is wrong.
    """
    if len(files) == 1 and files[0].name.lower().endswith(".zip"):
        return _case_of_zip(files[0], num_channels, max_unpacked_bytes, channels[0] if num_channels == 1 and channels else "")
    return _case_of_files(files, num_channels, channels)


def _case_of_zip(archive: Path, num_channels: int, max_unpacked_bytes: int, channel: str) -> Case:
    folder = archive.with_suffix("")
    members = unpack(archive, folder, max_bytes=max_unpacked_bytes)
    archive.unlink()
    intake = find_dicom_cases(folder, channel=channel)
    if len(intake.cases) > 1:
        found = listed([case.name for case in intake.cases])
        raise InputError(f"{archive.name}: {counted(len(intake.cases), 'DICOM volume')} ({found}); send a zip of one series.")
    if intake.failures:  # what it belongs to is not known, or it costs the series
        raise ImageReadError(intake.failures[0][1])
    if intake.cases and num_channels > 1:
        raise ChannelCountError(f"{archive.name}: one DICOM series, expected {num_channels} channels. Send one file per channel.")
    if intake.cases:
        (series,) = intake.cases
        return Case(name=folder.name, channels=(ChannelFile(path=series.folder, files=series.files),))
    images = sorted(member for member in members if is_image(member))
    if not images:
        left_out = f" ({listed(intake.left_out, most=3)})" if intake.left_out else ""
        raise ImageReadError(f"{archive.name}: holds neither a DICOM series nor an image ({taken()}){left_out}.")
    return _case_of_files(images, num_channels, is_ordered=False)


def _case_of_files(files: Sequence[Path], num_channels: int, channels: Sequence[str] = (), *, is_ordered: bool = True) -> Case:
    """``is_ordered``: they came one after the other, and not together in an archive."""
    for file in files:
        is_unknown = ending_of(file) not in READERS and refusal(file) is None and not file.name.lower().endswith(".zip")
        if is_unknown and not is_image(file):
            raise ImageReadError(f"{file}: not an image by its name; expected {taken()}, or a .zip of one DICOM series.")
        check_attached(file)
    if len(files) == 1:
        return prediction_cases(files[0], num_channels=num_channels)[0]
    if any(file.name.lower().endswith(".zip") for file in files):
        raise InputError(f"A zip comes alone; found {counted(len(files), 'file')}.")
    if len(files) != num_channels:
        advice = " A DICOM series comes as one zip." if any(ending_of(file) == ".dcm" for file in files) else ""
        found = f"{counted(len(files), 'file')} ({listed([file.name for file in files])})"
        raise ChannelCountError(f"{found}, expected {counted(num_channels, 'channel')}.{advice}")
    for file in files:
        read_header(file)  # what cannot be read is refused at the door
    names = [case_name(file) for file in files]
    numbered = [match for name in names if (match := _CHANNEL.fullmatch(name))]
    if not numbered and is_ordered:
        _check_order(names, channels)
        return Case(name=names[0], channels=tuple(ChannelFile(path=file) for file in files))
    by_number = {int(match[2]): file for match, file in zip(numbered, files, strict=False)}
    if len(numbered) < len(files) or len({match[1] for match in numbered}) > 1 or sorted(by_number) != list(range(num_channels)):
        expected = listed([f"CASE_{number:04d}" for number in range(num_channels)])
        otherwise = ", or names without numbers, in that order" if is_ordered else ": files in a zip have no order"
        raise ChannelCountError(f"The files are called {listed(names)}; expected {expected}{otherwise}.")
    return Case(name=numbered[0][1], channels=tuple(ChannelFile(path=by_number[number]) for number in range(num_channels)))


def _check_order(names: Sequence[str], channels: Sequence[str]) -> None:
    """Raise :class:`ChannelCountError` where each file is called as one of the channels, and they came in another order than these."""
    found = []
    for name in names:
        words = re.split(r"[^0-9a-z]+", name.lower())
        found.append([number for number, channel in enumerate(channels) if channel.lower() in words])
    places = [numbers[0] for numbers in found if len(numbers) == 1]
    if len(places) == len(names) == len(set(places)) and places != sorted(places):
        raise ChannelCountError(
            f"The files are called {listed(names)} and come in this order, and the model takes {listed(channels)}. Send them in the "
            "model's order, or call them CASE_0000, CASE_0001, …"
        )
