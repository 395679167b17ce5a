"""Result folders: which folds are read, what comes out, and that it gives the logits of the network that was written."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg3d.errors import InputError, PlanMismatchError
from medseg3d.models.nnunet.folder import is_nnunet_model, read_nnunet_model
from medseg3d.models.parts import ModelDescription, ModelParts
from medseg3d.networks.build import build_network
from medseg3d.plan import NetworkPlan
from medseg3d.records import from_plain, to_plain
from medseg3d.workflows.initial_weights import initial_weights

MakeModel = Callable[..., Path]
Json = dict[str, Any]


def folds_of(parts: ModelParts) -> list[str]:
    return list(parts.description.members[0].folds)


def logits_of(parts: ModelParts, configuration: str, fold: str, image: torch.Tensor) -> torch.Tensor:
    network = build_network(parts.description.plan.configuration(configuration).network)
    network.load_state_dict(dict(parts.tensors(configuration, fold)))
    with torch.inference_mode():
        result: torch.Tensor = network.eval()(image)
    return result


@pytest.mark.parametrize("family", ["plain", "residual"])
def test_a_network_written_under_their_names_gives_its_logits_again(
    family: str, make_model: MakeModel, plans: Json, plain_plan: NetworkPlan, residual_plan: NetworkPlan, network_with: Callable[..., Any]
) -> None:
    plan = plain_plan if family == "plain" else residual_plan
    if family == "residual":
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        del architecture["arch_kwargs"]["n_conv_per_stage"]
        architecture["arch_kwargs"] |= {"n_blocks_per_stage": [1, 2], "n_conv_per_stage_decoder": 1}
    parts = read_nnunet_model(make_model(plan=plan, folds=("0", "3")))
    image = torch.randn(1, 1, 4, 8, 8)
    assert parts.description.plan.configuration(None).network == plan
    for seed, fold in enumerate(("0", "3")):
        with torch.inference_mode():
            expected = network_with(plan, seed)(image)
        assert torch.equal(logits_of(parts, "3d_fullres", fold, image), expected)


def test_the_description_goes_through_json(make_model: MakeModel) -> None:
    description = read_nnunet_model(make_model()).description
    text = json.dumps(to_plain(description), allow_nan=False)
    assert from_plain(json.loads(text), ModelDescription, "model") == description


def test_the_facts_say_where_the_model_comes_from(make_model: MakeModel) -> None:
    description = read_nnunet_model(make_model(folds=("0", "1"))).description
    assert description.facts == {
        "origin": "nnU-Net",
        "trainer": "nnUNetTrainer",
        "plans": "nnUNetPlans",
        "folder": "nnUNetTrainer__nnUNetPlans__3d_fullres",
        "epoch": 12,
        "training_pseudo_dice": 0.75,
    }
    assert description.plan.configuration(None).mirror_axes == (0, 2)


@pytest.mark.parametrize(("saved", "expected"), [((), ()), (None, ()), ((1, 0), (0, 1))])
def test_mirror_axes_are_those_that_nnunet_would_predict_with(
    saved: tuple[int, ...] | None, expected: tuple[int, ...], make_model: MakeModel
) -> None:
    parts = read_nnunet_model(make_model(inference_allowed_mirroring_axes=saved))
    assert parts.description.plan.configuration(None).mirror_axes == expected


def test_numbered_folds_are_taken_in_order_and_all_only_alone(make_model: MakeModel) -> None:
    folder = make_model(folds=("all", "10", "2"))
    assert folds_of(read_nnunet_model(folder)) == ["2", "10"]
    assert folds_of(read_nnunet_model(folder, folds=["all"])) == ["all"]
    for fold in ("2", "10"):
        shutil.rmtree(folder / f"fold_{fold}")
    assert folds_of(read_nnunet_model(folder)) == ["all"]


def test_the_best_checkpoint_is_used_with_a_warning_where_none_is_final(make_model: MakeModel, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_model(folds=("0", "1"), file="checkpoint_best.pth")
    with caplog.at_level(logging.WARNING):
        assert folds_of(read_nnunet_model(folder)) == ["0", "1"]
    assert "training is not finished" in caplog.text
    caplog.clear()
    shutil.copy(folder / "fold_0/checkpoint_best.pth", folder / "fold_0/checkpoint_final.pth")
    assert folds_of(read_nnunet_model(folder)) == ["0"]
    (record,) = caplog.records
    assert "fold 1 is not finished (no checkpoint_final.pth) and is left out" in record.getMessage()


def test_a_missing_fold_is_named_with_those_that_are_there(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match=r"fold 4; trained: 0, 1\."):
        read_nnunet_model(make_model(folds=("0", "1")), folds=["0", "4"])


def test_the_identity_changes_with_the_weights_the_plans_and_the_folds(make_model: MakeModel, plans: Json) -> None:
    folder = make_model(folds=("0", "1"))
    identities = {read_nnunet_model(folder).identity, read_nnunet_model(folder, folds=["0"]).identity}
    shutil.copy(folder / "fold_1/checkpoint_final.pth", folder / "fold_0/checkpoint_final.pth")
    identities.add(read_nnunet_model(folder).identity)
    (folder / "plans.json").write_text(json.dumps(plans | {"transpose_forward": [0, 1, 2]}), encoding="utf-8")
    identities.add(read_nnunet_model(folder).identity)
    assert len(identities) == 4


def test_a_folder_of_a_dataset_asks_which_of_several(make_model: MakeModel) -> None:
    fullres, lowres = make_model(), make_model("3d_lowres")
    with pytest.raises(InputError, match=f"{fullres.name}, {lowres.name}"):
        read_nnunet_model(fullres.parent)
    assert read_nnunet_model(fullres.parent, configuration="3d_lowres").description.plan.recommended == "3d_lowres"
    with pytest.raises(InputError, match="nothing is trained for the configuration 2d"):
        read_nnunet_model(fullres.parent, configuration="2d")
    with pytest.raises(InputError, match="trained for the configuration 3d_fullres, not 3d_lowres"):
        read_nnunet_model(fullres, configuration="3d_lowres")


def test_a_model_is_told_from_other_folders(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model()
    assert is_nnunet_model(folder)
    assert is_nnunet_model(folder.parent)
    assert not is_nnunet_model(tmp_path / "nothing")
    for wrong in (folder / "fold_0", folder / "plans.json"):
        assert not is_nnunet_model(wrong)
    (folder / "dataset.json").unlink()
    assert not is_nnunet_model(folder)
    with pytest.raises(InputError, match="not a model of nnU-Net"):
        read_nnunet_model(folder)


def test_a_cascade_brings_its_previous_stage(make_model: MakeModel, plain_plan: NetworkPlan) -> None:
    make_model("3d_lowres", folds=("0", "1"))
    folder = make_model("3d_cascade_fullres", plan=replace(plain_plan, in_channels=3))
    parts = read_nnunet_model(folder)
    assert [m.configuration for m in parts.description.members] == ["3d_cascade_fullres"]
    assert [(m.configuration, m.folds) for m in parts.description.previous] == [("3d_lowres", ("0", "1"))]
    assert set(parts.networks()) == {("3d_cascade_fullres", "0"), ("3d_lowres", "0"), ("3d_lowres", "1")}
    configurations = parts.description.plan.configurations
    assert configurations["3d_cascade_fullres"].network.in_channels == 3
    assert configurations["3d_lowres"].network.in_channels == 1
    assert configurations["3d_lowres"].spacing == (3.0, 2.0, 2.0)


def test_a_cascade_names_the_folder_of_the_stage_that_is_missing(make_model: MakeModel, plain_plan: NetworkPlan) -> None:
    folder = make_model("3d_cascade_fullres", plan=replace(plain_plan, in_channels=3))
    with pytest.raises(InputError, match="nnUNetTrainer__nnUNetPlans__3d_lowres: missing"):
        read_nnunet_model(folder)


def test_a_previous_stage_of_another_dataset_is_refused(make_model: MakeModel, plain_plan: NetworkPlan, plans: Json) -> None:
    folder = make_model("3d_cascade_fullres", plan=replace(plain_plan, in_channels=3))
    plans["transpose_forward"] = [0, 1, 2]
    make_model("3d_lowres")
    with pytest.raises(InputError, match="no cascade"):
        read_nnunet_model(folder)


def test_weights_of_other_plans_are_refused(make_model: MakeModel, plain_plan: NetworkPlan) -> None:
    with pytest.raises(PlanMismatchError, match=r"checkpoint_final\.pth .* 9 of another shape \(encoder\.1\.0\.conv\.weight"):
        read_nnunet_model(make_model(plan=replace(plain_plan, features=(4, 8))))


def test_training_can_begin_with_a_fold(make_model: MakeModel, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_model(folds=("0", "3"))
    found = initial_weights(folder, configuration="3d_fullres", fold="3")
    expected = read_nnunet_model(folder).tensors("3d_fullres", "3")
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.items())
    assert found.source.endswith("(3d_fullres, fold 3)")
