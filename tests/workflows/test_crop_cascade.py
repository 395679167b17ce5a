"""A crop cascade through the verbs: a coarse network finds the box, a fine one is trained and predicts inside of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d import load_model
from medseg3d.commandline.cli import main
from medseg3d.data.prediction_cases import prediction_cases
from medseg3d.domain import domain_of
from medseg3d.models.loading import load_models
from medseg3d.planning.crop import CROPPED, DETECTOR
from medseg3d.preprocessing.boxed_case import BoxedCase
from medseg3d.preprocessing.store import Store
from medseg3d.records import read_record
from medseg3d.validation.box import BOXES, BoxChoice
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.train import training_domain
from tests.tiny_planner import tiny_planner

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def crop(in_float32: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases of 30 × 28 × 24 voxels with a bright ball of one percent of them, run as a crop cascade for fold 0."""
    root = tmp_path_factory.mktemp("crop") / "Small"
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (30, 28, 24)), indexing="ij")).astype(float)
    for number in range(5):
        center = rng.uniform(7, 17, 3)
        labels = (np.sqrt(((grid - center[:, None, None, None]) ** 2).sum(0)) < 3.7).astype(np.uint8)
        image = (labels * 300.0 + rng.normal(100, 10, labels.shape)).astype(np.int16)
        kind = "Ts" if number == 4 else "Tr"
        for folder, array, ending in ((f"images{kind}", image, "_0000"), (f"labels{kind}", labels, "")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), root / folder / f"c{number}{ending}.nii.gz")
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 1}, "numTraining": 4, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    folds = [{"train": ["c2", "c3"], "val": ["c0", "c1"]}, {"train": ["c0", "c1"], "val": ["c2", "c3"]}]
    (root / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    planner = tiny_planner(epochs=1, iterations=2, validations=1) + "[patch]\ninitial_edge_3d = 14\n[lowres]\npatch_share = 0.05\n"
    (root / "tiny.toml").write_text(planner, encoding="utf-8")
    command = ["run", str(root), "--planner", str(root / "tiny.toml"), "-c", CROPPED, "--folds", "0", "--device", "cpu", "-q"]
    assert main(command) == 0
    return root


def test_run_does_all_of_it_and_select_compares(crop: Path) -> None:
    work = WorkFolder(crop / "medseg3d-work")
    assert work.finished_folds(DETECTOR) == ("0", "1")
    selection = json.loads(work.selection.read_text(encoding="utf-8"))
    assert {tuple(found["configurations"]) for found in selection["candidates"]} == {(DETECTOR,), (CROPPED,)}
    choice = read_record(work.fold(CROPPED, "0") / BOXES, BoxChoice, "boxes")
    assert choice.num_cases == 4
    assert choice.rule.margin_mm >= choice.needed_mm


def test_what_lies_beyond_the_box_is_background_and_the_rest_is_that_of_the_box(crop: Path) -> None:
    work = WorkFolder(crop / "medseg3d-work")
    model = load_models(work, [CROPPED], folds=["0"], device="cpu")
    (case,) = prediction_cases(crop / "imagesTs", num_channels=1)
    located = model.locate(model.prepare(model.read(case)))
    box = located.images[CROPPED].restoration.box
    outside = np.ones(located.shape, bool)
    outside[tuple(slice(*edge) for edge in box)] = False  # the network's order of axes is that of the volume here
    indices = model.segment(located)
    assert not indices[outside].any()
    assert np.array_equal(indices, model.segment(model.prepare(model.read(case)))), "asked for or not, the box is found once"


def test_a_case_where_nothing_is_found_is_seen_whole_and_says_so(crop: Path) -> None:
    (case,) = prediction_cases(crop / "imagesTs", num_channels=1)
    model = load_model(crop, configuration=CROPPED, device="cpu")
    (member,) = model.members
    assert member.previous is not None
    for network in member.previous.networks:  # a detector that is sure of the background
        head = [module for module in network.modules() if getattr(module, "out_channels", 0) == 2 and hasattr(module, "kernel_size")][-1]
        for parameter in network.parameters():
            parameter.data.zero_()
        head.bias.data[0] = 5.0
    located = model.locate(model.prepare(model.read(case)))
    assert located.notes == (f"{DETECTOR} found nothing, so {CROPPED} saw the whole case",)
    assert located.images[CROPPED].restoration.box == ((0, 24), (0, 28), (0, 30))


def test_a_model_file_holds_both_stages_and_the_box(crop: Path, tmp_path: Path) -> None:
    file, images = tmp_path / "crop.medseg3d", str(crop / "imagesTs")
    assert main(["export", str(crop), "-c", CROPPED, "-o", str(file), "-q"]) == 0
    for source, out in ((["-m", str(file)], "file"), ([str(crop), "-c", CROPPED], "folder")):
        command = ["predict", *source, "-i", images, "-o", str(tmp_path / out), "--device", "cpu", "--probabilities", "-q"]
        assert main(command) == 0
    first, second = (np.asarray(nibabel.load(tmp_path / out / "c4.nii.gz").dataobj) for out in ("file", "folder"))
    assert np.array_equal(first, second)
    with np.load(tmp_path / "file/c4.npz") as found:
        assert np.allclose(found["probabilities"].astype(np.float32).sum(0), 1, atol=5e-3)


def test_an_ensemble_with_the_whole_way_is_the_mean_of_both(crop: Path) -> None:
    """Beyond the box the crop cascade is sure of the background."""
    work = WorkFolder(crop / "medseg3d-work")
    (case,) = prediction_cases(crop / "imagesTs", num_channels=1)
    chances = []
    for names in ([DETECTOR], [CROPPED], [DETECTOR, CROPPED]):
        model = load_models(work, names, folds=["0"], device="cpu", mirroring=False)
        prepared = model.prepare(model.read(case))
        found = np.zeros((2, *prepared.shape), np.float32)
        model.segment(prepared, probabilities=found)
        chances.append(found)
    assert np.allclose(chances[2], (chances[0] + chances[1]) / 2, atol=1e-5)


def test_training_sees_the_boxes_and_nothing_else(crop: Path) -> None:
    domain = training_domain(replace(domain_of(crop, None), configuration=CROPPED), "0", device="cpu")
    assert domain.boxes is not None
    store = Store(WorkFolder(crop / "medseg3d-work").store(domain.configuration.data))
    for case in (*domain.training, *domain.validation):
        assert isinstance(case, BoxedCase)
        whole = store.read(case.name)
        place = tuple(slice(*edge) for edge in case.box)
        assert np.array_equal(case.image[:], whole.image[(slice(None), *place)])
        assert np.array_equal(BoxedCase(whole, case.box).labels[2:5, 1:], case.labels[2:5, 1:])  # type: ignore[index]
        assert case.labels is not None
        for index, voxels in case.foreground.items():
            assert (np.asarray(case.labels[:])[tuple(voxels.T)] == index).all()
        assert (np.asarray(case.labels[:]) > 0).sum() == (np.asarray(whole.labels) > 0).sum(), "no foreground is cut"
