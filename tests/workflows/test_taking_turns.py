"""Processes that meet in a work folder or a folder of outputs, and records that a killed process has left half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medseg3d.commandline.cli import main
from medseg3d.errors import BusyError
from medseg3d.evaluation.evaluate_folders import predicted_names
from medseg3d.files import file_digest
from medseg3d.locks import read_owner
from medseg3d.records import write_record
from medseg3d.workflows.prediction_record import PredictedCase, Predictions, RecordFile, StartedCase, read_predictions, recorded
from medseg3d.workflows.taking_turns import added_folders, adding_lock, lock_name
from medseg3d.workflows.train import NetworkFold, remove_joined
from tests.test_locks import elsewhere, hold


@pytest.mark.fault(
    "C", "a second training, validation or run of a fold that is being trained", "exit 2, naming the process, its host and since when"
)
@pytest.mark.parametrize("words", [["train", "--fold", "0"], ["train", "--fold", "0", "--validate"], ["train", "--fold", "0", "--restart"]])
def test_a_fold_that_another_process_trains_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr("medseg3d.workflows.taking_turns.PATIENCE", 0.1)
    root = Path(shutil.copytree(trained, tmp_path / "copy"))
    fold = root / "medseg3d-work/models/3d_fullres/fold_0"
    hold(fold / ".lock", elsewhere())
    before = {path.name: path.stat().st_mtime_ns for path in fold.iterdir()}
    assert main([words[0], str(root), *words[1:], "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert "is being trained by process 4711 on node7, since 2026-01-02 03:04:05" in message
    assert "Wait until it ends or stop it" in message
    assert {path.name: path.stat().st_mtime_ns for path in fold.iterdir()} == before
    assert read_owner(fold / ".lock") is not None


@pytest.mark.fault(
    "C", "select while a fold is being trained or measured", "the fold is left out with a note; exit 2 where it is the only one"
)
def test_a_selection_leaves_out_what_another_process_measures(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medseg3d.workflows.taking_turns.PATIENCE", 0.1)
    root = Path(shutil.copytree(trained, tmp_path / "copy"))
    hold(root / "medseg3d-work/models/3d_fullres/fold_0/.lock", elsewhere())
    assert main(["select", str(root), "--device", "cpu"]) == 2
    assert "process 4711 on node7" in capsys.readouterr().err
    assert not list((root / "medseg3d-work").glob(".*lock"))


@pytest.mark.fault("C", "a domain is added to a network that is being trained", "exit 2, naming the process that trains it")
def test_nobody_is_added_to_a_network_that_is_being_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg3d.workflows.taking_turns.PATIENCE", 0.1)
    with adding_lock(tmp_path, "A"), adding_lock(tmp_path, "B"):  # several may be added at once
        assert sorted(folder.name for folder in added_folders(tmp_path).iterdir()) == ["A", "B"]
    assert not added_folders(tmp_path).exists()
    hold(tmp_path / ".lock", elsewhere())
    with pytest.raises(BusyError, match="is being trained by process 4711 on node7"), adding_lock(tmp_path, "A"):
        pass
    assert not added_folders(tmp_path).exists()


@pytest.mark.fault("C", "the common network is trained anew while a domain is being added", "exit 2; what the domain has trained stays")
def test_a_network_is_not_trained_anew_while_a_domain_is_being_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg3d.workflows.taking_turns.PATIENCE", 0.1)
    network = NetworkFold(name="universal", fold="0", folder=tmp_path, domains=())
    for name in ("A", "B"):
        added_folders(tmp_path).joinpath(name).mkdir(parents=True)
        added_folders(tmp_path).joinpath(name, "last.safetensors").touch()
    hold(added_folders(tmp_path) / "B" / ".lock", elsewhere())
    with pytest.raises(BusyError, match="B: is being trained by process 4711 on node7"):
        remove_joined(network)
    assert (added_folders(tmp_path) / "A" / "last.safetensors").exists()
    shutil.rmtree(added_folders(tmp_path) / "B" / ".lock")
    remove_joined(network)
    assert not added_folders(tmp_path).exists()


ADD = """
import sys
from pathlib import Path
from medseg3d.workflows.prediction_record import PredictedCase, RecordFile
record, name = RecordFile(Path(sys.argv[1])), sys.argv[2]
for number in range(8):
    target = record.path.with_name(f"{name}_{number}.nii.gz")
    record.start(target, PredictedCase(model="m", input_digest=name), "0")
    record.add(target, PredictedCase(model="m", input_digest=name))
"""


@pytest.mark.fault("C", "one predict process per image into one output folder", "predictions.json holds the outputs of all of them")
def test_no_record_is_lost_where_processes_write_into_one_folder(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    record = tmp_path / "predictions.json"
    processes = [subprocess.Popen([sys.executable, "-c", ADD, str(record), name]) for name in "abcd"]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    found = read_predictions(record)
    assert sorted(found.cases) == sorted(f"{name}_{number}.nii.gz" for name in "abcd" for number in range(8))
    assert found.started == {}
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]
    record_property("tries", 32)


@pytest.mark.fault(
    "C", "a predict process killed between a label map and its record", "the next call recognizes the label map by its digest, and keeps it"
)
def test_an_announced_output_is_recorded_where_it_is_there(tmp_path: Path) -> None:
    made = PredictedCase(model="m", input_digest="i")
    for name in ("there", "other"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"labels")
    digest = file_digest(tmp_path / "there.nii.gz")
    (tmp_path / "other.nii.gz").write_bytes(b"an older one")
    started = {f"{name}.nii.gz": StartedCase(made=made, digest=digest) for name in ("there", "other", "missing")}
    write_record(tmp_path / "predictions.json", Predictions(started=started), "predictions")
    assert recorded(tmp_path).cases == {"there.nii.gz": made}
    RecordFile(tmp_path / "predictions.json").add(tmp_path / "other.nii.gz", made)
    assert sorted(read_predictions(tmp_path / "predictions.json").started) == ["missing.nii.gz"]


def test_a_value_that_two_models_call_differently_has_no_name(tmp_path: Path) -> None:
    made, file = PredictedCase(model="m", input_digest="i"), tmp_path / "predictions.json"
    other = PredictedCase(model="n", input_digest="i")
    for name in "abcd":
        (tmp_path / f"{name}.nii.gz").write_bytes(b"labels")
    RecordFile(file).add(tmp_path / "a.nii.gz", made)
    assert "names" not in file.read_text(encoding="utf-8"), "records that name nothing stay as they were"
    assert predicted_names(tmp_path) == {}
    RecordFile(file, {0: "background", 3: "liver"}).add(tmp_path / "b.nii.gz", made)
    assert predicted_names(tmp_path) == {0: "background", 3: "liver"}
    RecordFile(file, {0: "background", 3: "spleen"}).add(tmp_path / "c.nii.gz", other)
    RecordFile(file, {0: "background", 3: "spleen"}).add(tmp_path / "d.nii.gz", other)
    assert predicted_names(tmp_path) == {}
    for name in "ab":
        (tmp_path / f"{name}.nii.gz").unlink()
    assert predicted_names(tmp_path) == {0: "background", 3: "spleen"}, "of the label maps that are there"
    RecordFile(file).add(tmp_path / "c.nii.gz", PredictedCase(model="of regions", input_digest="i"))
    assert predicted_names(tmp_path) == {}
    file.write_text("{", encoding="utf-8")
    assert predicted_names(tmp_path) == {}


def test_a_lock_of_a_very_long_name_has_a_short_one() -> None:
    assert len(lock_name("ä" * 120).encode()) < 60
    assert lock_name("ä" * 120) != lock_name("ä" * 121)


@pytest.mark.fault(
    "C", "killed between last.safetensors and training.json of the last epoch", "the next call writes what lacks, the fold is finished"
)
@pytest.mark.parametrize("lost", ["training.json says less", "training.json", "weights.safetensors"])
def test_a_run_whose_last_words_were_not_written_is_finished_by_the_next_call(trained: Path, tmp_path: Path, lost: str) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "copy"))
    fold = root / "medseg3d-work/models/3d_fullres/fold_0"
    before = json.loads((fold / "training.json").read_text(encoding="utf-8"))
    if lost == "training.json says less":
        shutil.copy(fold / "last.safetensors", tmp_path / "last")
        state = {key: value for key, value in before.items() if key != "seal"} | {"epoch": 1, "is_finished": False}
        (fold / "training.json").write_text(json.dumps(state), encoding="utf-8")
    else:
        (fold / lost).unlink()
    assert main(["train", str(root), "--fold", "0", "--device", "cpu", "-q"]) == 0
    assert json.loads((fold / "training.json").read_text(encoding="utf-8")) == before
    assert (fold / "weights.safetensors").exists()
