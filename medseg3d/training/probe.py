"""Is bf16 safe for training here? One step in a process of its own, because native code can crash or never end.

``python -m medseg3d.training.probe NETWORK.json BATCH PATCH…`` takes the step and prints its seconds. It is the only whole step:
a float32 forward pass of one sample says how long it may take, so that the probe costs little time and less memory than training.
Then the convolutions of one sample, and their gradients, are compared with float32 one by one; where one is wrong, its name is printed.
torch 2.13's oneDNN, for one, crashes in the bf16 backward pass of a (1, 3, 3) convolution of 2x32x7x96x80 on CPUs with AMX.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from medseg3d.devices import Device
from medseg3d.extensions import extension_arguments, use_arguments
from medseg3d.plan import Configuration, NetworkPlan
from medseg3d.records import from_plain, read_json, to_plain

logger = logging.getLogger(__name__)

STEP_PER_FORWARD = 4
"""A step is a forward pass and a backward pass that costs twice as much; one more for the kernels that are made in the first."""
SLOWEST_RATIO = 5
"""bf16 that takes so many times longer than float32 is taken to hang."""
WRONG = 3
"""The exit code of a step that ends, with other numbers than in float32."""
GRACE_SECONDS = 20.0
"""Added to that limit: kernels are made in the first step."""


def trusted_precision(device: Device, configuration: Configuration, batch_size: int) -> Device:
    """The device as it is where a bf16 step ends well, otherwise in float32, with a warning.

    Only a CPU is asked: GPUs report their errors.
    """
    if device.device.type != "cpu" or device.precision != "bfloat16":
        return device
    network = json.dumps(to_plain(configuration.network))
    code, printed = _tried(sys.executable, tuple(extension_arguments()), network, (batch_size, *configuration.patch_size))
    if code == WRONG:
        logger.warning("A training step in bfloat16 is wrong on this CPU: %s; training in float32.", printed)
        return device.in_float32()
    if code != 0:
        logger.warning("A training step in bfloat16 fails on this CPU for this network; training in float32.")
        return device.in_float32()
    logger.info("A first step in bfloat16 takes %s s.", printed)
    return device  # never by the clock: the same seed must not train in one precision today and in another tomorrow


@cache
def _tried(python: str, extensions: tuple[str, ...], network: str, numbers: tuple[int, ...]) -> tuple[int, str]:
    """Exit code and output of a step; tried once in a process, as the folds of a run have the same network."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.json"
        file.write_text(network, encoding="utf-8")
        command = [python, "-m", "medseg3d.training.probe", *extensions, str(file), *map(str, numbers)]
        finished = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if finished.returncode == -signal.SIGINT:  # Ctrl-C reaches the child as well: that says nothing of bf16
        raise KeyboardInterrupt
    return finished.returncode, finished.stdout.strip()


def main(arguments: list[str]) -> int:
    """Take one bf16 step; ends with a non-zero code where it does not end."""
    import torch

    from medseg3d.losses import LossSettings, make_loss
    from medseg3d.networks.build import build_network
    from medseg3d.precision import wrong_gradient
    from medseg3d.training.step import compute_gradients

    file, batch_size, *patch_size = use_arguments(arguments)
    plan = from_plain(read_json(Path(file)), NetworkPlan, file)
    batch, patch = int(batch_size), tuple(map(int, patch_size))
    torch.manual_seed(0)
    network = build_network(plan).train()
    image = torch.randn(batch, plan.in_channels, *patch)
    began = time.perf_counter()
    with torch.no_grad():
        network(image[:1])
    forward = time.perf_counter() - began
    limit = SLOWEST_RATIO * STEP_PER_FORWARD * forward
    faulthandler.dump_traceback_later(batch * limit + GRACE_SECONDS, exit=True)
    labels = torch.randint(0, plan.num_classes, image[:, 0].shape)
    loss = make_loss("dice_ce", LossSettings(num_classes=plan.num_classes))
    device = Device(device=torch.device("cpu"), precision="bfloat16")
    began = time.perf_counter()
    compute_gradients(network, image, labels, loss, device)
    seconds = time.perf_counter() - began
    faulthandler.dump_traceback_later(2 * limit + GRACE_SECONDS, exit=True)
    wrong = wrong_gradient(network, image[:1], device)
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.write(f"{seconds:.2g}\n" if wrong is None else f"{wrong}\n")
    return 0 if wrong is None else WRONG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
