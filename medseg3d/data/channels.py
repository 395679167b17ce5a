"""From the names of files to the channels of cases: ``CASE_0000``, ``CASE_0001``, … or one file that holds them all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from medseg3d import images
from medseg3d.data.case_files import Findings, image_files
from medseg3d.data.dataset import ChannelFile
from medseg3d.errors import DiskReadError, ImageReadError
from medseg3d.images import case_name
from medseg3d.wording import counted

CHANNEL_NUMBER = re.compile(r"^(.+)_(\d{4})$")


def grouped_by_case(
    folder: Path,
    label_files: Mapping[str, Path],
    names: tuple[str, ...] | None,
    findings: Findings,
    *,
    is_required: bool = True,
) -> tuple[dict[str, tuple[ChannelFile, ...]], tuple[str, ...]]:
    """The images of a folder by case, and the channel names, placeholders where ``names`` is None.

    ``CASE_0000`` is channel 0 of CASE where CASE has a label (or all files are named so); a file that is called as its label is
    one channel, or with several channels a 4D file.
    """
    found = Findings()
    files = image_files(folder, found)
    findings.take(found, by_stem({*label_files, *(failure.case for failure in findings.failures)}))
    if not files:
        if is_required or found:
            findings.append(f"{folder}: no images ({images.readable()}, or folders with DICOM series)")
        return {}, names or ()
    matches = {stem: match for stem in files if (match := CHANNEL_NUMBER.match(stem)) and stem not in label_files}
    matched = {stem for stem, match in matches.items() if match[1] in label_files}
    if not matched & set(files) and not set(files) & set(label_files):
        # no label tells how the files are named
        matched = set(matches) if names is None or are_channels(matches.values(), len(names)) else set()
    elif matched and not set(files) & set(label_files):
        matched = set(matches)  # all labelled files carry channel numbers, so the others do as well
    numbered = {stem: files[stem] for stem in matched}
    if names is None:
        names = tuple(f"channel_{index}" for index in range(_usual_count([matches[stem] for stem in numbered], files.values())))
    grouped = numbered_cases(numbered, len(names), findings)
    for stem, path in files.items():
        if stem not in matched:
            grouped[stem] = channels_of_file(path, len(names), findings)
    return dict(sorted(grouped.items())), names


def _usual_count(numbered: Sequence[re.Match[str]], files: Iterable[Path]) -> int:
    """The channels that most cases have: by the numbers in their names, else by the volumes of their files."""
    if numbered:
        highest: dict[str, int] = {}
        for match in numbered:
            highest[match[1]] = max(highest.get(match[1], 0), 1 + int(match[2]))
        counts = list(highest.values())
    else:
        counts = [count for path in files if (count := _num_volumes(path, Findings()))]
    return Counter(counts).most_common(1)[0][0] if counts else 1


def are_channels(matches: Iterable[re.Match[str]], num_channels: int) -> bool:
    """Whether four digits at the end of names number channels: for a model of one channel they may number the cases.

    One name with many numbers is a series of cases; the same numbers, from 0000 on, after several names are channels.
    """
    numbers: dict[str, set[str]] = {}
    for match in matches:
        numbers.setdefault(match[1], set()).add(match[2])
    if num_channels > 1 or not numbers:
        return True
    if not all("0000" in found for found in numbers.values()):
        return False
    return len(numbers) > 1 or set().union(*numbers.values()) == {"0000"}


def numbered_cases(files: Mapping[str, Path], num_channels: int, findings: Findings) -> dict[str, tuple[ChannelFile, ...]]:
    """Files ``CASE_0000``, ``CASE_0001``, … by case."""
    by_case: dict[str, dict[int, Path]] = {}
    for stem, path in files.items():
        match = CHANNEL_NUMBER.match(stem)
        if match:
            by_case.setdefault(match[1], {})[int(match[2])] = path
    for name, found in by_case.items():
        expected = set(range(num_channels))
        if set(found) != expected:
            lacks = [f"{c:04d}" for c in sorted(expected - set(found))]
            extra = [f"{c:04d}" for c in sorted(set(found) - expected)]
            findings.fail(
                name,
                f"{counted(len(found), 'channel')}, expected {num_channels}"
                + (f"; missing {', '.join(lacks)}" if lacks else "")
                + (f"; superfluous {', '.join(extra)}" if extra else ""),
            )
    return {name: tuple(ChannelFile(path=found[c]) for c in sorted(found)) for name, found in by_case.items()}


def channels_of_file(path: Path, num_channels: int, findings: Findings) -> tuple[ChannelFile, ...]:
    """One file that holds the whole case; with several channels it is 4D."""
    if num_channels == 1:
        return (ChannelFile(path=path),)
    found = _num_volumes(path, findings)
    if found not in (0, num_channels):
        findings.fail(case_name(path), f"{path.name} holds {counted(found, 'channel')}, expected {num_channels}")
    return tuple(ChannelFile(path=path, volume=volume) for volume in range(num_channels))


def _num_volumes(path: Path, findings: Findings) -> int:
    """Volumes of a file; 0 and a finding where it cannot be read."""
    try:
        return images.read_header(path).num_volumes
    except (ImageReadError, DiskReadError) as error:
        findings.fail(case_name(path), str(error))
        return 0


def by_stem(stems: Collection[str]) -> Callable[[str], str]:
    """From the name of a channel to that of its case, where that is one of ``stems``."""

    def name_of(name: str) -> str:
        match = CHANNEL_NUMBER.match(name)
        return match[1] if match and match[1] in stems else name

    return name_of
