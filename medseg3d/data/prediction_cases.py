"""The images to predict: a folder, a single file or a tree of DICOM series in, cases out."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medseg3d import images
from medseg3d.data.case_files import Findings, image_files, is_unicode, printable, two_files
from medseg3d.data.channels import CHANNEL_NUMBER, are_channels, by_stem, channels_of_file, numbered_cases
from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.errors import (
    CaseFailure,
    ChannelCountError,
    DatasetError,
    InputError,
)
from medseg3d.images import case_name
from medseg3d.images.dicom_intake import NamedSeries, find_dicom_cases
from medseg3d.wording import counted, listed

logger = logging.getLogger(__name__)


def prediction_cases(source: Path, *, num_channels: int) -> tuple[Case, ...]:
    """As :func:`find_prediction_cases`, but a case that cannot be used is an error: :class:`DatasetError` with all findings."""
    cases, failures = find_prediction_cases(source, num_channels=num_channels)
    if failures:
        findings = [f"{failure.case}: {failure.reason}" for failure in failures]
        raise _not_predicted(source, findings)
    return cases


def find_prediction_cases(
    source: Path, *, num_channels: int, channel: str = "", series_description: str | None = None
) -> tuple[tuple[Case, ...], tuple[CaseFailure, ...]]:
    """The cases to predict in a folder, a single file, or a tree of DICOM series, sorted by name; and those that cannot be.

    Of DICOM series those are taken that fit ``channel`` (the name of the model's) and ``series_description`` (a regular expression); see
    :func:`~medseg3d.images.dicom_intake.find_dicom_cases`. One channel: every file is a case, and ``CASE_0000`` is named ``CASE`` where
    all files are called so. Several channels: ``CASE_0000``, ``CASE_0001``, …, or 4D files with a volume per channel. Raises
    :class:`DatasetError` with all findings where no case is left, for a single file :class:`ChannelCountError`.
    """
    if not source.exists():
        raise DatasetError(f"{source}: no such file or folder; expected images to predict.")
    if not source.is_dir():
        return (_single_case(source, num_channels),), ()
    of_series = Findings()
    series = _series_of(source, of_series, channel, series_description)
    slices = {case.folder: case.files for case in series if case.is_folder}
    findings, files = _predicted_files(source, [case for case in series if case.is_folder])
    findings.take(of_series, str)
    if list(slices) == [source] and len(files) == len(series) == 1:
        case = _single_case(source, num_channels)
        return (_with_slices(case, slices),), findings.failures
    if not files and not series and not findings and not findings.has_refused and not findings.failures:
        findings.append(f"no images ({images.readable()}, or folders with DICOM series)")
    numbered = _channel_files(files, num_channels)
    cases = numbered_cases({stem: files[stem] for stem in numbered}, num_channels, findings)
    if numbered:
        logger.info("%s: the four digits at the end of the file names are taken as channel numbers.", source)
    for stem, path in files.items():
        if stem in cases and stem not in numbered:
            findings.fail(stem, two_files(cases[stem][0].path, path))
        elif stem not in numbered:
            cases[stem] = channels_of_file(path, num_channels, findings)
    pairs = [stem for stem in cases if stem.endswith("_0001") and f"{stem[:-1]}0" in cases]
    if pairs and num_channels == 1:
        logger.warning(
            "%s: %s and %s look like two channels of one case; the model takes one channel, so they are predicted as two images.",
            source,
            f"{pairs[0][:-1]}0",
            pairs[0],
        )
    for one in series:
        if one.name in cases and not one.is_folder:
            findings.fail(one.name, two_files(cases[one.name][0].path, one.folder))
        elif not one.is_folder:
            cases[one.name] = _channels_of_series(one, num_channels, findings)
    findings.settle(cases)
    failed = {failure.case for failure in findings.failures}
    usable = tuple(_with_slices(Case(name=name, channels=cases[name]), slices) for name in sorted(cases) if name not in failed)
    if findings or not usable:
        raise _not_predicted(source, [*findings, *(f"{failure.case}: {failure.reason}" for failure in findings.failures)])
    return usable, findings.failures


def _channel_files(files: Collection[str], num_channels: int) -> frozenset[str]:
    """The names that end with the number of a channel: for a model of one channel all or none."""
    found = {stem: match for stem in files if (match := CHANNEL_NUMBER.match(stem))}
    first = {match[1] for match in found.values() if match[2] == "0000"}
    if not first or (num_channels == 1 and (len(found) < len(files) or not are_channels(found.values(), num_channels))):
        return frozenset()
    return frozenset(stem for stem, match in found.items() if match[1] in first or int(match[2]) < num_channels)


def _not_predicted(source: Path, findings: Sequence[str]) -> DatasetError:
    return DatasetError(f"{source}: these images cannot be predicted ({counted(len(findings), 'finding')}).", findings)


def _predicted_files(source: Path, series: Sequence[NamedSeries]) -> tuple[Findings, dict[str, Path]]:
    """The images of a folder, and the series that are called as theirs; what is found about ``CASE_0000`` concerns CASE where CASE has
    other channels."""
    found, findings = Findings(), Findings()
    files = image_files(source, found, with_dicom=False)
    for case in series:
        if case.name in files:
            found.fail(case.name, two_files(files[case.name], case.folder))
        files.setdefault(case.name, case.folder)
    findings.take(found, by_stem({match[1] for stem in files if (match := CHANNEL_NUMBER.match(stem))}))
    return findings, files


def _single_case(source: Path, num_channels: int) -> Case:
    """A file named on the command line; ``CASE_0000`` brings its other channels along."""
    findings = Findings()
    if not is_unicode(source.name):
        raise InputError(f"{printable(str(source))}: the file name holds bytes that are no UTF-8. Rename the file.")
    if not source.is_dir():
        images.read_header(source)  # what cannot be read is refused here, with its own message
    match = CHANNEL_NUMBER.match(case_name(source))
    if match and match[2] == "0000":
        siblings = image_files(source.parent, Findings())
        files = {stem: path for stem, path in siblings.items() if (m := CHANNEL_NUMBER.match(stem)) and m[1] == match[1]}
        if num_channels == 1:
            files = {case_name(source): source}
        channels = numbered_cases(files, num_channels, findings)[match[1]]
        name = match[1]
    else:
        channels, name = channels_of_file(source, num_channels, findings), case_name(source)
    if findings.failures:
        reasons = "; ".join(failure.reason for failure in findings.failures)
        raise ChannelCountError(f"{source}: {reasons}. Give the channels the model was trained with, in their order.")
    return Case(name=name, channels=channels)


def _series_of(source: Path, findings: Findings, channel: str, description: str | None) -> tuple[NamedSeries, ...]:
    """The DICOM series below a folder; a line for each thing that is left out."""
    intake = find_dicom_cases(source, channel=channel, description=description)
    for line in intake.left_out:
        logger.warning("%s: %s.", printable(str(source)), printable(line))
    for name, reason in intake.failures:
        findings.fail(printable(name), printable(reason))
    if intake.left_out and not intake.cases and not intake.failures:
        findings.append(f"no DICOM series to predict: {printable('; '.join(intake.left_out))}")
    return intake.cases


def _channels_of_series(series: NamedSeries, num_channels: int, findings: Findings) -> tuple[ChannelFile, ...]:
    if num_channels > 1:
        expected = listed([f"CASE_{number:04d}" for number in range(num_channels)])
        findings.fail(series.name, f"one DICOM series, expected {num_channels} channels; give each a folder: {expected}")
    return (ChannelFile(path=series.folder, files=series.files),)


def _with_slices(case: Case, slices: Mapping[Path, tuple[Path, ...]]) -> Case:
    """The case with the slices that were chosen in its folders."""
    return replace(case, channels=tuple(replace(channel, files=channel.files or slices.get(channel.path, ())) for channel in case.channels))
