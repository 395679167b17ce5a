"""Weights on disk: one safetensors file that carries its plan, so that it can be used wherever it is copied. No pickle.

``weights.safetensors`` holds a network's tensors; its metadata holds, as JSON, the plan, the configuration's name, the fold and
what training knew about the model.
"""

from __future__ import annotations

import errno
import json
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

import torch

from medseg3d.errors import InputError, PlanMismatchError
from medseg3d.files import replacing
from medseg3d.networks.build import build_network
from medseg3d.plan import Plan
from medseg3d.records import from_plain, to_plain

METADATA_KEY = "medseg3d"
FORMAT_VERSION = 2
"""1: one plan only."""
ONLY_DOMAIN = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a weights file says about itself: enough to use it without any other file.

    ``plans`` and the names of the ``configurations`` are by domain; the network of one dataset has a single domain, named "".
    """

    plans: dict[str, Plan]
    configurations: dict[str, str]
    fold: str
    facts: dict[str, float | int | str | None] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """The plan of the only dataset."""
        return self.plans[ONLY_DOMAIN]

    @property
    def configuration(self) -> str:
        """The configuration of the only dataset."""
        return self.configurations[ONLY_DOMAIN]

    @property
    def is_universal(self) -> bool:
        """The file holds a network of several datasets."""
        return ONLY_DOMAIN not in self.plans


def save_weights(path: Path, network: torch.nn.Module, card: ModelCard) -> Path:
    """Write a network's weights and its card, whole or not at all."""
    save_tensors(path, dict(network.state_dict()), {"format_version": FORMAT_VERSION, "card": to_plain(card)})
    return path


def load_network(path: Path, device: torch.device) -> tuple[torch.nn.Module, ModelCard]:
    """A network in eval mode and its card; raises :class:`InputError` for a broken file."""
    card = read_card(path)
    if card.is_universal:
        raise InputError(
            f"{path}: holds a universal network for {', '.join(card.plans)}. Name the work folder with --domain, or the weights of one "
            "of its datasets (WORK/domains/NAME/models)."
        )
    network = build_network(card.plan.configuration(card.configuration).network)
    tensors, _ = load_tensors(path)
    load_into(network, tensors, path)
    return network.to(device).eval(), card


def read_card(path: Path) -> ModelCard:
    """The card of a weights file, without its tensors."""
    metadata = _metadata(path)
    return from_plain(metadata.get("card"), ModelCard, str(path))


def load_into(network: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Fill a network; raises :class:`PlanMismatchError` naming the first tensors that do not fit."""
    own = network.state_dict()
    wrong = [f"{name} {tuple(own[name].shape)}" for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    extra = [name for name in tensors if name not in own]
    if wrong or extra:
        raise PlanMismatchError(
            f"{path}: the weights do not fit the network of the plan ({len(wrong)} missing or of another shape, {len(extra)} "
            f"unknown; first: {(wrong + extra)[0]}). They belong to another plan: train again, or use the plan they came with."
        )
    network.load_state_dict(tensors)


def load_matching(network: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> tuple[list[str], list[str]]:
    """Take over the tensors whose name and shape fit; returns the names not used and the names not found."""
    own = network.state_dict()
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    network.load_state_dict(fitting, strict=False)
    return [name for name in tensors if name not in fitting], [name for name in own if name not in fitting]


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, object]) -> None:
    """Tensors and JSON metadata in one safetensors file, whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path, is_lasting=True) as temporary:
        temporary.touch()
        usual_mode = stat.S_IMODE(temporary.stat().st_mode)  # save_file puts a file of mode 0600 in its place
        try:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                str(temporary),
                {METADATA_KEY: json.dumps(metadata)},
            )
        except SafetensorError as error:  # it hides the system's error number in its text
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
        temporary.chmod(usual_mode)


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """What :func:`save_tensors` wrote."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = _metadata(path)
    try:
        return load_file(str(path)), metadata
    except SafetensorError as error:
        raise InputError(f"{path}: the file is damaged ({error}). Copy it again, or train again with --restart.") from error


def _metadata(path: Path) -> dict[str, object]:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise InputError(f"{path}: no such file.")
    try:
        with safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file, or damaged ({error}).") from error
    if text is None:
        raise InputError(f"{path}: these weights carry no medseg3d plan; they were not made by medseg3d.")
    metadata: dict[str, object] = json.loads(text)
    if metadata.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path}: format version {metadata.get('format_version')}, this medseg3d reads {FORMAT_VERSION}.")
    return metadata
