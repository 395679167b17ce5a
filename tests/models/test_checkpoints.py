"""Weights files are read back as they were written, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg3d.errors import InputError, PlanMismatchError
from medseg3d.files import file_digest
from medseg3d.models.checkpoints import FORMAT_VERSION, load_tensors, save_model, save_tensors
from medseg3d.models.loading import load_model
from medseg3d.networks.build import build_network
from medseg3d.provenance import has_digest, weights_digest
from medseg3d.work_folder import WorkFolder


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b": torch.randn(4, 3, generator=generator),
        "a.half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(3),
        "empty": torch.zeros(0, 2),
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "weights.safetensors", tensors(), {"format_version": FORMAT_VERSION, "card": {"spacing": [1.5, 1.0]}})
    return tmp_path / "weights.safetensors"


def test_weights_come_back_bit_for_bit(file: Path) -> None:
    found, metadata = load_tensors(file)
    assert found.keys() == tensors().keys()
    assert all(found[name].equal(tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors().items())
    assert metadata["card"] == {"spacing": [1.5, 1.0]}


@pytest.mark.fault("A7", "a changed bit anywhere in a weights file", "refused with the file's name and what to do")
def test_any_changed_bit_of_a_weights_file_is_refused(file: Path, record_property) -> None:
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"weights\.safetensors"):
            load_tensors(file)
    record_property("tries", len(whole))


@pytest.mark.fault("A7", "flipped signs in a weights file", "refused, saying how to train it again or to do without that fold")
def test_flipped_signs_are_refused_with_advice(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x80
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged.*--restart.*--fold"):
        load_tensors(file)


def test_a_weights_file_without_a_digest_is_still_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors(), tmp_path / "old.safetensors", {"medseg3d": f'{{"format_version": {FORMAT_VERSION}}}'})
    found, _ = load_tensors(tmp_path / "old.safetensors")
    assert found["count"] == 3
    assert not has_digest(tmp_path / "old.safetensors")
    assert weights_digest(tmp_path / "old.safetensors") == file_digest(tmp_path / "old.safetensors")


def test_the_digest_stands_for_tensors_and_card_in_every_copy(file: Path, tmp_path: Path) -> None:
    again = save_tensors(tmp_path / "again", tensors(), {"format_version": FORMAT_VERSION, "card": {"spacing": [1.5, 1.0]}})
    other = save_tensors(tmp_path / "other", tensors(), {"format_version": FORMAT_VERSION, "card": {"spacing": [1.7, 1.0]}})
    assert weights_digest(file) == again != other


def test_a_network_of_ones_own_loop_is_saved_as_a_model(trained: Path, tmp_path: Path) -> None:
    plan = WorkFolder(trained / "medseg3d-work").read_plan()
    network = build_network(plan.configuration(None).network, generator=torch.Generator().manual_seed(0))
    model = load_model(save_model(tmp_path / "own.safetensors", network, plan), device="cpu")
    labels = model.predict(np.random.default_rng(0).normal(size=(20, 18, 12)), np.diag([1, 1, 1.5, 1]))
    assert set(np.unique(labels)) <= {0, 3, 7}


def test_a_network_that_is_not_the_plans_is_refused_before_it_is_written(trained: Path, tmp_path: Path) -> None:
    plan = WorkFolder(trained / "medseg3d-work").read_plan()
    with pytest.raises(PlanMismatchError, match=r"own\.safetensors: the weights do not fit the network of the plan"):
        save_model(tmp_path / "own.safetensors", torch.nn.Conv3d(1, 3, 3), plan)
    with pytest.raises(InputError, match=r"own\.pth: a model of one network is a \.safetensors file"):
        save_model(tmp_path / "own.pth", torch.nn.Conv3d(1, 3, 3), plan)
    assert list(tmp_path.iterdir()) == []
