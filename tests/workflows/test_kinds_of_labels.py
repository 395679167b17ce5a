"""Regions, ignored voxels, partly annotated cases and soft labels, each from its files to a trained and measured network."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medseg3d import load_model
from medseg3d.commandline.cli import main
from medseg3d.data.digests import digest_of
from medseg3d.data.open_dataset import open_dataset
from medseg3d.patches.augmentation import augment
from medseg3d.preprocessing.store import Store, StoredCase
from medseg3d.training.domains import TrainingDomain, patch_loader
from medseg3d.work_folder import WorkFolder
from tests.kinds_of_labels import half_annotated, regions_with_ignore, soft
from tests.tiny_planner import tiny_planner


def prepared(root: Path) -> Path:
    assert main(["plan", str(root), "--planner", str(root / "tiny.toml"), "-q"]) == 0
    assert main(["preprocess", str(root), "-c", "3d_fullres", "-q"]) == 0
    return root


def domain_of(root: Path) -> TrainingDomain:
    plan = WorkFolder(root / "medseg3d-work").read_plan()
    configuration = plan.configuration("3d_fullres")
    store = Store(root / "medseg3d-work/preprocessed" / configuration.data)
    cases = [store.read(name, in_memory=True) for name in store.names()]
    return TrainingDomain(name="", plan=plan, configuration=configuration, training=cases, validation=cases[:1])


def trained(root: Path) -> list[dict]:
    """The history of fold 0 and, in the last entry, its evaluation."""
    assert main(["train", str(prepared(root)), "-c", "3d_fullres", "--fold", "0", "--device", "cpu", "-q"]) == 0
    fold = root / "medseg3d-work/models/3d_fullres/fold_0"
    history = [json.loads(line) for line in (fold / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return [*history, json.loads((fold / "validation/metrics.json").read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = regions_with_ignore(tmp_path_factory.mktemp("kinds") / "Regions")
    assert main(["run", str(root), "--planner", str(root / "tiny.toml"), "-c", "3d_fullres", "--folds", "0", "--device", "cpu", "-q"]) == 0
    return root


def test_a_dataset_of_regions_goes_all_the_way(regions: Path, tmp_path: Path) -> None:
    work = regions / "medseg3d-work"
    plan = WorkFolder(work).read_plan()
    assert (plan.labels.regions, plan.labels.ignore) == (((1, 2), (2,)), 3)
    assert plan.configurations["3d_fullres"].network.num_classes == 2
    metrics = json.loads((work / "predictions/metrics.json").read_text(encoding="utf-8"))
    assert [label["name"] for label in metrics["labels"]] == ["whole", "core"]
    predicted = np.asarray(nibabel.load(work / "predictions/ball_4.nii.gz").dataobj)
    assert set(np.unique(predicted)) <= {0, 1, 2}
    page = (work / "report.html").read_text(encoding="utf-8")
    assert "whole" in page
    assert "core" in page
    assert main(["export", str(regions), "-o", str(tmp_path / "regions.medseg3d"), "-q"]) == 0
    image = nibabel.load(regions / "imagesTs/ball_4_0000.nii.gz")
    np.testing.assert_array_equal(load_model(tmp_path / "regions.medseg3d").predict(image), predicted)


def test_a_network_of_regions_says_what_it_is(regions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(regions)]) == 0
    told = capsys.readouterr().out
    assert "from overlapping regions" in told
    assert "voxels of the value 3 in the training label maps" in told


def test_patches_lie_where_somebody_has_annotated(regions: Path) -> None:
    domain = domain_of(regions)
    for case in domain.training:
        labels = np.asarray(case.labels)
        assert case.annotated is not None
        assert set(case.foreground) == {1, 2}
        assert (labels[tuple(case.annotated.T)] != 3).all()
        assert np.isin(labels[tuple(case.foreground[1].T)], (1, 2)).all()
        assert (labels[tuple(case.foreground[2].T)] == 2).all()


def test_what_a_case_lacks_is_neither_trained_nor_measured(tmp_path: Path) -> None:
    root = half_annotated(tmp_path / "Half")
    epoch, metrics = trained(root)
    assert set(epoch["pseudo_dice"]) == {"shell", "core"}
    plan = WorkFolder(root / "medseg3d-work").read_plan()
    assert plan.labels.unannotated == ((2,),)
    validated = {case["case"]: {label["name"]: label["presence"] for label in case["labels"]} for case in metrics["cases"]}
    assert validated
    for name, presence in validated.items():
        assert (presence["core"] == "not_annotated") == (name in ("ball_1", "ball_3"))
    lacking = {case.name: set(np.unique(case.labels)) for case in domain_of(root).training}
    assert lacking["ball_1"] == {3, 4}
    assert lacking["ball_0"] == {0, 1, 2}


def test_a_case_is_made_again_where_it_was_annotated_for_something_else(tmp_path: Path) -> None:
    root = prepared(half_annotated(tmp_path / "Half"))
    before = {case.name: digest_of(case) for case in open_dataset(root).training}
    (root / "annotated.csv").write_text("case,labels\nball_2,shell\nball_3,shell\n", encoding="utf-8")
    after = {case.name: digest_of(case) for case in open_dataset(root).training}
    assert [name for name in before if before[name] != after[name]] == ["ball_1", "ball_2"]
    assert main(["preprocess", str(root), "-c", "3d_fullres", "-q"]) == 0
    assert [case.name for case in domain_of(root).training if 3 in np.unique(case.labels)] == ["ball_2", "ball_3"]


@pytest.mark.parametrize("in_one_file", [True, False])
def test_soft_labels_reach_the_loss_as_they_are(in_one_file: bool, tmp_path: Path) -> None:
    root = soft(tmp_path / "Soft", in_one_file=in_one_file)
    domain = domain_of(prepared(root))
    batch = patch_loader(domain, batch_size=4, seed=0, on_gpu=False).make_batch(0, 0)
    image, target = augment(batch, domain.policy, torch.device("cpu"))
    assert (image.shape[1], target.shape[1]) == (1, 3)
    torch.testing.assert_close(target.sum(1), torch.ones(target[:, 0].shape), atol=2e-3, rtol=0)
    assert 0.05 < float(((target > 0.1) & (target < 0.9)).float().mean()) < 0.9
    case = domain.training[0]
    assert isinstance(case, StoredCase)
    assert case.soft is not None
    chances = np.asarray(case.soft, np.float32)
    hard = np.concatenate(((1 - chances.sum(0))[None], chances)).argmax(0)
    assert (hard == np.asarray(case.labels)).mean() > 0.99


def test_soft_labels_are_trained_and_evaluated_against_the_most_probable_label(tmp_path: Path) -> None:
    root = soft(tmp_path / "Soft", in_one_file=False)
    epoch, metrics = trained(root)
    assert epoch["train_loss"] is not None
    (case,) = metrics["cases"]
    image = nibabel.load(root / "labelsTr" / f"{case['case']}_0001.nii.gz")
    shell, core = (np.asarray(nibabel.load(root / "labelsTr" / f"{case['case']}_{value:04d}.nii.gz").dataobj) for value in (1, 2))
    hard = np.stack((1 - shell - core, shell, core)).argmax(0)
    assert [label["voxels_reference"] for label in case["labels"]] == [int((hard == 1).sum()), int((hard == 2).sum())]
    predictions = root / "medseg3d-work/models/3d_fullres/fold_0/validation"
    assert image.shape == nibabel.load(predictions / f"{case['case']}.nii.gz").shape
    assert (
        main(["evaluate", str(predictions), str(root / "labelsTr"), "-o", str(tmp_path / "again.json"), "-q"]) == 3
    )  # other cases were not predicted
    again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert again["cases"][0]["labels"] == case["labels"]


def test_soft_labels_of_a_pair_change_places_with_the_mirror_image(tmp_path: Path) -> None:
    from dataclasses import replace

    from medseg3d.patches.augmentation import AugmentationDraw, Batch, augmentation_policy

    policy = replace(
        augmentation_policy((2, 2, 4), num_channels=1, mirror_axes=(2,), left_right_axis=2, label_pairs=((1, 2),)), soft_labels=2
    )
    image = torch.rand(1, 3, 2, 2, 4) / 2
    batch = Batch(image=image, labels=torch.zeros(1, 2, 2, 4, dtype=torch.int16), names=("a",), draws=(AugmentationDraw(mirror=(2,)),))
    seen, target = augment(batch, policy, torch.device("cpu"))
    torch.testing.assert_close(seen[:, 0], image[:, 0].flip(-1))
    torch.testing.assert_close(target[:, 1], image[:, 2].flip(-1))
    torch.testing.assert_close(target[:, 2], image[:, 1].flip(-1))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda array: array * 255, "probabilities from 0 to 1"),
        (lambda array: np.repeat(array[..., :1], 5, -1) / 5, "5 volumes, expected one volume for each of the 3 labels"),
        (lambda array: np.full_like(array, 0.9), "add up to"),
    ],
)
def test_files_that_hold_no_probabilities_cost_their_case(change, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = soft(tmp_path / "Soft")
    file = root / "labelsTr/ball_1.nii.gz"
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(change(np.asarray(image.dataobj)).astype(np.float32), image.affine), file)
    assert main(["doctor", str(root)]) == 2
    assert part in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("in_one_file", [True, False])
def test_cases_may_end_in_four_digits(in_one_file: bool, tmp_path: Path) -> None:
    root = soft(tmp_path / "Soft", in_one_file=in_one_file)
    for file in sorted(root.glob("*T?/ball_*")):
        file.rename(file.with_name(file.name.replace("ball_", "ball_000")))
    assert [case.name for case in open_dataset(root).training] == [f"ball_000{number}" for number in range(4)]
    assert main(["doctor", str(root)]) == 0


def test_soft_labels_go_with_plain_labels_only(tmp_path: Path) -> None:
    from medseg3d.errors import DatasetError

    root = soft(tmp_path / "Soft")
    (root / "annotated.csv").write_text("*,shell\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"annotated\.csv: goes with label maps of values"):
        open_dataset(root)


@pytest.mark.slow
def test_a_universal_network_serves_datasets_of_all_kinds(tmp_path: Path) -> None:
    made = {
        "Regions": regions_with_ignore(tmp_path / "Regions"),
        "Half": half_annotated(tmp_path / "Half"),
        "Soft": soft(tmp_path / "Soft"),
    }
    planner = tmp_path / "universal.toml"
    planner.write_text(tiny_planner("universal", epochs=1, iterations=3), encoding="utf-8")
    work = tmp_path / "work"
    assert main(["plan", *map(str, made.values()), "-w", str(work), "--planner", str(planner), "-q"]) == 0
    assert main(["preprocess", "-w", str(work), "-q"]) == 0
    assert main(["train", "-w", str(work), "--fold", "0", "--device", "cpu", "-q"]) == 0
    measured = {
        name: json.loads(next((work / "domains" / name).glob("models/*/fold_0/validation/metrics.json")).read_text(encoding="utf-8"))
        for name in made
    }
    assert [label["name"] for label in measured["Regions"]["labels"]] == ["whole", "core"]
    assert [label["name"] for label in measured["Soft"]["labels"]] == ["shell", "core"]
    assert main(["select", "-w", str(work), "-q"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mcibi", "unet_plus_plus", "msfnet", "deeplab_v3"])
def test_other_networks_learn_regions_as_well(family: str, tmp_path: Path) -> None:
    root = regions_with_ignore(tmp_path / "Regions")
    (root / "tiny.toml").write_text(tiny_planner(family, epochs=1, iterations=2, features=(8, 16)), encoding="utf-8")
    epoch, metrics = trained(root)
    assert epoch["train_loss"] is not None
    assert [label["name"] for label in metrics["labels"]] == ["whole", "core"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [half_annotated, soft])
def test_every_kind_runs_to_its_report(kind, tmp_path: Path) -> None:
    root = kind(tmp_path / "Kind")
    assert main(["run", str(root), "--planner", str(root / "tiny.toml"), "--folds", "0", "--device", "cpu", "-q"]) == 0
    assert (root / "medseg3d-work/report.html").exists()
    assert main(["export", str(root), "-o", str(tmp_path / "out.onnx"), "-q"]) == 0
