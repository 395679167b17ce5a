"""From a folder to its cases: which files belong together, and what the labels are called.

Three layouts: nnU-Net's (one file per channel), the Medical Segmentation Decathlon's (4D files listed in ``dataset.json``), and
two plain folders ``images`` and ``labels``. What costs one case is a failure of that case; what makes the dataset unusable as a whole
is named in one error.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medseg3d import images
from medseg3d.data.case_files import Findings, composed, differs_in_case, image_files, is_unicode, listed_file, printable
from medseg3d.data.label_names import names_beside, with_names
from medseg3d.data.label_rules import is_ignore_label, name_findings, repeated_keys
from medseg3d.data.side_names import left_right_pairs
from medseg3d.errors import (
    CaseFailure,
    ChannelCountError,
    DatasetError,
    ImageReadError,
    InputError,
    UnsupportedError,
)
from medseg3d.images import case_name
from medseg3d.images.dicom_intake import NamedSeries, find_dicom_cases
from medseg3d.labels import Labels
from medseg3d.parsing import read_text
from medseg3d.records import from_plain, read_json
from medseg3d.wording import counted, listed

logger = logging.getLogger(__name__)

_CHANNEL_NUMBER = re.compile(r"^(.+)_(\d{4})$")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFile:
    """Where one channel of a case is: a file, one volume of a 4D file, or a folder of which ``files`` are the slices (all, if empty)."""

    path: Path
    volume: int | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The files of one case; ``label`` is None where there is none."""

    name: str
    channels: tuple[ChannelFile, ...]
    label: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The names of the cases that one fold trains on, and of those that it is measured on."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The cases of a folder, sorted by name, and what its ``dataset.json`` says.

    ``labels`` is None without a JSON: names and values then come from the label files. ``has_named_channels`` is False where the
    channel names are only placeholders (``channel_0``). ``declared_splits`` are the user's own folds. ``failures`` are training cases
    whose files cannot be used, as far as that is seen without reading voxels; ``test_failures`` those of the test set.
    ``label_names`` stand in ``labels.csv`` or ``labels.json`` beside the images, by label value; ``labels`` has them already.
    """

    root: Path
    name: str
    layout: Literal["nnunet", "decathlon", "folders"]
    channel_names: tuple[str, ...]
    has_named_channels: bool
    labels: Labels | None
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    declared_splits: tuple[Split, ...] | None = None
    failures: tuple[CaseFailure, ...] = ()
    test_failures: tuple[CaseFailure, ...] = ()
    label_names: Mapping[int, str] = field(default_factory=dict)


def open_dataset(root: Path, *, channels: Sequence[str] | None = None) -> Dataset:
    """Find the cases of a dataset folder; ``channels`` names them anew, for instance ``("CT",)``.

    Reads no voxels. Cases that cannot be used are in ``failures``. Raises :class:`DatasetError` with all findings at once where the
    dataset as a whole cannot be used, and :class:`UnsupportedError` for regions or an ignore label.
    """
    dataset, findings = find_dataset(root, channels=channels)
    if findings:
        findings = (*findings, *(f"{failure.case}: {failure.reason}" for failure in dataset.failures))
        raise DatasetError(f"{root}: the dataset cannot be used as it is ({counted(len(findings), 'finding')}).", findings)
    failed = [failure.case for failure in dataset.failures]
    return replace(dataset, declared_splits=_declared_splits(root, [case.name for case in dataset.training], failed))


def find_dataset(root: Path, *, channels: Sequence[str] | None = None) -> tuple[Dataset, tuple[str, ...]]:
    """What :func:`open_dataset` opens, with findings on the whole dataset instead of an error, and without the declared folds.

    Raises :class:`DatasetError` only where there is no dataset at all.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "no such folder"
        raise DatasetError(f"{root}: {what}; expected the dataset's folder, the one that holds images and labels.")
    file = root / "dataset.json"
    declared = read_json(file) if file.is_file() else None
    if declared is not None and not isinstance(declared, dict):
        raise DatasetError(f"{file}: expected a JSON object with channel_names and labels.")
    findings = Findings()
    if declared is not None:
        findings.extend(
            f"dataset.json: {key!r} stands twice in one list, and only the last counts; keep one" for key in repeated_keys(read_text(file))
        )
    if declared is not None and _lists_its_files(root, declared):
        dataset = _open_decathlon(root, declared, findings)
    elif (root / "imagesTr").is_dir() or (declared is not None and "dataset" in declared):
        dataset = _open_nnunet(root, declared, findings)
    elif (root / "images").is_dir():
        dataset = _open_folders(root, declared, findings)
    else:
        raise DatasetError(
            f"{root}: not a dataset. Expected imagesTr and labelsTr (nnU-Net, Decathlon), or images and labels. The least there can be: "
            "images in the folder images, and label maps of the same names in the folder labels."
        )
    if channels is not None:
        if len(channels) != len(dataset.channel_names):
            given = f"{counted(len(channels), 'channel name')} given ({', '.join(channels)})"
            findings.append(f"{given}, the cases have {len(dataset.channel_names)}")
        dataset = replace(dataset, channel_names=tuple(channels), has_named_channels=True)
    if not dataset.training and not findings:
        findings.append("no training case can be used" if dataset.failures else "no training case found: no images")
    return dataset, tuple(findings)


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
    findings, files = _predicted_files(source)
    series = _series_of(source, findings, channel, series_description)
    slices = {case.folder: case.files for case in series if case.is_folder}
    if list(slices) == [source] and len(series) == 1 and not files:
        case = _single_case(source, num_channels)
        return (_with_slices(case, slices),), findings.failures
    files |= {case.name: case.folder for case in series if case.is_folder}
    if not files and not series and not findings and not findings.has_refused and not findings.failures:
        findings.append("no images (.nii.gz, .nii, .nrrd, .mha, or folders with DICOM series)")
    numbered = {stem: match for stem in files if (match := _CHANNEL_NUMBER.match(stem))}
    is_numbered = bool(numbered) and len(numbered) == len(files) and any(m[2] == "0000" for m in numbered.values())
    is_numbered = is_numbered and _are_channels(numbered.values(), num_channels)
    if is_numbered:
        cases = _numbered_cases(files, num_channels, findings)
        logger.info("%s: the four digits at the end of the file names are taken as channel numbers.", source)
    else:
        cases = {stem: _channels_of_file(path, num_channels, findings) for stem, path in files.items()}
        pairs = [stem for stem in files if stem.endswith("_0001") and f"{stem[:-1]}0" in files]
        if pairs:
            logger.warning(
                "%s: %s and %s look like two channels of one case; the model takes one channel, so they are predicted as two images.",
                source,
                f"{pairs[0][:-1]}0",
                pairs[0],
            )
    for one in series:
        if not one.is_folder:
            cases[one.name] = _channels_of_series(one, num_channels, findings)
    findings.settle(cases)
    failed = {failure.case for failure in findings.failures}
    usable = tuple(_with_slices(Case(name=name, channels=cases[name]), slices) for name in sorted(cases) if name not in failed)
    if findings or not usable:
        raise _not_predicted(source, [*findings, *(f"{failure.case}: {failure.reason}" for failure in findings.failures)])
    return usable, findings.failures


def _not_predicted(source: Path, findings: Sequence[str]) -> DatasetError:
    return DatasetError(f"{source}: these images cannot be predicted ({counted(len(findings), 'finding')}).", findings)


def _predicted_files(source: Path) -> tuple[Findings, dict[str, Path]]:
    """The images of a folder; what is found about ``CASE_0000`` concerns CASE where CASE has other channels."""
    found, findings = Findings(), Findings()
    files = image_files(source, found, with_dicom=False)
    findings.take(found, _by_stem({match[1] for stem in files if (match := _CHANNEL_NUMBER.match(stem))}))
    return findings, files


def _by_stem(stems: Collection[str]) -> Callable[[str], str]:
    """From the name of a channel to that of its case, where that is one of ``stems``."""

    def name_of(name: str) -> str:
        match = _CHANNEL_NUMBER.match(name)
        return match[1] if match and match[1] in stems else name

    return name_of


def read_splits(path: Path, case_names: Sequence[str], failed: Collection[str] = ()) -> tuple[Split, ...]:
    """Folds from ``splits.json`` (ours) or nnU-Net's ``splits_final.json`` (a list of ``train`` and ``val``).

    Cases in no fold are left out on purpose; those that ``failed`` keep their places, until their files are there again. Raises
    :class:`DatasetError` with all findings: unknown names, cases on both sides of a fold or twice in a list.
    """
    document = read_json(path)
    folds = document.get("folds", document.get("splits", document.get("records"))) if isinstance(document, dict) else document
    if not isinstance(folds, list) or not folds or not all(isinstance(fold, dict) for fold in folds):
        raise DatasetError(f'{path}: expected a list of folds, each {{"train": [...], "val": [...]}}.')
    splits = tuple(
        _as_files_are_named(
            from_plain(
                {"train": fold.get("train", []), "validation": fold.get("validation", fold.get("val", []))},
                Split,
                f"{path}: fold {k}",
            ),
        )
        for k, fold in enumerate(folds)
    )
    known = {*case_names, *failed}
    findings = []
    for k, split in enumerate(splits):
        unknown = sorted({*split.train, *split.validation} - known)
        if unknown:
            findings.append(f"fold {k} names cases that the dataset does not have: {listed(unknown)}")
        both = sorted(set(split.train) & set(split.validation))
        if both and set(split.train) != set(split.validation):  # one patient alone is trained and measured on itself
            findings.append(f"fold {k} has cases in both train and validation: {listed(both)}")
        for side, listed_cases in (("train", split.train), ("val", split.validation)):
            twice = sorted(name for name, number in Counter(listed_cases).items() if number > 1)
            if twice:
                findings.append(f"fold {k} lists cases twice in {side}: {listed(twice)}")
        if not split.train or not split.validation:
            findings.append(f"fold {k} has no {'training' if not split.train else 'validation'} case")
    if findings:
        raise DatasetError(f"{path}: the folds do not fit the dataset. Correct the file; without it, folds are made.", findings)
    return splits


def _as_files_are_named(split: Split) -> Split:
    """The fold with its names in Unicode's NFC."""
    return Split(train=tuple(map(composed, split.train)), validation=tuple(map(composed, split.validation)))


# ---- layouts


def _lists_its_files(root: Path, declared: Mapping[str, Any]) -> bool:
    """Decathlon, not nnU-Net's first version, whose ``training`` names files without their channel number."""
    entries = declared.get("training")
    if not isinstance(entries, list) or not entries:
        return False
    paths = [root / str(entry["image"]) for entry in entries if isinstance(entry, dict) and "image" in entry]
    if any(path.exists() for path in paths):
        return True
    return not any((path.parent / path.name.replace(case_name(path), f"{case_name(path)}_0000", 1)).exists() for path in paths)


def _open_decathlon(root: Path, declared: dict[str, Any], findings: Findings) -> Dataset:
    names, labels = _channel_names(declared, findings), declared_labels(root, declared, findings)
    training = []
    for number, entry in enumerate(declared["training"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not isinstance(entry.get("label"), str):
            findings.fail(f"training[{number}]", f"dataset.json, training: expected an image and a label, found {entry!r:.200}")
            continue
        image, label = listed_file(root, entry["image"]), listed_file(root, entry["label"])
        name = _listed_name(image, findings)
        if name is None or _is_missing(name, (image, label), findings):
            continue
        training.append(Case(name=name, channels=_channels_of_file(image, len(names), findings), label=label))
    test, test_findings = [], Findings()
    reference = _files_by_case(root / "labelsTs", test_findings)
    for entry in declared.get("test") or ():
        image = listed_file(root, str(entry["image"] if isinstance(entry, dict) and "image" in entry else entry))
        if not image.is_file():
            logger.warning("%s: listed under test in dataset.json, but there is no such file.", image)
            continue
        listed_name = _listed_name(image, test_findings)
        if listed_name is not None:
            channels = _channels_of_file(image, len(names), test_findings)
            test.append(Case(name=listed_name, channels=channels, label=reference.get(listed_name)))
    return _dataset(root, declared, "decathlon", names, labels, training, test, findings, test_findings)


def _listed_name(image: Path, findings: Findings) -> str | None:
    """The name of a case by its listed image; None, and a failure, where it is no Unicode."""
    if is_unicode(image.name):
        return case_name(image)
    findings.fail(case_name(Path(printable(image.name))), "the file name holds bytes that are no UTF-8. Rename the file")
    return None


def _is_missing(name: str, paths: Iterable[Path], findings: Findings) -> bool:
    """Whether a listed file of a case is not there, which costs the case."""
    missing = [path for path in paths if not path.exists()]
    for path in missing:
        findings.fail(name, f"{path}: listed in dataset.json, but there is no such file")
    return bool(missing)


def _open_nnunet(root: Path, declared: dict[str, Any] | None, findings: Findings) -> Dataset:
    names = _channel_names(declared, findings) if declared is not None else None
    labels = declared_labels(root, declared, findings) if declared is not None else None
    if declared is not None and "dataset" in declared:
        training = _explicit_cases(root, declared["dataset"], names or (), findings)
    else:
        label_files = _files_by_case(root / "labelsTr", findings, is_required=True)
        grouped, names = _grouped(root / "imagesTr", label_files, names, findings)
        training = _paired(grouped, label_files, root / "labelsTr", findings)
    test: list[Case] = []
    test_findings = Findings()
    if (root / "imagesTs").is_dir() and names:
        reference = _files_by_case(root / "labelsTs", test_findings)
        grouped, _ = _grouped(root / "imagesTs", reference, names, test_findings, is_required=False)
        test = [Case(name=name, channels=files, label=reference.get(name)) for name, files in grouped.items()]
    return _dataset(root, declared, "nnunet", names or (), labels, training, test, findings, test_findings)


def _open_folders(root: Path, declared: dict[str, Any] | None, findings: Findings) -> Dataset:
    names = _channel_names(declared, findings) if declared is not None else None
    labels = declared_labels(root, declared, findings) if declared is not None else None
    label_files = _files_by_case(root / "labels", findings, is_required=True)
    grouped, names = _grouped(root / "images", label_files, names, findings)
    training = _paired(grouped, label_files, root / "labels", findings)
    return _dataset(root, declared, "folders", names, labels, training, [], findings, Findings())


def _dataset(
    root: Path,
    declared: dict[str, Any] | None,
    layout: Literal["nnunet", "decathlon", "folders"],
    names: tuple[str, ...],
    labels: Labels | None,
    training: list[Case],
    test: list[Case],
    findings: Findings,
    test_findings: Findings,
) -> Dataset:
    for name, number in Counter(case.name for case in training).items():
        if number > 1:
            findings.fail(name, f"{number} training cases have this name")
    for found, cases in ((findings, training), (test_findings, test)):
        found.settle({case.name for case in cases} - {failure.case for failure in found.failures})
    failed, test_failed = ({failure.case for failure in found.failures} for found in (findings, test_findings))
    training = [case for case in training if case.name not in failed]
    test = [case for case in test if case.name not in test_failed]
    if declared is not None:
        announced = declared.get("numTraining")
        if isinstance(announced, int) and announced != len(training) and not failed:
            logger.warning("%s: numTraining in dataset.json is %d, found %d cases; all are used.", root, announced, len(training))
    label_names = names_beside(root)
    return Dataset(
        root=root,
        name=str((declared or {}).get("name") or root.resolve().name),
        layout=layout,
        channel_names=names,
        has_named_channels=declared is not None,
        labels=with_names(labels, label_names) if labels is not None and not findings else labels,
        label_names=label_names,
        training=tuple(sorted(training, key=lambda case: case.name)),
        test=tuple(sorted(test, key=lambda case: case.name)),
        failures=findings.failures,
        test_failures=test_findings.failures,
    )


def _explicit_cases(root: Path, described: object, names: tuple[str, ...], findings: Findings) -> list[Case]:
    """nnU-Net's ``dataset`` key: case → images and label, paths absolute or relative to the dataset folder."""
    if not isinstance(described, dict):
        findings.append("dataset.json, dataset: expected an object of cases with images and label")
        return []
    cases = []
    for described_name, entry in described.items():
        name = composed(str(described_name))
        if not isinstance(entry, dict) or not isinstance(entry.get("images"), list) or not isinstance(entry.get("label"), str):
            findings.fail(name, "dataset.json, dataset: expected images (a list) and label")
            continue
        files, label = [listed_file(root, str(path)) for path in entry["images"]], listed_file(root, entry["label"])
        _is_missing(name, (*files, label), findings)
        if len(files) != len(names):
            findings.fail(name, f"{counted(len(files), 'channel')}, expected {len(names)} ({', '.join(names)})")
        cases.append(Case(name=name, channels=tuple(ChannelFile(path=path) for path in files), label=label))
    return cases


def _grouped(
    folder: Path,
    label_files: Mapping[str, Path],
    names: tuple[str, ...] | None,
    findings: Findings,
    *,
    is_required: bool = True,
) -> tuple[dict[str, tuple[ChannelFile, ...]], tuple[str, ...]]:
    """The images of a folder by case, and the channel names, made up where ``names`` is None.

    ``CASE_0000`` is channel 0 of CASE where CASE has a label (or all files are named so); a file that is called as its label is
    one channel, or with several channels a 4D file.
    """
    found = Findings()
    files = image_files(folder, found)
    findings.take(found, _by_stem({*label_files, *(failure.case for failure in findings.failures)}))
    if not files:
        if is_required or found:
            findings.append(f"{folder}: no images (.nii.gz, .nii, .nrrd, .mha, or folders with DICOM series)")
        return {}, names or ()
    matches = {stem: match for stem in files if (match := _CHANNEL_NUMBER.match(stem)) and stem not in label_files}
    matched = {stem for stem, match in matches.items() if match[1] in label_files}
    if not matched & set(files) and not set(files) & set(label_files):
        # no label tells how the files are named
        matched = set(matches) if names is None or _are_channels(matches.values(), len(names)) else set()
    elif matched and not set(files) & set(label_files):
        matched = set(matches)  # all labelled files carry channel numbers, so the others do as well
    numbered = {stem: files[stem] for stem in matched}
    if names is None:
        names = tuple(f"channel_{index}" for index in range(_usual_count([matches[stem] for stem in numbered], files.values())))
    grouped = _numbered_cases(numbered, len(names), findings)
    for stem, path in files.items():
        if stem not in matched:
            grouped[stem] = _channels_of_file(path, len(names), findings)
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


def _are_channels(matches: Iterable[re.Match[str]], num_channels: int) -> bool:
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


def _numbered_cases(files: Mapping[str, Path], num_channels: int, findings: Findings) -> dict[str, tuple[ChannelFile, ...]]:
    """Files ``CASE_0000``, ``CASE_0001``, … by case."""
    by_case: dict[str, dict[int, Path]] = {}
    for stem, path in files.items():
        match = _CHANNEL_NUMBER.match(stem)
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


def _channels_of_file(path: Path, num_channels: int, findings: Findings) -> tuple[ChannelFile, ...]:
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
    except ImageReadError as error:
        findings.fail(case_name(path), str(error))
        return 0


def _paired(
    grouped: Mapping[str, tuple[ChannelFile, ...]], label_files: Mapping[str, Path], folder: Path, findings: Findings
) -> list[Case]:
    lonely = sorted(set(label_files) - set(grouped))
    for name in sorted(set(grouped) - set(label_files)):
        file = f" ({grouped[name][0].path.name})" if grouped[name] else ""  # a damaged file has no channels
        other = differs_in_case(name, lonely)
        hint = f"; {label_files[other].name} differs in upper and lower case: rename one of them" if other else ""
        findings.fail(name, f"image without a label{file}; expected {folder.name}/{name}.*{hint}")
    for name in lonely:
        findings.fail(name, f"label without an image ({folder.name}/{label_files[name].name})")
    return [Case(name=name, channels=grouped[name], label=label_files[name]) for name in grouped if name in label_files]


def _files_by_case(folder: Path, findings: Findings, *, is_required: bool = False) -> dict[str, Path]:
    """The label files of a folder by case name; empty where the folder does not exist."""
    if not folder.is_dir():
        if is_required:
            findings.append(f"{folder}: no such folder; expected one label map per case in it")
        return {}
    return image_files(folder, findings)


# ---- dataset.json


def _channel_names(declared: dict[str, Any], findings: list[str]) -> tuple[str, ...]:
    """``channel_names`` or, in older files, ``modality``: {"0": "CT"} or a list."""
    found = declared.get("channel_names", declared.get("modality"))
    if isinstance(found, str):
        found = [found]
    if isinstance(found, dict):
        try:
            found = {int(key): name for key, name in found.items()}
        except (TypeError, ValueError):
            found = {}
        found = [found[c] for c in sorted(found)] if sorted(found) == list(range(len(found))) else []
    if not isinstance(found, list) or not found:
        findings.append('dataset.json: channel_names must name the channels from 0 on, for instance {"0": "CT"}')
        return ()
    return tuple(str(name) for name in found)


def declared_labels(root: Path, declared: dict[str, Any], findings: list[str]) -> Labels | None:
    """``labels``: {"background": 0, "liver": 1}, or the other way round in older files."""
    found = declared.get("labels")
    if not isinstance(found, dict) or not found:
        findings.append('dataset.json: labels must name the label values, for instance {"background": 0, "liver": 1}')
        return None
    is_turned = all(_is_integer(key) for key in found) and not all(_is_integer(value) for value in found.values())
    pairs = [(str(value), key) if is_turned else (str(key), value) for key, value in found.items()]
    for name, value in pairs:
        if isinstance(value, list):
            raise UnsupportedError(
                f"{root / 'dataset.json'}: label {name!r} is a region ({value}); regions are not supported yet. "
                "List plain labels, one value each."
            )
        if _is_integer(value) and is_ignore_label(name, int(value)):
            raise UnsupportedError(
                f"{root / 'dataset.json'}: an ignore label ({name!r}, value {value}) is not supported yet; "
                "leave out the cases that have it, or label them completely."
            )
    wrong = [name for name, value in pairs if not _is_integer(value)]
    if wrong:
        findings.append(f"dataset.json: the values of these labels are not integers: {listed(wrong)}")
        return None
    named: dict[int, str] = {}
    for name, value in pairs:
        if int(value) in named:
            findings.append(f"dataset.json: labels {named[int(value)]!r} and {name!r} both have the value {int(value)}")
        named[int(value)] = name
    findings += [f"dataset.json: {finding}" for finding in name_findings(named)]
    if set(named) == {0}:
        findings.append("dataset.json: the background is the only label; list the structures too")
    return labels_from_values(named)


def labels_from_values(named: Mapping[int, str]) -> Labels:
    """Labels from value → name; the background is value 0, put first and added where it is missing."""
    values = (0, *sorted(set(named) - {0}))
    names = tuple(named.get(value, "background") if value == 0 else named[value] for value in values)
    return Labels(names=names, values=values, pairs=left_right_pairs(names))


def _is_integer(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        return re.fullmatch(r"-?\d+", value.strip()) is not None
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _declared_splits(root: Path, names: Sequence[str], failed: Sequence[str]) -> tuple[Split, ...] | None:
    for file in (root / "splits.json", root / "splits_final.json"):
        if file.is_file():
            return read_splits(file, names, failed)
    return None


# ---- images to predict


def _single_case(source: Path, num_channels: int) -> Case:
    """A file named on the command line; ``CASE_0000`` brings its other channels along."""
    findings = Findings()
    if not is_unicode(source.name):
        raise InputError(f"{printable(str(source))}: the file name holds bytes that are no UTF-8. Rename the file.")
    if not source.is_dir():
        images.read_header(source)  # what cannot be read is refused here, with its own message
    match = _CHANNEL_NUMBER.match(case_name(source))
    if match and match[2] == "0000":
        siblings = image_files(source.parent, Findings())
        files = {stem: path for stem, path in siblings.items() if (m := _CHANNEL_NUMBER.match(stem)) and m[1] == match[1]}
        if num_channels == 1:
            files = {case_name(source): source}
        channels = _numbered_cases(files, num_channels, findings)[match[1]]
        name = match[1]
    else:
        channels, name = _channels_of_file(source, num_channels, findings), case_name(source)
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
