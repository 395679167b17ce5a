"""Preprocessing, training and prediction where networks do not run in main memory: on a device of the tests, in a process of its own.

It computes on the CPU and refuses to mix tensors as a GPU does (:mod:`stand_in.device`), so it shows that everything is where it
has to be, and that results are those of the CPU; nothing of speed or memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import nibabel
import numpy as np
import pytest
from torch.utils import backend_registration

import medseg3d
from medseg3d.commandline.cli import main
from medseg3d.preprocessing.store import Store, StoredCase
from medseg3d.work_folder import WorkFolder
from tests.tiny_planner import tiny_planner

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="this PyTorch has no devices written in Python"
)
TESTS = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))}


def short(preset: str) -> str:
    """A planner of a network that trains for three steps, on images that are resampled."""
    return tiny_planner(preset, features=(8, 16), epochs=1, iterations=3, validations=1) + "[spacing]\nresolution_multiplier = 0.8\n"


def run_there(precision: str, *commands: list[object]) -> None:
    """Run commands one after the other where the stand-in is the GPU, which ``auto`` then takes."""
    words = [str(word) for word in chain.from_iterable([*command, "+"] for command in commands)]
    done = subprocess.run(
        [sys.executable, "-m", "stand_in", precision, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def planned(root: Path, work: Path, preset: str = "default") -> list[object]:
    """Dataset and work folder as arguments; the work folder has a plan whose spacing is not the images'."""
    planner = work.with_suffix(".toml")
    planner.write_text(short(preset), encoding="utf-8")
    assert main(["plan", str(root), "-w", str(work), "--planner", str(planner), "-q"]) == 0
    return [root, "-w", work]


def stored(work: Path) -> dict[str, StoredCase]:
    """The preprocessed cases of 3d_fullres."""
    folder = WorkFolder(work)
    store = Store(folder.store(folder.read_plan().configuration("3d_fullres").data))
    return {name: store.read(name) for name in store.names()}


def losses(fold: Path) -> list[float]:
    """An epoch each."""
    lines = (fold / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["train_loss"] for line in lines]


def test_the_device_of_these_tests_does_not_mix_places() -> None:
    program = """
import torch
from stand_in.device import register
register()
x = torch.ones(2, device="standin")
for mix in (lambda: x + torch.ones(2), lambda: torch.cat([x, torch.ones(2)]), lambda: x.index_select(0, torch.tensor([0])), x.numpy):
    try:
        mix()
    except (RuntimeError, TypeError):
        print("refused")
print((x.cpu() + torch.ones(2)).sum().item(), x.cpu().data_ptr() == x.held.data_ptr())
"""
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused"] * 4 + ["4.0", "False"]


def test_preprocessing_there_gives_the_cpus_arrays(tiny_source: Path, tmp_path: Path) -> None:
    place = planned(tiny_source, tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert main(["preprocess", *map(str, place), "--device", "cpu", "-q"]) == 0
    run_there("float32", ["preprocess", tiny_source, "-w", tmp_path / "there", "--device", "auto", "-q"])
    here, there = stored(tmp_path / "here"), stored(tmp_path / "there")
    assert len(here) == 6
    assert list(here) == list(there)
    for name, case in here.items():
        image, other = np.asarray(case.image[:], np.float32), np.asarray(there[name].image[:], np.float32)
        assert np.abs(image - other).max() < 2e-3 * image.std()  # stored in half precision
        assert np.array_equal(case.labels[:], there[name].labels[:])


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_training_there_gives_the_cpus_losses_also_when_it_goes_on(configuration: str, tiny_source: Path, tmp_path: Path) -> None:
    # in float32; noise and dropout are drawn on the CPU, which a GPU does not do
    work = tmp_path / "work"
    train = ["train", *planned(tiny_source, work), "-c", configuration, "--fold", "0", "-q"]
    assert main(["preprocess", str(tiny_source), "-w", str(work), "-q"]) == 0
    run_there("float32", [*train, "--epochs", "1"], [*train, "--epochs", "2"])
    shutil.move(work / "models", tmp_path / "there")
    on_cpu = [*train, "--device", "cpu"]
    run_there("cpu", [*on_cpu, "--epochs", "1"], [*on_cpu, "--epochs", "2"])
    found, expected = losses(tmp_path / "there" / configuration / "fold_0"), losses(WorkFolder(work).fold(configuration, "0"))
    assert len(expected) == 2
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("preset", "precision"),
    [
        ("default", "float16"),
        pytest.param("u2net", "float16", marks=pytest.mark.slow),
        *(pytest.param(preset, "bfloat16", marks=pytest.mark.slow) for preset in ("residual_m", "unet_2015", "vnet")),
    ],
)
def test_every_family_trains_and_predicts_there(preset: str, precision: str, tiny_source: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    place = planned(tiny_source, work, preset)
    assert main(["preprocess", str(tiny_source), "-w", str(work), "-c", "3d_fullres", "-q"]) == 0
    run_there(
        precision,
        ["train", *place, "-c", "3d_fullres", "--fold", "0", "--tta", "auto", "-q"],
        ["predict", *place, "-i", tiny_source / "imagesTs", "-o", tmp_path / "out", "--tta", "on", "-q"],
    )
    assert np.isfinite(losses(WorkFolder(work).fold("3d_fullres", "0"))).all()
    state = json.loads((WorkFolder(work).fold("3d_fullres", "0") / "training.json").read_text(encoding="utf-8"))
    assert state["threads"] is None  # it did not train on the CPU
    if preset in ("default", "unet_2015"):  # others may be refused half precision while they are fresh
        assert state["precision"] == precision
    for file in (tiny_source / "imagesTs").iterdir():
        image, predicted = nibabel.load(file), nibabel.load(tmp_path / "out" / file.name.replace("_0000", ""))
        assert predicted.shape == image.shape
        assert np.array_equal(predicted.affine, image.affine)


def test_prediction_there_gives_the_cpus_voxels(trained: Path, tmp_path: Path) -> None:
    words = ["predict", trained, "-i", trained / "imagesTs", "--tta", "on", "-q"]
    run_there("float32", [*words, "-o", tmp_path / "there", "--probabilities"])
    model = medseg3d.load_model(trained / "medseg3d-work", device="cpu", precision="float32", mirroring=True)
    for file in (trained / "imagesTs").iterdir():
        predicted = np.asarray(nibabel.load(tmp_path / "there" / file.name.replace("_0000", "")).dataobj)
        image = nibabel.load(file)
        expected = model.predict(np.asarray(image.dataobj), image.affine)
        assert len(np.unique(expected)) > 1
        assert np.mean(predicted != expected) < 1e-3  # ties, where convolutions add up in another order
    assert len(list((tmp_path / "there").glob("*.npz"))) + len(list((tmp_path / "there").glob("*prob*"))) > 0


@pytest.mark.slow
def test_the_learning_rate_search_and_the_explained_plan_run_there(trained: Path, tmp_path: Path) -> None:
    run_there(
        "bfloat16",
        ["train", trained, "--fold", "0", "--find-lr", "-q"],
        ["plan", trained, "-w", tmp_path, "--explain", "-q"],
    )


@pytest.mark.slow
def test_a_universal_network_trains_grows_and_predicts_there(tiny_source: Path, tmp_path: Path) -> None:
    first, second, third = (Path(shutil.copytree(tiny_source, tmp_path / name)) for name in ("A", "B", "C"))
    work, planner = tmp_path / "work", tmp_path / "universal.toml"
    planner.write_text(short("universal"), encoding="utf-8")
    run_there(
        "bfloat16",
        ["plan", first, second, "-w", work, "--planner", planner, "-q"],
        ["preprocess", "-w", work, "-q"],
        ["train", "-w", work, "--fold", "0", "-q"],
        ["train", "-w", work, "--add-domain", third, "--fold", "0", "-q"],
        ["predict", "-w", work, "--domain", "C", "-i", third / "imagesTs", "-o", tmp_path / "out", "-q"],
    )
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
