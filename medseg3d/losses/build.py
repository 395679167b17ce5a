"""The losses that a plan can name: a name and settings go in, a function of logits and labels comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from medseg3d.extensions import Registry
from medseg3d.losses import components, regions, shapes, skeletons, voxels
from medseg3d.losses.loss import Loss, LossFunction, LossSettings, in_float32, of_whole_batch
from medseg3d.losses.monai_losses import is_monai_loss, monai_loss

LOSSES = Registry("losses", Loss, {**regions.LOSSES, **voxels.LOSSES, **shapes.LOSSES, **components.LOSSES, **skeletons.LOSSES})
"""The losses by their name in a plan, and those of extensions."""


def find_loss(name: str, provider: str = "") -> Loss:
    """The loss of a name, ``monai.`` before one of MONAI's; raises :class:`~medseg3d.errors.PlanError` for an unknown one, with the
    extension that it is from."""
    return monai_loss(name) if is_monai_loss(name) else LOSSES.find(name, provider=provider)


def provider_of(name: str) -> str:
    """The extension that a known loss is from, as plans note it; empty for one that is built in, or MONAI's."""
    return "" if is_monai_loss(name) else LOSSES.provider(name)


def check_loss(name: str, options: Mapping[str, float]) -> dict[str, float]:
    """The options of a loss, complete: those given, and the defaults of the others.

    Raises :class:`~medseg3d.errors.PlanError` for an unknown loss, an unknown option or a value outside its range; all findings at once.
    """
    return find_loss(name).completed(name, options)


def make_loss(
    name: str, settings: LossSettings, *, provider: str = "", class_voxels: Callable[[], tuple[float, ...]] | None = None
) -> LossFunction:
    """The loss for one output, in float32 also under autocast; raises as :func:`check_loss`.

    ``class_voxels`` counts them for the settings of a loss that weighs the classes.
    """
    loss = find_loss(name, provider)
    if class_voxels is not None and loss.weighs_classes:
        settings = replace(settings, class_voxels=class_voxels())
    made = loss.make(replace(settings, options=loss.completed(name, settings.options)))
    is_mean = loss.shares == "mean" and not settings.batch_dice and not settings.has_ignored
    return in_float32(made if is_mean or loss.shares == "sums" else of_whole_batch(made))
