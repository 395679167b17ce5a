"""A whole model in one file: its parts are written, and read back as they were.

``.medseg3d`` is a zip archive of stored members: ``model.json`` (the :class:`ModelDescription` and a digest of every other member),
``README.md`` for people, and ``CONFIGURATION/fold_K.safetensors``. No pickle, and nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import torch

from medseg3d.errors import InputError
from medseg3d.files import replacing, unreadable
from medseg3d.frame import CANONICAL_FRAME
from medseg3d.models.model_card import model_card
from medseg3d.models.parts import (
    DICE,
    DICE_CASES,
    Configurations,
    MemberDescription,
    ModelDescription,
    ModelParts,
    Source,
    Tensors,
    names_of,
)
from medseg3d.parsing import decoded, parse_json
from medseg3d.plan import Plan
from medseg3d.records import from_plain, to_plain
from medseg3d.validation.postprocessing import NO_POSTPROCESSING
from medseg3d.version import __version__
from medseg3d.wording import listed

FORMAT = "medseg3d/model"
FORMAT_VERSION = 1
"""Raised when a reader of the old files would misread the new ones."""
ENDING = ".medseg3d"
DESCRIPTION = "model.json"
README = "README.md"
STAMP = (1980, 1, 1, 0, 0, 0)
"""The time of every member, the earliest that a zip can hold: the same model gives the same bytes."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
"""What a configuration or a fold may be called, as both become a path inside the archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """``model.json``; ``digests`` are sha256 in hexadecimal, of every other member."""

    format: str
    format_version: int
    made_by: str
    description: ModelDescription
    digests: dict[str, str]


def write_model_file(path: Path, parts: ModelParts) -> Path:
    """Write a model as one file, atomically; the same parts give the same bytes. Raises as ``parts.tensors``."""
    description = parts.description
    _check_description(description, str(path))
    digests: dict[str, str] = {}
    with replacing(path, is_lasting=True) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, (configuration, fold) in _networks(description).items():
            _add(archive, name, _serialized(parts.tensors(configuration, fold)), digests)
        _add(archive, README, model_card(description).encode(), digests)
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "made_by": f"medseg3d {__version__}",
            "description": to_plain(description),
            "digests": dict(digests),
        }
        _add(archive, DESCRIPTION, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode(), digests)
    return path


def open_model_file(path: Path, configuration: Configurations = None, folds: tuple[str, ...] | None = None) -> ModelParts:
    """What :func:`write_model_file` wrote; the tensors are compared with their digests when they are read.

    The ``identity`` is that of the content. Raises :class:`InputError` for a file that is damaged, incomplete, of another format, or
    holds what does not belong there, and where it lacks the named configuration or folds.
    """
    with _opened(path) as archive:
        document = _read_document(archive, path)
        _checked_content(archive, README, document, path)
    description = _part(document.description, path, names_of(configuration), folds)
    identity = _identity(document.description, document.digests)
    if configuration is not None or folds is not None:
        identity += f"/{','.join(f'{member.configuration}:{member.folds}' for member in description.members)}"
    return ModelParts(path=path, description=description, identity=identity, read=partial(_tensors, path, document))


def _tensors(path: Path, document: _Document, configuration: str, fold: str) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.torch import load

    name = _member(configuration, fold)
    with _opened(path) as archive:
        try:
            return load(_checked_content(archive, name, document, path))
        except SafetensorError as error:
            raise InputError(f"{path}: {name} does not hold tensors ({error}). {GET_AGAIN}") from error


def _held(path: Path) -> Mapping[str, tuple[str, ...]]:
    return {stage.configuration: stage.folds for stage in open_model_file(path).description.stages}


MODEL_FILE = Source(
    name=f"a {ENDING} file",
    opens=lambda path: path.is_file() and path.name.endswith(ENDING),
    held=_held,
    open=open_model_file,
)


def _part(description: ModelDescription, path: Path, names: tuple[str, ...] | None, folds: tuple[str, ...] | None) -> ModelDescription:
    """Only the named configurations and folds, with the earlier stages that they need, and what is true of them; all without names.

    The postprocessing was chosen for all configurations together, the measures are those of all networks.
    """
    stages = {stage.configuration: stage for stage in description.stages}
    missing = [name for name in names or () if name not in stages]
    if missing:
        raise InputError(f"{path}: holds no configuration {', '.join(missing)}; it holds {', '.join(stages)}.")
    chosen = list(description.members) if names is None else [stages[name] for name in names]
    for member in chosen:
        missing = [fold for fold in folds or () if fold not in member.folds]
        if missing:
            raise InputError(f"{path}: {member.configuration} has no fold {', '.join(missing)}; it holds {', '.join(member.folds)}.")
    members = tuple(replace(member, folds=folds or member.folds) for member in chosen)
    if members == description.members:
        return description
    is_all = [member.configuration for member in members] == [member.configuration for member in description.members]
    needed = _earlier_stages(description.plan, members)
    return replace(
        description,
        members=members,
        previous=tuple(stage for name, stage in stages.items() if name in needed),
        postprocessing=description.postprocessing if is_all else NO_POSTPROCESSING,
        facts={name: value for name, value in description.facts.items() if name not in (DICE, DICE_CASES)},
    )


def _earlier_stages(plan: Plan, members: Sequence[MemberDescription]) -> set[str]:
    """The configurations that these need, without themselves."""
    needed, stages = set(), [member.configuration for member in members]
    while stages:
        previous = plan.configurations[stages.pop()].previous_stage
        if previous is not None:
            needed.add(previous)
            stages.append(previous)
    return needed - {member.configuration for member in members}


def _identity(description: ModelDescription, digests: Mapping[str, str]) -> str:
    """Of all that a prediction depends on; facts, the look of the training images, empty windows, and the text for people are not.

    A model that an older version wrote keeps the identity that it had then.
    """
    members = tuple(replace(member, empty_windows=None) for member in description.members)
    plain = to_plain(replace(description, facts={}, members=members))
    for member in (*plain["members"], *plain["previous"]):
        del member["empty_windows"]
    for name in ("images", "given_names", "left_right_doubt"):
        del plain["plan"][name]
    if description.plan.frame == CANONICAL_FRAME:  # as all plans had it once
        del plain["plan"]["frame"]
    content = {
        "description": plain,
        "digests": {name: digests[name] for name in _networks(description)},
    }
    return _digest(json.dumps(content, sort_keys=True).encode())


def _networks(description: ModelDescription) -> dict[str, tuple[str, str]]:
    """The names of the members that hold tensors, sorted, with their configuration and fold."""
    named = {_member(stage.configuration, fold): (stage.configuration, fold) for stage in description.stages for fold in stage.folds}
    return dict(sorted(named.items()))


def _member(configuration: str, fold: str) -> str:
    return f"{configuration}/fold_{fold}.safetensors"


def _check_description(description: ModelDescription, source: str) -> None:
    """Raises :class:`InputError` with all findings; what has passed can be turned into names of members."""
    members = description.stages
    times = Counter(member.configuration for member in members)
    findings = [f"{name!r} stands there {count} times" for name, count in times.items() if count > 1]
    findings += [f"the plan has no configuration {name!r}" for name in times if name not in description.plan.configurations]
    findings += [f"{member.configuration} has no fold" for member in members if not member.folds]
    findings += [f"{member.configuration} names a fold twice" for member in members if len(set(member.folds)) < len(member.folds)]
    findings += [
        f"{name!r} cannot be the name of a configuration or a fold: letters, digits and _ . + - only"
        for name in sorted({*times, *(fold for member in members for fold in member.folds)})
        if not PLAIN_NAME.fullmatch(name)
    ]
    if not description.members:
        findings.append("it has no network")
    planned = description.plan.configurations
    findings += [
        f"{name} needs {planned[name].previous_stage} as its earlier stage"
        for name in times
        if name in planned and planned[name].previous_stage not in (None, *times)
    ]
    findings += [
        f"postprocessing names the label of index {step.index}, expected 1 to {len(description.plan.labels.values) - 1}"
        for step in description.postprocessing.steps
        if step.index is not None and step.index not in description.plan.labels.foreground
    ]
    if findings:
        raise InputError(f"{source}: the description of the model is wrong: {'; '.join(findings)}.")


def _serialized(tensors: Tensors) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _add(archive: zipfile.ZipFile, name: str, content: bytes, digests: dict[str, str]) -> None:
    member = zipfile.ZipInfo(name, STAMP)
    member.create_system = 3  # Unix; otherwise the bytes depend on the system that writes them
    member.external_attr = 0o644 << 16
    archive.writestr(member, content)
    digests[name] = _digest(content)


GET_AGAIN = "Get the file again from where it came from."
DAMAGES = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError)
"""What ``zipfile`` raises for damaged archives: also for features that only a flipped bit can ask for."""


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; what is wrong with it, now or while it is read, becomes :class:`InputError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except OSError as error:
        raise unreadable(path, error) from error
    except DAMAGES as error:
        raise InputError(f"{path}: not a {ENDING} file, or damaged ({error}). {GET_AGAIN}") from error


def _read_document(archive: zipfile.ZipFile, path: Path) -> _Document:
    """``model.json``, with all members that it names there, and no others."""
    names = archive.namelist()
    _check_names(names, path)
    packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise InputError(f"{path}: {listed(packed)} is compressed, which no {ENDING} file is. {GET_AGAIN}")
    if DESCRIPTION not in names:
        raise InputError(f"{path}: has no {DESCRIPTION}, so it is not a {ENDING} file. Name one that medseg3d export wrote.")
    described = f"{path}: {DESCRIPTION}"
    try:
        plain = parse_json(decoded(archive.read(DESCRIPTION), DESCRIPTION), DESCRIPTION)
    except InputError as error:
        raise InputError(f"{path}: not a {ENDING} file, or damaged ({str(error).removesuffix('.')}). {GET_AGAIN}") from error
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise InputError(f'{path}: not a {ENDING} file (the "format" in its {DESCRIPTION} is not "{FORMAT}").')
    if plain.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {plain.get('format_version')}, this medseg3d reads {FORMAT_VERSION}. It was written by "
            f"{plain.get('made_by')}: install that version, or export the model again with this one."
        )
    document = from_plain(plain, _Document, described)
    _check_description(document.description, str(path))
    wanted = {README, *_networks(document.description)}
    missing = sorted(wanted - (set(names) & set(document.digests)))
    superfluous = sorted((set(names) | set(document.digests)) - wanted - {DESCRIPTION})
    if missing:
        raise InputError(f"{path}: {listed(missing)} is missing. {GET_AGAIN}")
    if superfluous:
        raise InputError(f"{path}: holds {listed(superfluous)}, which does not belong to the model. {GET_AGAIN}")
    return document


def _check_names(names: list[str], path: Path) -> None:
    escaping = [name for name in names if name.startswith("/") or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts]
    if escaping:
        raise InputError(f"{path}: holds {escaping[0]!r}, a path that leads out of the archive. Do not use this file.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{path}: holds {twice[0]!r} more than once. {GET_AGAIN}")


def _checked_content(archive: zipfile.ZipFile, name: str, document: _Document, path: Path) -> bytes:
    content = archive.read(name)
    if _digest(content) != document.digests[name]:
        raise InputError(f"{path}: {name} is not what was written there: its digest differs. {GET_AGAIN}")
    return content
