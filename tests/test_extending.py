"""docs/extending.md is true: its file of parts plans, trains, predicts, evaluates and is carried away, and its absence is one sentence."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.commandline.cli import main
from medseg3d.extensions import forget_extensions, use_extension
from medseg3d.work_folder import WorkFolder

PAGE = (Path(__file__).parents[1] / "docs/extending.md").read_text(encoding="utf-8")
TINY = """
[network]
base_features = 4
[training]
epochs = 1
iterations_per_epoch = 2
validation_iterations = 1
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Path]:
    """The page's file of parts."""
    path = tmp_path / "my_parts.py"
    path.write_text("\n".join(blocks("python")), encoding="utf-8")
    yield path
    forget_extensions()


def test_each_part_is_a_few_lines() -> None:
    lengths = [len([line for line in block.splitlines() if line.strip()]) for block in blocks("python")]
    assert len(lengths) == 6
    assert max(lengths) <= 13


def test_the_parts_of_the_page_go_the_whole_way(tiny: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.toml").write_text(f'extends = "default"\n{TINY}', encoding="utf-8")
    planner = tmp_path / "my.toml"
    planner.write_text(blocks("toml")[0].replace('"default"', '"small.toml"'), encoding="utf-8")
    image = nibabel.load(tiny / "imagesTs/ball_6_0000.nii.gz")
    (tmp_path / "new").mkdir()
    nibabel.save(nibabel.MGHImage(np.asarray(image.dataobj, np.float32), image.affine), tmp_path / "new/ball_6.mgz")
    out, model = tmp_path / "out", tmp_path / "balls.medseg3d"
    extension = ["--extension", str(parts), "-q"]

    assert main(["plan", str(tiny), "--planner", str(planner), "--explain", *extension[:2]]) == 0
    explained = " ".join(capsys.readouterr().out.split())
    said = f" of {use_extension(parts).provider.removeprefix('file ')}"
    assert f"= two_convolutions{said}, encoder" in explained
    assert f"loss smoothed_ce{said}, 33% of" in explained
    assert f"further augmentations offset (deviation 0.2){said}" in explained
    assert "the plan's own" in explained
    assert main(["preprocess", str(tiny), "-c", "3d_fullres", *extension]) == 0
    assert main(["train", str(tiny), "--fold", "0", "--device", "cpu", *extension]) == 0
    assert main(["predict", str(tiny), "-i", str(tmp_path / "new"), "-o", str(out), "--device", "cpu", *extension]) == 0
    pair = [str(out / "ball_6.nii.gz"), str(tiny / "labelsTs/ball_6.nii.gz"), "-o", str(out / "metrics.json")]
    assert main(["evaluate", *pair, *extension]) == 0
    assert main(["select", str(tiny), "--device", "cpu", *extension]) == 0
    assert main(["export", str(tiny), "-o", str(model), *extension]) == 0
    assert main(["info", str(model), "--json", *extension[:2]]) == 0

    provider = use_extension(parts).provider
    configuration = WorkFolder(tiny / "medseg3d-work").read_plan().configuration(None)
    assert (configuration.network.family, configuration.network.provider) == ("two_convolutions", provider)
    assert configuration.training.providers == {"smoothed_ce": provider, "offset": provider}
    predicted = nibabel.load(out / "ball_6.nii.gz")
    assert predicted.shape == image.shape
    np.testing.assert_allclose(predicted.affine, image.affine, atol=1e-5)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["labels"][0]["further"]) == {"sensitivity"}
    capsys.readouterr()

    forget_extensions()
    assert main(["info", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (network,) = found["networks"]
    assert found["labels"] == {"background": 0, "shell": 3, "core": 7}
    assert (network["provider"], network["folds"], network["parameters"]) == (provider, ["0"], None)
    assert network["loss"].startswith("smoothed_ce (smoothing 0.05)")
    with zipfile.ZipFile(model) as archive:
        assert f"`{provider.removeprefix('file ')}`" in archive.read("README.md").decode()
        assert "predict --extension my_parts.py -m" in archive.read("README.md").decode()
    main(["report", str(tiny)])
    assert "predict --extension my_parts.py -w" in (tiny / "medseg3d-work/report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    sentence = (
        "medseg3d: This needs the network 'two_convolutions' of the extension my_parts.py: name it with --extension my_parts.py, "
        "in Python with medseg3d.use_extension.\n"
    )
    assert sentence.removeprefix("medseg3d: ").strip() in PAGE
    assert main(["report", str(tiny), "-q"]) == 0
    assert "The plan cannot be explained: This needs the network" in (tiny / "medseg3d-work/report.html").read_text(encoding="utf-8")
    assert main(["plan", str(tiny), "-q"]) == 2
    assert capsys.readouterr().err == sentence
    source = tiny / "imagesTs/ball_7_0000.nii.gz"
    for where in ([str(tiny)], ["-m", str(model)]):
        arguments = ["predict", *where, "-i", str(source), "-o", str(tmp_path / "again.nii.gz"), "--device", "cpu", "-q"]
        assert main(arguments) == 2
        assert capsys.readouterr().err == sentence
        assert main([*arguments, "--overwrite", "--extension", str(parts)]) == 0
        capsys.readouterr()
        forget_extensions()
