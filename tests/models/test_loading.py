"""What is no model is said to be none, with what to name instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import medseg3d
from medseg3d.commandline.cli import main
from medseg3d.errors import InputError


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "no model here. Name a work folder"),
        (("plans.json",), "looks like an nnU-Net result folder, but lacks dataset.json"),
        (("plans.json", "dataset.json"), r"looks like an nnU-Net result folder, but holds no fold_K"),
        (("checkpoint_final.pth",), "a fold of an nnU-Net result folder. Name the folder above it"),
        (("configs/metadata.json",), "a MONAI bundle, which MONAI runs"),
    ],
)
def test_a_folder_without_a_model_is_named_as_it_was_typed(tmp_path: Path, files: tuple[str, ...], said: str) -> None:
    folder = tmp_path / "thing"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    with pytest.raises(InputError, match=said) as error:
        medseg3d.load_model(folder)
    assert str(error.value).startswith(f"{folder}: ")


@pytest.mark.parametrize(
    ("name", "said"), [("scan.nii.gz", "not a model; expected"), ("checkpoint_final.pth", "name the folder that holds plans.json")]
)
def test_a_file_that_is_no_model_is_not_called_damaged(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(InputError, match=said):
        medseg3d.load_model(tmp_path / name)


def test_a_precision_that_is_none_is_refused(trained: Path) -> None:
    with pytest.raises(InputError, match="expected auto or float32"):
        medseg3d.load_model(trained, precision="half")


@pytest.mark.parametrize("step", [0, -1, 3, float("nan"), "half", None])
def test_a_distance_of_windows_that_cannot_be_is_refused(trained: Path, step: Any) -> None:
    with pytest.raises(InputError, match=f"--step-size {step}: expected a number above 0 and up to 1"):
        medseg3d.load_model(trained, step=step)


def test_mirroring_is_on_off_or_left_to_the_model(trained: Path) -> None:
    with pytest.raises(InputError, match="mirroring is 'on', expected True, False or None"):
        medseg3d.load_model(trained, mirroring="on")  # type: ignore[arg-type]


def test_a_model_may_stand_in_the_place_of_the_dataset_but_not_beside_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(trained / "medseg3d-work/models/3d_fullres/fold_0/weights.safetensors")
    image = str(trained / "imagesTs/ball_6_0000.nii.gz")
    assert main(["predict", weights, "-i", image, "-o", str(tmp_path / "a.nii.gz"), "-q"]) == 0
    assert main(["predict", "-m", weights, "-i", image, "-o", str(tmp_path / "b.nii.gz"), "-q"]) == 0
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert main(["predict", str(trained), "-m", weights, "-i", image, "-o", str(tmp_path / "c.nii.gz")]) == 2
    assert "-m names the model" in capsys.readouterr().err
    assert main(["predict", "-m", weights, "--domain", "A", "-i", image, "-o", str(tmp_path / "c.nii.gz")]) == 2
    assert "-m names the model: leave out the dataset, -w and --domain" in capsys.readouterr().err
    assert not (tmp_path / "c.nii.gz").exists()


def test_two_images_that_look_like_channels_are_pointed_out(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = (trained / "imagesTs/ball_6_0000.nii.gz").read_bytes()
    (tmp_path / "in").mkdir()
    for name in ("case_0000", "case_0001"):
        (tmp_path / "in" / f"{name}.nii.gz").write_bytes(image)
    assert main(["predict", str(trained), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 0
    assert "case_0000 and case_0001 look like two channels of one case" in caplog.text


def test_what_a_model_is_can_be_seen_in_python(trained: Path) -> None:
    assert repr(medseg3d.load_model(trained, device="cpu", precision="float32")) == (
        "<Model for shell, core: 3d_fullres of 1 networks, on cpu in float32>"
    )
    assert dir(medseg3d) == sorted(medseg3d.__all__)


def test_a_command_that_is_none_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predct"])
    assert "Did you mean predict?" in capsys.readouterr().err
