"""Several networks with other seeds on the cases of one fold, in the place of folds: planned, trained, chosen, and predicting together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg3d.commandline.cli import main
from medseg3d.domain import domain_of
from medseg3d.errors import InputError
from medseg3d.models.checkpoints import load_tensors
from medseg3d.models.sources import source_of
from medseg3d.records import read_json
from medseg3d.training.folds import read_folds
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.plan import plan
from medseg3d.workflows.splits import check_cascade


@pytest.fixture(scope="module")
def chain(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with fold 0 trained, planned again for two members, of which the second is trained for an epoch of two steps."""
    root = Path(shutil.copytree(trained, tmp_path_factory.mktemp("members") / "Balls"))
    assert main(["plan", str(root), "--members", "2", "-q"]) == 0
    assert main(["train", str(root), "--fold", "1", "--epochs", "1", "--iterations", "2", "-q"]) == 0
    assert main(["select", str(root), "-q"]) == 0
    return root


def test_members_have_the_same_cases_and_other_seeds(chain: Path) -> None:
    work = WorkFolder(chain / "medseg3d-work")
    folds = read_folds(work.splits)
    assert (folds.members, len(folds.folds)) == (2, 2)
    assert folds.folds[0] == folds.folds[1]
    name = work.read_plan().recommended
    assert work.finished_folds(name) == ("0", "1")
    assert [read_json(work.fold(name, fold) / "training.json")["seed"] for fold in "01"] == [0, 1]
    assert read_json(work.fold(name, "1") / "run.json")["seed"] == 1
    first, second = (load_tensors(work.weights(name, fold))[0] for fold in "01")
    assert not any(first[key].equal(second[key]) for key in first if key.endswith("conv.weight"))


def test_the_selection_takes_all_members_and_each_case_once(chain: Path) -> None:
    work = WorkFolder(chain / "medseg3d-work")
    document = read_json(work.selection)
    assert [list(folds) for folds in document["folds"].values()] == [["0", "1"]]
    name, cases = work.read_plan().recommended, read_folds(work.splits).folds[0].validation
    dice = {case: [] for case in cases}  # type: dict[str, list[float]]
    for fold in "01":
        for row in json.loads((work.validation(name, fold) / "metrics.json").read_text(encoding="utf-8"))["cases"]:
            dice[row["case"]].append(np.mean([label["dice"] for label in row["labels"]]))
    assert all(len(values) == 2 for values in dice.values())


def test_they_predict_together(chain: Path) -> None:
    (member,) = source_of(chain / "medseg3d-work").open(chain / "medseg3d-work", None, None).description.members
    assert member.folds == ("0", "1")


def test_a_plan_keeps_members_and_takes_a_new_case_to_train_on(tiny: Path) -> None:
    planner = str(tiny / "tiny.toml")
    before = plan(tiny, planner=planner).folds
    first = plan(tiny, planner=planner, members=3).folds
    assert before is not None
    assert first is not None
    assert first.folds == before.folds[:1] * 3
    assert plan(tiny).folds == first
    for kind, end in (("images", "_0000"), ("labels", "")):
        shutil.copy(tiny / f"{kind}Ts" / f"ball_6{end}.nii.gz", tiny / f"{kind}Tr" / f"ball_6{end}.nii.gz")
    description = json.loads((tiny / "dataset.json").read_text(encoding="utf-8")) | {"numTraining": 7}
    (tiny / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    made = plan(tiny)
    assert made.folds is not None
    assert made.folds.members == 3
    assert {tuple(fold.validation) for fold in made.folds.folds} == {first.folds[0].validation}
    assert all("ball_6" in fold.train for fold in made.folds.folds)
    assert any("trained on by all members" in warning for warning in made.warnings)
    assert plan(tiny, members=2).folds == made.folds.__class__(
        folds=made.folds.folds[:2], grouping=made.folds.grouping, patients=made.folds.patients, members=2
    )


def test_a_cascade_is_refused_before_anything_is_trained(chain: Path) -> None:
    domain = domain_of(chain, None)
    one_stage = domain.folder.read_plan().configuration(None)
    check_cascade(domain, one_stage)
    with pytest.raises(InputError, match="takes folds"):
        check_cascade(domain, replace(one_stage, name="3d_cascade_fullres", previous_stage="3d_lowres"))
