"""What every source of a model opens to: how the model predicts, what is known about it, and its weights, read one network at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from medseg3d.models.checkpoints import check_fit
from medseg3d.plan import Plan
from medseg3d.records import Checked
from medseg3d.validation.box import BoxRule
from medseg3d.validation.empty_window_record import EmptyWindows
from medseg3d.validation.levels import LevelChoice
from medseg3d.validation.postprocessing import NO_POSTPROCESSING, Postprocessing

DICE = "cross_validation_dice"
DICE_CASES = "cross_validation_cases"
"""The facts about how good a model is: the mean Dice over labels and cases that the networks had not seen, and the number of cases."""

Tensors = Mapping[str, torch.Tensor]
Facts = dict[str, float | int | str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberDescription(Checked):
    """A configuration of a model with its folds; ``mirroring`` says whether mirroring helps it at prediction.

    ``empty_windows`` is what validation said of windows that may be left out, ``levels`` how much of a network that can be pruned
    predicts, None where nothing is known. ``box`` is how a crop cascade finds the box that it sees.
    """

    came_later: ClassVar[tuple[str, ...]] = ("levels", "box")

    configuration: str
    folds: tuple[str, ...]
    mirroring: bool = True
    empty_windows: EmptyWindows | None = None
    levels: LevelChoice | None = None
    box: BoxRule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """How a model predicts, and what is known about it.

    ``members`` are averaged as probabilities, the folds of one as logits. ``previous`` are the configurations that only serve as
    an earlier stage of a cascade (``Configuration.previous_stage``). ``facts`` are for people: where it comes from, its measures.
    The model card puts ``DICE`` and ``DICE_CASES`` into a sentence and lists those that the plan does not tell.
    """

    plan: Plan
    members: tuple[MemberDescription, ...]
    previous: tuple[MemberDescription, ...] = ()
    postprocessing: Postprocessing = NO_POSTPROCESSING
    facts: Facts = field(default_factory=dict)

    @property
    def stages(self) -> tuple[MemberDescription, ...]:
        """All configurations that hold networks, the earlier stages of cascades last."""
        return (*self.members, *self.previous)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """A model that is not assembled yet.

    ``path`` is what was opened; ``identity`` changes when anything changes that changes a prediction; ``read`` gives the tensors of a
    configuration and fold, whole and undamaged, or raises :class:`InputError`.
    """

    path: Path
    description: ModelDescription
    identity: str
    read: Callable[[str, str], Tensors]

    def tensors(self, configuration: str, fold: str) -> Tensors:
        """What ``read`` gives, under the names and in the shapes of :func:`medseg3d.networks.build.build_network`.

        Raises :class:`PlanMismatchError` for others.
        """
        found = self.read(configuration, fold)
        network = self.description.plan.configurations[configuration].network
        check_fit(network, found, f"{self.path}: {configuration}, fold {fold}")
        return found

    def networks(self) -> Iterator[tuple[str, str]]:
        """The configuration and fold of each network."""
        for stage in self.description.stages:
            for fold in stage.folds:
                yield stage.configuration, fold


Configurations = str | Sequence[str] | None
"""Which configurations of a model are meant: one, several to be averaged, or None where the source chooses."""


def names_of(configurations: Configurations) -> tuple[str, ...] | None:
    """Each of them once; None for none at all.

    >>> names_of("2d"), names_of(["2d", "3d_fullres", "2d"]), names_of([])
    (('2d',), ('2d', '3d_fullres'), None)
    """
    several = (configurations,) if isinstance(configurations, str) else configurations or ()
    return tuple(dict.fromkeys(several)) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A kind of place that models come from.

    ``name`` stands in the list of what can be named. ``opens`` says by a look whether a path is of this kind, ``held`` which folds of
    which configurations lie there. ``open`` reads the parts of the named configurations and folds, or of the model that predicts.
    """

    name: str
    opens: Callable[[Path], bool]
    held: Callable[[Path], Mapping[str, tuple[str, ...]]]
    open: Callable[[Path, Configurations, tuple[str, ...] | None], ModelParts]


def facts_of(plan: Plan) -> Facts:
    """What a plan tells about its dataset."""
    return {"dataset": plan.dataset, "training_cases": plan.num_training, "planner": plan.planner}
