"""The memory of a training step that ``plan --explain`` predicts beside what a GPU takes: each preset's plan for a synthetic dataset.

Wanted: the prediction lies 0 to 20 % above the measured peak. Out: a Markdown table; exit code 1 where it lies elsewhere, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import sys

import torch
from measuring import markdown_table

PRESETS = ("default", "residual_m", "unet_2015", "unet_3d", "unet_wide", "vnet_batch_norm", "u2net")
WANTED = (1.0, 1.2)
STEPS = 3
"""The first sets up the optimizer; cuDNN chooses its kernels in the first two."""


def main() -> int:
    """All presets that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planners", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--gpu-memory", type=float, default=8.0, help="that the plans are made for, in GB (default: 8)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("PyTorch sees no CUDA device; nothing to measure.", file=sys.stderr)
        return 2
    rows, ratios = [], []
    for name in options.planners:
        for configuration, predicted, measured, reserved in measured_plans(name, options.gpu_memory):
            ratios.append(predicted / measured)
            rows.append((name, configuration, *(f"{value / 2**20:.0f}" for value in (predicted, measured, reserved)), f"{ratios[-1]:.2f}"))
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print(markdown_table(("planner", "configuration", "predicted MiB", "peak of tensors MiB", "reserved MiB", "predicted / peak"), rows))
    return 0 if all(WANTED[0] <= ratio <= WANTED[1] for ratio in ratios) else 1


def measured_plans(name: str, gpu_memory_gb: float):  # type: ignore[no-untyped-def]
    """Name, predicted bytes, peak of the tensors and peak of what torch reserves, of 3d_fullres and 2d."""
    from medseg3d.devices import Device
    from medseg3d.labels import Labels
    from medseg3d.losses import LossSettings, make_loss
    from medseg3d.networks.build import build_network
    from medseg3d.networks.cost import step_cost
    from medseg3d.planning import DatasetSummary, load_planner, make_plan
    from medseg3d.training.optimizers import optimizer_of
    from medseg3d.training.step import compute_gradients

    summary = DatasetSummary(
        dataset="synthetic",
        num_cases=40,
        spacings=((1.0, 0.8, 0.8),) * 3,
        cropped_shapes=((200, 320, 320),) * 3,
        median_relative_size=1.0,
        intensities=(),
        channel_names=("MRI",),
        labels=Labels(names=("background", "first", "second"), values=(0, 1, 2)),
        num_label_entries=3,
        orientation="canonical",
        digest="0",
    )
    plan = make_plan(summary, load_planner(name), gpu_memory_gb=gpu_memory_gb)
    device = Device(device=torch.device("cuda"), precision="bfloat16")
    for configuration in (plan.configurations[each] for each in ("3d_fullres", "2d") if each in plan.configurations):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        network = build_network(configuration.network).cuda().train()
        optimizer = optimizer_of(network, configuration.training)
        settings = LossSettings(num_classes=3, batch_dice=configuration.batch_dice, options={}, class_voxels=None)
        loss = make_loss(configuration.training.loss, settings)
        image = torch.randn(configuration.batch_size, 1, *configuration.patch_size, device="cuda")
        labels = torch.randint(0, 3, image[:, 0].shape, device="cuda")
        for _ in range(STEPS):
            compute_gradients(network, image, labels, loss, device)
            optimizer.step()
        cost = step_cost(
            configuration.network, configuration.patch_size, configuration.batch_size, optimizer=configuration.training.optimizer
        )
        yield configuration.name, cost.peak_bytes, torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_reserved()
        del network, optimizer, image, labels


if __name__ == "__main__":
    sys.exit(main())
