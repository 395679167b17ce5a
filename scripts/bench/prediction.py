"""Prediction of this project beside nnU-Net 2.8.1's: restoring logits, a large CT with many classes, and a whole folder of images.

``restore``: 40 classes, 40 x 150 x 170 x 170 smooth logits in half precision → a label map of 250 x 340 x 340.
``large``: 118 classes on CTs of 512 x 512 x 800 and 1200 at 0.8 mm from logits at 1.5 mm; a small network with random weights, so that
the network is not what is measured. ``folder``: images with a trained nnU-Net result folder, both tools, mirroring on. ``warm``: a loaded
model's calls with one small volume, and what they take beside the network.

In: what is to be measured. Out: Markdown tables and ``prediction.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from contenders import Ours, Peer
from measuring import machine, markdown_table, median_seconds, peak_mib, run_measured, write_json
from synthetic_ct import smooth_noise

LOGITS, NEW_SHAPE = (40, 150, 170, 170), (250, 340, 340)
PARTS = ("restore", "large", "folder", "warm")
WARM_SHAPE, WARM_CALLS = (35, 51, 35), 15
CT_IN_PLANE, CT_SLICES, CT_SPACING, LOGITS_SPACING = 512, (800, 1200), 0.8, 1.5
NUM_CLASSES = 118


def main() -> int:
    """Measure the parts that were asked for."""
    options = parse_arguments()
    results: dict[str, object] = {"machine": machine()}
    for part in options.parts:
        table, facts = {"restore": restore, "large": large, "folder": folder, "warm": warm}[part](options)
        results[part] = facts
        print(f"## {part}\n\n{table}\n", flush=True)
        write_json(options.output / "prediction.json", results)
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peer-python", type=Path, help="interpreter beside which nnU-Net 2.8.1 is installed")
    parser.add_argument("--our-python", type=Path, default=Path(sys.executable), help="with medseg3d (default: this one)")
    parser.add_argument("--runs", type=int, default=3, help="of each measurement that takes less than minutes (default: 3)")
    parser.add_argument("--model", type=Path, help="for folder and warm: a trained nnU-Net result folder (TRAINER__PLANS__CONFIGURATION)")
    parser.add_argument("--images", type=Path, help="for folder: images (default: imagesTr of Hippocampus in MEDSEG3D_DATA)")
    parser.add_argument("--num-images", type=int, default=60)
    parser.add_argument("--slices", type=int, nargs="+", default=list(CT_SLICES), help="for large (default: 800 1200)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def restore(options: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """Seconds and added memory of both, and whether the label maps are equal."""
    file = options.output / "logits.npy"
    if not file.exists():
        generator = np.random.default_rng(0)
        logits = np.stack([smooth_noise(generator, LOGITS[1:]) for _ in range(LOGITS[0])]).astype(np.float16)
        np.save(file, 4 * logits)
    script = Path(__file__).with_name("restore_once.py")
    found: dict[str, list[dict[str, float]]] = {}
    pythons = {"ours": options.our_python, **({"peer": options.peer_python} if options.peer_python else {})}
    for program, python in pythons.items():
        runs = options.runs if program == "ours" else 1
        command = [str(python), str(script), program, str(file), *map(str, NEW_SHAPE)]
        for _ in range(runs):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.setdefault(program, []).append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for program, runs in found.items():
        middle = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
        rows.append((program, f"{middle['seconds']:.1f}", f"{middle['peak_mib'] - middle['before_mib']:.0f}"))
    if "peer" in found:
        ratio = found["peer"][0]["seconds"] / sorted(run["seconds"] for run in found["ours"])[len(found["ours"]) // 2]
        maps = [np.load(file.with_name(f"labels_{program}.npy")) for program in ("ours", "peer")]
        rows.append(("ratio", f"{ratio:.1f}", f"{int((maps[0] != maps[1]).sum())} of {maps[0].size} voxels differ"))
    return markdown_table(("program", "seconds", "added MiB"), rows), {"runs": found}


def large(options: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """Seconds and peak memory at each number of slices, and bytes per voxel that was added."""
    model = options.output / "large_model" / "weights.safetensors"
    write_model(model)
    ours = Ours(python=options.our_python)
    measured = {}
    for slices in options.slices:
        image = options.output / f"ct_{slices}.nii.gz"
        if not image.exists():
            write_ct(image, slices)
        out = options.output / f"ct_{slices}_labels.nii.gz"
        command = ours.command(
            "predict", "-m", model, "-i", image, "-o", out, "--tta", "off", "--overwrite", "--device", options.device, "-v"
        )
        measured[slices] = run_measured(command, log=options.output / "large.log")
        (out.parent / "predictions.json").unlink(missing_ok=True)
    rows = [(slices, f"{run.seconds:.0f}", f"{run.peak_mib or 0:.0f}") for slices, run in measured.items()]
    first, last = options.slices[0], options.slices[-1]
    grown = (measured[last].peak_mib or 0) - (measured[first].peak_mib or 0)
    if last != first:  # with a single number there is nothing to compare
        per_voxel = grown * 2**20 / (CT_IN_PLANE**2 * (last - first))
        rows.append(("bytes per added voxel", "", f"{per_voxel:.1f}"))
    logits = [round(n * CT_SPACING / LOGITS_SPACING) for n in (first, CT_IN_PLANE, CT_IN_PLANE)]
    needed = NUM_CLASSES * first * CT_IN_PLANE**2 * 4 / 2**30
    note = (
        f"nnU-Net 2.8.1 holds {NUM_CLASSES} x {' x '.join(map(str, logits))} logits in half precision "
        f"({NUM_CLASSES * np.prod(logits) * 2 / 2**30:.0f} GiB) and resamples all classes to full size in float32 ({needed:.0f} GiB)."
    )
    facts = {str(slices): {"seconds": run.seconds, "peak_mib": run.peak_mib} for slices, run in measured.items()}
    return markdown_table(("slices", "seconds", "peak MiB"), rows) + "\n\n" + note, facts


def write_model(path: Path) -> None:
    """A plain U-Net of three stages with random weights for 118 classes of CT at 1.5 mm."""
    import torch

    from medseg3d.labels import Labels
    from medseg3d.models.checkpoints import ModelCard, save_weights
    from medseg3d.networks.build import build_network
    from medseg3d.plan import Configuration, NetworkPlan, Normalization, Plan, Resampling, TrainingPlan

    if path.exists():
        return
    network = NetworkPlan(
        family="plain_unet", dimensions=3, in_channels=1, num_classes=NUM_CLASSES, features=(8, 16, 32), kernel_sizes=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1), deep_supervision=False,
    )  # fmt: skip
    configuration = Configuration(
        name="3d_fullres", spacing=(LOGITS_SPACING,) * 3, median_shape=(400.0, 273.0, 273.0), patch_size=(64, 128, 128), batch_size=2,
        batch_dice=False, network=network, normalization=(Normalization(scheme="ct", mean=0.0, std=300.0, lower=-1000.0, upper=1000.0),),
        resampling=Resampling(), training=TrainingPlan(), mirror_axes=(0, 1, 2),
    )  # fmt: skip
    labels = Labels(names=("background", *(f"organ_{i}" for i in range(1, NUM_CLASSES))), values=tuple(range(NUM_CLASSES)))
    plan = Plan(
        dataset="large", planner="made by hand", orientation="canonical", axis_order=(0, 1, 2), channels=("CT",), modality_reason="given",
        labels=labels, num_training=0, gpu_memory_gb=8.0, configurations={"3d_fullres": configuration}, recommended="3d_fullres",
        recommended_reason="the only one", fingerprint_digest="",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = build_network(network, generator=torch.Generator().manual_seed(0))
    save_weights(path, weights, ModelCard(plans={"": plan}, configurations={"": "3d_fullres"}, fold="0"))


def write_ct(path: Path, slices: int) -> None:
    """A body-like int16 volume, written slab by slab; little noise, so that it compresses as a CT does."""
    from medseg3d.images import write_image

    generator = np.random.default_rng(0)
    wave = smooth_noise(generator, (CT_IN_PLANE, CT_IN_PLANE, slices))
    wave *= 150
    noise = (4 * generator.standard_normal((CT_IN_PLANE, CT_IN_PLANE, 50))).astype(np.float32)
    volume = np.empty(wave.shape, np.int16, order="F")
    for k in range(slices):
        volume[..., k] = np.clip(wave[..., k] + noise[..., k % 50], -1000, 1500)
    write_image(path, volume, np.diag([-CT_SPACING, -CT_SPACING, CT_SPACING, 1.0]))


def folder(options: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """A folder of images with the same nnU-Net weights, both programs; seconds, memory, and the share of equal voxels."""
    if options.model is None:
        raise SystemExit("folder needs --model: a trained nnU-Net result folder.")
    data = os.environ.get("MEDSEG3D_DATA")
    source = options.images or (Path(data) / "Hippocampus" / "imagesTr" if data else None)
    if source is None:
        raise SystemExit("folder needs --images, or MEDSEG3D_DATA.")
    return compare_folders(
        options.model, source, options.output, options.our_python, options.peer_python, options.num_images, options.device, options.runs
    )


def warm(options: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """Milliseconds of the second and further calls of a loaded model, of this interpreter: all, in the networks, and the rest."""
    import torch

    from medseg3d import load_model

    model = load_model(options.model, device=options.device, mirroring=True)
    image = np.random.default_rng(0).normal(size=WARM_SHAPE)
    model.predict(image, np.eye(4))
    inside: list[float] = []
    began = [0.0]

    def now() -> float:
        if model.device.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for network in model._used[0].networks:  # as converted for the device
        network.register_forward_pre_hook(lambda *_: began.__setitem__(0, now()))
        network.register_forward_hook(lambda *_: inside.append(now() - began[0]))
    calls = []
    for _ in range(WARM_CALLS):
        inside.clear()
        start = now()
        model.predict(image, np.eye(4))
        total = now() - start
        calls.append((total, sum(inside), total - sum(inside)))
    whole, networks, rest = (1000 * float(np.median(each)) for each in zip(*calls, strict=True))
    header = ("volume", "a call, ms", "in the networks, ms", "the rest, ms")
    row = ("×".join(map(str, WARM_SHAPE)), f"{whole:.0f}", f"{networks:.0f}", f"{rest:.1f}")
    return markdown_table(header, [row]), {"calls": calls, "precision": model.device.precision}


def compare_folders(
    model: Path, source: Path, output: Path, our_python: Path, peer_python: Path | None, num_images: int, device: str, num_runs: int
) -> tuple[str, dict[str, object]]:
    """Predict the first images of a folder with an nnU-Net result folder: ours in both precisions, and nnU-Net once."""
    images = output / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    cases = sorted({file.name[: -len("_0000.nii.gz")] for file in source.glob("*_0000.nii.gz")})[:num_images]
    for file in sorted(source.glob("*.nii.gz")):
        if file.name[: -len("_0000.nii.gz")] in cases:
            (images / file.name).symlink_to(file.resolve())
    log = output / "folder.log"
    ours = Ours(python=our_python)
    runs = {}
    for precision in ("float32", "auto"):
        out = output / f"ours_{precision}"
        repeated = []
        for _ in range(num_runs):
            shutil.rmtree(out, ignore_errors=True)
            command = ours.command("predict", "-m", model, "-i", images, "-o", out, "--tta", "on", "--device", device)
            repeated.append(run_measured([*command, "--precision", precision], log=log))
        runs[f"ours, {precision}"] = (repeated, out)
    if peer_python:
        peer = Peer(python=peer_python, folder=output / "peer")
        out = output / "peer_predictions"
        shutil.rmtree(out, ignore_errors=True)
        folds = [path.name.removeprefix("fold_") for path in sorted(model.glob("fold_*"))]
        command = peer.command("nnUNetv2_predict_from_modelfolder", "-i", images, "-o", out, "-m", model, "-f", *folds)
        command += ["-device", device, "-npp", "1", "-nps", "1", "--disable_progress_bar"]
        runs["nnU-Net 2.8.1"] = ([run_measured(command, log=log, environment=peer.environment())], out)
    reference = runs.get("nnU-Net 2.8.1")
    rows, facts = [], {}
    for name, (measured, out) in runs.items():
        seconds = median_seconds(measured)
        ratio = median_seconds(reference[0]) / seconds if reference else None
        agreement = agreement_of(out, reference[1]) if reference and out != reference[1] else None
        rows.append(
            (
                name,
                f"{seconds:.1f}",
                "–" if ratio is None else f"{ratio:.1f}",
                f"{peak_mib(measured):.0f}",
                "–" if agreement is None else f"{100 * agreement:.4f} %",
                len(values_in(out)),
            )
        )
        facts[name] = {
            "seconds": [run.seconds for run in measured],
            "peak_mib": peak_mib(measured),
            "agreement": agreement,
            "values": values_in(out),
        }
    return markdown_table(("program", "seconds", "times as fast", "peak MiB", "equal voxels", "label values"), rows), facts


def values_in(folder: Path) -> list[int]:
    """The label values in all files: equal voxels say nothing where all of them are background."""
    from medseg3d.images import read_image

    return sorted({int(value) for file in folder.glob("*.nii.gz") for value in np.unique(read_image(file).array)})


def agreement_of(first: Path, second: Path) -> float:
    """The share of voxels with equal labels over all files of both folders."""
    from medseg3d.images import read_image

    equal = total = 0
    for file in sorted(second.glob("*.nii.gz")):
        a, b = (read_image(folder / file.name).array for folder in (first, second))
        equal += int((a == b).sum())
        total += a.size
    return equal / total


if __name__ == "__main__":
    sys.exit(main())
