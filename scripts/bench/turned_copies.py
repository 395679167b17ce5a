"""Copies of datasets whose grids are turned in space: are they planned and predicted like the upright ones?

In: datasets in the folder that MEDSEG3D_DATA names (``phantom`` is made). Out: a Markdown table and ``turned_copies.json``. A copy has the
same voxels; its affines are turned by an angle about one axis of the world (0 is left-right), or its axes are stored in other orders and
directions, another one in each case. Plans are those of ``nnunet_plain``, which has nnU-Net's numbers. With ``--minutes`` a model is
trained on the upright dataset and predicts some cases of every copy; voxels that differ from its prediction of the upright ones count.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel
import numpy as np
from measuring import markdown_table, write_json

import medseg3d
from medseg3d.data.phantom import make_phantom_dataset
from medseg3d.frame import ORIENTATIONS
from medseg3d.plan import Plan
from medseg3d.workflows.plan import plan

ANGLES = (15, 40, 44, 46, 60, 90)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One copy; ``differing`` counts voxels of ``num_predicted`` label maps, None where nothing was predicted."""

    dataset: str
    copy: str
    spacing: tuple[float, ...]
    patch: tuple[int, ...]
    is_same_plan: bool
    is_same_but_for_order: bool
    differing: int | None
    num_predicted: int


def main() -> int:
    """All datasets, all copies; exit code 1 where a plan differs in more than the order of the axes inside the slices."""
    options = parse_arguments()
    rows: list[Row] = []
    for name in options.datasets:
        rows += check(name, options)
        write_json(options.output / "turned_copies.json", [asdict(row) for row in rows])
    print(table(rows))
    return 0 if all(row.is_same_but_for_order for row in rows) else 1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--datasets", nargs="+", default=("ACDC", "CHAOS_T2", "phantom"))
    parser.add_argument("--cases", type=int, default=12, help="use the first N cases of each (default: 12)")
    parser.add_argument("--predicted", type=int, default=2, help="cases of each copy to predict (default: 2)")
    parser.add_argument("--minutes", type=float, default=0, help="train so long on the upright dataset (default: not at all)")
    return parser.parse_args()


def check(name: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one dataset."""
    folder = options.output.resolve() / name
    shutil.rmtree(folder, ignore_errors=True)
    source = make_phantom_dataset(folder / "source", num_training=options.cases, num_test=0) if name == "phantom" else data() / name
    names = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").glob("*.nii.gz"))[: options.cases]
    upright = copy_of(source, folder / "upright", names, lambda image, place: image)
    reference = planned(upright)
    model = trained(upright, folder / "model", options.minutes) if options.minutes else None
    expected = {case: predicted(model, upright, case) for case in names[: options.predicted]} if model else {}
    rows = []
    for title, turn in turns(len(names)):
        copy = copy_of(source, folder / "copy", names, turn)
        found, wanted = (made.configuration("3d_fullres") for made in (planned(copy), reference))
        same_spacing = np.allclose(found.spacing, wanted.spacing, rtol=1e-3)
        differing = sum(count(model, copy, case, label_map) for case, label_map in expected.items()) if model else None
        rows.append(
            Row(
                dataset=name,
                copy=title,
                spacing=found.spacing,
                patch=found.patch_size,
                is_same_plan=same_spacing and found.patch_size == wanted.patch_size,
                is_same_but_for_order=np.allclose(sorted(found.spacing), sorted(wanted.spacing), rtol=1e-3)
                and found.patch_size[0] == wanted.patch_size[0]
                and sorted(found.patch_size) == sorted(wanted.patch_size),
                differing=differing,
                num_predicted=len(expected),
            )
        )
        print(rows[-1], flush=True)
    return rows


def data() -> Path:
    """The folder of real datasets."""
    folder = os.environ.get("MEDSEG3D_DATA")
    if not folder:
        sys.exit("MEDSEG3D_DATA names no folder of datasets; give --datasets phantom.")
    return Path(folder)


Turn = Callable[[nibabel.Nifti1Image, int], nibabel.Nifti1Image]


def turns(num_cases: int) -> list[tuple[str, Turn]]:
    """What each copy is called, and how the image of a case is turned."""
    found: list[tuple[str, Turn]] = []
    for axis in range(3):
        for degrees in ANGLES:
            found.append((f"{degrees}° about {('left-right', 'front-back', 'head-foot')[axis]}", turned(axis, degrees)))
    for start in range(0, len(ORIENTATIONS), num_cases):
        found.append((f"orientations {start + 1} to {min(48, start + num_cases)}", stored_otherwise(start)))
    return found


def turned(axis: int, degrees: float) -> Turn:
    """The affine of every case, turned."""
    first, second = ((1, 2), (2, 0), (0, 1))[axis]
    matrix, angle = np.eye(4), np.radians(degrees)
    matrix[[first, second], [first, second]] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return lambda image, place: nibabel.Nifti1Image(np.asarray(image.dataobj), matrix @ image.affine)


def stored_otherwise(start: int) -> Turn:
    """The axes of case k stored in the orientation ``start + k`` of all 48."""
    return lambda image, place: image.as_reoriented(np.array(ORIENTATIONS[(start + place) % len(ORIENTATIONS)]))


def copy_of(source: Path, target: Path, names: list[str], turn: Turn) -> Path:
    """The dataset with all its images and labels turned."""
    shutil.rmtree(target, ignore_errors=True)
    for kind in ("imagesTr", "labelsTr"):
        (target / kind).mkdir(parents=True)
        for path in sorted((source / kind).glob("*.nii.gz")):
            case = path.name.removesuffix(".nii.gz")
            case = case.rpartition("_")[0] if kind == "imagesTr" else case
            if case in names:
                image = turn(nibabel.load(path), names.index(case))
                nibabel.save(image, target / kind / path.name.removesuffix(".gz"))
    text = (source / "dataset.json").read_text(encoding="utf-8").replace(".nii.gz", ".nii")
    (target / "dataset.json").write_text(text, encoding="utf-8")
    return target


def planned(root: Path) -> Plan:
    """The plan of a dataset with nnU-Net's numbers."""
    return plan(root, root.with_name(f"{root.name}-work"), planner="nnunet_plain").plan


def trained(root: Path, work: Path, minutes: float) -> medseg3d.models.model.Model:
    """A model of the planner ``small``, trained on the CPU."""
    medseg3d.run(root, work=work, planner="small", hours=minutes / 60, folds=["0"], device="cpu")
    return medseg3d.load_model(work)


def predicted(model: medseg3d.models.model.Model, root: Path, case: str) -> np.ndarray:
    """The label map in the order of the upright file's axes."""
    channels = [nibabel.load(path) for path in sorted((root / "imagesTr").glob(f"{case}_*.nii"))]
    return model.predict(np.stack([np.asarray(channel.dataobj) for channel in channels]), channels[0].affine)


def count(model: medseg3d.models.model.Model, root: Path, case: str, expected: np.ndarray) -> int:
    """Voxels of a copy's label map that differ from the upright one's, with the axes of the upright file."""
    label_map = predicted(model, root, case)
    if (root.name == "copy" and label_map.shape != expected.shape) or is_reoriented(root, case):
        label_map = as_upright(label_map, root, case)
    return int((label_map != expected).sum())


def is_reoriented(root: Path, case: str) -> bool:
    """Whether the axes of a copy's file are stored in another order or direction than those of the upright one."""
    return not np.array_equal(*(np.asarray(nibabel.load(path).dataobj) for path in label_files(root, case)))


def label_files(root: Path, case: str) -> tuple[Path, Path]:
    """The label map of the copy and of the upright dataset."""
    return root / "labelsTr" / f"{case}.nii", root.with_name("upright") / "labelsTr" / f"{case}.nii"


def as_upright(label_map: np.ndarray, root: Path, case: str) -> np.ndarray:
    """A label map with the axes of the upright file."""
    here, there = (nibabel.orientations.io_orientation(nibabel.load(path).affine) for path in label_files(root, case))
    return nibabel.orientations.apply_orientation(label_map, nibabel.orientations.ornt_transform(here, there))


def table(rows: list[Row]) -> str:
    """One line per copy."""
    return markdown_table(
        ["dataset", "copy", "spacing", "patch", "plan", "differing voxels"],
        [
            [
                row.dataset,
                row.copy,
                "×".join(f"{s:.4g}" for s in row.spacing),
                "×".join(map(str, row.patch)),
                "the same" if row.is_same_plan else "in-plane axes exchanged" if row.is_same_but_for_order else "another",
                "–" if row.differing is None else str(row.differing),
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    raise SystemExit(main())
