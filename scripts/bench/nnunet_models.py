"""Models of nnU-Net 2.8.1 in this project: train a small one on real data with nnU-Net, predict with both, compare every voxel.

In: the folder of datasets that MEDSEG3D_DATA names. Out: a Markdown table per dataset, and ``nnunet_models.json``; exit code 1 where
the float32 predictions agree on fewer than 99.95 % of the voxels, or where nnU-Net predicts nothing but background. The networks are
trained for 200 iterations, on patches small enough for a CPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from contenders import Peer
from measuring import machine, run_measured, write_json
from prediction import compare_folders

DATASETS = {"Hippocampus": 4, "CHAOS_T2": 38}
"""With the numbers that nnU-Net knows them by."""
CONFIGURATION = "3d_fullres"
TRAINER = "BenchFewIterations"
WANTED_AGREEMENT = 0.9995


def main() -> int:
    """Train and compare; what is trained already in the output folder is used again."""
    options = parse_arguments()
    data = os.environ.get("MEDSEG3D_DATA")
    if not data:
        print("MEDSEG3D_DATA names no folder of datasets; nothing to measure.", file=sys.stderr)
        return 2
    results: dict[str, object] = {"machine": machine()}
    is_met = True
    for name in options.datasets:
        root = Path(data).resolve() / name
        model = train(root, name, options)
        output = options.output / name
        table, facts = compare_folders(
            model, root / "imagesTr", output, options.our_python, options.peer_python, options.num_images, options.device, options.runs
        )
        print(f"## {name}\n\n{table}\n", flush=True)
        results[name] = facts
        says_something = len(facts["nnU-Net 2.8.1"]["values"]) > 1  # type: ignore[index]
        is_met &= says_something and facts["ours, float32, torch"]["agreement"] >= WANTED_AGREEMENT  # type: ignore[index]
        write_json(options.output / "nnunet_models.json", results)
    return 0 if is_met else 1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter beside which nnU-Net 2.8.1 is installed")
    parser.add_argument("--our-python", type=Path, default=Path(sys.executable), help="with medseg3d (default: this one)")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--num-images", type=int, default=10)
    parser.add_argument("--gpu-memory", default="1", help="GB that nnU-Net plans for (default: 1, for small patches)")
    parser.add_argument("--runs", type=int, default=1, help="of ours; the median counts")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def train(root: Path, name: str, options: argparse.Namespace) -> Path:
    """nnU-Net's own result folder of a short training."""
    peer = Peer(python=options.peer_python, folder=options.output / "peer")
    environment = {**peer.environment(data_workers=1), "nnUNet_compile": "f"}
    number = str(DATASETS[name])
    dataset = f"Dataset{DATASETS[name]:03d}_{name}"
    result = peer.results / dataset / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}"
    if (result / "fold_0" / "checkpoint_final.pth").exists():
        return result
    peer.add_dataset(root, number=DATASETS[name], name=name)
    log = options.output / f"{name}.log"
    commands = [
        peer.command(
            "nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "-gpu_memory_target", options.gpu_memory, "-np", "2"
        ),
        peer.command("nnUNetv2_train", number, CONFIGURATION, "0", "-tr", TRAINER, "-device", options.device),
    ]
    for command in commands:
        run_measured(command, log=log, environment=environment)
    return result


if __name__ == "__main__":
    sys.exit(main())
