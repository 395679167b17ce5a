"""What a derived file was made from, as digests of content; and what of that is another now.

Validation folders and ``selection.json`` name the weights, label maps and folds that they were made from (:class:`Origin`). Whoever
reads them asks :func:`changes_since`: a result that does not belong to the weights and labels of today is not used. Paths and times say
nothing: a work folder that was copied is the same.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from medseg3d.errors import InputError
from medseg3d.files import file_digest, unreadable
from medseg3d.records import read_json, read_record, write_record
from medseg3d.weights_header import DIGEST_KEY, weights_metadata
from medseg3d.wording import listed
from medseg3d.work_folder import WorkFolder

METRICS = "metrics.json"
ORIGIN = "origin.json"
"""In a folder: what all that is in it was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMark:
    """A file as it was; while size and time are the same it is not read to know that its content is.

    ``path`` is relative to the work folder, where it can be.
    """

    path: str
    size: int
    modified_ns: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseMark:
    """All files of a case as they were: the digest of their content, their sizes and times (``stamp``)."""

    digest: str
    stamp: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What something was made from.

    ``weights``: digests by ``CONFIGURATION/FOLD``; ``folds``: digests of the names of a fold's validation cases; ``labels`` and ``cases``
    by case.
    """

    weights: dict[str, str] = field(default_factory=dict)
    folds: dict[str, str] = field(default_factory=dict)
    labels: dict[str, FileMark] = field(default_factory=dict)
    cases: dict[str, CaseMark] = field(default_factory=dict)


def merged(origins: Sequence[Origin]) -> Origin:
    """All that several things were made from."""
    result = Origin()
    for origin in origins:
        result = replace(
            result,
            weights=result.weights | origin.weights,
            folds=result.folds | origin.folds,
            labels=result.labels | origin.labels,
            cases=result.cases | origin.cases,
        )
    return result


def write_origin(folder: Path, origin: Origin) -> Path:
    """Written before what it speaks of, so that nothing lies in the folder that it does not speak of."""
    return write_record(folder / ORIGIN, origin, "origin", is_sealed=True)


def read_origin(folder: Path) -> Origin | None:
    """None where there is none (older versions wrote none), or it is damaged."""
    try:
        return read_record(folder / ORIGIN, Origin, "origin")
    except InputError:
        return None


def changes_since(origin: Origin, work: WorkFolder) -> str | None:
    """What of the sources is another today, as a part of a sentence; None where nothing is.

    A source that is not there cannot be compared, and counts as unchanged: a work folder may be copied without its dataset.
    """
    weights = [
        key for key, digest in origin.weights.items() if (file := weights_file(work, key)).exists() and digest != weights_digest(file)
    ]
    found = [f"other weights of {listed([f'{name} fold {fold}' for name, fold in map(split_key, weights)])}"] if weights else []
    labels = [name for name, mark in origin.labels.items() if is_changed(mark, work.root)]
    if labels:
        found.append(f"{'another label map' if len(labels) == 1 else 'other label maps'} of {listed(sorted(labels), most=5)}")
    present = folds_digests(work)
    folds = [fold for fold, digest in origin.folds.items() if present and present.get(fold) != digest]
    if folds:
        found.append(f"other validation cases of fold {listed(sorted(folds))}")
    return " and ".join(found) or None


def validation_changes(work: WorkFolder, configuration: str, fold: str) -> str | None:
    """:func:`changes_since` of the validation of a fold."""
    origin = read_origin(work.validation(configuration, fold))
    if origin is not None:
        return changes_since(origin, work)
    is_older = is_outdated(work.validation(configuration, fold) / METRICS, work.weights(configuration, fold))
    return f"other weights of {configuration} fold {fold}" if is_older else None


def changed_first_stage(work: WorkFolder, configuration: str, fold: str) -> list[str]:
    """Of a cascade's trained fold: the folds of its first stage (``CONFIGURATION/FOLD``) that have other weights now."""
    origin = read_origin(work.fold(configuration, fold))
    known = {} if origin is None else origin.weights
    return sorted(key for key, digest in known.items() if (file := weights_file(work, key)).exists() and digest != weights_digest(file))


def is_outdated(file: Path, weights: Path) -> bool:
    """For a file that names no sources, as older versions wrote them: its weights name their digest and are younger."""
    try:
        return has_digest(weights) and file.stat().st_mtime < weights.stat().st_mtime
    except OSError:
        return False


def is_known(work: WorkFolder, configuration: str, fold: str) -> bool:
    """The validation of a fold says what it was made from."""
    return read_origin(work.validation(configuration, fold)) is not None


def weights_file(work: WorkFolder, key: str) -> Path:
    """The file that ``CONFIGURATION/FOLD`` stands for."""
    name, fold = split_key(key)
    return work.weights(name, fold)


def split_key(key: str) -> tuple[str, str]:
    """The configuration and the fold of ``CONFIGURATION/FOLD``."""
    name, _, fold = key.rpartition("/")
    return name, fold


def weights_digest(path: Path) -> str:
    """A digest of tensors, plan and card: the one that the file names, without reading its tensors; of files without one, of the file.

    Raises :class:`InputError` where it cannot be read.
    """
    try:
        return weights_metadata(path).get(DIGEST_KEY) or file_digest(path)
    except OSError as error:
        raise unreadable(path, error) from None


def has_digest(path: Path) -> bool:
    """The weights are there and name their digest, as all do that this version and later ones write."""
    try:
        return DIGEST_KEY in weights_metadata(path)
    except OSError:
        return False


PART_OF_IDENTITY = re.compile(r"(?:^|;)([^/;]+/[^/;]+)/([0-9a-f]{32})(?=;|$)")


def weights_of(identity: str) -> dict[str, str]:
    """The weights that a model's identity names, as in :class:`Origin`.

    >>> weights_of("2d/0/" + "a" * 32 + ";2d/1/" + "b" * 32 + ";tta=True").keys()
    dict_keys(['2d/0', '2d/1'])
    """
    return dict(PART_OF_IDENTITY.findall(identity))


def mark_file(path: Path, work: WorkFolder) -> FileMark:
    """A file as it is now."""
    state = path.stat()
    absolute, root = path.resolve(), work.root.resolve()
    try:
        place = os.path.relpath(absolute, root)
    except ValueError:  # another drive
        place = str(absolute)
    return FileMark(path=Path(place).as_posix(), size=state.st_size, modified_ns=state.st_mtime_ns, digest=file_digest(path))


def is_changed(mark: FileMark, root: Path) -> bool:
    """The file is there with another content."""
    path = Path(os.path.normpath(root.resolve() / mark.path))
    try:
        state = path.stat()
        if (state.st_size, state.st_mtime_ns) == (mark.size, mark.modified_ns):
            return False
        return state.st_size != mark.size or _digest_as_of(path, state.st_mtime_ns) != mark.digest
    except OSError:
        return False


@lru_cache(maxsize=100_000)
def _digest_as_of(path: Path, modified_ns: int) -> str:
    """Of a copied work folder all label maps are asked for by each validation and by the selection: each is read once."""
    return file_digest(path)


def folds_digests(work: WorkFolder) -> dict[str, str]:
    """Of the names of each fold's validation cases; empty where the folds cannot be read, which others will say."""
    try:
        document = read_json(work.splits)
        folds = [tuple(fold["validation"]) for fold in document["folds"]]
    except (InputError, KeyError, TypeError):
        return {}
    return {str(number): names_digest(names) for number, names in enumerate(folds)}


def names_digest(names: Sequence[str]) -> str:
    """Whatever their order."""
    return hashlib.blake2b("\0".join(sorted(map(str, names))).encode(), digest_size=8).hexdigest()


def changed_cases(before: Mapping[str, CaseMark], now: Mapping[str, CaseMark]) -> list[str]:
    """The cases whose files had another content."""
    return sorted(name for name, mark in before.items() if name in now and now[name].digest != mark.digest)
