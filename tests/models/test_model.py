"""The loaded model: what it accepts, what it refuses and what it warns of."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

import medseg3d
from medseg3d.commandline.cli import main
from medseg3d.devices import Device
from medseg3d.errors import InputError
from medseg3d.models.model import Model
from medseg3d.networks import packed
from medseg3d.networks.packed import PackedConvolution, can_pack
from medseg3d.work_folder import fold_names

SHAPE = (20, 18, 12)


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    return medseg3d.load_model(trained, device="cpu", mirroring=False)


@pytest.mark.parametrize("folds", [0, "0", [0], ["0"], (0, 0), range(1), np.arange(1)])
def test_folds_may_be_numbers_or_texts_one_or_several(trained: Path, folds: object) -> None:
    assert len(medseg3d.load_model(trained, folds=folds).members[0].networks) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("fold", ["x", -1, 0.0, True, [0, "1x"]])
def test_what_is_no_fold_is_refused(fold: object) -> None:
    with pytest.raises(InputError, match="expected a number from 0 on, or all"):
        fold_names(fold)  # type: ignore[arg-type]


def test_a_fold_that_is_not_trained_is_named(trained: Path) -> None:
    with pytest.raises(InputError, match="no finished fold 3"):
        medseg3d.load_model(trained, folds=3)


def test_the_folder_of_a_fold_is_a_model(trained: Path, tmp_path: Path) -> None:
    weights = trained / "medseg3d-work/models/3d_fullres/fold_0/weights.safetensors"
    assert medseg3d.load_model(weights.parent).identity == medseg3d.load_model(weights).identity
    image = str(trained / "imagesTs/ball_6_0000.nii.gz")
    assert main(["predict", "-m", str(weights.parent), "-i", image, "-o", str(tmp_path / "x.nii.gz"), "-q"]) == 0


@pytest.mark.parametrize("which", ["ball_6", "ball_7"])
def test_an_image_in_memory_gets_the_voxels_of_the_command_line(trained: Path, tmp_path: Path, which: str) -> None:
    file = trained / f"imagesTs/{which}_0000.nii.gz"
    assert main(["predict", str(trained), "-i", str(file), "-o", str(tmp_path / "out.nii.gz"), "--device", "cpu", "-q"]) == 0
    expected, model = np.asarray(nibabel.load(tmp_path / "out.nii.gz").dataobj), medseg3d.load_model(trained, device="cpu")
    assert expected.any()
    image = sitk.ReadImage(str(file))
    for found in (model.predict(nibabel.load(file)), model.predict(image)):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    labels = sitk.GetImageFromArray(np.ascontiguousarray(model.predict(image).T))
    labels.CopyInformation(image)
    sitk.WriteImage(labels, str(tmp_path / "itk.nii.gz"))
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "itk.nii.gz").dataobj), expected)


def nothing(_: np.ndarray) -> None:
    """An affine that was forgotten."""


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda a: a[:3, :3], r"the shape \(3, 3\); expected 4 x 4"),
        (nothing, r"the shape \(\); expected 4 x 4"),
        (lambda a: 0 * a, "0 x 0 x 0 mm"),
        (lambda a: a * np.nan, "nan x nan x nan mm"),
        (lambda a: np.where([[1, 0, 0, 0]], 0, a), "0 x 1 x 1 mm"),
        (lambda a: a[:, [0, 0, 2, 3]], "point the same way"),
        (lambda a: "eye", "no array of numbers"),
    ],
)
def test_an_affine_that_is_none_is_refused_with_what_was_found(model: Model, change: object, found: str) -> None:
    with pytest.raises(InputError, match=found):
        model.predict(np.zeros(SHAPE), change(np.eye(4)))  # type: ignore[operator]


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((0, 4, 4)), np.zeros(SHAPE, complex), np.full(SHAPE, "a")])
def test_an_array_that_is_no_image_is_refused(model: Model, array: np.ndarray) -> None:
    with pytest.raises(InputError, match="An array of"):
        model.predict(array, np.eye(4))


def test_a_single_slice_for_a_model_of_volumes_is_a_warning(
    model: Model, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE[:2], np.int16), np.eye(4)), tmp_path / "flat.nii.gz")
    with caplog.at_level(logging.WARNING):
        model.predict_file(tmp_path / "flat.nii.gz", tmp_path / "out.nii.gz")
    assert "flat: this image has a single slice, and the model was trained on volumes" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model.predict_file(trained / "imagesTs/ball_6_0000.nii.gz", tmp_path / "out.nii.gz")
    assert not caplog.records


def test_a_label_map_in_the_place_of_the_image_is_a_warning(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.zeros(SHAPE)
    labels[4:9, 5:9, 6:9] = model.plan.labels.values[1]
    with caplog.at_level(logging.WARNING):
        model.predict(labels, np.eye(4))
    assert "is it a label map in the place of the image?" in caplog.text
    caplog.clear()
    labels[0, 0, 0] = 0.5
    with caplog.at_level(logging.WARNING):
        model.predict(labels, np.eye(4))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        model.predict(np.zeros(SHAPE), np.eye(4))
    assert "array: this image has the same value everywhere (0)." in caplog.text


@pytest.fixture
def beside(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with DATASET and scan.nii.gz, as the documents name them."""
    (tmp_path / "DATASET").symlink_to(trained)
    shutil.copy(trained / "imagesTs/ball_6_0000.nii.gz", tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_snippet_of_the_documents_saves_what_the_command_line_writes(beside: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/predict.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(snippet)
    assert main(["predict", "DATASET", "-i", "scan.nii.gz", "-o", "cli.nii.gz", "-q"]) == 0
    saved, written = nibabel.load("labels.nii.gz"), nibabel.load("cli.nii.gz")
    assert saved.get_data_dtype() == written.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(saved.dataobj), np.asarray(written.dataobj))
    assert np.array_equal(saved.affine, written.affine)


def test_run_takes_texts_and_numbers_and_tells_every_step(tiny: Path, tmp_path: Path) -> None:
    told: list[str] = []
    result = medseg3d.run(
        str(tiny),
        work=str(tmp_path / "work"),
        planner=str(tiny / "tiny.toml"),
        configurations="3d_fullres",
        channels="MRI",
        folds=0,
        device="cpu",
        on=lambda event: told.append(str(event)),
    )
    assert result.report == tmp_path / "work/report.html"
    assert sorted(path.name for path in (tmp_path / "work/models/3d_fullres").iterdir()) == ["fold_0"]
    assert "fingerprint: 6 of 6" in told
    assert any(line.startswith("epoch ") for line in told)


def test_a_model_of_stored_axes_predicts_files_as_it_predicts_arrays(trained: Path, tmp_path: Path) -> None:
    model = medseg3d.load_model(trained, device="cpu", precision="float32")
    model.plan = replace(model.plan, orientation="as_stored")
    array = np.random.default_rng(0).normal(150, 60, SHAPE).astype(np.float32)
    for affine in (np.diag([1.0, 1.1, 1.5, 1.0]), np.diag([-1.0, 1.1, 1.5, 1.0]), np.eye(4)[[2, 0, 1, 3]]):
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "image.nii.gz")
        model.predict_file(tmp_path / "image.nii.gz", tmp_path / "labels.nii.gz")
        written = np.asarray(nibabel.load(tmp_path / "labels.nii.gz").dataobj)
        assert np.array_equal(written, model.predict(array, affine))


def test_a_window_that_float32_cannot_hold_goes_on_in_half_precision(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Device:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("medseg3d.models.model.checked_precision", full)
    assert medseg3d.load_model(trained, device="cpu").predict(np.ones(SHAPE), np.eye(4)).shape == SHAPE


IMAGE = np.random.default_rng(0).normal(150, 60, (20, 18, 12))


@pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_cpu_predicts_with_prepacked_weights(trained: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = medseg3d.load_model(trained, device="cpu", precision=precision)
    found = model.predict(IMAGE, np.eye(4))
    assert any(isinstance(module, PackedConvolution) for module in model._used[0].networks[0].modules())
    monkeypatch.setattr("medseg3d.models.model.can_pack", lambda: False)
    plain = medseg3d.load_model(trained, device="cpu", precision=precision)
    expected = plain.predict(IMAGE, np.eye(4))
    assert not any(isinstance(module, PackedConvolution) for module in plain._used[0].networks[0].modules())
    assert (found == expected).mean() > 0.999


def _fail(*_: object) -> torch.Tensor:
    raise RuntimeError("could not create a primitive")


@pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda convolve: lambda x, *others: -convolve(x, *others),
            "oneDNN with prepacked weights is wrong on this CPU: encoder.0.0.conv deviates by",
        ),
        (
            lambda convolve: lambda x, *others: convolve(x, *others) * torch.nan,
            "encoder.0.0.conv is not finite, far from float32; going on with torch",
        ),
        (lambda convolve: _fail, "cannot compute this network (could not create a primitive)"),
    ],
    ids=["other numbers", "not finite", "refused"],
)
def test_torch_goes_on_where_a_kernel_is_wrong(
    trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: Any, message: str
) -> None:
    monkeypatch.setattr("medseg3d.models.model.can_pack", lambda: False)
    expected = medseg3d.load_model(trained, device="cpu", precision="float32").predict(IMAGE, np.eye(4))
    monkeypatch.setattr("medseg3d.models.model.can_pack", lambda: True)
    monkeypatch.setattr(packed, "_convolve", wrong(packed._convolve))
    with caplog.at_level("WARNING"):
        found = medseg3d.load_model(trained, device="cpu", precision="float32").predict(IMAGE, np.eye(4))
    assert message in caplog.text
    assert np.array_equal(found, expected)


def test_a_model_for_one_image_leaves_what_it_was_made_of(trained: Path) -> None:
    model = medseg3d.load_model(trained, device="cpu", precision="float32")
    first, second = model.for_one_image(), model.for_one_image()
    assert np.array_equal(first.predict(IMAGE, np.eye(4)), second.predict(IMAGE, np.eye(4)))
    if can_pack():
        assert first._used[0].networks[0] is second._used[0].networks[0] is not model._used[0].networks[0]
    assert first.members == model.members


def test_a_model_that_has_predicted_can_be_copied(trained: Path) -> None:
    model = medseg3d.load_model(trained, device="cpu")
    expected = model.predict(IMAGE, np.eye(4))
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.predict(IMAGE, np.eye(4)), expected)
    assert "conv.weight" in " ".join(model.members[0].networks[0].state_dict())


@pytest.mark.fault("A0", "a tilted copy of an image that a model predicts", "the same voxels as of the upright one")
@pytest.mark.parametrize("degrees", [15, 40, 44, 46, 60, 90])
def test_a_tilted_stack_gets_the_label_map_of_the_upright_one(trained: Path, degrees: float) -> None:
    model = medseg3d.load_model(trained / "medseg3d-work")
    image = nibabel.load(trained / "imagesTs" / "ball_6_0000.nii.gz")
    angle = np.radians(degrees)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    upright, tilted = (model.predict(np.asarray(image.dataobj), affine) for affine in (image.affine, tilt @ image.affine))
    assert upright.any()
    assert np.array_equal(upright, tilted)
