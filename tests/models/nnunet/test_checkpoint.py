"""Checkpoints are opened without running what is in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg3d.errors import InputError
from medseg3d.models.nnunet.checkpoint import load_checkpoint
from medseg3d.plan import NetworkPlan

WEIGHTS = {"a": torch.ones(2)}


class Calls:
    """Calls a function with an argument as soon as it is unpickled."""

    def __init__(self, function: Callable[..., Any], argument: str) -> None:
        self.function, self.argument = function, argument

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.function, (self.argument,)


@pytest.mark.parametrize(
    ("function", "argument", "refused"),
    [
        (os.system, "touch {marker}", "system"),
        (eval, "open({marker!r}, 'w')", "eval"),
        (np.fromfile, "{marker}", "numpy"),
        (torch.load, "{marker}", "torch"),
    ],
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_pickle_is_refused_by_name_and_never_run(
    function: Callable[..., Any], argument: str, refused: str, is_zip: bool, tmp_path: Path
) -> None:
    path, marker = tmp_path / "checkpoint_final.pth", tmp_path / "marker"
    document = {"network_weights": WEIGHTS, "logging": Calls(function, argument.format(marker=str(marker)))}
    torch.save(document, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(InputError, match=rf"checkpoint_final\.pth: asks for \S*{refused}"):
        load_checkpoint(path)
    assert not marker.exists()


def test_a_bare_pickle_is_refused_as_well(tmp_path: Path) -> None:
    path, marker = tmp_path / "checkpoint_final.pth", tmp_path / "marker"
    path.write_bytes(pickle.dumps({"network_weights": Calls(os.system, f"touch {marker}")}, protocol=2))
    with pytest.raises(InputError, match="checkpoint_final"):
        load_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64, np.int32, np.int8, np.uint16, np.bool_, ">f8", ">i2"])
def test_scalars_of_numpy_keep_their_value(kind: type[np.generic] | str, tmp_path: Path) -> None:
    scalar = np.array([1, 0], kind)[0] if isinstance(kind, str) else kind(1)
    torch.save({"network_weights": WEIGHTS, "_best_ema": scalar, "current_epoch": np.int16(300)}, tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth")
    assert (loaded.dice, loaded.epoch) == (1.0, 300)


@pytest.mark.parametrize("scalar", [np.str_("a"), np.complex64(1), np.datetime64("2020-01-01")])
def test_scalars_that_are_no_numbers_are_refused(scalar: np.generic, tmp_path: Path) -> None:
    torch.save({"network_weights": WEIGHTS, "_best_ema": scalar}, tmp_path / "c.pth")
    with pytest.raises(InputError, match="no number"):
        load_checkpoint(tmp_path / "c.pth")


class Dtype:
    """Pickled as a numpy type whose state says that its bytes are objects."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("f8", False, True), (4, "|", None, None, None, 8, 1, 63, None)


class Scalar:
    """Pickled as a scalar of that type."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.float64(0).__reduce__()[0], (Dtype(), b"\x01" * 8)


def test_bytes_are_never_read_as_pointers(tmp_path: Path) -> None:
    """numpy itself would follow them and crash."""
    torch.save({"network_weights": WEIGHTS, "_best_ema": Scalar()}, tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth").dice == pytest.approx(7.7e-304, rel=0.01)


def test_scalars_of_older_numpy_are_admitted(tmp_path: Path) -> None:
    import zipfile

    torch.save({"network_weights": WEIGHTS, "_best_ema": np.float64(0.5)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert (tmp_path / "new.pth").read_bytes() != (tmp_path / "old.pth").read_bytes()
    assert load_checkpoint(tmp_path / "old.pth").dice == 0.5


def test_arrays_of_numpy_are_refused(tmp_path: Path) -> None:
    torch.save({"network_weights": WEIGHTS, "logging": np.zeros(3)}, tmp_path / "c.pth")
    with pytest.raises(InputError, match="_reconstruct"):
        load_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("keep", [0, 1, 10, 0.2, 0.5, 0.9, -1])
def test_a_truncated_file_is_called_damaged(
    keep: float, tmp_path: Path, plain_plan: NetworkPlan, network_with: Callable[..., Any], checkpoint_of: Callable[..., Any]
) -> None:
    path = tmp_path / "c.pth"
    torch.save(checkpoint_of(network_with(plain_plan)), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=r"c\.pth: damaged"):
        load_checkpoint(path)


def test_any_changed_byte_of_the_pickle_is_survived(tmp_path: Path) -> None:
    """Read, or refused with an InputError: nothing else may come out."""
    import zipfile

    torch.save({"network_weights": WEIGHTS, "_best_ema": np.float64(0.5), "init_args": {"device": torch.device("cpu")}}, tmp_path / "c.pth")
    with zipfile.ZipFile(tmp_path / "c.pth") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        content = bytearray(members[name])
        content[rng.integers(len(content))] = rng.integers(256)
        with zipfile.ZipFile(tmp_path / "d.pth", "w") as archive:
            for member, data in members.items():
                archive.writestr(member, bytes(content) if member == name else data)
        try:
            load_checkpoint(tmp_path / "d.pth")
        except InputError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("document", [[1, 2], {"state": 1}, {"network_weights": {"a": 1.0}}, {"network_weights": [torch.ones(1)]}])
def test_other_files_of_torch_are_no_checkpoints(document: object, tmp_path: Path) -> None:
    torch.save(document, tmp_path / "c.pth")
    with pytest.raises(InputError, match="not a checkpoint of nnU-Net"):
        load_checkpoint(tmp_path / "c.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"c\.pth: no such file"):
        load_checkpoint(tmp_path / "c.pth")


def test_what_older_checkpoints_lack_is_unknown(tmp_path: Path) -> None:
    torch.save({"network_weights": WEIGHTS}, tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth")
    assert (loaded.epoch, loaded.dice, loaded.configuration, loaded.mirror_axes) == (None, None, None, ())


@pytest.mark.parametrize("axes", [(3,), (-1,), ("0",), "01", (True,)])
def test_wrong_mirror_axes_are_refused(axes: object, tmp_path: Path) -> None:
    torch.save({"network_weights": WEIGHTS, "inference_allowed_mirroring_axes": axes}, tmp_path / "c.pth")
    with pytest.raises(InputError, match="inference_allowed_mirroring_axes"):
        load_checkpoint(tmp_path / "c.pth")


@pytest.mark.fault("A7", "changed bits in the weights of an nnU-Net checkpoint", "refused, though torch itself loads them")
def test_changed_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {"a": torch.arange(1000.0)}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 403] ^= 0x80
    path.write_bytes(content)
    assert not torch.load(path, weights_only=True)["network_weights"]["a"].equal(torch.arange(1000.0))
    with pytest.raises(InputError, match=r"checkpoint_final\.pth: damaged: .*--fold"):
        load_checkpoint(path)


def test_a_checkpoint_without_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"network_weights": WEIGHTS}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_checkpoint(path).weights["a"].equal(WEIGHTS["a"])
