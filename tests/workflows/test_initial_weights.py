"""Training can begin with the weights of every kind of model; which network of several is taken is said."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medseg3d.commandline.learn_shapes import main as learn_shapes
from medseg3d.errors import InputError
from medseg3d.models.checkpoints import ModelCard, save_weights
from medseg3d.models.model_file import write_model_file
from medseg3d.models.parts import MemberDescription, ModelDescription
from medseg3d.networks.build import build_network
from medseg3d.plan import Plan
from medseg3d.provenance import CaseMark, Origin, write_origin
from medseg3d.records import write_record
from medseg3d.training.domains import NO_NAME
from medseg3d.training.initial import Meanings
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows import initial_weights as initial_weights_module
from medseg3d.workflows.initial_weights import image_contents, initial_weights, place_for_shapes, shapes_file
from medseg3d.workflows.splits import read_split
from tests.in_memory import parts_of
from tests.test_plan import NETWORK, PLAN

SAME_DATA = replace(PLAN, fingerprint_digest="abc")


def network(seed: int) -> torch.nn.Module:
    return build_network(NETWORK, generator=torch.Generator().manual_seed(seed))


def is_network(tensors: Mapping[str, torch.Tensor], seed: int) -> bool:
    own = network(seed).state_dict()
    return own.keys() == tensors.keys() and all(torch.equal(own[name], tensors[name]) for name in own)


def with_folds(work: Path, plan: Plan = PLAN) -> Path:
    write_record(work / "plan.json", plan, "plan")
    for fold in ("0", "1"):
        folder = work / "models/3d_fullres" / f"fold_{fold}"
        folder.mkdir(parents=True)
        card = ModelCard(plans={"": plan}, configurations={"": "3d_fullres"}, fold=fold)
        save_weights(folder / "weights.safetensors", network(int(fold)), card)
    return work


def model_file(path: Path) -> Path:
    description = ModelDescription(plan=PLAN, members=(MemberDescription(configuration="3d_fullres", folds=("0", "1")),))
    weights = {"3d_fullres": {fold: network(int(fold)).state_dict() for fold in ("0", "1")}}
    return write_model_file(path, parts_of(description, weights))


@pytest.mark.fault("D", "--init took a weights file only", "takes every kind of model that predicts")
def test_every_kind_of_model_gives_the_fold_that_is_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = with_folds(tmp_path / "Balls/medseg3d-work")
    kinds = (work, work.parent, work / "models/3d_fullres/fold_1", work / "models/3d_fullres/fold_1/weights.safetensors")
    for place in (*kinds, model_file(tmp_path / "balls.medseg3d")):
        found = initial_weights(place, configuration="3d_fullres", fold="1", plan=PLAN)
        assert is_network(found.tensors, 1), place
        assert str(place) in found.source or found.source.startswith(str(work))
    assert not caplog.records


def test_another_configuration_and_the_first_fold_are_taken_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in (with_folds(tmp_path / "work"), model_file(tmp_path / "balls.medseg3d")):
        caplog.clear()
        assert is_network(initial_weights(place, configuration="3d_lowres", fold="4").tensors, 0)
        assert "has no 3d_lowres, fold 4; beginning with 3d_fullres, fold 0" in caplog.text


@pytest.mark.fault("A", "--init with another fold of the same dataset", "a warning that the validation cases have been seen")
def test_a_fold_that_has_seen_the_validation_cases_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = with_folds(tmp_path / "work", SAME_DATA)
    with caplog.at_level(logging.WARNING):
        initial_weights(work, configuration="3d_fullres", fold="1", plan=SAME_DATA)
        assert not caplog.records
        initial_weights(work / "models/3d_fullres/fold_0", configuration="3d_fullres", fold="1", plan=SAME_DATA)
    assert "trained on fold 0 of the same dataset, so it has seen validation cases of fold 1" in caplog.text


@pytest.mark.fault(
    "A", "--init with weights that were trained on validation cases, in a dataset that has grown or has other folds", "a warning"
)
def test_cases_that_weights_were_trained_on_are_known_by_their_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = with_folds(tmp_path / "Balls/medseg3d-work")
    fold = work / "models/3d_fullres/fold_0"
    write_origin(fold, Origin(cases={"a": CaseMark(digest="1"), "b": CaseMark(digest="2")}))
    options = {"configuration": "3d_fullres", "fold": "0", "plan": replace(PLAN, fingerprint_digest="grown")}
    initial_weights(work, validation={"a": ("3", "image"), "c": ("4", "")}, **options)
    assert not caplog.records, "of one name, and other files"
    for place in (work, work.parent, fold, fold / "weights.safetensors"):
        caplog.clear()
        initial_weights(place, validation={"c": ("4", ""), "renamed": ("2", "")}, **options)
        assert f"{place} was trained on 1 case of 2, which fold 0 validates on (renamed)" in caplog.text


@pytest.mark.fault("A", "--init with weights that were trained on validation cases, whose label maps were corrected since", "a warning")
def test_cases_with_corrected_labels_are_known_by_their_images(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = WorkFolder(trained / "medseg3d-work")
    contents = image_contents(work)
    case = min(read_split(work, "0").train)
    for digests, is_seen in ((("other", contents[case]), True), (("other", "another"), False), (("other", ""), False)):
        caplog.clear()
        initial_weights(work.root, configuration="3d_fullres", fold="0", validation={case: digests})
        assert (f"was trained on 1 case of 1, which fold 0 validates on ({case})" in caplog.text) is is_seen


def test_a_file_of_another_library_is_taken_as_it_is(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.ones(2)}, tmp_path / "resnet.pth")
    found = initial_weights(tmp_path / "resnet.pth", configuration="3d_fullres", fold="0")
    assert (found.is_foreign, found.meanings, list(found.tensors)) == (True, {}, ["layer1.0.conv1.weight"])


def test_a_model_says_what_its_channels_and_labels_are(tmp_path: Path) -> None:
    found = initial_weights(with_folds(tmp_path / "work"), configuration="3d_fullres", fold="0")
    assert found.meanings == {"": Meanings(channels=PLAN.channels, outputs=PLAN.labels.names)}


def test_what_is_no_model_is_refused_with_what_is_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for place in (tmp_path / "nothing", tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match=r"--init .*a work folder or its dataset, a .medseg3d file, a fold's folder or its weights"):
            initial_weights(place, configuration="3d_fullres", fold="0")


def test_shapes_are_the_weights_for_as_many_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(initial_weights_module, "SHAPES_FOLDER", tmp_path / "shapes")
    with pytest.raises(InputError, match=r"medseg3d\.commandline\.learn_shapes --minutes 60 first"):
        initial_weights(Path("shapes"), configuration="3d_fullres", fold="0", plan=PLAN)
    card = ModelCard(plans={NO_NAME: PLAN}, configurations={NO_NAME: "3d_fullres"}, fold="0", facts={})
    other = tmp_path / "shapes" / "3d_7.safetensors"
    save_weights(other, network(1), card)
    with caplog.at_level(logging.WARNING):
        assert is_network(initial_weights(Path("shapes"), configuration="3d_fullres", fold="0", plan=PLAN).tensors, 1)
    assert "no weights for" in caplog.text
    own = shapes_file(PLAN.configuration("3d_fullres").network, tmp_path / "shapes")
    save_weights(own, network(2), card)
    found = initial_weights(Path("shapes"), configuration="3d_fullres", fold="0", plan=PLAN)
    assert is_network(found.tensors, 2)
    assert not found.is_foreign
    assert found.meanings == {NO_NAME: Meanings.of(PLAN, PLAN.configuration("3d_fullres").network)}


def test_a_model_that_is_called_shapes_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_folds(tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    assert is_network(initial_weights(Path("shapes"), configuration="3d_fullres", fold="1").tensors, 1)


def test_networks_of_slices_do_not_begin_with_weights_of_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial_weights_module, "SHAPES_FOLDER", tmp_path / "shapes")
    card = ModelCard(plans={NO_NAME: PLAN}, configurations={NO_NAME: "3d_fullres"}, fold="0", facts={})
    save_weights(tmp_path / "shapes" / "3d_4.safetensors", network(1), card)
    chosen = PLAN.configuration("3d_fullres")
    flat = replace(PLAN, configurations={"2d": replace(chosen, name="2d", network=replace(chosen.network, dimensions=2))}, recommended="2d")
    with pytest.raises(InputError, match=r"networks of 2 dimensions on this machine yet.*learn_shapes --minutes 60 -c 2d first"):
        initial_weights(Path("shapes"), configuration="2d", fold="0", plan=flat)


def test_weights_go_home_where_the_package_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(initial_weights_module, "SHAPES_FOLDER", tmp_path / "file" / "shapes")  # not even root makes a folder in a file
    monkeypatch.setattr(initial_weights_module, "SHAPES_AT_HOME", tmp_path / "home")
    assert place_for_shapes() == tmp_path / "home"
    card = ModelCard(plans={NO_NAME: PLAN}, configurations={NO_NAME: "3d_fullres"}, fold="0", facts={})
    save_weights(shapes_file(PLAN.configuration("3d_fullres").network, tmp_path / "home"), network(3), card)
    assert is_network(initial_weights(Path("shapes"), configuration="3d_fullres", fold="0", plan=PLAN).tensors, 3)


@pytest.mark.slow
def test_the_command_of_an_installation_learns_what_init_then_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial_weights_module, "SHAPES_FOLDER", tmp_path / "shapes")
    assert learn_shapes(["--cases", "10", "--edge", "32", "--epochs", "1", "--iterations", "2", "--planner", "default"]) == 0
    file = Path(capsys.readouterr().out.splitlines()[-1])
    assert file.parent == tmp_path / "shapes"
    assert initial_weights(Path("shapes"), configuration="3d_fullres", fold="0").source == f"generated shapes ({file.stem})"
