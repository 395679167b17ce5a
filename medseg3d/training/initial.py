"""The weights that a training begins with (``--init``): what is taken over of them, and whether a run that is there began with them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg3d.errors import InputError, PlanMismatchError
from medseg3d.models.checkpoints import ModelCard, load_tensors
from medseg3d.models.pretrained import Translation, translated
from medseg3d.models.transfer import Fitted, is_same, reshaped, with_channels, with_labels
from medseg3d.networks.build import family_of
from medseg3d.networks.family import Sharing
from medseg3d.networks.interfaces import Interface, interface_of
from medseg3d.plan import NetworkPlan, Plan
from medseg3d.preprocessing.preprocess_case import in_order_of_values
from medseg3d.records import from_plain
from medseg3d.training.domains import TrainingDomain

logger = logging.getLogger(__name__)

AS_THEY_ARE = "as they are"
RGB = ("red", "green", "blue")
"""What the three channels of other libraries' images are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meanings:
    """What the channels of a network's image and the entries of its logits are called."""

    channels: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan, network: NetworkPlan) -> Meanings:
        """The later stage of a cascade also sees the labels of the earlier one."""
        labels = plan.labels
        regions = tuple(labels.names[region + 1] for region in range(len(labels.regions)))
        order = in_order_of_values(labels)
        more = (f"earlier {labels.names[order[i]] if i < len(order) else i + 1}" for i in range(network.in_channels - len(plan.channels)))
        return cls(channels=(*plan.channels, *more), outputs=regions or labels.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialWeights:
    """Tensors and where they come from; ``meanings`` by domain where the tensors have the names of our networks, empty for others'."""

    source: str
    tensors: Mapping[str, Tensor]
    meanings: Mapping[str, Meanings] = field(default_factory=dict)
    is_foreign: bool = False

    @property
    def digest(self) -> str:
        """Changes when any tensor does."""
        found = hashlib.blake2b(digest_size=8)
        for name, tensor in sorted(self.tensors.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()


def meanings_of(card: ModelCard) -> dict[str, Meanings]:
    """By domain, of a weights file."""
    return {name: Meanings.of(card.plans[name], network) for name, network in card.networks.items()}


def read_initial(init: Path | InitialWeights | None) -> InitialWeights | None:
    """Of a weights file where a path is named."""
    if not isinstance(init, Path):
        return init
    tensors, metadata = load_tensors(init)
    card = metadata.get("card")
    meanings = {} if card is None else meanings_of(from_plain(card, ModelCard, str(init)))
    return InitialWeights(source=str(init), tensors=tensors, meanings=meanings)


def check_began_with(digest: str | None, initial: InitialWeights | None, folder: Path) -> None:
    """Raise :class:`InputError` where weights are named and the run in ``folder`` began with others, whose ``digest`` is known."""
    if initial is not None and initial.digest != digest:
        began = "with fresh weights" if digest is None else "with others"
        raise InputError(
            f"--init {initial.source}: {folder} holds a run that began {began}, and would only go on. Say --restart to begin anew with "
            "these weights, which deletes that run, or leave --init out to go on with it."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver:
    """What a network took of other weights.

    ``used`` are names of our tensors by what was done to theirs, ``unused`` names of theirs by why, ``fresh`` those of ours that began
    anew.
    """

    source: str
    used: dict[str, tuple[str, ...]]
    unused: dict[str, tuple[str, ...]]
    fresh: tuple[str, ...]

    @property
    def num_used(self) -> int:
        """Of our tensors."""
        return sum(map(len, self.used.values()))

    def lines(self) -> Iterator[str]:
        """For people: counts, and which modules."""
        yield f"Weights from {self.source}: {self.num_used} of {self.num_used + len(self.fresh)} tensors begin with them"
        for how, names in self.used.items():
            if how != AS_THEY_ARE:
                yield f"{how}: {modules(names)}"
        for why, names in self.unused.items():
            yield f"not used ({why}): {modules(names)}"
        if self.fresh:
            yield f"not found, so fresh: {modules(self.fresh)}"


def modules(names: Sequence[str], *, most: int = 6) -> str:
    """The modules of tensors, each with how many it has; those that stand behind each other in one number of a list are one.

    >>> modules(["head.weight", "head.bias", "up.0.weight"])
    'head (2), up.0'
    """
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")[:-1] or [name]
        number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        module = ".".join(parts[: number + 1])
        counts[module] = counts.get(module, 0) + 1
    shown = [f"{module} ({count})" if count > 1 else module for module, count in list(counts.items())[:most]]
    return ", ".join(shown) + (f" and {len(counts) - most} more" if len(counts) > most else "") if shown else "none"


def take_over(
    network: nn.Module, initial: InitialWeights, domains: Sequence[TrainingDomain], *, only_shared: Sharing | None = None
) -> TakenOver:
    """Fill what fits by name and shape, made to fit where that can be, and log it all.

    Heads take the labels that both have, stems the channels, and kernels of images are inflated to volumes
    (:mod:`medseg3d.models.transfer`). With ``only_shared`` nothing is taken but what all domains share: the others, which an earlier run
    may have left there, have seen other cases. Raises :class:`PlanMismatchError` where nothing fits.
    """
    own = network.state_dict()
    partners = _partners(initial, domains)
    found = translated(initial.tensors, network) if initial.is_foreign else _ours(initial, own, domains, partners, only_shared)
    theirs_by_domain = {name: initial.meanings[partner] for name, partner in partners.items()}
    fitting = _Fitting(network, theirs_by_domain, domains, is_foreign=initial.is_foreign)
    filled: dict[str, Tensor] = {}
    used: dict[str, list[str]] = {}
    unused = _unknown(found)
    for name, theirs in found.names.items():
        fitted = fitting.fitted(name, found.tensors[theirs], own[name])
        if fitted is None:
            unused.setdefault(fitting.reason(name, found.tensors[theirs], own[name]), []).append(theirs)
        else:
            filled[name] = fitted.tensor
            used.setdefault(fitted.change or AS_THEY_ARE, []).append(name)
    if not any(name for name in filled if own[name].ndim):
        raise PlanMismatchError(
            f"{initial.source}: none of its tensors fits this network. Name a model of the same family, as its weights.safetensors, or "
            "plan with its network (medseg3d plan --inherit-plan)."
        )
    network.load_state_dict(filled, strict=False)
    taken = TakenOver(
        source=initial.source,
        used={how: tuple(names) for how, names in used.items()},
        unused={why: tuple(names) for why, names in unused.items()},
        fresh=tuple(name for name in own if name not in filled),
    )
    if only_shared is None:
        logger.warning("%s.", "; ".join(taken.lines()))
    return taken


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _unknown(found: Translation) -> dict[str, list[str]]:
    """What has no tensor of ours, by why: the statistics of batch norms where ours are of another kind, heads, parts that ours lacks."""
    named = set(found.names.values())
    unused: dict[str, list[str]] = {}
    for name in found.tensors:
        if name not in named:
            is_statistic = name.rpartition(".")[2] in STATISTICS
            unused.setdefault("statistics of a batch norm that is none here" if is_statistic else "no such tensor here", []).append(name)
    return unused


def _partners(initial: InitialWeights, domains: Sequence[TrainingDomain]) -> dict[str, str]:
    """By domain of ours the one of theirs whose parts it begins with: of the same name, or with the most labels in common."""
    found = {}
    for domain in domains:
        ours = set(Meanings.of(domain.plan, domain.configuration.network).outputs[1:])
        shared = {name: len(ours & set(meant.outputs[1:])) for name, meant in initial.meanings.items()}
        best = domain.name if domain.name in shared else max(shared, key=lambda name: shared[name], default=None)
        if best is not None and (best == domain.name or shared[best]):
            found[domain.name] = best
    return found


def _ours(
    initial: InitialWeights,
    own: Mapping[str, Tensor],
    domains: Sequence[TrainingDomain],
    partners: Mapping[str, str],
    only_shared: Sharing | None,
) -> Translation:
    """By equal names; those of a domain also by that of its partner."""
    sharing = only_shared or family_of(domains[0].configuration.network).sharing
    tensors, names = {}, {}
    for name, tensor in initial.tensors.items():
        domain = None if sharing is None else sharing.domain_of(name)
        if sharing is None or domain is None:
            tensors[name] = tensor
            names[name] = name
        elif only_shared is None:
            tensors[name] = tensor
            for mine, theirs in (partners or {each.name: each.name for each in domains}).items():
                if (theirs or sharing.only) == domain:
                    names[sharing.renamed(name, mine or sharing.only)] = name
    return Translation(source="", names={name: theirs for name, theirs in names.items() if name in own}, tensors=tensors)


class _Fitting:
    """What channels and labels mean on either side, looked up where a tensor meets them."""

    def __init__(self, network: nn.Module, theirs: Mapping[str, Meanings], domains: Sequence[TrainingDomain], *, is_foreign: bool) -> None:
        self.kernels = dict(_kernels(network))
        self.is_foreign, self.theirs = is_foreign, theirs
        plans = {domain.name: domain.configuration.network for domain in domains}
        self.ours = {domain.name: Meanings.of(domain.plan, domain.configuration.network) for domain in domains}
        self.interfaces: dict[str, Interface] = {name: interface_of(plans, name) for name in plans}

    def fitted(self, name: str, theirs: Tensor, own: Tensor) -> Fitted | None:
        """Their tensor in the shape of ours, channels and labels in our order."""
        changes: list[str] = []
        for domain, interface in self.interfaces.items():
            if name in interface.channels:
                taken = self._with_channels(theirs, interface.channels[name], domain)
                theirs, changes = taken.tensor, [*changes, taken.change]
            if name in interface.outputs:
                head = self._with_labels(theirs, interface.outputs[name], domain, own)
                if head is None:
                    return None
                theirs, changes = head.tensor, [*changes, head.change]
        shaped = reshaped(theirs, own.shape, is_kernel=name in self.kernels, overlaps=self.kernels.get(name, True))
        if shaped is None:
            return None
        return Fitted(tensor=shaped.tensor, change="; ".join(filter(None, (*changes, shaped.change))))

    def _with_channels(self, theirs: Tensor, axis: int, domain: str) -> Fitted:
        meant, ours = self.theirs.get(domain), self.ours[domain].channels
        count = theirs.shape[axis] if axis < theirs.ndim else 0
        channels = meant.channels if meant else RGB if count == len(RGB) else tuple(f"channel {number}" for number in range(count))
        # of other libraries' channels nothing but their number is known
        is_as_it_is = is_same(channels, ours) if meant else len(channels) == len(ours)
        if not count or count != len(channels) or is_as_it_is or len(channels) == len(ours) == 1:
            return Fitted(tensor=theirs)
        return with_channels(theirs, axis, channels, ours)

    def _with_labels(self, theirs: Tensor, axis: int, domain: str, own: Tensor) -> Fitted | None:
        meant, outputs = self.theirs.get(domain), self.ours[domain].outputs
        if self.is_foreign:
            return None  # their classes are others, whatever their number
        if meant is None or is_same(meant.outputs, outputs):
            return Fitted(tensor=theirs)
        others = [n for place, n in enumerate(own.shape) if place != axis]
        if theirs.ndim != own.ndim or [n for place, n in enumerate(theirs.shape) if place != axis] != others:
            return None
        return with_labels(theirs, axis, meant.outputs, outputs, own.cpu()) if theirs.shape[axis] == len(meant.outputs) else None

    def reason(self, name: str, theirs: Tensor, own: Tensor) -> str:
        """Why a tensor of that name cannot be taken."""
        if tuple(theirs.shape) == tuple(own.shape) or any(name in interface.outputs for interface in self.interfaces.values()):
            return "a head for other labels"
        return "of another shape here"


def _kernels(network: nn.Module) -> Iterable[tuple[str, bool]]:
    """The names of the weights of convolutions, and whether several of their voxels meet one of the result."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            yield f"{name}.weight", True
        elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            yield f"{name}.weight", module.kernel_size != module.stride
