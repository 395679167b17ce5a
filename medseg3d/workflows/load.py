"""Load a model as the options of a verb want it."""

from __future__ import annotations

from pathlib import Path

from medseg3d.models.loading import load_model
from medseg3d.models.model import Model
from medseg3d.options import ModelOptions, PredictOptions


def model_for(place: Path, options: ModelOptions) -> Model:
    """The model at a place, with the networks, the device and the windows that are wanted; raises as :func:`load_model`."""
    return load_model(
        place,
        configuration=options.configuration,
        folds=options.folds,
        device=options.device,
        precision=options.precision,
        mirroring=options.mirroring,
        step=options.step,
        skip_empty=options.skip_empty,
        level=options.level,
        scales=options.scales,
        flips=options.flips,
        whole_image=options.whole_image,
    )


def predicting_model(place: Path, options: PredictOptions) -> Model:
    """:func:`model_for`, which refuses images that are unlike the training images where that is wanted."""
    model = model_for(place, options)
    return model.strictly() if options.strict else model
