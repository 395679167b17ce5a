"""What a family of networks is to the rest of the package: a name, a builder, its options and how sizes go through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family as its file describes it.

    ``build`` takes a plan whose options are complete. ``options`` are the family's own ones with their defaults, and its own
    defaults of the shared ones (:data:`~medseg3d.networks.style.STYLE_OPTIONS`); ``choices`` what its own may be.
    ``output_size(plan, patch)`` is the part of the patch that gets logits, in its middle; ``input_size(plan, wanted)`` the
    smallest patch that gives at least ``wanted``. ``problems(plan)`` says what this family cannot build, a sentence without its point each.
    With ``keeps_weights`` a network begins with the weights that ``build`` gives it, otherwise with those of
    :func:`~medseg3d.networks.blocks.initialize`. A family that ``has_style`` takes the shared options.
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

    def completed(self, plan: NetworkPlan) -> NetworkPlan:
        """The plan with every option filled in; raises as :meth:`completed_options`, and where the family has other problems with it."""
        complete = replace(plan, options=self.completed_options(plan.options))
        if wrong := "; ".join(self.problems(complete)):
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
