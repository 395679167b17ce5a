"""What a family of networks is to the rest of the package: a name, a builder, its options and how sizes go through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family as its file describes it.

    ``build`` takes a plan whose options are complete. ``options`` are the family's own ones with their defaults, and its own
    defaults of the shared ones (:data:`~medseg3d.networks.style.STYLE_OPTIONS`); ``choices`` what its own may be.
    ``output_size(plan, patch)`` is the part of the patch that gets logits, in its middle; ``input_size(plan, wanted)`` the
    smallest patch that gives at least ``wanted``.
    """

    name: str
    build: Callable[[NetworkPlan], nn.Module]
    options: Mapping[str, Option] = field(default_factory=dict)
    choices: Mapping[str, tuple[Option, ...]] = field(default_factory=dict)
    output_size: Callable[[NetworkPlan, Size], Size] = same_size
    input_size: Callable[[NetworkPlan, Size], Size] = same_size

    def completed(self, plan: NetworkPlan) -> NetworkPlan:
        """The plan with every option filled in; raises as :meth:`completed_options`."""
        return replace(plan, options=self.completed_options(plan.options))

    def completed_options(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """All options, the given ones and the defaults; raises :class:`PlanError` for names and values that cannot be built."""
        known = {**STYLE_OPTIONS, **self.options}
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise PlanError(
                f"network.options: {self.name} does not know {', '.join(unknown)}; it takes {', '.join(sorted(known))}. Remove the others."
            )
        chosen = {**known, **options}
        style_of(chosen)
        wrong = [
            f"{name} is {chosen[name]!r}, expected one of {', '.join(map(repr, values))}"
            for name, values in self.choices.items()
            if chosen[name] not in values
        ]
        if wrong:
            raise PlanError(f"network.options: {'; '.join(wrong)}. Correct the planner file.")
        return chosen
