"""Two configurations of a result folder predict together, as nnU-Net's own choice says or as the user names them."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg3d import load_model
from medseg3d.errors import InputError
from medseg3d.models.nnunet.folder import read_nnunet_model
from medseg3d.models.nnunet.zip import open_nnunet_zip

MakeModel = Callable[..., Path]
NAMES = ("3d_fullres", "3d_lowres")


@pytest.fixture
def both(make_model: MakeModel) -> Path:
    """The folder of a dataset with two trained configurations."""
    for name in NAMES:
        folder = make_model(name, folds=("0", "1"))
    return folder.parent


def chosen(*configurations: str, trainer: str = "nnUNetTrainer") -> str:
    models = [{"configuration": name, "trainer": trainer, "plans_identifier": "nnUNetPlans"} for name in configurations]
    return json.dumps({"folds": [0, 1], "best_model_or_ensemble": {"selected_model_or_models": models}})


def members_of(parts: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [(member.configuration, member.folds) for member in parts.description.members]


def test_two_configurations_are_averaged(both: Path) -> None:
    rng = np.random.default_rng(0)
    image, affine = rng.normal(100, 20, (9, 12, 7)).astype(np.float32), np.diag([1.0, 1.0, 3.0, 1.0])

    def chances(*names: str) -> np.ndarray:
        model = load_model(both, configuration=names, device="cpu", mirroring=False)
        from medseg3d.data.reading import RawCase  # the shortest way to probabilities
        from medseg3d.geometry import AS_STORED, geometry_of
        from medseg3d.images import ImageHeader

        geometry = geometry_of(image.shape, affine)
        header = ImageHeader(geometry=geometry, stored_shape=image.shape, format="nifti", num_volumes=1, dtype="float32", nifti=None)
        raw = RawCase(name="case", image=image.T[None].copy(), labels=None, spacing=(3.0, 1.0, 1.0), orientation=AS_STORED, header=header)
        found = np.zeros((3, *image.T.shape), np.float32)
        model.segment(model.prepare(raw), probabilities=found)
        return found

    np.testing.assert_allclose(chances(*NAMES), (chances(NAMES[0]) + chances(NAMES[1])) / 2, atol=1e-5)


def test_the_choice_of_nnunets_cross_validation_is_honoured(both: Path, caplog: pytest.LogCaptureFixture) -> None:
    (both / "inference_information.json").write_text(chosen(*NAMES), encoding="utf-8")
    parts = read_nnunet_model(both)
    assert members_of(parts) == [(name, ("0", "1")) for name in NAMES]
    assert "3d_fullres and 3d_lowres is used" in caplog.text
    (both / "inference_information.json").write_text(chosen("3d_lowres"), encoding="utf-8")
    assert members_of(read_nnunet_model(both)) == [("3d_lowres", ("0", "1"))]
    assert members_of(read_nnunet_model(both, "3d_fullres")) == [("3d_fullres", ("0", "1"))], "who names one gets it"


@pytest.mark.parametrize("text", ["{", "{}", chosen("2d"), chosen("3d_lowres", trainer="../up"), chosen()])
def test_a_choice_that_cannot_be_followed_is_left_out_with_a_warning(both: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (both / "inference_information.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="holds several models"):
        read_nnunet_model(both)
    assert "inference_information.json" in caplog.text


def test_an_ensemble_has_the_postprocessing_that_was_chosen_for_it(both: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "ensemble___nnUNetTrainer__nnUNetPlans__3d_fullres___nnUNetTrainer__nnUNetPlans__3d_lowres___0_1"
    (both / "ensembles" / name).mkdir(parents=True)
    keep = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"],
        "postprocessing_kwargs": [{"labels_or_regions": [1, 2]}],
    }
    (both / "ensembles" / name / "postprocessing.pkl").write_bytes(b"never opened")
    assert not read_nnunet_model(both, NAMES).description.postprocessing.steps
    assert "never opened" in caplog.text
    (both / "ensembles" / name / "postprocessing.json").write_text(json.dumps(keep), encoding="utf-8")
    for order in (NAMES, NAMES[::-1]):
        (step,) = read_nnunet_model(both, order).description.postprocessing.steps
        assert step.operation == "keep_largest_foreground"
    assert not read_nnunet_model(both, NAMES, folds=["0"]).description.postprocessing.steps, "it was chosen for both folds"


def test_a_zip_of_several_configurations_with_chosen_folds_opens_as_it_is(both: Path, make_model: MakeModel, tmp_path: Path) -> None:
    """As ``nnUNetv2_export_model_to_zip -c 3d_fullres 3d_lowres -f 0 all`` writes it."""
    make_model("3d_lowres", folds=("all",), root=both)
    (both / "inference_information.json").write_text(chosen(*NAMES), encoding="utf-8")
    path = tmp_path / "exported.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(file for file in both.rglob("*") if file.is_file()):
            archive.write(file, file.relative_to(both.parent))
    assert members_of(open_nnunet_zip(path)) == [(name, ("0", "1")) for name in NAMES]
    assert members_of(open_nnunet_zip(path, NAMES, ("0",))) == [(name, ("0",)) for name in NAMES]
    assert members_of(open_nnunet_zip(path, "3d_lowres", ("all",))) == [("3d_lowres", ("all",))]
    with pytest.raises(InputError, match="nothing is trained for the configuration 3d_fullres"):
        open_nnunet_zip(path, NAMES, ("all",))


def test_a_folder_with_only_the_latest_checkpoint_predicts_with_a_warning(make_model: MakeModel, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_model(folds=("0",), file="checkpoint_latest.pth")
    with caplog.at_level(logging.WARNING):
        assert members_of(read_nnunet_model(folder)) == [("3d_fullres", ("0",))]
    assert "latest weights" in caplog.text


def test_configurations_of_different_datasets_are_no_ensemble(make_model: MakeModel, plans: dict[str, Any]) -> None:
    make_model()
    plans["transpose_forward"] = [0, 1, 2]
    folder = make_model("3d_lowres").parent
    with pytest.raises(InputError, match="no ensemble"):
        read_nnunet_model(folder, NAMES)
