"""CPU seconds of a training step, or of a prediction; what else runs on the machine does not count.

In: a work folder with preprocessed cases, or with a trained fold. Out: a line of JSON. Seconds are those of all threads of the process,
so with one core to run on they are seconds of a core.

    python one_core.py step DATASET WORK CONFIGURATION [BATCH]
    python one_core.py predict WORK CONFIGURATION OUTPUT IMAGE...
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medseg3d.models.model import Model

WARM_UP = 3
"""The first steps set up memory and kernels."""
REFERENCE_SIZE, REFERENCE_FEATURES, REFERENCE_TIMES = (16, 48, 48), 16, 4
"""A convolution with its gradients that takes some 20 ms of a core: short enough to meet moments in which nothing runs beside it."""
MOST_STEPS, MOST_SECONDS = 15, 30.0
"""Of slow steps few are enough."""


def main() -> None:
    """What was asked for."""
    what, *words = sys.argv[1:]
    paths = [Path(word) for word in words]
    if what == "predict":
        found: dict[str, object] | dict[str, float] = predict(paths[0], words[1], paths[2], paths[3:])
    else:
        found = time_steps(paths[0], paths[1], words[2], int(words[3]) if len(words) > 3 else None)
    print(json.dumps(found))


@dataclass(slots=True)
class Clock:
    """A stop request that watches the CPU time of each step, and sets itself when enough of them are timed.

    What shares a core's units and caches makes CPU seconds longer. So the same convolution is timed after each step, by the same clock:
    a step is as much slower as that is.
    """

    steps: list[float] = field(default_factory=list)
    references: list[float] = field(default_factory=list)
    signal_number: int | None = None
    began: float = 0.0
    reference: Callable[[], float] | None = None

    def note(self, *_: int) -> None:
        """A step is done."""
        self.steps.append(time.process_time() - self.began)
        self.reference = self.reference or reference_step()
        self.references += [self.reference() for _ in range(REFERENCE_TIMES)]
        self.began = time.process_time()

    @property
    def is_set(self) -> bool:
        """Enough is known."""
        return len(self.timed) > 1 and (len(self.timed) >= MOST_STEPS or sum(self.timed) > MOST_SECONDS)

    @property
    def timed(self) -> list[float]:
        """The steps after the first ones."""
        return self.steps[WARM_UP:]


def time_steps(dataset: Path, work: Path, configuration: str, batch: int | None = None) -> dict[str, float]:
    """The training loop as it is, augmentation included, on fold 0; the weights are thrown away. ``batch`` replaces the plan's."""
    from medseg3d.devices import choose_device
    from medseg3d.domain import Domain
    from medseg3d.options import TrainOptions
    from medseg3d.training.loop import train_domains
    from medseg3d.work_folder import WorkFolder
    from medseg3d.workflows.train import training_domain

    domain = training_domain(Domain(dataset=dataset, folder=WorkFolder(work), configuration=configuration), "0")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        epochs = train_domains(
            [domain],
            name=configuration,
            fold="0",
            folder=Path(folder),
            device=choose_device("cpu"),
            options=TrainOptions(epochs=2, iterations=MOST_STEPS + WARM_UP + 1, batch_size=batch),
            plan_digest="",
            stop=clock,  # type: ignore[arg-type]
            on_step=clock.note,
        )
        next(iter(epochs), None)
    references = sorted(clock.references[REFERENCE_TIMES * WARM_UP :])
    return {
        "step_seconds": sum(clock.timed) / len(clock.timed),
        "num_steps": len(clock.timed),
        "reference_seconds": references[len(references) // 2],
        "fastest_reference_seconds": references[0],
    }


def reference_step() -> Callable[[], float]:
    """CPU seconds of a convolution and its gradients, in the precision that training has on this device."""
    import torch

    from medseg3d.devices import choose_device

    device = choose_device("cpu")
    convolution = torch.nn.Conv3d(REFERENCE_FEATURES, REFERENCE_FEATURES, 3, padding=1)
    image = torch.ones(1, REFERENCE_FEATURES, *REFERENCE_SIZE, requires_grad=True)

    def take() -> float:
        began = time.process_time()
        with device.autocast():
            convolution(image).float().sum().backward()
        return time.process_time() - began

    return take


def predict(work: Path, configuration: str, output: Path, images: list[Path]) -> dict[str, object]:
    """Predict single-channel images with fold 0, without mirroring; CPU seconds of a case, and by level of a network that can be pruned.

    Loading is left out. Label maps of the lower levels lie in folders below the output.
    """
    from medseg3d import load_model

    def load(level: int | str) -> Model:
        return load_model(work, configuration=configuration, folds=["0"], device="cpu", mirroring=False, level=level)

    whole = load("full")
    found: dict[str, object] = {"case_seconds": case_seconds(whole, output, images)}
    if whole.levels:
        found["levels"] = {level: case_seconds(load(level), output / f"level_{level}", images) for level in whole.levels}
    return found


def case_seconds(model: Model, output: Path, images: list[Path]) -> float:
    """The mean over all images; the first one is predicted twice and counts once, as it sets up kernels."""
    output.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for image in (images[0], *images):  # the first one sets up kernels
        began = time.process_time()
        model.predict_file(image, output / image.name.replace("_0000.nii.gz", ".nii.gz"))
        seconds[image.name] = time.process_time() - began
    return sum(seconds.values()) / len(seconds)


if __name__ == "__main__":
    main()
