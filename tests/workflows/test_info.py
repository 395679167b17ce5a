"""What a model says about itself is what it is, wherever it lies."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from medseg3d.errors import InputError
from medseg3d.models.loading import load_model
from medseg3d.workflows.export import export_model
from medseg3d.workflows.info import info, info_lines


@pytest.fixture(scope="module")
def model_file(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(trained, tmp_path_factory.mktemp("model") / "balls.medseg3d").output


def test_a_model_says_the_same_of_itself_in_every_form(trained: Path, model_file: Path) -> None:
    fold = trained / "medseg3d-work/models/3d_fullres/fold_0"
    places = {
        "work folder": (trained, trained / "medseg3d-work"),
        "model file": (model_file,),
        "weights": (fold, fold / "weights.safetensors"),
    }
    found = [info(path) for paths in places.values() for path in paths]
    assert [one.kind for one in found] == [kind for kind, paths in places.items() for _ in paths]
    for one in found:
        networks = tuple(replace(network, mirroring=True) for network in one.networks)  # weights alone know no validation
        assert replace(one, path=trained, kind="weights", networks=networks, facts={}) == replace(
            found[-1], path=trained, kind="weights", facts={}
        )
    assert 0 < found[2].size_bytes < model_file.stat().st_size


def test_the_parameters_are_those_of_the_network(trained: Path) -> None:
    (network,) = info(trained).networks
    (loaded,) = load_model(trained, device="cpu").members[0].networks
    assert network.parameters == sum(parameter.numel() for parameter in loaded.parameters())


def test_people_read_labels_input_networks_and_measures(model_file: Path) -> None:
    lines = info_lines(info(model_file))
    text = "\n".join(lines)
    for words in ("background (0), shell (3), core (7)", "Balls, 6 training cases", "MRI", "3d_fullres", "plain_unet", "tiny", "not known"):
        assert words in text
    assert len({line.index(line.split("  ")[-1].lstrip()) for line in lines if line.startswith(("Model", "Labels", "Dice"))}) == 1


def test_what_is_no_model_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such"):
        info(tmp_path / "none")
    with pytest.raises(InputError, match="no such"):
        info(tmp_path / "none.medseg3d")
    work = Path(shutil.copytree(trained / "medseg3d-work", tmp_path / "work"))
    shutil.rmtree(work / "models/3d_fullres")
    with pytest.raises(InputError, match="nothing is trained here yet"):
        info(work)
