"""Weights on disk: one safetensors file that carries its plan, so that it can be used wherever it is copied. No pickle.

``weights.safetensors`` holds a network's tensors; its metadata holds, as JSON, the plan, the configuration's name, the fold and
what training knew about the model, and beside it a digest of all of it, which is checked whenever the tensors are read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from medseg3d.errors import InputError, PlanMismatchError
from medseg3d.files import replacing
from medseg3d.networks.build import build_network
from medseg3d.parsing import parse_json
from medseg3d.plan import NetworkPlan, Plan
from medseg3d.records import from_plain, to_plain
from medseg3d.weights_header import DIGEST_KEY, METADATA_KEY

logger = logging.getLogger(__name__)

HAS_DIGEST = "has_digest"
"""In the metadata: a digest stands beside them. Files that were written before there were digests do not say so."""
FORMAT_VERSION = 2
"""1: one plan only."""
ONLY_DOMAIN = ""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of safetensors."""


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
    def networks(self) -> dict[str, NetworkPlan]:
        """The plan of the network, by domain."""
        return {name: plan.configuration(self.configurations[name]).network for name, plan in self.plans.items()}

    @property
    def is_universal(self) -> bool:
        """The file holds a network of several datasets."""
        return ONLY_DOMAIN not in self.plans


def save_weights(path: Path, network: torch.nn.Module, card: ModelCard) -> Path:
    """Write a network's weights and its card, atomically."""
    return save_weight_tensors(path, network.state_dict(), card)


def save_weight_tensors(path: Path, tensors: Mapping[str, torch.Tensor], card: ModelCard) -> Path:
    """:func:`save_weights` of tensors that are not in their network, such as averaged ones."""
    save_tensors(path, dict(tensors), {"format_version": FORMAT_VERSION, "card": to_plain(card)})
    return path


def save_model(path: Path | str, network: torch.nn.Module, plan: Plan, configuration: str | None = None) -> Path:
    """Write a network that you trained as a model, which :func:`~medseg3d.load_model` opens and which carries its plan.

    ``path`` ends in ``.safetensors``. The network is that of ``configuration`` (the recommended one for None), as
    :func:`~medseg3d.build_network` builds it. Raises :class:`PlanMismatchError` where it has other tensors.
    """
    place, chosen = Path(path), plan.configuration(configuration)
    if place.suffix != ".safetensors":
        raise InputError(f"{place}: a model of one network is a .safetensors file; give it that ending.")
    check_fit(chosen.network, network.state_dict(), str(place))
    card = ModelCard(plans={ONLY_DOMAIN: plan}, configurations={ONLY_DOMAIN: chosen.name}, fold="all")
    return save_weights(place, network, card)


def read_card(path: Path) -> ModelCard:
    """The card of a weights file, without its tensors."""
    metadata = _metadata(path)
    return from_plain(metadata.get("card"), ModelCard, str(path))


def check_fit(plan: NetworkPlan, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Compare names and shapes with those of a plan's network; raises as :func:`load_into`, before any memory is taken for it."""
    with torch.device("meta"):
        _check_fit(build_network(plan), tensors, source)


def load_into(network: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Fill a network; raises :class:`PlanMismatchError` naming the first tensors that do not fit."""
    _check_fit(network, tensors, str(path))
    network.load_state_dict(tensors)


def _check_fit(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    own = network.state_dict()
    wrong = [f"{name} {tuple(own[name].shape)}" for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    extra = [name for name in tensors if name not in own]
    if wrong or extra:
        raise PlanMismatchError(
            f"{source}: the weights do not fit the network of the plan ({len(wrong)} missing or of another shape, {len(extra)} "
            f"unknown; first: {(wrong + extra)[0]}). They belong to another plan: train again, or use the plan they came with."
        )


def load_matching(network: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> tuple[list[str], list[str]]:
    """Take over the tensors whose name and shape fit; returns the names not used and the names not found."""
    own = network.state_dict()
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    network.load_state_dict(fitting, strict=False)
    return [name for name in tensors if name not in fitting], [name for name in own if name not in fitting]


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, object]) -> str:
    """Tensors and JSON metadata in one safetensors file, atomically; gives their digest.

    Written by ourselves, tensor by tensor, as the library would write it: it hides why a write failed, and leaves a file of an
    unknown name where it is killed.
    """
    text = json.dumps({**metadata, HAS_DIGEST: True})
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = _digest(plain, text)
    largest_first = sorted(plain, key=lambda name: (-plain[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {METADATA_KEY: text, DIGEST_KEY: digest}}
    end = 0
    for name in largest_first:
        begin, end = end, end + plain[name].nbytes
        header[name] = {"dtype": DTYPES[plain[name].dtype], "shape": list(plain[name].shape), "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    with replacing(path, is_lasting=True) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in largest_first:
            file.write(plain[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """What :func:`save_tensors` wrote, checked; raises :class:`InputError` for a file that is damaged.

    A file of before there were digests is read without that check.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    text, metadata, digest = _header(path)
    try:
        tensors = load_file(str(path))
    except SafetensorError as error:
        raise InputError(f"{path}: the file is damaged ({error}). {ADVICE}") from error
    if digest is None:
        logger.info("%s: was written without a digest, so it cannot be told whether it is undamaged.", path)
    elif digest != _digest(tensors, text):
        raise InputError(f"{path}: the file is damaged: its content does not have the digest that it was written with. {ADVICE}")
    return tensors, metadata


ADVICE = (
    "Copy it again from where it is whole, train this fold again with --restart, or name only the other folds with --fold to do without it."
)


def _digest(tensors: dict[str, torch.Tensor], text: str) -> str:
    """Of names, types, shapes and bits, and of the metadata."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, object]:
    return _header(path)[1]


def _header(path: Path) -> tuple[str, dict[str, object], str | None]:
    """The metadata as text and parsed, and the digest that stands beside them."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise InputError(f"{path}: no such file.")
    try:
        with safe_open(str(path), "pt") as file:
            found = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file, or damaged ({error}).") from error
    text = found.get(METADATA_KEY)
    if text is None:
        raise InputError(f"{path}: these weights carry no medseg3d plan; they were not made by medseg3d.")
    try:
        metadata: dict[str, object] = parse_json(text, "its metadata")
    except InputError as error:
        raise InputError(f"{path}: the file is damaged ({str(error).removesuffix('.')}). {ADVICE}") from error
    if not isinstance(metadata, dict) or metadata.get("format_version") != FORMAT_VERSION:
        version = metadata.get("format_version") if isinstance(metadata, dict) else None
        raise InputError(f"{path}: format version {version}, this medseg3d reads {FORMAT_VERSION}.")
    digest = found.get(DIGEST_KEY)
    if digest is None and metadata.get(HAS_DIGEST):
        raise InputError(f"{path}: the file is damaged: the digest that belongs to it is missing. {ADVICE}")
    return text, metadata, digest
