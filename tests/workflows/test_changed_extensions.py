"""Another version of an extension is another network, loss, augmentation or reader: nothing that the old one made is taken for its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from medseg3d.commandline.cli import main
from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.digests import digest_of, stamp_of
from medseg3d.extensions import forget_extensions, use_extension
from medseg3d.models.loading import load_model
from medseg3d.provenance import weights_digest
from medseg3d.validation.postprocessing import NO_POSTPROCESSING
from tests.tiny_planner import tiny_planner

NETWORK = """
from torch import nn

from medseg3d.networks import Family


class OneConvolution(nn.Module):
    def __init__(self, plan):
        super().__init__()
        self.last = (nn.Conv3d if plan.dimensions == 3 else nn.Conv2d)(plan.in_channels, plan.num_classes, 3, padding=1)

    def forward(self, x):
        return self.last(x)


NETWORKS = {"one_convolution": Family(name="one_convolution", build=OneConvolution, has_style=False)}
"""
TRAINING = """
from torch.nn.functional import cross_entropy

from medseg3d.losses import Loss
from medseg3d.patches import Augmentation


def make(settings):
    return lambda logits, labels: cross_entropy(logits, labels)


LOSSES = {"plain_ce": Loss(meaning="cross-entropy", make=make)}
AUGMENTATIONS = {
    "brighter": Augmentation(meaning="1 more", draw=lambda rng, options: 1.0, apply=lambda image, labels, drawn: (image + drawn, labels))
}
"""
READER = """
import nibabel
import numpy as np

from medseg3d.images import array_reader


def read(path):
    image = nibabel.load(path)
    return np.asanyarray(image.dataobj), image.affine


READERS = {".mgz": array_reader("mgz", read)}
"""
FAILING = NETWORK.replace("return self.last(x)", "raise ZeroDivisionError('no\\nluck')")


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    forget_extensions()


def written(path: Path, text: str) -> list[str]:
    """The option that names a file with this text, in a process that knows no other."""
    forget_extensions()
    path.write_text(text, encoding="utf-8")
    return ["--extension", str(path)]


@pytest.fixture(scope="module")
def source(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with fold 0 of a network, trained with a loss and an augmentation of two files beside it."""
    root = Path(shutil.copytree(tiny_source, tmp_path_factory.mktemp("own") / "Balls"))
    own = [*written(root / "network.py", NETWORK), *written(root / "training.py", TRAINING), "-q"]
    text = tiny_planner(epochs=1, iterations=2, validations=1)
    text = text.replace("[network]", '[network]\nfamily = "one_convolution"\ndeep_supervision = false')
    (root / "own.toml").write_text(f'{text}loss = "plain_ce"\n[training.augmentations.brighter]\n', encoding="utf-8")
    assert main(["plan", str(root), "--planner", str(root / "own.toml"), *own]) == 0
    assert main(["preprocess", str(root), "-c", "3d_fullres", *own]) == 0
    assert main(["train", str(root), "--fold", "0", "--device", "cpu", *own]) == 0
    forget_extensions()
    return root


@pytest.fixture
def root(source: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(source, tmp_path / "Own"))


def own(root: Path, *, network: str = NETWORK, training: str = TRAINING) -> list[str]:
    return [*written(root / "network.py", network), *written(root / "training.py", training), "--device", "cpu"]


def train(root: Path, *options: str) -> int:
    return main(["train", str(root), "--fold", "0", *options])


@pytest.mark.fault("A3", "predict again where the file of the network changed", "the label maps of before are not kept for its own")
def test_label_maps_of_another_version_of_the_network_are_not_kept(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    predict = ["predict", str(root), "-i", str(root / "imagesTs"), "-o", str(out)]
    assert main([*predict, *own(root)]) == 0
    before = (out / "predictions.json").read_text(encoding="utf-8")
    assert main([*predict, *own(root)]) == 0
    assert "2 kept" in capsys.readouterr().out
    assert (out / "predictions.json").read_text(encoding="utf-8") == before
    changed = own(root, network=NETWORK.replace("self.last(x)", "0 * self.last(x)"))
    assert main([*predict, *changed]) == 2
    assert "The network one_convolution was that of the file network.py" in caplog.text
    assert "2 outputs exist that another model" in capsys.readouterr().err
    assert main([*predict, *changed, "--overwrite"]) == 0
    assert "2 label maps written" in capsys.readouterr().out
    cases = json.loads((out / "predictions.json").read_text(encoding="utf-8"))["cases"].values()
    assert all(f";one_convolution of {use_extension(root / 'network.py').digest[:12]};tta=" in case["model"] for case in cases)


@pytest.mark.fault("A3", "predict again where the file of the reader changed", "the image is read and predicted again")
def test_label_maps_of_another_version_of_a_reader_are_made_again(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import nibabel
    import numpy as np

    image = nibabel.load(trained / "imagesTs/ball_6_0000.nii.gz")
    (tmp_path / "new").mkdir()
    nibabel.save(nibabel.MGHImage(np.asarray(image.dataobj, np.float32), image.affine), tmp_path / "new/ball_6.mgz")
    predict = ["predict", str(trained), "-i", str(tmp_path / "new"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    for text in (READER, READER.replace("dataobj)", "dataobj)[::-1]")):
        for file, num_written in (("reader.py", 1), ("renamed.py", 0)):
            assert main([*predict, "--json", *written(tmp_path / file, text)]) == 0
            assert len(json.loads(capsys.readouterr().out)["written"]) == num_written


def test_without_extensions_a_model_and_its_inputs_are_known_by_what_they_were_known_by_before(trained: Path, tmp_path: Path) -> None:
    """Label maps that an older version made go on being kept: these texts stand in the records beside them."""
    weights = weights_digest(trained / "medseg3d-work/models/3d_fullres/fold_0/weights.safetensors")
    model = load_model(trained, device="cpu", precision="float32")
    assert model.identity == f"3d_fullres/0/{weights};{NO_POSTPROCESSING!r};tta=True;step=0.5;float32"
    image, label = tmp_path / "a.nii.gz", tmp_path / "l.nii.gz"
    image.write_bytes(b"image")
    label.write_bytes(b"labels")
    case = Case(name="a", channels=(ChannelFile(path=image),), label=label)
    assert digest_of(case) == "0e1adcd898a6443450e9e5083c2320d1"
    assert stamp_of(case) == f"5-{image.stat().st_mtime_ns},6-{label.stat().st_mtime_ns}"


@pytest.mark.fault(
    "A3", "a half-trained fold, and another version of its network, loss or augmentation", "refused, with --restart as advice"
)
@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"network": NETWORK + "\n"}, ["network one_convolution"]),
        ({"training": TRAINING + "\n"}, ["loss plain_ce", "augmentation brighter"]),
    ],
)
def test_a_fold_does_not_go_on_with_other_parts(
    root: Path, changes: dict[str, str], parts: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    state = root / "medseg3d-work/models/3d_fullres/fold_0/training.json"
    assert set(json.loads(state.read_text(encoding="utf-8"))["providers"]) == {
        "network one_convolution",
        "loss plain_ce",
        "augmentation brighter",
    }
    changed = own(root, **changes)
    assert train(root, "--epochs", "2", *changed) == 2
    said = capsys.readouterr().err
    for part in parts:
        assert f"The {part} was that of the file" in caplog.text
        assert f"the {part} was that of the file" in said
    assert "or give --restart to train anew" in said
    assert train(root, "--epochs", "2", "--restart", *changed) == 0
    capsys.readouterr()
    assert train(root, "--epochs", "3", *changed) == 0, "it goes on with what it began with"
    assert train(root, "--epochs", "4", *own(root)) == 2
    texts = {"network": NETWORK, "training": TRAINING, **changes}
    files = [file for name in texts for file in written(root / f"{name}_old.py", texts[name])]
    assert train(root, "--epochs", "4", *files, "--device", "cpu") == 0, "the same text by another name is the same version"


@pytest.mark.fault("A3", "a finished fold, and another version of its network", "neither trained on nor validated")
def test_a_finished_fold_is_not_measured_with_another_network(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = own(root, network=NETWORK + "\n")
    for verb in ("train", "validate"):
        assert main([verb, str(root), "--fold", "0", *changed]) == 2
        said = capsys.readouterr().err
        assert "fold_0: was trained with another version of an extension (the network one_convolution was that of the file" in said
        assert "--restart" in said


def test_a_finished_fold_needs_its_loss_and_augmentation_no_more(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert train(root, *own(root, training=TRAINING + "\n")) == 0
    assert "fold_0: was trained with another version of an extension (the loss plain_ce was that" in caplog.text
    caplog.clear()
    only = [*written(root / "network.py", NETWORK), "--device", "cpu"]
    assert train(root, *only) == 0
    assert "another version" not in caplog.text


@pytest.mark.fault("E", "an extension whose network, loss or augmentation raises", "one sentence that names it, its line and its error")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": FAILING}, "network.py, line 13: the extension failed (ZeroDivisionError: no luck)."),
        ({"training": TRAINING.replace("cross_entropy(logits, labels)", "1 / 0")}, "training.py, line 9: the extension failed (ZeroDiv"),
        ({"training": TRAINING.replace("(image + drawn, labels)", "image.no_such")}, "training.py, line 14: the extension failed (Attrib"),
    ],
)
def test_an_error_of_an_extension_is_one_sentence(
    root: Path, changes: dict[str, str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(root, "--restart", "-q", *own(root, **changes)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence in said


def test_an_error_of_an_extension_costs_the_case_and_is_not_ours(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    predict = ["predict", str(root), "-i", str(root / "imagesTs"), "-o", str(tmp_path / "out"), "-v"]
    assert main([*predict, *own(root, network=FAILING)]) == 2
    sentence = "network.py, line 13: the extension failed (ZeroDivisionError: no luck)."
    assert capsys.readouterr().err.endswith(f"{sentence}\n")
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    assert all(error.endswith(sentence) for error in errors)
    assert any(record.exc_info for record in caplog.records if record.name == "medseg3d.commandline.cli")
