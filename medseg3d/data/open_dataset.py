"""From a folder to its cases: which files belong together, and what the labels are called.

Three layouts: nnU-Net's (one file per channel), the Medical Segmentation Decathlon's (4D files listed in ``dataset.json``), and
two plain folders ``images`` and ``labels``. What costs one case is a failure of that case; what makes the dataset unusable as a whole
is named in one error.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from medseg3d.data.annotated import annotated_for, read_annotated, unknown_names
from medseg3d.data.case_files import Findings, composed, differs_in_case, image_files, is_unicode, listed_file, printable
from medseg3d.data.channels import channels_of_file, grouped_by_case
from medseg3d.data.corrections import with_corrections
from medseg3d.data.dataset import Case, ChannelFile, Dataset
from medseg3d.data.dataset_json import channel_names, declared_labels
from medseg3d.data.label_names import names_beside, with_names
from medseg3d.data.label_rules import repeated_keys
from medseg3d.data.seg_labels import exchanged_segments, labels_of_segs, misnamed
from medseg3d.data.soft_labels import by_soft_case
from medseg3d.data.splits import declared_splits
from medseg3d.errors import (
    DatasetError,
)
from medseg3d.images import case_name
from medseg3d.labels import Labels
from medseg3d.parsing import read_text
from medseg3d.records import read_json
from medseg3d.wording import counted, listed

logger = logging.getLogger(__name__)

PARTS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs", "images", "labels")
"""Folders in a dataset, which are easily named in its place."""


def open_dataset(root: Path | str, *, channels: Sequence[str] | None = None) -> Dataset:
    """Find the cases of a dataset folder; ``channels`` names them anew, for instance ``("CT",)``; a text is one name.

    Reads no voxels. Cases that cannot be used are in ``failures``. Raises :class:`DatasetError` with all findings at once where the
    dataset as a whole cannot be used.
    """
    root, channels = Path(root), (channels,) if isinstance(channels, str) else channels
    dataset, findings = find_dataset(root, channels=channels)
    if findings:
        findings = (*findings, *(f"{failure.case}: {failure.reason}" for failure in dataset.failures))
        raise DatasetError(f"{root}: the dataset cannot be used as it is ({counted(len(findings), 'finding')}).", findings)
    failed = [failure.case for failure in dataset.failures]
    return replace(dataset, declared_splits=declared_splits(root, [case.name for case in dataset.training], failed))


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
        above = f" Did you mean the folder that holds it, {root.absolute().parent}?" if root.absolute().name in PARTS else ""
        raise DatasetError(
            f"{root}: not a dataset.{above} Expected imagesTr and labelsTr (nnU-Net, Decathlon), or images and labels. The least there can "
            "be: images in the folder images, and label maps of the same names in the folder labels."
        )
    if channels is not None:
        if not all(isinstance(name, str) for name in channels):
            findings.append(f"the channel names given are {tuple(channels)}, expected texts")
        elif len(channels) != len(dataset.channel_names):
            given = f"{counted(len(channels), 'channel name')} given ({', '.join(channels)})"
            findings.append(f"{given}, the cases have {len(dataset.channel_names)}")
        dataset = replace(dataset, channel_names=tuple(channels), has_named_channels=True)
    dataset = with_corrections(dataset)
    if not dataset.training and not findings:
        findings.append("no training case can be used" if dataset.failures else "no training case found: no images")
    return dataset, tuple(findings)


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
    names, labels = channel_names(declared, findings), declared_labels(declared, findings)
    training = []
    for number, entry in enumerate(declared["training"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not isinstance(entry.get("label"), str):
            findings.fail(f"training[{number}]", f"dataset.json, training: expected an image and a label, found {entry!r:.200}")
            continue
        image, label = listed_file(root, entry["image"]), listed_file(root, entry["label"])
        name = _listed_name(image, findings)
        if name is None or _is_missing(name, (image, label), findings):
            continue
        training.append(Case(name=name, channels=channels_of_file(image, len(names), findings), label=label))
    test, test_findings = [], Findings()
    reference = _files_by_case(root / "labelsTs", test_findings)
    for entry in declared.get("test") or ():
        image = listed_file(root, str(entry["image"] if isinstance(entry, dict) and "image" in entry else entry))
        if not image.is_file():
            logger.warning("%s: listed under test in dataset.json, but there is no such file.", image)
            continue
        listed_name = _listed_name(image, test_findings)
        if listed_name is not None:
            channels = channels_of_file(image, len(names), test_findings)
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
    names = channel_names(declared, findings) if declared is not None else None
    labels = declared_labels(declared, findings) if declared is not None else None
    if declared is not None and "dataset" in declared:
        training = _explicit_cases(root, declared["dataset"], names or (), findings)
    else:
        label_files = _files_by_case(root / "labelsTr", findings, is_required=True, is_soft=labels is not None and labels.soft)
        grouped, names = grouped_by_case(root / "imagesTr", label_files, names, findings)
        training = _paired(grouped, label_files, root / "labelsTr", findings)
    test: list[Case] = []
    test_findings = Findings()
    if (root / "imagesTs").is_dir() and names:
        reference = _files_by_case(root / "labelsTs", test_findings, is_soft=labels is not None and labels.soft)
        grouped, _ = grouped_by_case(root / "imagesTs", reference, names, test_findings, is_required=False)
        test = [Case(name=name, channels=files, label=reference.get(name)) for name, files in grouped.items()]
    return _dataset(root, declared, "nnunet", names or (), labels, training, test, findings, test_findings)


def _open_folders(root: Path, declared: dict[str, Any] | None, findings: Findings) -> Dataset:
    names = channel_names(declared, findings) if declared is not None else None
    labels = declared_labels(declared, findings) if declared is not None else None
    label_files = _files_by_case(root / "labels", findings, is_required=True, is_soft=labels is not None and labels.soft)
    grouped, names = grouped_by_case(root / "images", label_files, names, findings)
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
        for case in cases if labels is not None and not labels.regions else ():
            if labels is not None and case.label is not None and (wrong := misnamed(case.label, labels)):
                found.fail(case.name, wrong)
    if labels is None:
        findings.extend(exchanged_segments([case.label for case in training if case.label is not None]))
    for found, cases in ((findings, training), (test_findings, test)):
        found.settle({case.name for case in cases} - {failure.case for failure in found.failures})
    failed, test_failed = ({failure.case for failure in found.failures} for found in (findings, test_findings))
    training = [case for case in training if case.name not in failed]
    test = [case for case in test if case.name not in test_failed]
    if declared is not None:
        announced = declared.get("numTraining")
        if isinstance(announced, int) and announced != len(training) and not failed:
            logger.warning("%s: numTraining in dataset.json is %d, found %d cases; all are used.", root, announced, len(training))
    if declared is None and labels is None and not findings:
        labels = labels_of_segs([case.label for case in training if case.label is not None])
    label_names, annotated = names_beside(root), read_annotated(root)
    if labels is not None and not findings:
        labels = with_names(labels, label_names)
        if unknown := unknown_names(annotated, labels.names):
            findings.append(
                f"annotated.csv: {listed(unknown)} are no labels of the dataset; it has {listed(list(labels.names[1:]), most=20)}"
            )
    soft = labels.values if labels is not None and labels.soft else ()
    if soft and annotated:
        findings.append("annotated.csv: goes with label maps of values, not with soft labels")
    training, test = (
        [replace(case, annotated=annotated_for(case.name, annotated), soft=soft) for case in cases] for cases in (training, test)
    )
    return Dataset(
        root=root,
        name=str((declared or {}).get("name") or root.resolve().name),
        layout=layout,
        channel_names=names,
        has_named_channels=declared is not None,
        labels=labels,
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


def _files_by_case(folder: Path, findings: Findings, *, is_required: bool = False, is_soft: bool = False) -> dict[str, Path]:
    """The label files of a folder by case name; empty where the folder does not exist. Soft labels may have several, of which it is the
    first."""
    if not folder.is_dir():
        if is_required:
            findings.append(f"{folder}: no such folder; expected one label map per case in it")
        return {}
    files = image_files(folder, findings)
    return by_soft_case(files) if is_soft else files
