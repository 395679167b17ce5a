"""A cascade through all verbs, on a tiny dataset: the second stage learns from label maps of the first one's folds."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d import load_model
from medseg3d.axes import to_network_order
from medseg3d.commandline.cli import main
from medseg3d.domain import domain_of
from medseg3d.preprocessing.previous_maps import PreviousMaps
from medseg3d.preprocessing.store import Store
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.splits import trainings
from medseg3d.workflows.taking_turns import fold_lock
from medseg3d.workflows.train import training_domain
from tests.tiny_planner import tiny_planner

NAME = "3d_cascade_fullres"


@pytest.fixture(scope="module")
def cascade(in_float32: None, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset in two folds, planned with a patch that covers half of a case; both stages trained for fold 0."""
    root = Path(shutil.copytree(tiny_source, tmp_path_factory.mktemp("cascade") / "Balls"))
    for name in ("ball_4", "ball_5", "ball_7"):  # four training cases and a test case are enough
        for file in root.rglob(f"{name}*"):
            file.unlink()
    names = [f"ball_{number}" for number in range(4)]
    folds = [{"train": names[2:], "val": names[:2]}, {"train": names[:2], "val": names[2:]}]
    (root / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    lowres = "[patch]\ninitial_edge_3d = 13\n[lowres]\npatch_share = 0.9\nmin_volume_ratio = 1.2\n"
    planner = tiny_planner(epochs=1, iterations=2, validations=1) + lowres
    (root / "tiny.toml").write_text(planner, encoding="utf-8")
    assert main(["plan", str(root), "--planner", str(root / "tiny.toml"), "-q"]) == 0
    assert main(["preprocess", str(root), "-c", NAME, "3d_lowres", "-q"]) == 0
    for name, fold in (("3d_lowres", "0"), ("3d_lowres", "1"), (NAME, "0")):
        assert main(["train", str(root), "-c", name, "--fold", fold, "--device", "cpu", "--tta", "off", "-q"]) == 0
    return root


def test_one_fold_of_a_cascade_takes_all_folds_of_its_first_stage(cascade: Path) -> None:
    plan, first = WorkFolder(cascade / "medseg3d-work").read_plan(), "3d_lowres"
    assert trainings(plan, [NAME], ("1",), ("0", "1")) == ((first, "0"), (first, "1"), (NAME, "1"))
    assert trainings(plan, [first, NAME], None, ("0", "1")) == ((first, "0"), (first, "1"), (NAME, "0"), (NAME, "1"))


def copied(cascade: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cascade, tmp_path / "Balls"))


@pytest.mark.slow
def test_run_trains_all_folds_of_the_first_stage_before_the_second(cascade: Path, tmp_path: Path) -> None:
    root = copied(cascade, tmp_path)
    work = WorkFolder(root / "medseg3d-work")
    for name in ("3d_lowres", NAME):
        shutil.rmtree(work.root / "models" / name)
    assert main(["run", str(root), "-c", NAME, "--folds", "0", "--device", "cpu", "-q"]) == 0
    assert work.finished_folds("3d_lowres") == ("0", "1")
    assert work.finished_folds(NAME) == ("0",)
    selection = json.loads(work.selection.read_text(encoding="utf-8"))
    assert {tuple(found["configurations"]) for found in selection["candidates"]} >= {("3d_lowres",), (NAME,)}
    assert sorted(file.name for file in work.predictions.glob("*.nii.gz")) == ["ball_6.nii.gz"]
    assert NAME in work.report.read_text(encoding="utf-8")


def test_each_case_is_seen_through_a_network_that_has_not_seen_it(cascade: Path) -> None:
    """The second stage learns from label maps of the fold that did not train on the case, made with mirroring or without."""
    work = WorkFolder(cascade / "medseg3d-work")
    plan = work.read_plan()
    store, maps = Store(work.store(plan.configuration(NAME).data)), PreviousMaps(work.previous_maps(NAME), patch_size=(8, 8, 8))
    for name, fold in [("ball_0", "0"), ("ball_3", "1")]:
        stored, learned = store.read(name), maps.read(name)[:]
        box = tuple(slice(*edge) for edge in stored.restoration.box)
        candidates = []
        for file in work.validation("3d_lowres", fold).rglob(f"{name}.nii.gz"):
            values = np.asarray(nibabel.as_closest_canonical(nibabel.load(file)).dataobj).transpose(2, 1, 0)
            candidates.append(to_network_order(plan.labels.encode(values, name), plan.axis_order)[box])
        assert learned.shape == stored.shape == candidates[0].shape
        assert any(np.array_equal(learned, found) for found in candidates)


def test_a_first_stage_that_another_process_holds_does_not_stop_the_second(cascade: Path) -> None:
    """Folds of a second stage may be trained on several machines at once."""
    work = WorkFolder(cascade / "medseg3d-work")
    domain = replace(domain_of(cascade, None), configuration=NAME)
    with fold_lock(work.fold("3d_lowres", "0"), "is being validated"):
        trained = training_domain(domain, "0", device="cpu")
    assert trained.previous is not None
    assert set(trained.previous) == {f"ball_{number}" for number in range(4)}
    assert set(trained.previous_weights) == {"3d_lowres/0", "3d_lowres/1"}


def test_what_predicts_is_both_stages(cascade: Path, tmp_path: Path) -> None:
    model = load_model(cascade, configuration=NAME)
    (member,) = model.members
    assert member.previous is not None
    assert [stage.configuration.name for stage in (member, member.previous)] == [NAME, "3d_lowres"]
    assert len(member.networks) == len(member.previous.networks) == 1, "fold 0 follows fold 0"
    file = tmp_path / "both.medseg3d"
    assert main(["export", str(cascade), "-c", NAME, "-o", str(file), "-q"]) == 0
    images = str(cascade / "imagesTs")
    for source, out in ((["-m", str(file)], "file"), ([str(cascade), "-c", NAME], "folder")):
        assert main(["predict", *source, "-i", images, "-o", str(tmp_path / out), "--device", "cpu", "-q"]) == 0
    first, second = (np.asarray(nibabel.load(tmp_path / out / "ball_6.nii.gz").dataobj) for out in ("file", "folder"))
    assert np.array_equal(first, second)


@pytest.mark.slow
def test_a_first_stage_that_is_trained_again_makes_the_second_out_of_date(
    cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = copied(cascade, tmp_path)
    assert main(["train", str(root), "-c", "3d_lowres", "--fold", "1", "--seed", "7", "--restart", "--device", "cpu", "-q"]) == 0
    capsys.readouterr()
    assert main(["train", str(root), "-c", NAME, "--fold", "0", "--device", "cpu", "-q"]) == 2
    assert "3d_lowres fold 1" in capsys.readouterr().err
    assert main(["validate", str(root), "-c", NAME, "--fold", "0", "--device", "cpu", "-q"]) == 2
    assert "--restart" in capsys.readouterr().err
    logging.getLogger("medseg3d").setLevel(logging.WARNING)
    load_model(root, configuration=NAME, device="cpu")
    assert "3d_lowres fold 1" in caplog.text
    assert main(["select", str(root), "--device", "cpu", "-q"]) == 0
    notes = json.loads((root / "medseg3d-work/selection.json").read_text(encoding="utf-8"))["notes"]
    assert any("3d_lowres fold 1" in note for note in notes), "the second stage is left out, by name"
    assert main(["train", str(root), "-c", NAME, "--fold", "0", "--restart", "--device", "cpu", "-q"]) == 0


def test_a_missing_fold_of_the_first_stage_is_named(cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copied(cascade, tmp_path)
    shutil.rmtree(root / "medseg3d-work/models/3d_lowres/fold_1")
    assert main(["train", str(root), "-c", NAME, "--fold", "1", "--device", "cpu", "-q"]) == 2
    message = capsys.readouterr().err
    assert "fold 1 of 3d_lowres is not trained" in message
    assert "medseg3d run -c" in message


def test_the_second_stage_alone_says_what_it_lacks(cascade: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = cascade / f"medseg3d-work/models/{NAME}/fold_0/weights.safetensors"
    assert main(["predict", "-m", str(weights), "-i", str(cascade / "imagesTs"), "-o", str(cascade / "nowhere"), "-q"]) == 2
    assert "its first stage 3d_lowres is not there" in capsys.readouterr().err


def test_the_plan_of_an_older_version_is_planned_again(cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copied(cascade, tmp_path)
    file = root / "medseg3d-work/plan.json"
    plan = json.loads(file.read_text(encoding="utf-8"))
    plan["configurations"][NAME]["network"]["in_channels"] = 1
    file.write_text(json.dumps(plan), encoding="utf-8")
    assert main(["train", str(root), "-c", NAME, "--fold", "0", "--device", "cpu", "-q"]) == 2
    assert "plan again" in capsys.readouterr().err
