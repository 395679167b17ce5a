"""One valid file of each format, and where it stands: what the mutations begin with."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import SimpleITK as sitk

from tests.listening.test_rules import GOOD
from tests.tiny_planner import tiny_planner

TEXT_HEADERS = (
    ("NRRD", ".nrrd", False),
    ("NRRD, gzip", ".nrrd", True),
    ("NRRD, detached", ".nhdr", False),
    ("MetaImage", ".mha", False),
    ("MetaImage, zlib", ".mha", True),
    ("MetaImage, detached", ".mhd", False),
)
SHAPE = (14, 12, 10)
"""(x, y, z): large enough to be planned, small enough to be planned hundreds of times."""
Kind = Literal["binary", "nifti", "nifti_gz", "text_header", "text"]

PLANNER = tiny_planner(epochs=1, iterations=1, validations=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """A folder with everything that is needed, and the file in it that is mutated; ``kind`` chooses the mutations."""

    folder: Path
    file: str
    kind: Kind

    @property
    def content(self) -> bytes:
        """The file as it is right."""
        return (self.folder / self.file).read_bytes()


def volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (x, y, z) int16 of noise with a marker, and its label map."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:7, 3:8, 2:6] = 1
    image = np.random.default_rng(seed).normal(100, 10, SHAPE) + 300.0 * label
    return image.astype(np.int16), label


def make_seeds(root: Path) -> dict[str, Seed]:
    """Every format but the models, which :func:`make_models` adds."""
    seeds: dict[str, Seed] = {}
    for name, ending, is_packed in TEXT_HEADERS:
        folder = root / f"{ending[1:]}{is_packed:d}"
        folder.mkdir(parents=True)
        sitk.WriteImage(sitk.GetImageFromArray(volume(0)[0].transpose(2, 1, 0)), str(folder / f"a{ending}"), is_packed)
        seeds[name] = Seed(folder=folder, file=f"a{ending}", kind="text_header")
    for name, ending, kind in (("NIfTI", ".nii", "nifti"), ("NIfTI, gzip", ".nii.gz", "nifti_gz")):
        folder = root / ending[1:]
        folder.mkdir()
        nibabel.save(nibabel.Nifti1Image(volume(0)[0], np.diag([1.0, 1, 2, 1])), folder / f"a{ending}")
        seeds[name] = Seed(folder=folder, file=f"a{ending}", kind=kind)  # type: ignore[arg-type]
    folder = root / "nifti2"
    folder.mkdir()
    nibabel.save(nibabel.Nifti2Image(volume(0)[0], np.eye(4)), folder / "a.nii")
    seeds["NIfTI-2"] = Seed(folder=folder, file="a.nii", kind="binary")
    seeds["DICOM"] = Seed(folder=_dicom(root / "dicom"), file="series/1.dcm", kind="binary")
    seeds |= _segmentations(root)
    base = make_dataset(root / "dataset")
    seeds["dataset.json"] = Seed(folder=base, file="dataset.json", kind="text")
    splits = _copy(base, root / "splits")
    (splits / "splits_final.json").write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}]), encoding="utf-8")
    seeds["splits_final.json"] = Seed(folder=splits, file="splits_final.json", kind="text")
    for name, text in (("labels.csv", "value,name\n1,marker\n2,other\n"), ("labels.json", '{"1": "marker", "2": "other"}')):
        labels = _copy(base, root / name)
        (labels / "dataset.json").unlink()
        (labels / name).write_text(text, encoding="utf-8")
        seeds[name] = Seed(folder=labels, file=name, kind="text")
    annotated = _copy(base, root / "annotated")
    (annotated / "annotated.csv").write_text("case,labels\na,marker\nb*,*\n", encoding="utf-8")
    seeds["annotated.csv"] = Seed(folder=annotated, file="annotated.csv", kind="text")
    for name, text in (
        ("planner.toml", PLANNER),
        ("groups.csv", "case,group\na,x\nb,x\nc,y\n"),
        ("listen.toml", GOOD),
        ("codes.csv", "name,code,scheme,meaning\nmarker,64033007,SCT,Kidney\n"),
    ):
        folder = root / name
        folder.mkdir()
        (folder / "liver.medseg3d").touch()
        (folder / name).write_text(text, encoding="utf-8")
        seeds[name] = Seed(folder=folder, file=name, kind="text")
    return seeds


def _segmentations(root: Path) -> dict[str, Seed]:
    """Label maps that name their structures: of 3D Slicer, and of DICOM."""
    from medseg3d.dicom_objects.seg import segmentation
    from tests.dicom_objects.conftest import result_on

    label = sitk.GetImageFromArray(volume(0)[1].transpose(2, 1, 0))
    for key, value in {"ID": "Segment_1", "Name": "marker", "LabelValue": "1", "Layer": "0", "Extent": "0 13 0 11 0 9"}.items():
        label.SetMetaData(f"Segment0_{key}", value)
    (root / "slicer").mkdir()
    sitk.WriteImage(label, str(root / "slicer/a.seg.nrrd"))
    (root / "seg").mkdir()
    segmentation(result_on(root / "series_of_seg")).save_as(root / "seg/a.dcm")
    return {
        "NRRD of 3D Slicer": Seed(folder=root / "slicer", file="a.seg.nrrd", kind="text_header"),
        "DICOM SEG": Seed(folder=root / "seg", file="a.dcm", kind="binary"),
    }


def make_dataset(root: Path) -> Path:
    """Three cases in nnU-Net's layout."""
    for index, name in enumerate("abc"):
        for part, array in zip(("imagesTr", "labelsTr"), volume(index), strict=True):
            (root / part).mkdir(parents=True, exist_ok=True)
            file = root / part / (f"{name}_0000.nii.gz" if part == "imagesTr" else f"{name}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1, 2, 1])), file)
    declared = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "marker": 1}, "numTraining": 3, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(declared, indent=1), encoding="utf-8")
    return root


def make_models(root: Path, dataset: Path) -> dict[str, Seed]:
    """A model of one training step, as a work folder, a file of weights and a model file; takes ten seconds."""
    from medseg3d.workflows.export import export_model
    from medseg3d.workflows.plan import plan
    from medseg3d.workflows.preprocess import preprocess
    from medseg3d.workflows.train import train

    data = _copy(dataset, root / "trained")
    (data / "tiny.toml").write_text(PLANNER, encoding="utf-8")
    plan(data, planner=str(data / "tiny.toml"))
    preprocess(data, configurations=["3d_fullres"])
    train(data, configuration="3d_fullres", device="cpu", tta="off")
    work = data / "medseg3d-work"
    weights = next(work.rglob("weights.safetensors"))
    (root / "weights").mkdir()
    shutil.copy(weights, root / "weights/a.safetensors")
    (root / "model").mkdir()
    export_model(work, root / "model/a.medseg3d")
    (root / "plan").mkdir()
    for name in ("plan.json", "fingerprint.json"):
        shutil.copy(work / name, root / "plan" / name)
    return {
        "weights.safetensors": Seed(folder=root / "weights", file="a.safetensors", kind="binary"),
        "model.medseg3d": Seed(folder=root / "model", file="a.medseg3d", kind="binary"),
        "plan.json": Seed(folder=root / "plan", file="plan.json", kind="text"),
        "fingerprint.json": Seed(folder=root / "plan", file="fingerprint.json", kind="text"),
    }


def _copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def _dicom(root: Path) -> Path:
    """A series of four slices."""
    series = root / "series"
    series.mkdir(parents=True)
    image = sitk.GetImageFromArray(volume(0)[0].transpose(2, 1, 0)[:4])
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    tags = {
        "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
        "0008|0060": "MR",
        "0020|000d": "1.2.3",
        "0020|000e": "1.2.3.4",
        "0020|0037": "1\\0\\0\\0\\1\\0",
    }
    for k in range(4):
        piece = image[:, :, k]
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        piece.SetMetaData("0008|0018", f"1.2.3.4.{k}")
        piece.SetMetaData("0020|0032", f"0\\0\\{2 * k}")
        piece.SetMetaData("0020|0013", str(k))
        writer.SetFileName(str(series / f"{k}.dcm"))
        writer.Execute(piece)
    return root
