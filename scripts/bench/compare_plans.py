"""Compare our nnunet_* plans with those of an installed nnunetv2 on random geometries.

Two interpreters take part, because nnunetv2 need not live where medseg3d does:

    python scripts/bench/compare_plans.py --nnunet-python /path/to/venv/bin/python --count 200

This process draws the geometries and writes them as nnU-Net fingerprints; the other one (the same file with --worker) plans them
with nnU-Net's own planners, networks on the meta device so that nothing is allocated; then every number is compared. Exit code 1
on a difference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PLANNERS = {
    "nnunet_plain": "ExperimentPlanner",
    "nnunet_resenc_m": "nnUNetPlannerResEncM",
    "nnunet_resenc_l": "nnUNetPlannerResEncL",
    "nnunet_resenc_xl": "nnUNetPlannerResEncXL",
}
SCHEMES = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_0_1",
    "RGBTo01Normalization": "rgb_0_1",
}


def main() -> int:
    """Draw, plan twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet-python", default=sys.executable, help="interpreter with nnunetv2 2.8.1 (default: this one)")
    parser.add_argument("--count", type=int, default=200, help="number of geometries")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--planners", nargs="*", default=list(PLANNERS), choices=list(PLANNERS))
    parser.add_argument("--gpu-memory", type=float, help="GB, for both (default: each planner's own)")
    parser.add_argument("--keep", type=Path, help="folder for the geometries and nnU-Net's plans")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return plan_with_nnunet(arguments.worker, arguments.planners, arguments.gpu_memory)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        draw(folder, arguments.count, arguments.seed)
        command = [arguments.nnunet_python, __file__, "--worker", str(folder), "--planners", *arguments.planners]
        if arguments.gpu_memory:
            command += ["--gpu-memory", str(arguments.gpu_memory)]
        places = {f"nnUNet_{kind}": str(folder / kind) for kind in ("raw", "preprocessed", "results")}
        started = time.perf_counter()
        subprocess.run(command, check=True, env=os.environ | places | {"PYTHONWARNINGS": "ignore"}, stdout=subprocess.DEVNULL)
        print(f"nnU-Net: {time.perf_counter() - started:.1f} s")
        return compare(folder, arguments.planners, arguments.gpu_memory)


def draw(folder: Path, count: int, seed: int) -> None:
    """Write ``count`` fingerprints with their dataset.json: varied, often anisotropic, sometimes with single slices or ties."""
    import numpy as np

    generator = np.random.default_rng(seed)
    for index in range(1, count + 1):
        num_cases = int(np.exp(generator.uniform(0, np.log(500))))
        num_channels, num_labels = int(generator.integers(1, 5)), int(generator.integers(2, 101))
        center = np.exp(generator.uniform(np.log(0.3), np.log(10), 3))
        kind = generator.integers(6)
        if kind == 0:
            center[:] = center[0]  # isotropic
        elif kind <= 2:
            center[1:] = min(center[1:])  # slices along the first axis
            center[0] = max(center)
        edge = np.exp(generator.uniform(np.log(1), np.log(600), 3)) if kind == 5 else generator.integers(20, 601, 3)
        if kind == 1:
            edge[0] = generator.integers(1, 40)
        if kind == 2:
            edge[0] = 1
        spread = generator.choice([0.0, 0.05, 0.5])
        listed = min(num_cases, 40) if generator.random() < 0.8 else num_cases
        spacings = center * np.exp(generator.normal(0, spread, (listed, 3)))
        if generator.random() < 0.5:
            spacings = np.round(spacings, 2).clip(0.3, 10)
        shapes = np.rint(edge * np.exp(generator.normal(0, spread * (edge > 1), (listed, 3)))).clip(1, 600).astype(int)
        names = generator.choice(["CT", "MRI", "T1", "zscore", "nonorm", "rescale_to_0_1", "rgb_to_0_1", "ct"], num_channels)
        statistics = [dict(zip(STATISTICS, map(float, generator.normal(0, 100, len(STATISTICS))), strict=True)) for _ in names]
        labels = {"background": 0} | {f"structure {value}": value for value in range(1, num_labels)}
        if num_labels > 3 and generator.random() < 0.2:
            labels["ignore"] = labels.pop(f"structure {num_labels - 1}")
        name = f"Dataset{index:03d}_random"
        description = {
            "channel_names": {str(channel): str(given) for channel, given in enumerate(names)},
            "labels": labels,
            "numTraining": num_cases,
            "file_ending": ".nii.gz",
            "dataset": {},
        }
        fingerprint = {
            "spacings": spacings.tolist(),
            "shapes_after_crop": shapes.tolist(),
            "median_relative_size_after_cropping": float(generator.uniform(0.4, 1)),
            "foreground_intensity_properties_per_channel": {str(channel): row for channel, row in enumerate(statistics)},
        }
        for kind_of_folder in ("raw", "preprocessed"):
            place = folder / kind_of_folder / name
            place.mkdir(parents=True, exist_ok=True)
            (place / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
        (folder / "preprocessed" / name / "dataset_fingerprint.json").write_text(json.dumps(fingerprint), encoding="utf-8")


STATISTICS = ("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5")


def plan_with_nnunet(folder: Path, planners: list[str], gpu_memory: float | None) -> int:
    """Runs where nnunetv2 is installed: one plans file per dataset and planner, or a .error file with what it raised."""
    import torch
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

    classes = {**vars(default_experiment_planner), **vars(residual_encoder_unet_planners)}
    # There are no images to try readers on; the reader's name is not among the numbers.
    classes["ExperimentPlanner"].determine_reader_writer = lambda self: int
    # Only shapes count, so the weights need no values: this saves most of the time.
    torch.nn.modules.conv._ConvNd.reset_parameters = lambda self: None
    memory = {"gpu_memory_target_in_gb": gpu_memory} if gpu_memory else {}
    for place in sorted((folder / "raw").iterdir()):
        for planner in planners:
            target = folder / "preprocessed" / place.name / planner
            try:
                with torch.device("meta"):
                    planned = classes[PLANNERS[planner]](place.name, plans_name=planner, **memory)
                    planned.plan_experiment()
            except Exception as error:  # whatever nnU-Net raises is the result
                target.with_suffix(".error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        sys.stderr.write(f"\r{place.name}")
    sys.stderr.write("\n")
    return 0


def compare(folder: Path, planners: list[str], gpu_memory: float | None) -> int:
    """Print every difference and a count."""
    from medseg3d.planning import load_planner, make_plan, read_nnunet_fingerprint

    same = crashed = 0
    differences: list[str] = []
    seconds = 0.0
    for place in sorted((folder / "preprocessed").iterdir()):
        for planner in planners:
            started = time.perf_counter()
            plan = make_plan(read_nnunet_fingerprint(place), load_planner(planner), gpu_memory_gb=gpu_memory)
            seconds += time.perf_counter() - started
            error = place / f"{planner}.error"
            if error.exists():
                crashed += 1
                print(
                    f"{place.name} {planner}: nnU-Net fails ({error.read_text(encoding='utf-8')}), ours plans {list(plan.configurations)}"
                )
                continue
            theirs = json.loads((place / f"{planner}.json").read_text(encoding="utf-8"))
            found = list(differing(plan, theirs))
            same += not found
            differences += [f"{place.name} {planner}: {line}" for line in found]
    print(f"ours: {seconds:.1f} s")
    print("\n".join(differences))
    print(f"{same} plans equal, {len({line.split(':')[0] for line in differences})} differ, {crashed} that nnU-Net cannot plan")
    return 1 if differences else 0


def differing(plan: Any, theirs: dict[str, Any]) -> list[str]:
    """Every number of nnU-Net's plans file that differs from ours, as a sentence."""
    pairs = [
        ("transpose", list(plan.axis_order), theirs["transpose_forward"]),
        ("configurations", sorted(plan.configurations), sorted(theirs["configurations"])),
    ]
    statistics = theirs["foreground_intensity_properties_per_channel"]
    for name, ours in plan.configurations.items():
        their = dict(theirs["configurations"].get(name, {}))
        if "inherits_from" in their:
            pairs.append((f"{name} previous stage", ours.previous_stage, their["previous_stage"]))
            their = {**theirs["configurations"][their["inherits_from"]], **their}
        if not their:
            continue
        network = their["architecture"]["arch_kwargs"]
        normalization = [(n.scheme, n.use_mask) for n in ours.normalization]
        pairs += [
            (f"{name} spacing", list(ours.spacing), their["spacing"]),
            (f"{name} median shape", list(ours.median_shape), their["median_image_size_in_voxels"]),
            (f"{name} patch", list(ours.patch_size), their["patch_size"]),
            (f"{name} batch size", ours.batch_size, their["batch_size"]),
            (f"{name} batch dice", ours.batch_dice, their["batch_dice"]),
            (f"{name} features", list(ours.network.features), network["features_per_stage"]),
            (f"{name} strides", [list(s) for s in ours.network.strides], network["strides"]),
            (f"{name} kernels", [list(k) for k in ours.network.kernel_sizes], network["kernel_sizes"]),
            (
                f"{name} encoder",
                list(ours.network.encoder_blocks),
                network.get("n_blocks_per_stage") or network["n_conv_per_stage"],
            ),
            (f"{name} decoder", list(ours.network.decoder_blocks), network["n_conv_per_stage_decoder"]),
            (
                f"{name} normalization",
                normalization,
                [(SCHEMES[s], m) for s, m in zip(their["normalization_schemes"], their["use_mask_for_norm"], strict=True)],
            ),
            (f"{name} image order", ours.resampling.image_order, their["resampling_fn_data_kwargs"]["order"]),
            (f"{name} label order", ours.resampling.label_order, their["resampling_fn_seg_kwargs"]["order"]),
            (f"{name} logits order", ours.resampling.logits_order, their["resampling_fn_probabilities_kwargs"]["order"]),
        ]
        for channel, n in enumerate(ours.normalization):
            if n.scheme == "ct":
                row = statistics[str(channel)]
                expected = [row["mean"], row["std"], row["percentile_00_5"], row["percentile_99_5"]]
                pairs.append((f"{name} channel {channel} CT statistics", [n.mean, n.std, n.lower, n.upper], expected))
    return [f"{what}: ours {ours}, nnU-Net {their}" for what, ours, their in pairs if ours != their]


if __name__ == "__main__":
    sys.exit(main())
