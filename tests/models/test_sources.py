"""Every kind of source opens to the same parts, and every verb that takes a model takes all of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medseg3d import load_model
from medseg3d.commandline.cli import main
from medseg3d.errors import InputError, PlanMismatchError
from medseg3d.frame import Frame
from medseg3d.models.checkpoints import load_tensors, read_card, save_tensors
from medseg3d.models.parts import ModelParts, Source
from medseg3d.models.sources import SOURCES, kind_of, open_model, what_to_name
from medseg3d.records import to_plain
from medseg3d.workflows.export import export_model
from medseg3d.workflows.info import info
from medseg3d.workflows.initial_weights import initial_weights
from tests.in_memory import weights_of

WORK = "medseg3d-work"
FOLD = "medseg3d-work/models/3d_fullres/fold_0"


@pytest.fixture(scope="module")
def places(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ...]]:
    file = export_model(trained, tmp_path_factory.mktemp("model") / "balls.medseg3d").output
    return {
        "work folder": (trained, trained / WORK),
        "model file": (file,),
        "weights": (trained / FOLD, trained / FOLD / "weights.safetensors"),
    }


def test_every_kind_of_source_opens_to_the_same_parts(places: dict[str, tuple[Path, ...]]) -> None:
    (expected,) = weights_of(open_model(places["model file"][0]))["3d_fullres"].values()
    for kind, paths in places.items():
        for path in paths:
            parts = open_model(path)
            assert kind_of(path) == kind
            assert SOURCES[kind].held(path) == {"3d_fullres": ("0",)}
            assert list(parts.networks()) == [("3d_fullres", "0")]
            tensors = parts.tensors("3d_fullres", "0")
            assert all(torch.equal(tensor, tensors[name]) for name, tensor in expected.items())


def test_every_kind_is_named_once_where_there_is_none(tmp_path: Path) -> None:
    for source in SOURCES.values():
        assert what_to_name().count(source.name) == 1
    (tmp_path / "notes.txt").touch()
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError) as raised:
            open_model(path)
        assert str(raised.value).startswith(f"{path}: ")
        assert str(raised.value).count(what_to_name()) == 1


def test_a_kind_that_is_added_is_taken_by_every_verb(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "named.link"
    folder.write_text(str(trained), encoding="utf-8")

    def opened(path: Path, configuration: str | None, folds: tuple[str, ...] | None) -> ModelParts:
        return open_model(Path(path.read_text(encoding="utf-8")), configuration=configuration, folds=folds)

    linked = Source(name="a link", opens=lambda path: path.suffix == ".link", held=lambda path: {"3d_fullres": ("0",)}, open=opened)
    monkeypatch.setitem(SOURCES, "link", linked)
    image = str(trained / "imagesTs/ball_6_0000.nii.gz")
    assert "a link" in what_to_name()
    assert info(folder).kind == "link"
    assert load_model(folder, device="cpu").identity == load_model(trained, device="cpu").identity
    assert (
        export_model(folder, tmp_path / "x.medseg3d").output.read_bytes()
        == export_model(trained, tmp_path / "y.medseg3d").output.read_bytes()
    )
    assert (
        initial_weights(folder, configuration="3d_fullres", fold="0").digest
        == initial_weights(trained, configuration="3d_fullres", fold="0").digest
    )
    assert main(["predict", "-m", str(folder), "-i", image, "-o", str(tmp_path / "a.nii.gz"), "-q"]) == 0
    assert main(["predict", str(folder), "-i", image, "-o", str(tmp_path / "b.nii.gz"), "-q"]) == 0
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_work_folder_may_be_named_in_three_ways(trained: Path, tmp_path: Path) -> None:
    image, output = str(trained / "imagesTs/ball_6_0000.nii.gz"), tmp_path / "out.nii.gz"
    written = []
    for given in ([], ["-w"], ["-m"]):
        assert main(["predict", *given, str(trained / WORK), "-i", image, "-o", str(output), "-q"]) == 0
        written.append(output.stat().st_mtime_ns)
    assert len(set(written)) == 1, "the later two keep the output, as it is of the same model"


@pytest.mark.fault("D", "info of a .medseg3d file with damaged weights", "refused, as by the verbs that predict with it")
def test_info_reads_the_weights_as_loading_does(places: dict[str, tuple[Path, ...]], tmp_path: Path) -> None:
    content = bytearray(places["model file"][0].read_bytes())
    content[len(content) // 2] ^= 1  # far inside the tensors, which are most of the file
    (tmp_path / "x.medseg3d").write_bytes(content)
    for verb in (info, lambda path: load_model(path, device="cpu")):
        with pytest.raises(InputError, match="Get the file again"):
            verb(tmp_path / "x.medseg3d")


def test_folds_that_read_their_cases_with_other_axes_do_not_predict_together(trained: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "Balls"))
    shutil.copytree(root / FOLD, (root / FOLD).with_name("fold_1"))
    file = (root / FOLD).with_name("fold_1") / "weights.safetensors"
    tensors, metadata = load_tensors(file)
    card = read_card(file)
    plan = replace(card.plan, frame=Frame(slice_axis=1))
    save_tensors(file, tensors, {**metadata, "card": to_plain(replace(card, plans={"": plan}))})
    with pytest.raises(PlanMismatchError, match="cannot predict together"):
        load_model(root, device="cpu")
    assert load_model(root, folds="1", device="cpu").plan.frame.slice_axis == 1
