"""The two programs that are compared, as command lines: this project's, and nnU-Net 2.8.1 in its own interpreter.

In: interpreters and folders. Out: commands and environments for :func:`measuring.run_measured`. A dataset is linked into
nnU-Net's folders, never copied, and nothing is changed in the peer's installation: its trainers come from ``nnUNet_extTrainer``.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

TRAINERS = Path(__file__).with_name("peer_trainer.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """``python -m medseg3d`` of one interpreter."""

    python: Path

    def command(self, *words: str | Path) -> list[str]:
        """A command line of this project."""
        return [str(self.python), "-m", "medseg3d", *map(str, words)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """nnU-Net beside one interpreter, with its three folders inside ``folder``."""

    python: Path
    folder: Path

    @property
    def raw(self) -> Path:
        """nnU-Net's datasets."""
        return self.folder / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        """nnU-Net's fingerprints, plans and preprocessed cases."""
        return self.folder / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        """nnU-Net's trained models."""
        return self.folder / "nnUNet_results"

    def command(self, entry: str, *words: str | Path) -> list[str]:
        """A command line of one of nnU-Net's programs, such as ``nnUNetv2_train``, as installed beside the interpreter."""
        return [str(self.python.parent / entry), *map(str, words)]

    def environment(self, *, data_workers: int | None = None) -> dict[str, str]:
        """nnU-Net's folders, our trainers, and how many processes augment."""
        trainers = self.folder / "trainers"
        trainers.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TRAINERS, trainers / TRAINERS.name)
        for folder in (self.raw, self.preprocessed, self.results):
            folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": str(trainers),
        }
        if data_workers is not None:
            settings["nnUNet_n_proc_DA"] = str(data_workers)
        return settings

    def add_dataset(self, root: Path, *, number: int, name: str) -> str:
        """Link a dataset into nnU-Net's raw folder and return the name it has there."""
        folder = link_dataset(root, self.raw / f"Dataset{number:03d}_{name}")
        return folder.name


def link_dataset(root: Path, folder: Path, *, cases: list[str] | None = None) -> Path:
    """A dataset folder of links to the files of ``root``, of some cases or of all, with a ``dataset.json`` that counts them."""
    description = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    ending = description["file_ending"]
    names = sorted(path.name.removesuffix(ending) for path in (root / "labelsTr").iterdir() if path.name.endswith(ending))
    chosen = [name for name in names if cases is None or name in cases]
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for name in chosen:
        (folder / "labelsTr" / f"{name}{ending}").symlink_to((root / "labelsTr" / f"{name}{ending}").resolve())
        for channel in range(len(description["channel_names"])):
            file = f"{name}_{channel:04d}{ending}"
            (folder / "imagesTr" / file).symlink_to((root / "imagesTr" / file).resolve())
    description["numTraining"] = len(chosen)
    (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return folder


def case_names(root: Path) -> list[str]:
    """The sorted names of the labelled cases of a dataset in nnU-Net's layout."""
    return sorted(path.name.removesuffix(".nii.gz") for path in (root / "labelsTr").glob("*.nii.gz"))
