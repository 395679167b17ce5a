"""A whole model in memory and in one file: its plan, its weights, how they are used together, and what is known about it.

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
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import torch

from medseg3d.axes import CANONICAL
from medseg3d.errors import InputError
from medseg3d.files import replacing, unreadable
from medseg3d.frame import CANONICAL_FRAME
from medseg3d.image_profile import ImageProfile, Range
from medseg3d.parsing import decoded, parse_json
from medseg3d.plan import Configuration, Plan
from medseg3d.records import from_plain, to_plain
from medseg3d.validation.empty_window_record import EmptyWindows
from medseg3d.validation.postprocessing import NO_POSTPROCESSING, Postprocessing, Step
from medseg3d.version import __version__
from medseg3d.wording import counted, listed

FORMAT = "medseg3d/model"
FORMAT_VERSION = 1
"""Raised when a reader of the old files would misread the new ones."""
ENDING = ".medseg3d"
DESCRIPTION = "model.json"
README = "README.md"
STAMP = (1980, 1, 1, 0, 0, 0)
"""The time of every member, the earliest that a zip can hold: the same model gives the same bytes."""
DICE = "cross_validation_dice"
DICE_CASES = "cross_validation_cases"
"""The facts about how good a model is: the mean Dice over labels and cases that the networks had not seen, and the number of cases."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
"""What a configuration or a fold may be called, as both become a path inside the archive."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberDescription:
    """A configuration of a model with its folds; ``mirroring`` says whether mirroring helps it at prediction.

    ``empty_windows`` is what validation said of windows that may be left out.
    """

    configuration: str
    folds: tuple[str, ...]
    mirroring: bool = True
    empty_windows: EmptyWindows | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """How a model predicts, and what is known about it.

    ``members`` are averaged as probabilities, the folds of one as logits. ``previous`` are the configurations that only serve as
    an earlier stage of a cascade (``Configuration.previous_stage``). ``facts`` are for people: where it comes from, its measures.
    :func:`model_card` puts ``DICE`` and ``DICE_CASES`` into a sentence and lists those that the plan does not tell.
    """

    plan: Plan
    members: tuple[MemberDescription, ...]
    previous: tuple[MemberDescription, ...] = ()
    postprocessing: Postprocessing = NO_POSTPROCESSING
    facts: dict[str, float | int | str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """A description with the tensors of every member (and previous stage), by configuration and fold.

    The tensors' names and shapes are those of :func:`medseg3d.networks.build.build_network` for the configuration's network.
    ``identity`` changes when anything changes that changes a prediction.
    """

    description: ModelDescription
    weights: Mapping[str, Mapping[str, Tensors]]
    identity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """``model.json``; ``digests`` are sha256 in hexadecimal, of every other member."""

    format: str
    format_version: int
    made_by: str
    description: ModelDescription
    digests: dict[str, str]


def write_model_file(path: Path, parts: ModelParts) -> Path:
    """Write a model as one file, atomically; the same parts give the same bytes.

    Raises :class:`InputError` where the weights are not those that the description names.
    """
    description = parts.description
    _check_description(description, str(path))
    networks = _networks(description)
    held = {(configuration, fold) for configuration, folds in parts.weights.items() for fold in folds}
    differing = sorted("/".join(place) for place in held ^ set(networks.values()))
    if differing:
        raise InputError(f"{path}: not written, as the description and the weights do not name the same networks ({listed(differing)}).")
    digests: dict[str, str] = {}
    with replacing(path, is_lasting=True) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, (configuration, fold) in networks.items():
            _add(archive, name, _serialized(parts.weights[configuration][fold]), digests)
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


def read_model_file(path: Path) -> ModelParts:
    """What :func:`write_model_file` wrote, every member checked against its digest; the ``identity`` is that of the content.

    Raises :class:`InputError` for a file that is damaged, incomplete, of another format, or holds what does not belong there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    weights: dict[str, dict[str, Tensors]] = {}
    with _opened(path) as archive:
        document = _read_document(archive, path)
        _checked_content(archive, README, document, path)
        for name, (configuration, fold) in _networks(document.description).items():
            try:
                tensors = load(_checked_content(archive, name, document, path))
            except SafetensorError as error:
                raise InputError(f"{path}: {name} does not hold tensors ({error}). {GET_AGAIN}") from error
            weights.setdefault(configuration, {})[fold] = tensors
    identity = _identity(document.description, document.digests)
    return ModelParts(description=document.description, weights=weights, identity=identity)


def read_description(path: Path) -> ModelDescription:
    """The description alone, without reading the tensors or checking them; raises as :func:`read_model_file`."""
    with _opened(path) as archive:
        return _read_document(archive, path).description


def content_identity(description: ModelDescription, weights: Mapping[str, Mapping[str, Tensors]]) -> str:
    """The identity of parts that were put together in memory: the same as that of the file that they are written to."""
    digests = {name: _digest(_serialized(weights[configuration][fold])) for name, (configuration, fold) in _networks(description).items()}
    return _identity(description, digests)


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
    named = {
        f"{member.configuration}/fold_{fold}.safetensors": (member.configuration, fold)
        for member in (*description.members, *description.previous)
        for fold in member.folds
    }
    return dict(sorted(named.items()))


def _check_description(description: ModelDescription, source: str) -> None:
    """Raises :class:`InputError` with all findings; what has passed can be turned into names of members."""
    members = (*description.members, *description.previous)
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


def model_card(description: ModelDescription) -> str:
    """What a person should know before using the model, in Markdown."""
    plan = description.plan
    channels = ", ".join(plan.channels)
    sections = [
        f"# {_cell(plan.dataset)}: a segmentation model for 3D images",
        f"It takes {'an image' if len(plan.channels) == 1 else 'images'} ({_cell(channels)}) and gives a label map on the same grid.",
        "## What it segments",
        _table(("value in the file", "label"), [(value, name) for name, value in zip(plan.labels.names, plan.labels.values, strict=True)]),
    ]
    if plan.labels.regions:
        sections.append(
            "The network was trained on overlapping regions; where they overlap, the label that stands lower in the table wins."
        )
    sections += [
        "## Input",
        _table(("channel", "expected"), list(enumerate(plan.channels))),
        _cell(plan.modality_reason),
        *([_look_of_training(plan.images)] if plan.images else []),
        "Images are resampled by the model itself; they need a correct voxel spacing"
        + (" and orientation." if plan.orientation == "canonical" else ", and their axes in the order of the training images."),
        "## Networks",
        _table(
            ("configuration", "networks (folds)", "family", f"spacing in mm ({axes_text(plan)})", "window in voxels", "mirroring"),
            [_network_row(plan.configurations[member.configuration], member) for member in (*description.members, *description.previous)],
        ),
        _use_of_networks(description),
        *_afterwards(description),
        "## How it was made",
        f"Trained on {counted(plan.num_training, 'case')} of {_cell(plan.dataset)}, planned by `{plan.planner}`"
        + (f" for a card of {plan.gpu_memory_gb:g} GB." if plan.gpu_memory_gb > 0 else "."),
        "## Measured",
        _measured(description),
        "## Intended use and limits",
        LIMITS,
        "## How to run it",
        f"```sh\nmedseg3d predict -m MODEL{ENDING} -i IMAGES -o LABELS\n```",
    ]
    return "\n\n".join(sections) + "\n"


TOLD = ("dataset", "training_cases", "planner", DICE, DICE_CASES)
"""Facts that the sentences of a card tell already."""
LIMITS = """For research. It is no medical device, and nobody has approved it for diagnosis or treatment: a person who can judge the images
must check every result.

It knows images like those it was trained on. Another scanner, protocol, contrast phase, age group, body region or disease can make it
fail, silently: it always gives a label map, and does not say when it is unsure. A structure that is missing, operated on or badly
diseased may be drawn where it is not. Measure it on images of your own, with references, before relying on it."""


def axes_text(plan: Plan) -> str:
    """The network's axes in their order, each by its canonical letter, or by the name of the file's axis where images stay as stored."""
    letters = CANONICAL if plan.orientation == "canonical" else ("z", "y", "x")
    return ", ".join(letters[axis] for axis in plan.axis_order)


def step_text(step: Step, plan: Plan) -> str:
    """A postprocessing step in words."""
    label = "the foreground" if step.index is None else plan.labels.names[step.index]
    return {
        "keep_largest_foreground": "only the largest object of all labels together is kept",
        "keep_largest": f"only the largest object of {label} is kept",
        "fill_holes": f"holes in {label} are filled",
    }[step.operation]


def dice_text(facts: Mapping[str, float | int | str | None]) -> str | None:
    """The Dice of the cross-validation that is among the facts, in words; None where there is none."""
    dice, cases = facts.get(DICE), facts.get(DICE_CASES)
    if not isinstance(dice, float):
        return None
    return f"{dice:.4f}" + (f" over {counted(cases, 'case')}" if isinstance(cases, int) else "")


def _afterwards(description: ModelDescription) -> list[str]:
    steps = [f"- {step_text(step, description.plan)}" for step in description.postprocessing.steps]
    return ["## After the networks", "\n".join(steps)] if steps else []


def _network_row(configuration: Configuration, member: MemberDescription) -> tuple[object, ...]:
    spacing = " × ".join(f"{value:g}" for value in configuration.spacing)
    window = " × ".join(map(str, configuration.patch_size))
    mirroring = "yes" if member.mirroring and configuration.mirror_axes else "no"
    return (
        configuration.name,
        f"{len(member.folds)} ({', '.join(member.folds)})",
        configuration.network.family,
        spacing,
        window,
        mirroring,
    )


def _look_of_training(images: ImageProfile) -> str:
    """What the training images look like; prediction warns of others."""

    def span(ranges: Sequence[Range]) -> str:
        return " x ".join(f"{known.low:.3g}" + (f" to {known.high:.3g}" if known.low < known.high else "") for known in ranges)

    stored = ", ".join(f"{code} ({count})" for code, count in images.orientations.items())
    return (
        f"The training images have voxels of {span(images.spacing)} mm and show {span(images.extent)} mm (each from the smallest to the "
        f"largest axis); they are stored as {stored}. An image that is unlike them is predicted with a warning, or refused with `--strict`."
    )


def _use_of_networks(description: ModelDescription) -> str:
    folds = "The networks of a configuration are averaged as logits"
    configurations = ", the configurations as probabilities" if len(description.members) > 1 else ""
    stages = f"; {', '.join(m.configuration for m in description.previous)} only serves as an earlier stage" if description.previous else ""
    return f"{folds}{configurations}{stages}. A spacing of two numbers is that of a 2D network, which sees the last two axes."


def _measured(description: ModelDescription) -> str:
    dice = dice_text(description.facts)
    known = [
        f"Mean Dice of the labels in cross-validation: {dice}. Each case was predicted by networks that had not seen it; steps after the "
        "networks are not part of it."
        if dice
        else "Nothing is recorded about how good it is. Measure it before you use it."
    ]
    others = [f"- {name}: {_cell(value)}" for name, value in description.facts.items() if name not in TOLD and value is not None]
    return "\n\n".join([*known, *(["Also recorded:\n\n" + "\n".join(others)] if others else [])])


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: object) -> str:
    """On one line, and without what would end a cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
