"""``measure`` and ``predict --statistics``: the numbers of structures as files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

import medseg3d
from medseg3d.commandline.cli import main
from medseg3d.errors import InputError
from medseg3d.options import MeasureOptions
from medseg3d.structures.records import read_structures
from tests.kinds_of_labels import SHELL, half_annotated, make_balls, regions_with_ignore, soft


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_folder_is_measured_with_its_images(tiny_source: Path, tmp_path: Path) -> None:
    assert (
        main(["measure", str(tiny_source / "labelsTr"), str(tiny_source / "imagesTr"), "-o", str(tmp_path), "--distances", "all", "-q"])
        == 0
    )
    rows = rows_of(tmp_path / "structures.csv")
    assert [row["label"] for row in rows[:2]] == ["shell", "core"]
    for row in rows:
        label_map = nibabel.load(tiny_source / "labelsTr" / f"{row['case']}.nii.gz")
        image = nibabel.load(tiny_source / "imagesTr" / f"{row['case']}_0000.nii.gz")
        mask = np.asarray(label_map.dataobj) == int(row["value"])
        assert int(row["voxels"]) == mask.sum()
        assert float(row["volume_ml"]) == pytest.approx(mask.sum() * 1.5 / 1000, rel=1e-5)
        assert float(row["MRI_mean"]) == pytest.approx(np.asarray(image.dataobj)[mask].mean(), rel=1e-5)
        centroid = label_map.affine @ [*np.argwhere(mask).mean(0), 1]
        assert [float(row[f"centroid_{axis}_mm"]) for axis in "ras"] == pytest.approx(centroid[:3], rel=1e-4, abs=1e-4)
    assert {row["is_touching"] for row in rows_of(tmp_path / "structures-distances.csv")} == {"true"}


def test_label_maps_alone_have_no_intensities(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(tiny / "labelsTr"), "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cases"][0]["structures"][0]["intensities"] == {}
    assert read_structures(tiny / "labelsTr" / "structures.json").cases[0].case == "ball_0"


def test_one_file_is_measured_and_nothing_is_written(tiny: Path) -> None:
    before = sorted(tiny.rglob("*"))
    found = medseg3d.measure(tiny / "labelsTr" / "ball_0.nii.gz", tiny / "imagesTr" / "ball_0_0000.nii.gz")
    assert found.cases[0].structures[0].intensities
    assert sorted(tiny.rglob("*")) == before


def test_a_case_that_fails_costs_no_other(tiny: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    image = nibabel.load(tiny / "imagesTr" / "ball_1_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine), tiny / "imagesTr" / "ball_1_0000.nii.gz")
    (tiny / "imagesTr" / "ball_2_0000.nii.gz").unlink()
    assert main(["measure", str(tiny / "labelsTr"), str(tiny / "imagesTr")]) == 3
    said = capfd.readouterr()
    assert "ball_1: the label (ball_1.nii.gz) lies on another grid" in caplog.text
    assert "1 label map without an image, so without intensities: ball_2" in said.err
    assert len(read_structures(tiny / "labelsTr" / "structures.json").cases) == 5


def test_images_of_other_names_are_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match=r"no image has the name of a label map, such as ball_0"):
        medseg3d.measure(tiny / "labelsTr", tiny / "imagesTs")
    with pytest.raises(InputError, match="one image for 6 label maps"):
        medseg3d.measure(tiny / "labelsTr", tiny / "imagesTs" / "ball_6_0000.nii.gz")
    with pytest.raises(InputError, match="no such file or folder of label maps"):
        medseg3d.measure(tiny / "labels")


def test_a_slip_in_a_pair_is_told_before_anything_is_read(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(tiny / "labelsTr"), "--distances", "shell:kern"]) == 2
    assert "the labels are shell, core" in capsys.readouterr().err


def test_predict_measures_what_it_wrote_as_measure_does(trained: Path, tmp_path: Path) -> None:
    images = shutil.copytree(trained / "imagesTs", tmp_path / "images")
    arguments = ["predict", str(trained), "-i", str(images), "-o", str(tmp_path / "out"), "--device", "cpu", "-q", "--statistics"]
    assert main(arguments) == 0
    alone = medseg3d.measure(tmp_path / "out", output=tmp_path / "alone")
    assert {each.name for each in alone.cases[0].structures} == {"shell", "core"}, "predictions.json says how the model calls them"
    shutil.copy(trained / "dataset.json", tmp_path / "out")
    assert (
        medseg3d.measure(tmp_path / "out", images, output=tmp_path / "again").cases
        == read_structures(tmp_path / "out/structures.json").cases
    )
    (tmp_path / "out" / "structures.json").unlink()
    assert main(arguments) == 0, "label maps that are kept are measured as well"
    assert len(read_structures(tmp_path / "out/structures.json").cases) == 2


def test_a_single_label_map_has_its_numbers_beside_it(trained: Path, tmp_path: Path) -> None:
    image = trained / "imagesTs" / "ball_6_0000.nii.gz"
    assert (
        main(["predict", str(trained), "-i", str(image), "-o", str(tmp_path / "seg.nii.gz"), "--device", "cpu", "-q", "--statistics"]) == 0
    )
    assert {file.name for file in tmp_path.glob("seg-*")} == {"seg-structures.json", "seg-structures.csv"}


def test_distances_are_measured_with_statistics_only(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(trained), "-i", str(trained / "imagesTs"), "-o", str(tmp_path), "--radiomics"]) == 2
    assert "--radiomics: is measured with --statistics" in capsys.readouterr().err


@pytest.mark.fault("A", "references that were annotated for some structures only, measured", "no volume for what nobody looked for")
def test_what_a_case_was_not_annotated_for_has_no_volume(tmp_path: Path) -> None:
    root = half_annotated(tmp_path / "Half")
    found = {case.case: case for case in medseg3d.measure(root / "labelsTr", None, MeasureOptions(distances=["all"])).cases}
    assert [each.name for each in found["ball_1"].structures] == ["shell"]
    assert not found["ball_1"].distances
    assert [each.name for each in found["ball_0"].structures] == ["shell", "core"]
    assert found["ball_0"].distances


@pytest.mark.fault("A", "measured label maps with voxels that nobody annotated", "a warning says that volumes are lower bounds")
def test_ignored_voxels_are_said_to_lower_volumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = regions_with_ignore(tmp_path / "Regions")
    found = medseg3d.measure(root / "labelsTr")
    assert {case.unannotated_voxels for case in found.cases} == {20 * 18 * 6}
    assert "4 label maps hold voxels that nobody has annotated (ignore)" in caplog.text


@pytest.mark.fault("A", "255 beside small values in label maps that are measured without a list of labels", "measured, with a warning")
def test_a_value_that_usually_means_not_annotated_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.zeros((4, 4, 4), np.uint8)
    values[0], values[1] = 1, 255
    (tmp_path / "maps").mkdir()
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "maps" / "one.nii.gz")
    medseg3d.measure(tmp_path / "maps")
    assert "The value 255 is measured as a structure" in caplog.text
    (tmp_path / "maps" / "labels.csv").write_text("value,name\n255,ignore\n", encoding="utf-8")
    assert [each.value for each in medseg3d.measure(tmp_path / "maps").cases[0].structures] == [1]


@pytest.mark.parametrize("in_one_file", [True, False], ids=["one file", "a file per label"])
def test_soft_labels_are_measured_by_the_most_probable_one(in_one_file: bool, tmp_path: Path) -> None:
    root = soft(tmp_path / "Soft", in_one_file=in_one_file)
    found = medseg3d.measure(root / "labelsTr", root / "imagesTr")
    assert [case.case for case in found.cases] == ["ball_0", "ball_1", "ball_2", "ball_3"]
    shell = nibabel.load(make_balls(tmp_path / "Hard") / "labelsTr" / "ball_0.nii.gz")
    assert found.cases[0].structures[0].voxels == pytest.approx(np.count_nonzero(np.asarray(shell.dataobj) == SHELL), rel=0.1)


@pytest.mark.fault("A", "distances of an earlier call beside numbers that were measured again", "are deleted")
def test_distances_of_an_earlier_call_do_not_stay(tiny: Path, tmp_path: Path) -> None:
    medseg3d.measure(tiny / "labelsTr", None, MeasureOptions(distances=["all"]), output=tmp_path)
    medseg3d.measure(tiny / "labelsTr", output=tmp_path)
    assert {file.name for file in tmp_path.iterdir() if file.name.startswith("structures")} == {"structures.json", "structures.csv"}


@pytest.mark.fault("C", "one predict --statistics per image into one folder", "structures.json holds the structures of all of them")
def test_numbers_of_other_images_in_the_folder_stay(trained: Path, tmp_path: Path) -> None:
    def predicted(number: int) -> set[str]:
        image = trained / "imagesTs" / f"ball_{number}_0000.nii.gz"
        assert main(["predict", str(trained), "-i", str(image), "-o", str(tmp_path), "--device", "cpu", "-q", "--statistics"]) == 0
        return {case.case for case in read_structures(tmp_path / "structures.json").cases}

    assert predicted(6) == {"ball_6"}
    assert predicted(7) == {"ball_6", "ball_7"}
    shutil.copy(trained / "labelsTs" / "ball_6.nii.gz", tmp_path)
    assert predicted(7) == {"ball_7"}, "of a label map that is another now the numbers are no longer true"
