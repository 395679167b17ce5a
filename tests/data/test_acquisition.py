"""What headers, JSON files and a table beside the images tell of a group: acquisition, age and sex, and nothing that names a person."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.data.acquisition import FIELDS, acquisition_of, describe, participants
from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.open_dataset import open_dataset
from medseg3d.images.dicom_tags import TAGS
from medseg3d.reporting.study_facts import study_facts
from tests.dicom_writer import write_series


def case_of(path: Path, name: str = "a") -> Case:
    return Case(name=name, channels=(ChannelFile(path=path),))


def test_a_header_tells_how_and_of_whom_but_no_name(tmp_path: Path) -> None:
    about = {"Manufacturer": "ACME", "MagneticFieldStrength": "3", "PatientAge": "045Y", "PatientSex": "F", "PatientName": "Secret"}
    write_series(tmp_path / "series", **about)
    found = acquisition_of(case_of(tmp_path / "series"))
    assert {"manufacturer": "ACME", "field_strength": "3", "age": "45", "sex": "F"}.items() <= found.items()
    assert "Secret" not in json.dumps(found)
    assert not {field.tag for field in FIELDS.values()} & {"PatientName", "PatientID", "PatientBirthDate", "StudyDate", "AccessionNumber"}
    assert {field.tag for field in FIELDS.values()} <= set(TAGS.values())


@pytest.mark.parametrize("name", ["a_0000.json", "a.json"])
def test_a_json_file_beside_the_image_tells_times_in_seconds(tmp_path: Path, name: str) -> None:
    sidecar = {"RepetitionTime": 2.2, "EchoTime": 0.0025, "ManufacturersModelName": "One", "PatientIdentityRemoved": True}
    sidecar |= {"PatientName": "X", "DeidentificationMethodCodeSequence": [{"CodeMeaning": "Basic"}]}
    (tmp_path / name).write_text(json.dumps(sidecar), encoding="utf-8")
    found = acquisition_of(case_of(tmp_path / "a_0000.NII.GZ"))
    people = {"identity_removed": "YES", "deidentification": "Basic"}
    assert found == {"repetition_time": "2200", "echo_time": "2.5", "scanner": "One", **people}


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff\xfe", b'{"EchoTime": {"a": 1}}'])
def test_a_file_that_is_something_else_tells_nothing_that_breaks(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert acquisition_of(case_of(tmp_path / "a.nii.gz")) == {}
    assert acquisition_of(case_of(tmp_path / "missing")) == {}


def test_a_table_of_participants_is_found_by_case_patient_and_beginning(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tsex\tage\tgroup\nsub-01\tF\t40\tn/a\np7\tM\t50\tcontrol\n", encoding="utf-8"
    )
    found = participants(tmp_path, ["sub-01_T1w", "01_ED", "x", "other"], {"x": "p7"})
    assert found == {
        "sub-01_T1w": {"sex": "F", "age": "40"},
        "01_ED": {"sex": "F", "age": "40"},
        "x": {"sex": "M", "age": "50", "group": "control"},
    }
    assert participants(tmp_path / "nowhere", ["a"], {}) == {}


def test_numbers_get_a_range_and_words_counts() -> None:
    rows = [{"age": "10", "sex": "F"}, {"age": "30", "sex": "F"}, {"age": "20", "sex": "M"}]
    assert describe(rows, "age", unit="years") == "median 20 years (10 to 30)"
    assert describe([*rows, {}], "sex") == "F (2), M (1); not told of 1"
    assert describe([{"age": "5"}], "age") == "5"
    assert describe([{}], "age") == ""


def test_a_dataset_tells_its_source_and_whether_its_test_images_are_older_than_the_training(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    for folder, names in (
        ("imagesTr", ("p1_a_0000", "p2_a_0000")),
        ("labelsTr", ("p1_a", "p2_a")),
        ("imagesTs", ("p1_b_0000", "p9_a_0000")),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            nibabel.save(image, tmp_path / folder / f"{name}.nii.gz")
    (tmp_path / "imagesTr" / "p1_a_0000.json").write_text('{"Manufacturer": "ACME"}', encoding="utf-8")
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz", "numTraining": 2}
    about |= {"description": "Two  balls", "reference": "doi:1", "license": "CC0"}
    (tmp_path / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    dataset = open_dataset(tmp_path)
    found = study_facts(dataset, {"p1_a": "p1", "p1_b": "p1"}, ["2999-01-01T00:00:00+0000"])
    assert found.about == {"description": "Two balls", "reference": "doi:1", "licence": "CC0"}
    assert found.images["p1_a"] == {"manufacturer": "ACME"}
    assert (found.num_training, found.num_test, found.is_older, found.shared) == (2, 2, True, ("p1_b",))
    assert study_facts(dataset, {}, ["2000-01-01T00:00:00+0000"]).is_older is None
    assert study_facts(dataset, {}, ["", "soon"]).is_older is None
