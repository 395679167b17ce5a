"""Generated shapes → weights to begin with: make the dataset, plan, preprocess and train one network, keep its weights.

No image of anyone goes into it: what is learned from is made by :mod:`medseg3d.data.generated_shapes` from a seed.
"""

from __future__ import annotations

from pathlib import Path

from medseg3d.data.generated_shapes import make_shapes_dataset
from medseg3d.files import copy_file
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.initial_weights import shapes_file
from medseg3d.workflows.plan import plan
from medseg3d.workflows.preprocess import preprocess
from medseg3d.workflows.train import train

BATCH = 2
"""Volumes are of equal size and small, so that the memory would allow many: with few there are more steps in the time."""


def learn_shapes(
    folder: Path,
    output: Path,
    *,
    configuration: str = "3d_fullres",
    planner: str = "default",
    num_cases: int = 200,
    edge: int = 48,
    seed: int = 0,
    minutes: float | None = None,
    epochs: int | None = None,
    iterations: int | None = None,
) -> Path:
    """The weights file that was written into ``output``; dataset and training lie in ``folder``, where a second call goes on."""
    dataset = make_shapes_dataset(folder / "GeneratedShapes", num_cases=num_cases, edge=edge, seed=seed)
    made = plan(dataset, planner=planner)
    network = made.plan.configuration(configuration).network
    preprocess(dataset, configurations=[configuration])
    train(
        dataset,
        configuration=configuration,
        fold="0",
        seed=seed,
        batch_size=BATCH,
        epochs=epochs,
        iterations=iterations,
        hours=None if minutes is None else minutes / 60,
    )
    return copy_file(WorkFolder(dataset / "medseg3d-work").weights(configuration, "0"), shapes_file(network, output))
