"""What a family of networks is to the rest of the package: a name, a builder, its options and how sizes go through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from medseg3d.errors import PlanError
from medseg3d.networks.style import STYLE_OPTIONS, style_of
from medseg3d.plan import NetworkPlan, Option

Size = tuple[int, ...]
"""Voxels per axis of a patch, in network order."""


def same_size(plan: NetworkPlan, size: Size) -> Size:
    """Networks that pad their convolutions give logits for every voxel they see."""
    return size


def no_problems(plan: NetworkPlan) -> Iterable[str]:
    """Families that build every plan."""
    return ()


def too_few_stages(plan: NetworkPlan, least: int) -> Iterable[str]:
    """The problem of a network that needs so many stages, where the plan has fewer."""
    if len(plan.features) < least:
        yield f"it needs {least} stages, and the patch allows {len(plan.features)}; choose another family for images of so few voxels"


def deep_supervision(plan: NetworkPlan) -> Iterable[str]:
    """The problem of a network that has one head, where the plan asks for more."""
    if plan.deep_supervision:
        yield "it has no deep supervision; set network.deep_supervision = false"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """What a family asks of strides and kernels, where it cannot follow the spacing axis by axis.

    With ``all_axes`` every axis is halved between stages, or none. ``same_kernels``: one size of kernel everywhere. ``first_stride`` is
    that of the first stage. ``num_stages`` is fixed, whatever the size; None for as many as the size allows.
    """

    all_axes: bool = False
    same_kernels: bool = False
    first_stride: int = 1
    num_stages: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How one network of a family serves several datasets (domains), and by its name whose a tensor is.

    ``build`` makes the network from a plan per domain; its ``forward(x, domain)`` gives the logits of one, and without a name those of
    its attribute ``domain``. The tensors that belong to a domain are named ``OWN.DOMAIN.…``; all others are shared. ``only`` is the
    name of the domain in a network of a single dataset.
    """

    build: Callable[[Mapping[str, NetworkPlan]], nn.Module]
    own: str
    only: str

    def domain_of(self, tensor: str) -> str | None:
        """The domain that a tensor belongs to; None for those that all domains share."""
        parts = tensor.split(".", 2)
        return parts[1] if parts[0] == self.own and len(parts) == 3 else None

    def renamed(self, tensor: str, domain: str) -> str:
        """The name of the same tensor in a network where its domain has another name; shared tensors keep theirs."""
        return tensor if self.domain_of(tensor) is None else f"{self.own}.{domain}.{tensor.split('.', 2)[2]}"

    def shared_parameters(self, network: nn.Module) -> list[nn.Parameter]:
        """What every domain uses of a network."""
        return [parameter for name, parameter in network.named_parameters() if self.domain_of(name) is None]


def no_levels(plan: NetworkPlan) -> tuple[int, ...]:
    """All of it predicts."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family as its file describes it.

    ``build`` takes a plan whose options are complete. ``options`` are the family's own ones with their defaults, and its own
    defaults of the shared ones (:data:`~medseg3d.networks.style.STYLE_OPTIONS`); ``choices`` what its own may be.
    ``output_size(plan, patch)`` is the part of the patch that gets logits, in its middle; ``input_size(plan, wanted)`` the
    smallest patch that gives at least ``wanted``. ``problems(plan)`` says what this family cannot build, a sentence without its point each.
    With ``keeps_weights`` a network begins with the weights that ``build`` gives it, otherwise with those of
    :func:`~medseg3d.networks.blocks.initialize`. A family that ``has_style`` takes the shared options. ``pooling`` is what it
    asks of strides and kernels. ``sharing`` is given where one network can serve several datasets. Where a part of
    a network can predict, ``levels(plan)`` are those parts, rising, and ``prune(plan, level)`` is the plan of one alone, whose tensors have
    the names that they have in the whole network (:mod:`medseg3d.networks.levels`).
    """

    name: str
    build: Callable[[NetworkPlan], nn.Module]
    options: Mapping[str, Option] = field(default_factory=dict)
    choices: Mapping[str, tuple[Option, ...]] = field(default_factory=dict)
    output_size: Callable[[NetworkPlan, Size], Size] = same_size
    input_size: Callable[[NetworkPlan, Size], Size] = same_size
    problems: Callable[[NetworkPlan], Iterable[str]] = no_problems
    keeps_weights: bool = False
    has_style: bool = True
    pooling: Pooling = Pooling()
    sharing: Sharing | None = None
    levels: Callable[[NetworkPlan], Sequence[int]] = no_levels
    prune: Callable[[NetworkPlan, int], NetworkPlan] | None = None

    def completed(self, plan: NetworkPlan) -> NetworkPlan:
        """The plan with every option filled in; raises as :meth:`completed_options`, and where the family has other problems with it."""
        complete = replace(plan, options=self.completed_options(plan.options))
        if wrong := "; ".join(problem.removesuffix(".") for problem in self.problems(complete)):
            raise PlanError(f"network of family {self.name}: {wrong}.")
        return complete

    def completed_options(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """All options, the given ones and the defaults; raises :class:`PlanError` for names and values that cannot be built."""
        known = {**(STYLE_OPTIONS if self.has_style else {}), **self.options}
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise PlanError(
                f"network.options: {self.name} does not know {', '.join(unknown)}; it takes {', '.join(sorted(known)) or 'none'}. "
                "Remove the others."
            )
        chosen = {**known, **options}
        if self.has_style:
            style_of(chosen)
        wrong = [
            f"{name} is {chosen[name]!r}, expected one of {', '.join(map(repr, values))}"
            for name, values in self.choices.items()
            if chosen[name] not in values
        ]
        if wrong:
            raise PlanError(f"network.options: {'; '.join(wrong)}. Correct the planner file.")
        return chosen
