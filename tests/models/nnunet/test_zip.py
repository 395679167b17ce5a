"""A zip that nnU-Net exported is the model that was packed; nothing but its records and checkpoints leaves it, into nowhere else."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medseg3d.errors import InputError, MedsegError
from medseg3d.models.nnunet.folder import read_nnunet_model
from medseg3d.models.nnunet.zip import open_nnunet_zip
from medseg3d.models.sources import SOURCES, kind_of
from medseg3d.workflows.initial_weights import initial_weights
from tests.in_memory import weights_of


class Evil:
    """Runs code where it is unpickled without care."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("evil"),)


def packed(folder: Path, target: Path, *others: str) -> Path:
    """As nnUNetv2_export_model_to_zip: paths begin with the dataset; and with other files."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
        for name in others:
            archive.writestr(name, b"x")
    return target


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the system keeps temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def test_a_zip_is_the_folder_that_was_packed(make_model: Callable[..., Path], tmp_path: Path, temporary: Path) -> None:
    folder = make_model(folds=("0", "3"))
    path = packed(folder.parent, tmp_path / "tiny.zip", "Dataset009_Tiny/inference_information.json")
    expected, found = read_nnunet_model(folder), open_nnunet_zip(path)
    assert (found.description, found.identity, found.path) == (expected.description, expected.identity, path)
    for fold, tensors in weights_of(expected)["3d_fullres"].items():
        own = found.tensors("3d_fullres", fold)
        assert all(torch.equal(tensor, own[name]) for name, tensor in tensors.items())
    assert kind_of(path) == "nnU-Net zip"
    assert SOURCES["nnU-Net zip"].held(path) == SOURCES["nnU-Net result folder"].held(folder) == {"3d_fullres": ("0", "3")}
    assert not list(temporary.glob("medseg3d-*"))  # torch may keep a cache of its own there


def test_a_zip_of_the_trainers_folder_alone_is_that_model(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model()
    assert open_nnunet_zip(packed(folder, tmp_path / "a.zip")).identity == read_nnunet_model(folder).identity


def test_of_several_models_in_a_zip_one_is_chosen(make_model: Callable[..., Path], tmp_path: Path) -> None:
    make_model("3d_lowres")
    path = packed(make_model(folds=("0", "1")).parent, tmp_path / "tiny.zip")
    with pytest.raises(InputError, match=r"^\S*tiny\.zip\S*: holds several models"):
        open_nnunet_zip(path)
    parts = open_nnunet_zip(path, "3d_fullres", ("1",))
    assert list(parts.networks()) == [("3d_fullres", "1")]
    with pytest.raises(InputError, match=r"no checkpoint_final\.pth for fold 4; packed: 0, 1"):
        open_nnunet_zip(path, "3d_fullres", ("4",))
    begun = initial_weights(path, configuration="3d_lowres", fold="0")
    assert begun.source == f"{path} (3d_lowres, fold 0)"


def test_training_begins_with_a_folder_that_was_given_another_name(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model().rename(tmp_path / "my_model")
    assert initial_weights(folder, configuration="2d", fold="0").source == f"{folder} (3d_fullres, fold 0)"


@pytest.mark.fault(
    "D", "a zip in the place of nnU-Net's that leads out of its folder, is none or holds no model", "refused; nothing is left"
)
@pytest.mark.parametrize("change", ["leads out", "no zip", "no model", "a pickle that runs code", "too large"])
def test_what_is_no_zip_of_a_model_is_refused_and_nothing_stays(
    make_model: Callable[..., Path], tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder, path = make_model().parent, tmp_path / "tiny.zip"
    monkeypatch.chdir(tmp_path)
    if change == "no zip":
        path.write_bytes(b"something")
    elif change == "no model":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "x")
    elif change == "a pickle that runs code":
        checkpoint = next(folder.rglob("checkpoint_final.pth"))
        torch.save({"network_weights": {}, "evil": Evil()}, checkpoint)
        packed(folder, path)
    elif change == "leads out":
        packed(folder, path, "../evil")
    else:
        monkeypatch.setattr("medseg3d.models.nnunet.zip.MAX_UNPACKED_BYTES", 1000)
        packed(folder, path)
    with pytest.raises(MedsegError, match=r"tiny\.zip"):
        open_nnunet_zip(path)
    assert not list(temporary.glob("medseg3d-*"))  # torch may keep a cache of its own there
    assert not (tmp_path / "evil").exists()
