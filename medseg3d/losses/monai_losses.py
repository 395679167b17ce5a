"""Any segmentation loss of MONAI by name: ``monai.DiceFocalLoss`` in a plan, the class in :mod:`monai.losses` behind it.

A class fits where it makes one channel per class of labels itself and takes a softmax of logits, as MONAI's segmentation losses do, and
needs nothing else. Its numbers are options; where it can, it leaves the background out and pools the batch as a plan's losses do.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from medseg3d.errors import PlanError
from medseg3d.losses.loss import Loss, LossFunction, LossSettings
from medseg3d.number_options import NumberOption

PREFIX = "monai."
SOFTMAX = ("softmax", "use_softmax")
OURS = ("to_onehot_y", "include_background", "sigmoid", "batch", "reduction", *SOFTMAX)
"""Arguments that are not for a planner to choose: labels, logits and classes are what they are."""
LARGEST = 1e6
"""MONAI gives no ranges; a number beyond is a slip of the keyboard."""


def is_monai_loss(name: str) -> bool:
    """Whether a plan's name of a loss means one of MONAI's."""
    return name.startswith(PREFIX)


@cache
def monai_loss(name: str) -> Loss:
    """The loss of a name with ``monai.`` before it; raises :class:`PlanError` for one that MONAI does not have, or that does not fit."""
    found = _classes().get(name.removeprefix(PREFIX))
    if found is None:
        raise PlanError(f"MONAI has no loss {name.removeprefix(PREFIX)!r}; of its losses {', '.join(monai_loss_names())} can be named.")
    if reason := _misfit(found):
        raise PlanError(f"{name} cannot train a segmentation here: {reason}. Of MONAI's losses {', '.join(monai_loss_names())} can.")
    parameters = _parameters(found)
    defaults = {key: each.default for key, each in parameters.items() if key not in OURS and isinstance(each.default, int | float)}

    def make(settings: LossSettings) -> LossFunction:
        options = {key: type(defaults[key])(value) for key, value in settings.options.items()}
        measure = found(**_fixed(parameters, settings), **options)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            value: Tensor = measure(logits, labels[:, None])
            return value

        return loss

    return Loss(meaning=f"MONAI's {found.__name__}", make=make, options=_options(name, defaults), knows_batches="batch" in parameters)


@cache
def monai_loss_names() -> tuple[str, ...]:
    """Those that a plan can name, with ``monai.`` before them."""
    return tuple(f"{PREFIX}{name}" for name, found in _classes().items() if not _misfit(found))


@cache
def _classes() -> dict[str, Any]:
    from monai import losses

    found = {each.__name__: each for each in vars(losses).values() if inspect.isclass(each) and issubclass(each, nn.Module)}
    return dict(sorted(found.items()))


def _parameters(found: Any) -> Mapping[str, inspect.Parameter]:
    """Of the constructor, also those that it hands on to the class that it refines."""
    parameters = dict(inspect.signature(found.__init__).parameters)
    parameters.pop("self")
    return {key: each for key, each in parameters.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}


def _misfit(found: Any) -> str:
    parameters = _parameters(found)
    if needed := [key for key, each in parameters.items() if each.default is each.empty]:
        return f"it needs {' and '.join(needed)}"
    if "to_onehot_y" not in parameters or not any(key in parameters for key in SOFTMAX):
        return "it does not make one channel per class of labels, or no softmax of logits, itself"
    asked = [name for name in inspect.signature(found.forward).parameters if name != "self"]
    return "" if len(asked) == 2 else f"it is given {', '.join(asked)}, and not only logits and labels"


def _fixed(parameters: Mapping[str, inspect.Parameter], settings: LossSettings) -> dict[str, object]:
    # FocalLoss takes the background's channel away before the softmax, which leaves no gradient with one label
    has_background = settings.num_classes < 2 or "use_softmax" in parameters
    fixed: dict[str, object] = {"to_onehot_y": True, "include_background": has_background, "batch": settings.batch_dice}
    return {key: value for key, value in {**fixed, **dict.fromkeys(SOFTMAX, True)}.items() if key in parameters}


def _options(name: str, defaults: Mapping[str, bool | float]) -> dict[str, NumberOption]:
    return {
        key: NumberOption(
            default=float(value),
            minimum=0.0 if isinstance(value, bool) else -LARGEST,
            maximum=1.0 if isinstance(value, bool) else LARGEST,
            meaning=f"{key} of {name}, 1 for true and 0 for false" if isinstance(value, bool) else f"{key} of {name}",
            is_whole=isinstance(value, int),
        )
        for key, value in defaults.items()
    }
