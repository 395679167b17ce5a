"""A preprocessed case whose files are not as they were written is found, named and made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medseg3d.commandline.cli import main
from medseg3d.data.open_dataset import open_dataset
from medseg3d.domain import Domain
from medseg3d.errors import DamagedCaseError
from medseg3d.plan import Plan, Resampling
from medseg3d.preprocessing.preprocess_case import PreprocessedCase, Restoration
from medseg3d.preprocessing.store import Store
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.plan import plan
from medseg3d.workflows.preprocess import preprocess
from medseg3d.workflows.renew_cases import renew_cases
from medseg3d.workflows.train import training_domain

SHAPE = (6, 12, 10)
FILES = ("image.b2nd", "labels.b2nd", "outside.b2nd", "foreground.npz", "case.json")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    rng = np.random.default_rng(0)
    labels = (rng.random(SHAPE) > 0.7).astype(np.uint8)
    restoration = Restoration(
        original_shape=SHAPE, axis_order=(0, 1, 2), box=((0, 6), (0, 12), (0, 10)), spacing=(1.0, 1.0, 1.0),
        resampled_shape=SHAPE, resampled_spacing=(1.0, 1.0, 1.0), resampling=Resampling(),
    )  # fmt: skip
    image = rng.normal(size=(1, *SHAPE)).astype(np.float32)
    case = PreprocessedCase(name="c", image=image, labels=labels, outside=labels == 0, restoration=restoration)
    found = Store(tmp_path / "store")
    found.write(case, "digest")
    return found


def flip(file: Path, place: int, bits: int = 0x40) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= bits
    file.write_bytes(content)


@pytest.mark.fault("A7", "a byte of the preprocessed store that changed", "found when the case is opened, and named with its file")
@pytest.mark.parametrize("name", FILES)
def test_any_changed_byte_of_a_stored_case_is_found(store: Store, name: str, record_property) -> None:
    file = store.folder / "c" / name
    whole = file.read_bytes()
    places = np.random.default_rng(1).choice(len(whole), min(40, len(whole)), replace=False)
    for place in places:
        flip(file, int(place))
        with pytest.raises(DamagedCaseError, match=r"^c: .*damaged"):
            store.read("c")
        assert not store.is_current("c", "digest")
        file.write_bytes(whole)
    assert store.read("c").shape == SHAPE
    assert store.is_current("c", "digest")
    record_property("tries", len(places))


def test_a_case_of_before_there_were_checksums_is_read(store: Store) -> None:
    file = store.folder / "c" / "case.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    for name in ("checksums", "checksum", "stamp", "is_sealed"):
        del record[name]
    file.write_text(json.dumps(record), encoding="utf-8")
    assert store.read("c").shape == SHAPE
    assert store.is_current("c", "digest")


@pytest.fixture(scope="module")
def prepared_once(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(tiny_source, tmp_path_factory.mktemp("prepared") / "Balls"))
    plan(root, planner=str(root / "tiny.toml"))
    preprocess(root, configurations=["3d_fullres"])
    return root


@pytest.fixture
def prepared(prepared_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared_once, tmp_path / "Balls"))


NAMES = ("ball_0", "ball_1")


def renewed(root: Path) -> tuple[list[str], list[str]]:
    """What was said, and the cases that could not be made again."""
    folder = WorkFolder(root / "medseg3d-work")
    made: Plan = folder.read_plan()
    said: list[str] = []
    failures = renew_cases(root, folder, made, made.configuration("3d_fullres"), NAMES, on=lambda event: said.append(event.message or ""))
    return said, [failure.case for failure in failures]


def image_of(root: Path, name: str) -> Path:
    (file,) = root.glob(f"medseg3d-work/preprocessed/*/{name}/image.b2nd")
    return file


@pytest.mark.fault("A7", "a damaged preprocessed case before training", "named, and made again from its images")
def test_training_makes_a_damaged_case_again(prepared: Path) -> None:
    file = image_of(prepared, "ball_1")
    whole = file.read_bytes()
    flip(file, len(whole) // 2)
    said, failed = renewed(prepared)
    assert any("ball_1: the preprocessed case is damaged" in line for line in said)
    assert failed == []
    assert file.read_bytes() == whole
    assert renewed(prepared) == ([], [])


@pytest.mark.fault("A7", "a damaged preprocessed case whose images are not there", "named, and training goes on without it")
def test_a_damaged_case_without_images_is_a_failure_of_that_case(prepared: Path) -> None:
    flip(image_of(prepared, "ball_1"), 300)
    shutil.rmtree(prepared / "imagesTr")
    assert renewed(prepared) == ([], ["ball_1"])


@pytest.mark.fault("A3", "a label map that changed after it was preprocessed", "the case is preprocessed again before training, and named")
def test_training_preprocesses_a_case_again_whose_label_changed(prepared: Path) -> None:
    labels = prepared / "labelsTr"
    shutil.copy(labels / "ball_3.nii.gz", labels / "ball_0.nii.gz")
    said, failed = renewed(prepared)
    assert any("ball_0: its files have changed" in line for line in said)
    assert not any("ball_1" in line for line in said)
    assert failed == []
    assert renewed(prepared) == ([], [])


@pytest.mark.fault(
    "A3", "a case that changed and cannot be preprocessed as it is now", "training goes on without it, not with what was stored; exit 3"
)
def test_training_goes_on_without_a_case_that_cannot_be_made_again(
    prepared: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    domain = Domain(dataset=prepared, folder=WorkFolder(prepared / "medseg3d-work"), configuration="3d_fullres")
    before = {case.name for case in training_domain(domain, "0", device="cpu").training}
    changed = min(before)
    (prepared / "annotated.csv").write_text(f"case,labels\n{changed},shell\n", encoding="utf-8")
    assert {case.name for case in training_domain(domain, "0", device="cpu").training} == before - {changed}
    assert f"{changed} cannot be preprocessed as it is now; training without it." in caplog.text
    assert main(["train", str(prepared), "--fold", "all", "--epochs", "1", "--iterations", "2", "--device", "cpu", "--json"]) == 3
    said = capsys.readouterr()
    assert [failure["case"] for failure in json.loads(said.out)["left_out"]] == [changed]
    assert f"1 case failed; the others are used:\n  - {changed}" in said.err


def test_a_copied_dataset_with_new_times_is_not_preprocessed_again(prepared: Path) -> None:
    for file in prepared.rglob("*.nii.gz"):
        file.touch()
    assert renewed(prepared) == ([], [])
    assert len(open_dataset(prepared).training) == 6


@pytest.mark.fault("A3", "a plan that was made before files of a case changed", "preprocess names the cases and says to plan again")
def test_preprocessing_names_cases_that_changed_since_the_plan(prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    preprocess(prepared, configurations=["3d_fullres"])
    assert not caplog.records
    labels = prepared / "labelsTr"
    shutil.copy(labels / "ball_3.nii.gz", labels / "ball_0.nii.gz")
    result = preprocess(prepared, configurations=["3d_fullres"])
    assert result.made == ("ball_0",)
    assert [record.message for record in caplog.records if "before files of ball_0 changed" in record.message]
    assert "ball_1" not in caplog.text


@pytest.mark.fault("A7", "a damaged preprocessed case when it is preprocessed again", "named, and made again")
def test_preprocessing_makes_a_damaged_case_again(prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip(image_of(prepared, "ball_4"), 300)
    assert preprocess(prepared, configurations=["3d_fullres"]).made == ("ball_4",)
    assert "ball_4: the preprocessed case is damaged" in caplog.text
    assert "made again" in caplog.text
