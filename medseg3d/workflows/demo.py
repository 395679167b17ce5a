"""``medseg3d demo DIR``: write the phantom dataset into a folder, and its test images as DICOM series where that is wanted."""

from __future__ import annotations

from pathlib import Path

from medseg3d.data.phantom import make_case, make_phantom_dataset
from medseg3d.dicom_objects.outputs import require_dicom
from medseg3d.dicom_objects.series import write_series
from medseg3d.errors import DatasetError
from medseg3d.options import SeedOptions

DICOM = "dicom"


def demo(folder: Path | str, *, num_training: int = 24, num_test: int = 6, seed: int = 0, dicom: bool = False) -> Path:
    """Write the phantom dataset into ``folder``, which is made if missing, and return it; with ``dicom`` its test images also as series, in
    ``folder/dicom/CASE``.

    A phantom dataset that is already there is written again; raises :class:`DatasetError` where the folder holds anything else.
    """
    SeedOptions(seed=seed)  # refuses what the command line refuses
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not _is_phantom(folder):
        raise DatasetError(f"{folder}: the folder is not empty and not a phantom dataset. Name a new folder.")
    if dicom:
        require_dicom("medseg3d demo --dicom")
    make_phantom_dataset(folder, num_training=num_training, num_test=num_test, seed=seed)
    for number in range(num_training, num_training + num_test) if dicom else ():
        case, name = make_case(number, seed=seed), f"phantom_{number:03d}"
        write_series(folder / DICOM / name, case.image, case.affine, patient=name, description="T1 phantom")
    return folder


def _is_phantom(folder: Path) -> bool:
    description = folder / "dataset.json"
    return description.is_file() and '"name": "Phantom"' in description.read_text(encoding="utf-8", errors="replace")
