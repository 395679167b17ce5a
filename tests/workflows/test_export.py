"""Exports: what is given away computes the same as what was trained."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medseg3d.data.prediction_cases import prediction_cases
from medseg3d.data.reading import read_case
from medseg3d.errors import InputError, UnsupportedError
from medseg3d.evaluation.compare import Interval
from medseg3d.frame import Frame
from medseg3d.labels import Labels
from medseg3d.models.bundle import images, in_region_class_order, network, weights
from medseg3d.models.bundle_texts import inference_configuration
from medseg3d.models.loading import load_model
from medseg3d.models.model_file import open_model_file, write_model_file
from medseg3d.models.parts import MemberDescription, ModelDescription, ModelParts
from medseg3d.models.sources import open_model
from medseg3d.networks import NETWORKS, build_network
from medseg3d.plan import Configuration, NetworkPlan, Normalization, Plan
from medseg3d.preprocessing.preprocess_case import preprocess_case
from medseg3d.records import write_record
from medseg3d.validation.postprocessing import Postprocessing, Step, apply_postprocessing
from medseg3d.validation.selection import CandidateResult, Selection
from medseg3d.workflows import export
from medseg3d.workflows.export import MIN_AGREEMENT, export_model
from tests.in_memory import parts_of, weights_of

MIN_AGREEMENT_SAME_GRID = 0.99
"""Share of voxels that MONAI labels as we do where nothing is resampled: the windows and their weights differ (measured: 0.999)."""
MIN_AGREEMENT_RESAMPLED = 0.93
"""The same where the image is resampled: about a tenth of the voxels of these tiny images lie at a border, which moves by a part of a voxel
(measured: 0.96 to 0.98; 0.996 on volumes of usual size)."""


@pytest.fixture
def _quiet_monai() -> Iterator[None]:
    """MONAI warns of what its own next versions will do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def parts(trained: Path) -> ModelParts:
    return open_model(trained)


def copy_of(trained: Path, tmp_path: Path, *, folds: tuple[str, ...] = ("0", "1")) -> Path:
    """The trained dataset with more folds (copies of fold 0) in its work folder."""
    root = Path(shutil.copytree(trained, tmp_path / "Balls"))
    models = root / "medseg3d-work/models/3d_fullres"
    for fold in folds[1:]:
        shutil.copytree(models / "fold_0", models / f"fold_{fold}")
    return root


def select(root: Path, *, folds: tuple[str, ...], postprocessing: Postprocessing = Postprocessing()) -> None:  # noqa: B008
    dice = Interval(mean=0.5, median=0.5, low=None, high=None, n=4)
    result = CandidateResult(
        name="3d_fullres",
        configurations=("3d_fullres",),
        folds={"3d_fullres": folds},
        dice=dice,
        own_dice=replace(dice, mean=0.625),
        gain=None,
    )
    selection = Selection(
        configurations=("3d_fullres",),
        folds={"3d_fullres": folds},
        reason="the only one",
        candidates=(result,),
        cases=("secret_case",),
        postprocessing=postprocessing,
    )
    write_record(root / "medseg3d-work/selection.json", selection, "selection")


def assert_same_weights(found: ModelParts, expected: ModelParts) -> None:
    for name, fold in expected.networks():
        own = found.tensors(name, fold)
        assert all(torch.equal(tensor, own[key]) for key, tensor in expected.tensors(name, fold).items())


def test_a_work_folder_becomes_one_file_that_loads_as_the_same_model(trained: Path, parts: ModelParts, tmp_path: Path) -> None:
    result = export_model(trained, tmp_path / "balls.medseg3d")
    assert result.files == (tmp_path / "balls.medseg3d",)
    read = open_model_file(result.output)
    assert read.description == parts.description
    assert_same_weights(read, parts)
    weights = trained / "medseg3d-work/models/3d_fullres/fold_0/weights.safetensors"
    assert_same_weights(open_model(weights), parts)
    assert open_model(weights.parent).description.facts["epoch"] is not None
    again = export_model(result.output, tmp_path / "again.medseg3d")
    assert again.output.read_bytes() == result.output.read_bytes()


def test_a_model_file_predicts_what_its_work_folder_predicts(trained: Path, tmp_path: Path) -> None:
    root = copy_of(trained, tmp_path)
    select(root, folds=("0", "1"), postprocessing=Postprocessing(steps=(Step(operation="keep_largest_foreground"),)))
    export_model(root, tmp_path / "balls.medseg3d")
    image = root / "imagesTs/ball_6_0000.nii.gz"
    found = [
        np.asarray(nibabel.load(load_model(place, device="cpu").predict_file(image, tmp_path / f"{number}.nii.gz")).dataobj)
        for number, place in enumerate((root, tmp_path / "balls.medseg3d"))
    ]
    assert np.array_equal(*found)


def test_the_selection_decides_and_its_measure_is_told(trained: Path, tmp_path: Path) -> None:
    root = copy_of(trained, tmp_path, folds=("0", "1", "all"))
    postprocessing = Postprocessing(steps=(Step(operation="keep_largest", index=2),))
    select(root, folds=("0", "1"), postprocessing=postprocessing)
    description = open_model(root).description
    assert [(member.configuration, member.folds) for member in description.members] == [("3d_fullres", ("0", "1"))]
    assert description.postprocessing.steps == postprocessing.steps
    facts = description.facts
    assert (facts["cross_validation_dice"], facts["cross_validation_cases"]) == (0.625, 4)
    assert (facts["dataset"], facts["training_cases"], facts["planner"]) == ("Balls", 6, "tiny")
    fewer = open_model(root, folds="1").description
    assert fewer.members[0].folds == ("1",)
    assert "cross_validation_dice" not in fewer.facts, "it was measured with other networks"


def test_a_part_of_a_model_file_keeps_only_what_is_true_of_the_part(trained: Path, tmp_path: Path) -> None:
    root = copy_of(trained, tmp_path)
    select(root, folds=("0", "1"))
    whole = export_model(root, tmp_path / "whole.medseg3d").output
    part = export_model(whole, tmp_path / "part.medseg3d", folds=1).description
    assert part.members[0].folds == ("1",)
    assert "cross_validation_dice" not in part.facts
    for wrong, words in (({"folds": 3}, "no fold 3"), ({"configuration": "2d"}, "no configuration")):
        with pytest.raises(InputError, match=words):
            open_model(whole, **wrong)


def test_no_name_of_a_case_is_given_away(trained: Path, tmp_path: Path) -> None:
    from medseg3d.errors import CaseFailure

    root = copy_of(trained, tmp_path)
    failed = Postprocessing(failures=(CaseFailure(case="secret_case", stage="select", reason="secret_case.nii.gz: lost"),))
    select(root, folds=("0", "1"), postprocessing=failed)
    content = export_model(root, tmp_path / "x.medseg3d").output.read_bytes()
    assert b"secret_case" not in content
    assert b"ball_" not in content
    assert str(tmp_path).encode() not in content


def test_a_format_that_no_name_says_is_asked_for(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--format onnx or --format monai"):
        export_model(trained, tmp_path / "there")
    with pytest.raises(InputError, match=r"ends with \.medseg3d"):
        export_model(trained, tmp_path / "model.zip", format="medseg3d")


@pytest.mark.parametrize("chosen", ["onnx", "monai"])
def test_a_folder_with_something_in_it_is_left_alone(trained: Path, tmp_path: Path, chosen: export.Format) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="is there already"):
        export_model(trained, tmp_path / "there", format=chosen)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]


def test_a_configuration_that_a_file_does_not_hold_is_refused(trained: Path) -> None:
    weights = trained / "medseg3d-work/models/3d_fullres/fold_0/weights.safetensors"
    with pytest.raises(InputError, match="holds 3d_fullres, fold 0"):
        open_model(weights, configuration="2d")
    with pytest.raises(InputError, match="no finished fold 4"):
        open_model(trained, folds=4)


# ONNX


def onnx_session(path: Path) -> "object":  # noqa: UP037
    return pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_an_onnx_file_computes_the_logits_of_the_network(trained: Path, parts: ModelParts, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    result = export_model(trained, tmp_path / "balls.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["balls.onnx", "balls.parity.json"]
    (parity,) = result.parity
    assert parity.label_agreement >= MIN_AGREEMENT
    assert parity.max_difference < 1e-3
    configuration = parts.description.plan.configurations["3d_fullres"]
    single = build_network(configuration.network).eval()
    single.load_state_dict(parts.tensors("3d_fullres", "0"))
    session = onnx_session(tmp_path / "balls.onnx")
    for batch in (1, 4):
        image = torch.randn(batch, 1, *configuration.patch_size)
        (found,) = session.run(None, {"image": image.numpy()})  # type: ignore[attr-defined]
        with torch.inference_mode():
            assert np.allclose(found, single(image).numpy(), atol=1e-3)


def test_an_onnx_file_says_how_to_use_it(trained: Path, parts: ModelParts, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    root = copy_of(trained, tmp_path)
    result = export_model(root, tmp_path / "networks", format="onnx")
    names = ["3d_fullres_fold_0.onnx", "3d_fullres_fold_1.onnx", "parity.json"]
    assert sorted(path.name for path in result.files) == sorted(path.name for path in (tmp_path / "networks").iterdir()) == names
    report = json.loads((tmp_path / "networks/parity.json").read_text(encoding="utf-8"))
    assert [entry["file"] for entry in report["networks"]] == names[:2]
    session = onnx_session(tmp_path / "networks/3d_fullres_fold_1.onnx")
    notes = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}  # type: ignore[attr-defined]
    configuration = parts.description.plan.configurations["3d_fullres"]
    assert notes["labels"] == {"background": 0, "shell": 3, "core": 7}
    assert notes["window"] == list(configuration.patch_size)
    assert notes["spacing"] == list(configuration.spacing)
    assert notes["normalization"][0]["scheme"] == configuration.normalization[0].scheme
    assert (notes["fold"], notes["plan"]["dataset"]) == ("1", "Balls")


def test_one_onnx_file_for_several_networks_is_refused(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(InputError, match="one file holds one network"):
        export_model(copy_of(trained, tmp_path), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


UNETS = ("plain_unet", "residual_unet", "classic_unet", "vnet", "u2net")
QUICK = ("plain_unet", "residual_unet")
ALL_FAMILIES = (
    ("plain_unet", 2),
    *((name, 3) for name in QUICK),
    *(pytest.param(name, 3, marks=pytest.mark.slow) for name in NETWORKS.built_in if name not in QUICK),
)


@pytest.mark.parametrize(("family", "dimensions"), ALL_FAMILIES)
def test_every_family_exports_to_onnx_with_any_number_of_windows(parts: ModelParts, family: str, dimensions: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    plan = family_plan(parts.description.plan, family, dimensions)
    tensors = dict(build_network(plan.configurations["x"].network, generator=torch.Generator().manual_seed(0)).state_dict())
    description = ModelDescription(plan=plan, members=(MemberDescription(configuration="x", folds=("0",)),))
    model = write_model_file(tmp_path / "x.medseg3d", parts_of(description, {"x": {"0": tensors}}))
    (parity,) = export_model(model, tmp_path / "x.onnx").parity  # runs one window, then two at once
    assert parity.label_agreement >= MIN_AGREEMENT


def family_plan(plan: Plan, family: str, dimensions: int) -> Plan:
    """A plan with a small network of a family as its only configuration."""
    pool, kernel = (2,) * dimensions, (3,) * dimensions
    asked = NETWORKS[family].pooling
    stages = asked.num_stages or 3
    network_plan = NetworkPlan(
        family=family,
        dimensions=dimensions,  # type: ignore[arg-type]
        in_channels=1,
        num_classes=3,
        features=tuple((12 if asked.num_stages else 8) * 2**stage for stage in range(stages)) if asked.all_axes else (8, 12, 16),
        kernel_sizes=(kernel,) * stages,
        strides=((asked.first_stride,) * dimensions, *(pool,) * (stages - 1)),
        encoder_blocks=(2,) * stages,
        decoder_blocks=(1 if family in ("monai_attention_unet", "swinunetr") else 2,) * (stages - 1),
        deep_supervision=family in (*UNETS, "dynunet", "mednext"),
    )
    (configuration, *_) = (found for found in plan.configurations.values() if found.network.dimensions == dimensions)
    chosen = replace(
        configuration,
        name="x",
        network=network_plan,
        patch_size=(*(32,) * (dimensions - 1), 64) if asked.num_stages else (24,) * dimensions,
        mirror_axes=tuple(range(dimensions)),
    )
    return replace(plan, configurations={"x": chosen}, recommended="x")


def test_networks_that_come_out_differently_are_not_written(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession

    class Wrong:
        def __init__(self, *arguments: object, **options: object) -> None:
            self.right = session(*arguments, **options)

        def run(self, names: list[str], images: dict) -> list[np.ndarray]:
            return [-logits for logits in self.right.run(names, images)]

    monkeypatch.setattr(runtime, "InferenceSession", Wrong)
    with pytest.raises(UnsupportedError, match=r"expected at least 99\.9 %"):
        export_model(trained, tmp_path / "folder", format="onnx")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_the_way_to_install_them(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(InputError, match=r"needs onnxscript: pip install 'medseg3d\[onnx\]'"):
        export_model(trained, tmp_path / "x.onnx")


# MONAI


METADATA = ("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version")
ABOUT = ("name", "task", "description", "authors", "copyright", "intended_use", "network_data_format")
TENSOR = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def"}


@pytest.fixture(scope="module")
def source(parts: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of two different folds, with mirroring and a step afterwards."""
    weights = weights_of(parts)["3d_fullres"]
    weights["1"] = {name: tensor * 1.25 if tensor.is_floating_point() else tensor for name, tensor in weights["0"].items()}
    description = replace(
        parts.description,
        members=(MemberDescription(configuration="3d_fullres", folds=("0", "1"), mirroring=True),),
        postprocessing=Postprocessing(steps=(Step(operation="keep_largest_foreground"), Step(operation="keep_largest", index=1))),
    )
    path = tmp_path_factory.mktemp("source") / "balls.medseg3d"
    return write_model_file(path, parts_of(description, {"3d_fullres": weights}))


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(source, tmp_path_factory.mktemp("bundles") / "balls", format="monai").output


def test_a_bundle_has_the_files_and_fields_of_the_specification(bundle: Path) -> None:
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert files == {"LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.pt"}
    metadata = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    assert list(metadata) == [*METADATA, *ABOUT]
    assert "medseg3d" in metadata["required_packages_version"]
    image, pred = metadata["network_data_format"]["inputs"]["image"], metadata["network_data_format"]["outputs"]["pred"]
    assert set(image) - {"modality"} == set(pred) == TENSOR
    assert pred["channel_def"] == {"0": "background", "1": "shell", "2": "core"}
    assert "close to" in (bundle / "docs/README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("_quiet_monai")
def test_monais_loader_gives_the_mean_of_the_networks(bundle: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import monai.bundle

    tensors = torch.load(bundle / "models/model.pt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    monkeypatch.chdir(tmp_path)  # it must not matter where it is called
    loaded = monai.bundle.load(bundle.name, bundle_dir=bundle.parent, workflow_type="inference", device="cpu")
    parts = open_model_file(source)
    configuration = parts.description.plan.configurations["3d_fullres"]
    image = torch.randn(1, 1, *configuration.patch_size)
    answers = []
    for tensors in weights_of(parts)["3d_fullres"].values():
        single = build_network(configuration.network).eval()
        single.load_state_dict(tensors)
        with torch.inference_mode():
            answers += [single(image.flip(dims)).flip(dims) for dims in ([], [2], [3], [4], [2, 3], [2, 4], [3, 4], [2, 3, 4])]
    with torch.inference_mode():
        assert torch.allclose(loaded.eval()(image), torch.stack(answers).mean(0), atol=1e-4)


@pytest.mark.usefixtures("_quiet_monai")
def test_monai_runs_a_bundle_and_segments_as_predict_does(bundle: Path, source: Path, trained: Path, tmp_path: Path) -> None:
    import monai.bundle

    folder = Path(shutil.copytree(trained / "imagesTs", tmp_path / "images"))
    image = nibabel.load(folder / "ball_6_0000.nii.gz")
    for number, spacing in enumerate([(0.8, 1.3, 1.5), (1.2, 1.2, 0.9)]):  # others than the network's: they are resampled
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([*spacing, 1.0])), folder / f"ball_{number}_0000.nii.gz")
    monai.bundle.run(
        config_file=str(bundle / "configs/inference.json"),
        bundle_root=str(bundle),
        dataset_dir=str(folder),
        output_dir=str(tmp_path),
        device="$torch.device('cpu')",
    )
    model = load_model(source, device="cpu")
    assert len(list(folder.iterdir())) == 4
    for image in sorted(folder.iterdir()):
        found = nibabel.load(tmp_path / image.name.replace(".nii.gz", "_seg.nii.gz"))
        expected = nibabel.load(model.predict_file(image, tmp_path / "own.nii.gz"))
        assert found.shape == expected.shape
        assert np.allclose(found.affine, expected.affine)
        assert found.get_data_dtype() == np.uint8
        labels, own = np.asarray(found.dataobj), np.asarray(expected.dataobj)
        is_resampled = image.name in ("ball_0_0000.nii.gz", "ball_1_0000.nii.gz")
        assert is_resampled or set(np.unique(labels)) == set(np.unique(own))  # MONAI resamples otherwise: a label of few voxels may be lost
        assert (own != 0).any()
        assert (labels == own).mean() >= (MIN_AGREEMENT_RESAMPLED if is_resampled else MIN_AGREEMENT_SAME_GRID)


@pytest.mark.usefixtures("_quiet_monai")
def test_monai_finds_all_properties_of_an_inference_bundle(bundle: Path) -> None:
    import monai.bundle

    configuration = str(bundle / "configs/inference.json")
    workflow = monai.bundle.create_workflow(config_file=configuration, workflow_type="inference", bundle_root=str(bundle))
    assert workflow.check_properties() == []
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    assert "No images found" in str(error.value.__cause__)


RULES: dict[str, tuple[Normalization, ...]] = {
    "ct": (Normalization(scheme="ct", mean=110.0, std=30.0, lower=80.0, upper=300.0),),
    "zscore": (Normalization(scheme="zscore"),),
    "zscore in a mask": (Normalization(scheme="zscore", use_mask=True),),
    "rescale_0_1": (Normalization(scheme="rescale_0_1"),),
    "rgb_0_1": (Normalization(scheme="rgb_0_1"),),
    "none": (Normalization(scheme="none"),),
}


@pytest.mark.usefixtures("_quiet_monai")
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("orientation", ["canonical", "as_stored"])
@pytest.mark.parametrize("axis_order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_without_resampling_monai_prepares_images_as_we_do(
    parts: ModelParts, tmp_path: Path, rules: tuple[Normalization, ...], orientation, axis_order: tuple[int, int, int]
) -> None:
    from monai.bundle import ConfigParser

    image = np.random.default_rng(0).normal(110, 40, (9, 8, 7)).astype(np.int16)
    image[:2], image[:, -1], image[4, 3, 2] = 0, 0, 0
    affine = np.array([[0, -1.5, 0, 4], [2.0, 0, 0, -9], [0, 0, 3.0, 20], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / "a.nii.gz")
    plan = replace(parts.description.plan, orientation=orientation, axis_order=axis_order)
    spacing = {"canonical": (3.0, 2.0, 1.5), "as_stored": (3.0, 1.5, 2.0)}[orientation]  # (S, A, R) and (z, y, x)
    configuration = changed(plan, spacing=tuple(spacing[axis] for axis in axis_order), normalization=rules)
    plan = replace(plan, configurations={"3d_fullres": configuration})
    content = inference_configuration(replace(parts.description, plan=plan))
    found = ConfigParser(content).get_parsed_content("preprocessing")({"image": str(tmp_path / "a.nii.gz")})["image"]
    (case,) = prediction_cases(tmp_path / "a.nii.gz", num_channels=1)
    raw = read_case(case, with_label=False)
    if orientation == "as_stored":
        stored = np.ascontiguousarray(image.T[None], np.float32)
        raw = replace(raw, image=stored, spacing=spacing)
    expected = preprocess_case(raw, plan=plan, configuration=configuration).image
    assert found.shape == expected.shape
    assert np.allclose(found.numpy(), expected, atol=1e-4)


@pytest.mark.usefixtures("_quiet_monai")
@pytest.mark.parametrize(
    "steps",
    [
        (Step(operation="keep_largest_foreground"),),
        (Step(operation="keep_largest", index=2),),
        (Step(operation="keep_largest_foreground"), Step(operation="keep_largest", index=1)),
        (Step(operation="fill_holes", index=1),),
    ],
    ids=lambda steps: " ".join(step.operation for step in steps),
)
def test_monais_steps_after_the_network_are_ours(parts: ModelParts, steps: tuple[Step, ...]) -> None:
    from monai.bundle import ConfigParser

    generator = np.random.default_rng(0)
    labels = Labels(names=("background", "a", "b"), values=(0, 1, 2))
    plan = replace(parts.description.plan, labels=labels)
    content = inference_configuration(replace(parts.description, plan=plan, postprocessing=Postprocessing(steps=steps)))
    transforms = content["postprocessing"]["transforms"][2:-1]  # without the way back and the file
    for _ in range(20):
        indices = generator.choice(3, (7, 8, 9), p=(0.85, 0.1, 0.05)).astype(np.uint8)
        indices[1:6, 1:6, 1:6] = 1
        indices[3, 3, 3] = 0
        indices[:2, :3, :3] = 2  # of several equally large objects each keeps another one
        if steps[0].operation == "fill_holes":
            indices[indices == 2] = 0  # a hole that touches another label is filled by ours only
        item: dict = {"pred": torch.from_numpy(indices.copy())[None]}
        for number in range(len(transforms)):
            item = ConfigParser({"steps": transforms}).get_parsed_content(f"steps#{number}")(item)
        expected = apply_postprocessing(indices, Postprocessing(steps=steps))
        assert not np.array_equal(expected, indices)
        assert np.array_equal(np.asarray(item["pred"][0]), expected)


def changed(plan: Plan, **changes: object) -> Configuration:
    return replace(plan.configurations["3d_fullres"], **changes)


def test_channels_with_rules_of_their_own_are_normalized_by_ours(parts: ModelParts) -> None:
    plan = parts.description.plan
    rules = (RULES["ct"][0], RULES["zscore"][0])
    plan = replace(plan, channels=("CT", "PET"), configurations={"3d_fullres": changed(plan, normalization=rules)})
    transforms = inference_configuration(replace(parts.description, plan=plan))["preprocessing"]["transforms"]
    assert [transform["func"]["_target_"] for transform in transforms if transform["_target_"] == "Lambdad"] == [
        "medseg3d.models.bundle.normalized"
    ]


@pytest.mark.usefixtures("_quiet_monai")
def test_a_2d_network_sees_slices(parts: ModelParts) -> None:
    from monai.bundle import ConfigParser

    plan = family_plan(parts.description.plan, "plain_unet", 2)
    description = ModelDescription(plan=plan, members=(MemberDescription(configuration="x", folds=("0",)),))
    content = inference_configuration(description)
    assert (content["inferer"]["_target_"], content["inferer"]["spatial_dim"]) == ("SliceInferer", 0)
    (resample,) = (t for t in content["preprocessing"]["transforms"] if t["_target_"] == "Spacingd")
    assert resample["pixdim"][0] < 0, "the distance of slices stays"
    parser = ConfigParser({name: content[name] for name in ("inferer", "network_def")})
    with torch.inference_mode():
        logits = parser.get_parsed_content("inferer")(torch.randn(1, 1, 3, 40, 30), parser.get_parsed_content("network_def"))
    assert logits.shape == (1, 3, 3, 40, 30)


@pytest.mark.usefixtures("_quiet_monai")
def test_the_channels_of_a_case_are_found_and_stacked(parts: ModelParts, tmp_path: Path) -> None:
    from monai.bundle import ConfigParser

    arrays = np.random.default_rng(0).integers(1, 100, (2, 5, 6, 7)).astype(np.int16)
    for channel, array in enumerate(arrays):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / f"a_000{channel}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(arrays, 0, -1), np.eye(4)), tmp_path / "whole.nii.gz")
    plan = replace(parts.description.plan, channels=("T1", "T2"))
    configuration = changed(plan, spacing=(1.0, 1.0, 1.0), normalization=RULES["none"] * 2)
    plan = replace(plan, configurations={"3d_fullres": configuration})
    content = inference_configuration(replace(parts.description, plan=plan))
    prepare = ConfigParser(content).get_parsed_content("preprocessing")
    (whole,) = images(str(tmp_path / "whole.nii.gz"), 2)
    (tmp_path / "whole.nii.gz").rename(tmp_path.parent / "whole.nii.gz")
    (case,) = images(str(tmp_path), 2)
    assert [Path(file).name for file in case["image"]] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    axes = [1 + 2 - axis for axis in plan.axis_order]
    for item in (case, {"image": str(tmp_path.parent / Path(whole["image"]).name)}):
        assert np.array_equal(prepare(item)["image"].numpy(), arrays.transpose(0, *axes))


@pytest.mark.usefixtures("_quiet_monai")
@pytest.mark.fault("A0", "a strongly oblique image in the folder of a MONAI bundle", "refused, as MONAI would take other axes")
def test_a_bundle_refuses_what_monai_reads_with_other_axes(parts: ModelParts, tmp_path: Path) -> None:
    plan = replace(parts.description.plan, frame=Frame(slice_axis=0, max_slice_angle=60.0))
    data = inference_configuration(replace(parts.description, plan=plan))["dataset"]["data"]
    for degrees, is_refused in ((0, False), (30, False), (50, True)):
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        affine = np.array([[1, 0, 0, 0], [0, cosine, -5 * sine, 0], [0, sine, 5 * cosine, 0], [0, 0, 0, 1]])
        nibabel.save(nibabel.Nifti1Image(np.ones((6, 6, 3), np.int16), affine), tmp_path / "a.nii.gz")
        if is_refused:
            with pytest.raises(InputError, match="lies so obliquely that MONAI reads it with other axes"):
                images(str(tmp_path), data["num_channels"], data["frame"])
        else:
            assert len(images(str(tmp_path), data["num_channels"], data["frame"])) == 1
        assert len(images(str(tmp_path), data["num_channels"])) == 1, "bundles of older versions do not say it"


def test_later_regions_lie_over_earlier_ones(parts: ModelParts) -> None:
    from monai.bundle import ConfigParser

    logits = torch.tensor([[1.0, 1.0, -1.0, 0.0], [-1.0, 1.0, -1.0, 0.0]])[:, :, None, None]
    assert in_region_class_order(logits).flatten().tolist() == [1, 2, 0, 0]
    labels = Labels(names=("background", "whole", "core"), values=(0, 1, 2), regions=((1, 2), (2,)))
    description = replace(parts.description, plan=replace(parts.description.plan, labels=labels))
    transforms = inference_configuration(description)["postprocessing"]["transforms"]
    assert [transform["_target_"] for transform in transforms] == ["Invertd", "Lambdad", "SaveImaged"]
    paint = ConfigParser({"paint": transforms[1]}).get_parsed_content("paint")
    assert paint({"pred": logits})["pred"].flatten().tolist() == [1, 2, 0, 0]


def several(description: ModelDescription) -> ModelDescription:
    return replace(description, members=(*description.members, MemberDescription(configuration="2d", folds=("0",))))


def cascade(description: ModelDescription) -> ModelDescription:
    configuration = changed(description.plan, previous_stage="3d_lowres")
    return replace(description, plan=replace(description.plan, configurations={"3d_fullres": configuration}))


def unpadded(description: ModelDescription) -> ModelDescription:
    plan = description.plan
    network_plan = family_plan(plan, "classic_unet", 3).configurations["x"].network
    without = replace(network_plan, options={"padding": False})
    return replace(description, plan=replace(plan, configurations={"3d_fullres": changed(plan, network=without, patch_size=(44, 44, 44))}))


@pytest.mark.parametrize(
    ("change", "words"), [(several, "holds one configuration"), (cascade, "a cascade"), (unpadded, "the middle of its window")]
)
def test_what_a_bundle_cannot_hold_is_refused(
    parts: ModelParts, change: Callable[[ModelDescription], ModelDescription], words: str
) -> None:
    with pytest.raises((InputError, UnsupportedError), match=words):
        inference_configuration(change(parts.description))


def test_the_network_of_a_bundle_is_built_from_plain_values(parts: ModelParts) -> None:
    plan = inference_configuration(parts.description)["network_def"]["plan"]
    built = network(json.loads(json.dumps(plan)), num_folds=2)
    assert {name.split(".")[1] for name in built.state_dict()} == {"0", "1"}
    with pytest.raises(InputError, match="network_def"):
        network({**plan, "features": "many"})


@pytest.mark.fault("A7", "changed bits in model.pt of a MONAI bundle", "refused when the bundle runs, though torch itself loads them")
def test_changed_weights_of_a_bundle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    tensor = torch.arange(1000.0)
    torch.save({"a": tensor}, path)
    assert weights(str(path), torch.device("cpu"))["a"].equal(tensor)
    content = bytearray(path.read_bytes())
    content[content.index(tensor.numpy().tobytes()) + 403] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt: damaged"):
        weights(str(path), torch.device("cpu"))
