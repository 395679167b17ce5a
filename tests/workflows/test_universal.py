"""Several datasets in one network: planned, trained together, used one by one, joined by another without forgetting."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medseg3d import load_model
from medseg3d.commandline.cli import main
from medseg3d.devices import Device
from medseg3d.domain import domain_of, domains_of, read_domains
from medseg3d.errors import InputError
from medseg3d.models.checkpoints import load_tensors, read_card
from medseg3d.options import TrainingOptions
from medseg3d.signals import StopRequest
from medseg3d.training.domains import TrainingDomain, draw_domain
from medseg3d.training.loop import train_domains
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.propose import propose
from medseg3d.workflows.train import training_domain
from tests.tiny_planner import tiny_planner

PLANNER = tiny_planner("universal", epochs=1)


@pytest.fixture(scope="module")
def datasets(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Balls as they are; flat ones of other labels; and small ones with two channels."""
    folder = tmp_path_factory.mktemp("domains")
    made = {name: Path(shutil.copytree(tiny_source, folder / name)) for name in ("Balls", "Flat", "Late")}
    for file in [*made["Flat"].glob("images*/*"), *made["Flat"].glob("labels*/*")]:
        image = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:, :, ::2], image.affine @ np.diag([1, 1, 4, 1])), file)
    for file in made["Late"].glob("images*/*"):
        shutil.copy(file, file.with_name(file.name.replace("_0000", "_0001")))
    description = json.loads((made["Late"] / "dataset.json").read_text())
    description["channel_names"] = {"0": "MRI", "1": "T2"}
    (made["Late"] / "dataset.json").write_text(json.dumps(description))
    (folder / "tiny.toml").write_text(PLANNER)
    return made


@pytest.fixture(scope="module")
def work(datasets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Balls and Flat, trained together on fold 0."""
    root = tmp_path_factory.mktemp("universal") / "work"
    planner = str(datasets["Balls"].parent / "tiny.toml")
    assert main(["plan", str(datasets["Balls"]), str(datasets["Flat"]), "-w", str(root), "--planner", planner, "-q"]) == 0
    assert main(["preprocess", "-w", str(root), "-q"]) == 0
    assert main(["train", "-w", str(root), "--fold", "0", "--device", "cpu", "-q"]) == 0
    return root


@pytest.mark.fault(
    "C", "planning, training or correcting within the folder of a dataset of a common network", "refused: it would be written over"
)
@pytest.mark.parametrize("verb", [["train", "--fold", "0"], ["plan"], ["run", "--folds", "0", "-y"], ["correct"]], ids=lambda verb: verb[0])
def test_a_part_of_a_common_network_is_not_trained_alone(
    work: Path, datasets: dict[str, Path], verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    part = work / "domains" / "Balls"
    weights = part / "models/3d_fullres/fold_0/weights.safetensors"
    before = weights.read_bytes()
    assert main([*verb, str(datasets["Balls"]), "-w", str(part)]) == 2
    assert f"belongs to the network of several datasets that is planned and trained with -w {work}" in " ".join(
        capsys.readouterr().err.split()
    )
    assert weights.read_bytes() == before


def test_images_are_proposed_for_a_dataset_of_a_common_network(work: Path, datasets: dict[str, Path]) -> None:
    found = propose(datasets["Flat"], work, images=datasets["Flat"] / "imagesTs", device="cpu")
    assert Path(found.folder) == work / "domains" / "Flat" / "proposals"
    assert found.proposed


def test_every_domain_becomes_an_ordinary_work_folder(
    work: Path, datasets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [domain.name for domain in read_domains(WorkFolder(work))] == ["Balls", "Flat"]
    joint, _ = load_tensors(work / "models/universal/fold_0/weights.safetensors")
    history = (work / "models/universal/fold_0/history.jsonl").read_text()
    assert set(json.loads(history)["pseudo_dice"]) == {"Balls/shell", "Balls/core", "Flat/shell", "Flat/core"}
    for name in ("Balls", "Flat"):
        home = work / "domains" / name
        own, _ = load_tensors(home / "models/3d_fullres/fold_0/weights.safetensors")
        for key, tensor in own.items():
            assert torch.equal(tensor, joint[key.replace("domains.only.", f"domains.{name}.")])
        curves = json.loads((home / "models/3d_fullres/fold_0/history.jsonl").read_text())
        assert set(curves["pseudo_dice"]) == {"shell", "core"}
        metrics = json.loads((home / "models/3d_fullres/fold_0/validation/metrics.json").read_text())
        assert metrics["format"] == "medseg3d/metrics"
        images = datasets[name] / "imagesTs"
        out = tmp_path / name
        assert main(["predict", str(datasets[name]), "-w", str(work), "-i", str(images), "-o", str(out), "-q"]) == 0
        assert main(["predict", "-w", str(work), "--domain", name, "-i", str(images), "-o", str(out), "--json"]) == 0
        for file in images.iterdir():
            predicted = nibabel.load(out / file.name.replace("_0000", ""))
            assert predicted.shape == nibabel.load(file).shape
    capsys.readouterr()
    assert main(["select", "-w", str(work), "--device", "cpu", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["domains"]) == {"Balls", "Flat"}
    assert main(["validate", "-w", str(work), "--domain", "Flat", "--fold", "0", "--tta", "off", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("— Flat —\n")
    assert main(["info", str(work), "--json"]) == 0
    assert [found["dataset"] for found in json.loads(capsys.readouterr().out)["domains"].values()] == ["Balls", "Flat"]
    assert main(["doctor", "-w", str(work), "--json"]) == 0
    assert [report["dataset"] for report in json.loads(capsys.readouterr().out)["domains"].values()] == ["Balls", "Flat"]
    assert (work / "domains/Flat/selection.json").exists()


def test_a_domain_is_added_without_a_bit_of_the_others_changing(
    work: Path, datasets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = Path(shutil.copytree(work, tmp_path / "work"))
    universal_weights = grown / "models/universal/fold_0/weights.safetensors"
    before, _ = load_tensors(universal_weights)
    image = nibabel.load(next(iter(sorted((datasets["Balls"] / "imagesTs").iterdir()))))
    array = np.asarray(image.dataobj)
    labels = load_model(grown / "domains/Balls").predict(array, image.affine)
    command = ["train", "-w", str(grown), "--add-domain", str(datasets["Late"]), "--fold", "0", "--device", "cpu", "--epochs", "2", "-q"]
    assert main(command) == 0
    after, _ = load_tensors(universal_weights)
    assert set(read_card(universal_weights).plans) == {"Balls", "Flat", "Late"}
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    added = [key for key in after if key not in before]
    assert added
    assert all(key.startswith("domains.Late.") for key in added)
    again = load_model(grown / "domains/Balls").predict(array, image.affine)
    assert np.array_equal(again, labels)
    late = nibabel.load(datasets["Late"] / "labelsTs/ball_6.nii.gz")
    two_channels = np.stack([np.asarray(nibabel.load(datasets["Late"] / f"imagesTs/ball_6_000{c}.nii.gz").dataobj) for c in (0, 1)])
    assert load_model(grown / "domains/Late").predict(two_channels, late.affine).shape == late.shape
    assert main(command) == 0  # nothing is trained again
    assert json.loads((grown / "models/universal/fold_0/added/Late/training.json").read_text())["epoch"] == 2
    assert main(["train", "-w", str(grown), "--fold", "0", "--device", "cpu", "-q"]) == 0  # finished: measured, not trained on
    assert all(torch.equal(tensor, load_tensors(universal_weights)[0][key]) for key, tensor in after.items())
    assert main(["train", "-w", str(grown), "--fold", "0", "--device", "cpu", "--epochs", "9", "-q"]) == 2
    assert "would change what they stand on" in capsys.readouterr().err
    assert main(["plan", "-w", str(grown), "-q"]) == 0  # the same planner, and Late keeps its plan
    assert [domain.name for domain in read_domains(WorkFolder(grown)) if domain.is_added] == ["Late"]
    assert WorkFolder(grown / "domains/Balls").read_plan() == WorkFolder(work / "domains/Balls").read_plan()
    assert main([*command, "--restart"]) == 0
    anew, _ = load_tensors(universal_weights)
    assert all(torch.equal(anew[key], after[key]) for key in after)  # from fresh parts again, so the same bits
    moments, _ = load_tensors(grown / "models/universal/fold_0/added/Late/last.safetensors")
    trained = [tensor for key, tensor in moments.items() if key.startswith("optimizer.") and key.endswith("exp_avg")]
    assert len(trained) == len([key for key in added if not key.endswith("num_batches_tracked")])  # its own parts and nothing else
    assert any(bool(tensor.any()) for tensor in trained)


@pytest.mark.parametrize("added", [None, pytest.param("Flat", marks=pytest.mark.slow)])
def test_a_stopped_training_of_domains_goes_on_with_the_same_bits(work: Path, tmp_path: Path, added: str | None) -> None:
    domains = [training_domain(domain, "0") for domain in domains_of(Path(), work)]
    weights = work / "models/universal/fold_0/weights.safetensors"

    def train(target: Path, stop_after: int) -> None:
        stop, steps = StopRequest(), []

        def count(*place: int) -> None:
            steps.append(place)
            if len(steps) == stop_after:
                stop.set(15)

        records = train_domains(
            domains,
            name="universal",
            fold="0",
            folder=target,
            device=Device(device=torch.device("cpu"), precision="float32"),
            options=TrainingOptions(epochs=2, iterations=3),
            plan_digest="x",
            stop=stop,
            init=weights,
            added=added,
            on_step=count,
        )
        list(records)

    train(tmp_path / "whole", 0)
    for stop_after in (2, 3, 0):
        train(tmp_path / "parts", stop_after)
    whole, parts = (load_tensors(tmp_path / name / "last.safetensors")[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_domains_take_turns_or_are_drawn_in_proportion_or_for_equal_work(work: Path) -> None:
    def domain(name: str, cases: int, sampling: str, batch_size: int = 2) -> TrainingDomain:
        plan = WorkFolder(work / "domains/Balls").read_plan()
        configuration = plan.configuration(None)
        training = replace(configuration.training, domain_sampling=sampling)  # type: ignore[arg-type]
        configuration = replace(configuration, training=training, batch_size=batch_size)
        return TrainingDomain(name=name, plan=plan, configuration=configuration, training=[None] * cases, validation=())  # type: ignore[list-item]

    turns = [draw_domain([domain("a", 9, "round_robin"), domain("b", 1, "round_robin")], seed=0, epoch=1, iteration=i) for i in range(4)]
    assert turns == [0, 1, 0, 1]
    shares = [
        draw_domain([domain("a", 9, "proportional"), domain("b", 1, "proportional")], seed=0, epoch=1, iteration=i) for i in range(400)
    ]
    assert 20 <= sum(shares) <= 70
    assert shares[:50] == [
        draw_domain([domain("a", 9, "proportional"), domain("b", 1, "proportional")], seed=0, epoch=1, iteration=i) for i in range(50)
    ]
    unequal = [domain("a", 1, "equal_work", batch_size=2), domain("b", 1, "equal_work", batch_size=8)]
    steps = [draw_domain(unequal, seed=0, epoch=1, iteration=i) for i in range(1000)]
    assert 160 <= sum(steps) <= 240, "four times the work, a quarter of the steps"


def test_what_is_unclear_is_refused_with_the_domains_named(
    work: Path, datasets: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="serves Balls, Flat"):
        domain_of(datasets["Late"], work)
    assert main(["plan", str(datasets["Balls"]), str(datasets["Flat"])]) == 2
    assert "name one with -w" in capsys.readouterr().err
    assert (
        main(["plan", str(datasets["Balls"]), str(datasets["Flat"]), "-w", str(work.parent / "other"), "--planner", "default", "-q"]) == 2
    )
    assert "only u2net serves several datasets" in capsys.readouterr().err
    assert (
        main(
            [
                "predict",
                "-m",
                str(work / "models/universal/fold_0/weights.safetensors"),
                "-i",
                str(datasets["Balls"] / "imagesTs"),
                "-o",
                str(work / "x"),
            ]
        )
        == 2
    )
    assert "holds a universal network for Balls, Flat" in capsys.readouterr().err
    assert main(["train", "-w", str(work), "--add-domain", str(datasets["Flat"]), "--fold", "0"]) == 2
    assert "nothing to add" in capsys.readouterr().err
    assert main(["train", "-w", str(work), "--fold", "9"]) == 2
    assert "the folds are 0 to 4, and all" in capsys.readouterr().err
    for words in ([str(datasets["Balls"])], ["-c", "2d"], ["-c", "2d", "--add-domain", str(datasets["Late"])]):
        assert main(["train", "-w", str(work), "--fold", "0", *words]) == 2
        assert "leave -c and DATASET out" in capsys.readouterr().err
    assert main(["train", "-w", str(work), "--add-domain", str(datasets["Late"]), "--fold", "1"]) == 2
    assert "fold 1 of the common network is not trained yet" in capsys.readouterr().err


def test_the_whole_chain_ends_in_a_report_for_each_dataset(
    datasets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planner = str(datasets["Balls"].parent / "tiny.toml")
    places = [str(datasets["Balls"]), str(datasets["Flat"]), "-w", str(tmp_path / "work")]
    assert main(["run", *places, "--planner", planner, "--folds", "0", "--device", "cpu", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["domains"]
    for name in ("Balls", "Flat"):
        assert Path(results[name]["report"]).read_text(encoding="utf-8").rstrip().endswith("</html>")
        assert results[name]["test"]["num_cases"] == 2
