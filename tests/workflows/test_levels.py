"""A UNet++ is validated at every level at once, and predicts with the level that validation chose, or that a user names."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medseg3d import load_model
from medseg3d.commandline.cli import main
from medseg3d.data.prediction_cases import prediction_cases
from medseg3d.devices import choose_device
from medseg3d.errors import InputError
from medseg3d.models.checkpoints import load_tensors, save_tensors
from medseg3d.models.loading import assemble
from medseg3d.models.parts import MemberDescription, ModelDescription, ModelParts
from medseg3d.models.pruning import plan_levels, pruned_parts
from medseg3d.models.sources import open_model
from medseg3d.networks.build import build_network
from medseg3d.networks.levels import levels_of
from medseg3d.records import read_record
from medseg3d.validation.levels import LEVELS, MIRRORED, PLAIN, FoldLevels, level_folder
from medseg3d.validation.selection import Selection
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.export import export_model
from medseg3d.workflows.info import info, info_lines
from medseg3d.workflows.plan import plan
from tests.tiny_planner import tiny_planner

VALIDATED = tuple(f"ball_{number}" for number in range(1, 6))


@pytest.fixture(scope="module")
def nested(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with fold 0 of a UNet++ of two levels, trained on one case and validated on five."""
    root = Path(shutil.copytree(tiny_source, tmp_path_factory.mktemp("nested") / "Balls"))
    (root / "nested.toml").write_text(tiny_planner("unet_plus_plus", epochs=1, iterations=2, validations=1), encoding="utf-8")
    folds = [{"train": ["ball_0"], "val": list(VALIDATED)}]
    (root / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    assert main(["plan", str(root), "--planner", str(root / "nested.toml"), "-q"]) == 0
    assert main(["preprocess", str(root), "-q"]) == 0
    assert main(["train", str(root), "--fold", "0", "--device", "cpu", "-q"]) == 0
    return root


@pytest.fixture
def pruned(nested: Path, tmp_path: Path) -> Path:
    """A copy whose validation says that all levels are alike, so that the first one predicts."""
    root = Path(shutil.copytree(nested, tmp_path / "Balls"))
    file = validation_of(root) / LEVELS
    found = read_record(file, FoldLevels, "levels")
    dice = dict.fromkeys(VALIDATED, 0.9)
    alike = [{"level": s.level, "dice": {MIRRORED: dice, PLAIN: dice}, "seconds_per_window": s.level / 10} for s in found.scores]
    document = json.loads(file.read_text(encoding="utf-8")) | {"scores": alike}
    file.write_text(json.dumps(document), encoding="utf-8")
    return root


def validation_of(root: Path) -> Path:
    work = WorkFolder(root / "medseg3d-work")
    return work.validation(work.read_plan().recommended, "0")


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_the_validation_of_all_levels_is_what_each_predicts_alone(nested: Path, tmp_path: Path) -> None:
    validation = validation_of(nested)
    levels = [score.level for score in read_record(validation / LEVELS, FoldLevels, "levels").scores]
    assert len(levels) >= 2
    image = nested / "imagesTr" / "ball_1_0000.nii.gz"
    for level in levels[:-1]:
        for way in (MIRRORED, PLAIN):
            model = load_model(nested, device="cpu", level=level, mirroring=way == MIRRORED)
            alone = model.predict_file(image, tmp_path / f"{level}_{way}.nii.gz")
            assert np.array_equal(voxels(alone), voxels(level_folder(validation, level, way) / "ball_1.nii.gz"))


def test_every_level_has_a_time_and_the_dice_of_every_case(nested: Path) -> None:
    scores = read_record(validation_of(nested) / LEVELS, FoldLevels, "levels").scores
    assert all(score.seconds_per_window > 0 for score in scores)
    assert all(tuple(sorted(score.dice[way])) == VALIDATED for score in scores for way in (MIRRORED, PLAIN))


def test_the_chosen_level_predicts_and_another_can_be_named(pruned: Path) -> None:
    models = {level: load_model(pruned, device="cpu", level=level) for level in (None, 1, "full")}
    assert models[None].identity == models[1].identity != models["full"].identity
    assert models[None].members[0].networks[0].level == 1
    with pytest.raises(InputError, match=r"--level 9: .* has the levels 1, 2"):
        load_model(pruned, device="cpu", level=9)
    with pytest.raises(InputError, match="expected a whole number of at least 1, or full"):
        load_model(pruned, device="cpu", level="deep")


def test_a_model_file_holds_all_levels_and_predicts_with_the_chosen_one(pruned: Path, tmp_path: Path) -> None:
    file = export_model(pruned, tmp_path / "a.medseg3d").output
    chosen, whole = load_model(file, device="cpu"), load_model(file, device="cpu", level="full")
    image = nibabel.load(pruned / "imagesTs" / "ball_6_0000.nii.gz")
    assert np.array_equal(chosen.predict(image), load_model(pruned, device="cpu").predict(image))
    assert chosen.members[0].networks[0].level < whole.members[0].networks[0].level
    lines = "\n".join(info_lines(info(file)))
    assert "1 of 2: it loses 0.0000 mean Dice to the best level on 5 cases, and is 2.0 times as fast as L2" in lines
    assert "Of 3d_fullres level 1 predicts, of 2" in card_of(file)


def card_of(file: Path) -> str:
    with zipfile.ZipFile(file) as archive:
        return archive.read("README.md").decode()


def test_a_model_file_of_one_level_is_smaller_and_predicts_the_same_bits(pruned: Path, tmp_path: Path) -> None:
    whole = export_model(pruned, tmp_path / "whole.medseg3d").output
    small = export_model(whole, tmp_path / "small.medseg3d", level=1).output
    assert small.stat().st_size < whole.stat().st_size
    image = nibabel.load(pruned / "imagesTs" / "ball_6_0000.nii.gz")
    assert np.array_equal(load_model(small, device="cpu").predict(image), load_model(whole, device="cpu").predict(image))


def test_the_levels_of_a_plan_are_those_of_its_network(nested: Path) -> None:
    description = open_model(nested).description
    network = description.plan.configuration(description.members[0].configuration).network
    assert plan_levels(network) == levels_of(build_network(network)) != ()


def test_a_network_without_levels_is_as_it_was(trained: Path) -> None:
    parts = open_model(trained)
    assert pruned_parts(parts, None) is parts
    assert pruned_parts(parts, 0) is parts
    assert not (validation_of(trained) / LEVELS).exists()
    with pytest.raises(InputError, match="only a UNet"):
        load_model(trained, device="cpu", level=2)


def test_select_compares_and_postprocesses_what_the_chosen_level_predicts(pruned: Path) -> None:
    work = WorkFolder(pruned / "medseg3d-work")
    assert main(["select", str(pruned), "--device", "cpu", "-q"]) == 0
    selection = read_record(work.selection, Selection, "selection")
    assert any("L1 predicts: it loses 0.0000" in note for note in selection.notes)
    (name,) = selection.configurations
    mirroring = MIRRORED if selection.mirroring[name].is_used else PLAIN
    metrics = json.loads((level_folder(validation_of(pruned), 1, mirroring) / "metrics.json").read_text(encoding="utf-8"))
    assert selection.candidates[0].own_dice.mean == pytest.approx(metrics["foreground_dice"]["mean"])


def test_levels_of_other_weights_are_not_used(pruned: Path) -> None:
    work = WorkFolder(pruned / "medseg3d-work")
    file = work.weights(work.read_plan().recommended, "0")
    tensors, metadata = load_tensors(file)
    save_tensors(file, {name: tensor + 1 for name, tensor in tensors.items()}, metadata)
    assert open_model(pruned).description.members[0].levels is None


def test_the_levels_of_a_second_stage_see_what_the_first_stage_predicts(tiny: Path) -> None:
    planner = tiny_planner("unet_plus_plus") + "[patch]\ninitial_edge_3d = 13\n[lowres]\npatch_share = 0.9\nmin_volume_ratio = 1.2\n"
    (tiny / "cascade.toml").write_text(planner, encoding="utf-8")
    made = plan(tiny, planner=tiny / "cascade.toml").plan
    networks = {name: chosen.network for name, chosen in made.configurations.items()}

    def read(configuration: str, fold: str) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(len(configuration))
        return dict(build_network(networks[configuration], generator=generator).state_dict())

    first, second = (MemberDescription(configuration=name, folds=("0",), mirroring=False) for name in ("3d_lowres", "3d_cascade_fullres"))
    description = ModelDescription(plan=made, members=(second,), previous=(first,))
    model = assemble(ModelParts(path=tiny, description=description, identity="x", read=read), choose_device("cpu", "float32"))
    (case,) = prediction_cases(tiny / "imagesTs" / "ball_6_0000.nii.gz", num_channels=1)
    whole = model.segment(model.prepare(model.read(case)))
    deepest, *lower = model.segment_every_level(model.prepare(model.read(case)), both_ways=False)
    assert lower
    assert np.array_equal(deepest, whole)


@pytest.mark.slow
def test_an_onnx_file_is_the_level_that_predicts(pruned: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (parity,) = export_model(pruned, tmp_path / "level.onnx").parity
    export_model(pruned, tmp_path / "whole.onnx", level="full")
    assert parity.label_agreement == 1.0
    assert (tmp_path / "level.onnx").stat().st_size < (tmp_path / "whole.onnx").stat().st_size
