"""Time and memory of this project beside nnU-Net 2.8.1, both run now, on this machine, in turns.

In: the Hippocampus set below the folder that MEDSEG3D_DATA names, and CT volumes that are made here. Out: a Markdown table, and
``against_nnunet.json`` with every single run. Measured is the whole process from start to exit, child processes included:
fingerprint and plan, preprocessing of 3d_fullres, and ``--help``. Each program uses its own number of workers. Both plan with
nnU-Net's rules; for the CT volumes the planned spacing is then set to 1.5 mm in both plan files, so that every axis but one is
resampled. A ratio is nnU-Net's median over ours.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from contenders import Ours, Peer, link_dataset
from measuring import Measured, machine, markdown_table, median_seconds, peak_mib, run_measured, write_json
from synthetic_ct import make_ct_dataset

CONFIGURATION = "3d_fullres"
CT_SPACING_MM = 1.5
WANTED = {
    "Hippocampus: fingerprint + plan": 5.0,
    "Hippocampus: preprocess 3d_fullres": 3.0,
    "CT: preprocess 3d_fullres": 5.0,
}
"""The ratios that this project promises."""
WANTED_HELP_SECONDS = 0.3


@dataclass(slots=True, kw_only=True)
class Comparison:
    """The runs of one task by both programs."""

    task: str
    ours: list[Measured] = field(default_factory=list)
    peer: list[Measured] = field(default_factory=list)


def main() -> int:
    """Measure what was asked for and print the table."""
    options = parse_arguments()
    output = options.output.resolve()
    ours = Ours(python=options.our_python)
    peer = Peer(python=options.peer_python, folder=output / "peer")
    comparisons = []
    if "help" in options.tasks:
        comparisons.append(compare_help(ours, peer, output, options.repeat))
    if "hippocampus" in options.tasks:
        data = os.environ.get("MEDSEG3D_DATA")
        if data:
            root = link_dataset(Path(data).resolve() / "Hippocampus", output / "hippocampus")
            comparisons += compare_dataset("Hippocampus", root, 4, ours, peer, output, options)
        else:
            print("MEDSEG3D_DATA names no folder of datasets; Hippocampus is left out.", file=sys.stderr)
    if "ct" in options.tasks:
        root = make_ct_dataset(output / "ct", num_cases=options.ct_cases)
        comparisons += compare_dataset("CT", root, 5, ours, peer, output, options)
    write_json(output / "against_nnunet.json", {"machine": machine(), "comparisons": [asdict(one) for one in comparisons]})
    print(table(comparisons))
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter beside which nnU-Net 2.8.1 is installed")
    parser.add_argument("--our-python", type=Path, default=Path(sys.executable), help="with medseg3d (default: this one)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; medians are compared (default: 3)")
    parser.add_argument("--tasks", nargs="+", default=("help", "hippocampus", "ct"), choices=("help", "hippocampus", "ct"))
    parser.add_argument("--ct-cases", type=int, default=3, help="number of CT volumes (default: 3)")
    parser.add_argument("--peer-processes", type=int, help="nnU-Net's processes (default: its own: 8, then 4)")
    return parser.parse_args()


def compare_help(ours: Ours, peer: Peer, output: Path, repeat: int) -> Comparison:
    """How long a user waits for the list of options; nnU-Net's is that of ``nnUNetv2_train``."""
    comparison = Comparison(task="--help")
    for _ in range(repeat + 1):
        comparison.ours.append(run_measured(ours.command("--help"), log=output / "ours_help.log"))
        command = peer.command("nnUNetv2_train", "--help")
        comparison.peer.append(run_measured(command, log=output / "peer_help.log", environment=peer.environment()))
    del comparison.ours[0], comparison.peer[0]  # the first run compiles bytecode and fills the file cache
    return comparison


def compare_dataset(
    name: str, root: Path, number: int, ours: Ours, peer: Peer, output: Path, options: argparse.Namespace
) -> list[Comparison]:
    """Fingerprint + plan, then preprocessing, of one dataset by both programs in turns, each time from nothing."""
    plan = Comparison(task=f"{name}: fingerprint + plan")
    preprocess = Comparison(task=f"{name}: preprocess {CONFIGURATION}")
    work = output / f"ours_{name.lower()}"
    peer_name = peer.add_dataset(root, number=number, name=name)
    peer_data = peer.preprocessed / peer_name
    environment = peer.environment()
    fingerprint_processes = ("-npfp", str(options.peer_processes)) if options.peer_processes else ()
    processes = ("-np", str(options.peer_processes)) if options.peer_processes else ()

    def run_ours(*words: str | Path) -> Measured:
        return run_measured(ours.command(*words), log=output / f"ours_{name.lower()}.log")

    def run_peer(entry: str, *words: str) -> Measured:
        log = output / f"peer_{name.lower()}.log"
        return run_measured(peer.command(entry, "-d", str(number), *words), log=log, environment=environment)

    for _ in range(options.repeat):
        shutil.rmtree(work, ignore_errors=True)
        plan.ours.append(run_ours("plan", root, "-w", work, "--planner", "nnunet_plain"))
        shutil.rmtree(peer_data, ignore_errors=True)
        plan.peer.append(run_peer("nnUNetv2_plan_and_preprocess", "--no_pp", *fingerprint_processes))
        if name == "CT":
            set_spacing(work / "plan.json")
            set_spacing(peer_data / "nnUNetPlans.json")
        preprocess.ours.append(run_ours("preprocess", root, "-w", work, "-c", CONFIGURATION))
        preprocess.peer.append(run_peer("nnUNetv2_preprocess", "-c", CONFIGURATION, *processes))
    return [plan, preprocess]


def set_spacing(path: Path) -> None:
    """Change the target spacing in a plan file of either program; both keep it under the same two keys."""
    plan = json.loads(path.read_text(encoding="utf-8"))
    plan["configurations"][CONFIGURATION]["spacing"] = [CT_SPACING_MM] * 3
    write_json(path, plan)


def table(comparisons: list[Comparison]) -> str:
    """Medians, ratios and peaks, one row per task."""
    header = ("task", "ours s", "nnU-Net s", "ratio", "wanted", "ours peak MiB", "nnU-Net peak MiB")
    rows = []
    for one in comparisons:
        ours, peer = median_seconds(one.ours), median_seconds(one.peer)
        wanted = f"≥ {WANTED[one.task]:.0f}" if one.task in WANTED else ""
        if one.task == "--help":
            wanted = f"≤ {WANTED_HELP_SECONDS} s"
        peaks = (f"{peak_mib(one.ours):.0f}", f"{peak_mib(one.peer):.0f}")
        rows.append((one.task, f"{ours:.2f}", f"{peer:.2f}", f"{peer / ours:.1f}", wanted, *peaks))
    return markdown_table(header, rows)


if __name__ == "__main__":
    raise SystemExit(main())
