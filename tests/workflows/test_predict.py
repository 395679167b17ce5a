"""Folders of images: parts, executors, what is recorded of each case, and mirroring where validation showed a gain."""

from __future__ import annotations

import contextlib
import json
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg3d import load_model
from medseg3d.commandline.cli import main
from medseg3d.errors import InputError, PlanMismatchError, StorageError
from medseg3d.images import read_image
from medseg3d.models.checkpoints import load_tensors, save_tensors
from medseg3d.models.model import Model
from medseg3d.options import PredictOptions
from medseg3d.prediction.predict_case import PreparedCase
from medseg3d.records import read_record, write_record
from medseg3d.validation.selection import MIRRORING, FoldMirroring, Selection, choose_mirroring
from medseg3d.workflows.predict import predict
from medseg3d.workflows.select import select
from medseg3d.workflows.validate import use_other_mirroring, validate


@pytest.fixture
def images(trained: Path, tmp_path: Path) -> Path:
    """Three images, and one file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, source in enumerate(sorted((trained / "imagesTr").iterdir())[:3]):
        shutil.copy(source, folder / f"scan_{number}.nii.gz")
    return folder


def maps(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


def test_parts_together_are_the_whole_and_do_not_write_the_same_record(trained: Path, images: Path, tmp_path: Path) -> None:
    predict(images, tmp_path / "whole", dataset=trained)
    for number in (1, 2):
        assert main(["predict", str(trained), "-i", str(images), "-o", str(tmp_path / "parts"), "--part", f"{number}/2", "-q"]) == 0
    assert maps(tmp_path / "parts") == maps(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "parts").glob("*.json")) == ["predictions-1-of-2.json", "predictions-2-of-2.json"]
    again = predict(images, tmp_path / "parts", dataset=trained)
    assert len(again.kept) == 3


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_part_that_is_none_is_refused(part: str, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "-i", str(images), "-o", "out", "--part", part])
    assert "expected two numbers such as 2/8" in capsys.readouterr().err


def test_an_executor_gives_the_same_files_and_lists_what_failed(trained: Path, images: Path, tmp_path: Path) -> None:
    predict(images, tmp_path / "here", dataset=trained)
    (images / "scan_9.nii.gz").write_bytes(b"no image")
    with ThreadPoolExecutor(2) as executor:
        result = predict(images, tmp_path / "there", dataset=trained, executor=executor)
    assert maps(tmp_path / "there") == maps(tmp_path / "here")
    assert [failure.case for failure in result.failures] == ["scan_9"]
    assert len(predict(images, tmp_path / "there", dataset=trained).kept) == 3


def test_dask_workers_give_the_same_files(trained: Path, images: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    predict(images, tmp_path / "here", dataset=trained)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        command = ["predict", str(trained), "-i", str(images), "-o", str(tmp_path / "there"), "--cluster", cluster.scheduler_address, "-q"]
        assert main(command) == 0
    assert maps(tmp_path / "there") == maps(tmp_path / "here")


def test_stages_and_memory_are_shown_and_recorded(trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", str(trained), "-i", str(images), "-o", str(tmp_path / "out")]
    assert main([*command, "-v"]) == 0
    shown = capsys.readouterr().out
    for word in ("read", "preprocess", "segment", "write", "peak MiB", "scan_0.nii.gz", "20 x 18 x 12"):
        assert word in shown
    record = json.loads((tmp_path / "out/predictions.json").read_text(encoding="utf-8"))["cases"]["scan_0.nii.gz"]
    assert set(record["seconds"]) == {"read", "preprocess", "segment", "write"}
    assert main([*command, "--overwrite", "--step", "0.7", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["cases"]) == {f"scan_{i}.nii.gz" for i in range(3)}


def test_a_damaged_record_is_an_advice(trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predictions.json").write_text("{", encoding="utf-8")
    assert main(["predict", str(trained), "-i", str(images), "-o", str(tmp_path / "out")]) == 2
    assert "Delete it, and add --overwrite to predict them again." in " ".join(capsys.readouterr().err.split())


def test_the_next_image_is_not_read_ahead_where_memory_is_short(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medseg3d.workflows import predict_cases as module

    order: list[str] = []
    read, segment = module._read, module.Model.segment
    monkeypatch.setattr(module, "_read", lambda case, *rest: (order.append(f"read {case.name}"), read(case, *rest))[1])
    monkeypatch.setattr(
        module.Model,
        "segment",
        lambda self, prepared, **options: (order.append(f"segment {prepared.name}"), segment(self, prepared, **options))[1],
    )
    predict(images, tmp_path / "out", PredictOptions(max_ram_gb=1e-9), dataset=trained)
    assert order == [f"{stage} scan_{i}" for i in range(3) for stage in ("read", "segment")]


def test_probabilities_lie_on_the_axes_of_the_file_and_leave_nothing_else(trained: Path, images: Path, tmp_path: Path) -> None:
    predict(images, tmp_path / "out", PredictOptions(probabilities=True), dataset=trained)
    for file in sorted((tmp_path / "out").glob("*.nii.gz")):
        with np.load(file.with_name(file.name.replace(".nii.gz", ".npz"))) as stored:
            chances, values = stored["probabilities"], stored["values"]
        labels = read_image(file).array
        assert chances.shape == (3, *labels.shape)
        assert chances.dtype == np.float16
        best = np.sort(chances.astype(np.float32), 0)
        is_clear = best[-1] - best[-2] > 2e-3
        assert np.array_equal(values[chances.argmax(0)][is_clear], labels[is_clear])
    assert not list((tmp_path / "out").glob(".*"))


def test_an_output_that_was_stopped_half_way_is_made_again(trained: Path, images: Path, tmp_path: Path) -> None:
    first = predict(images, tmp_path / "out", dataset=trained)
    first.written[0].unlink()
    again = predict(images, tmp_path / "out", dataset=trained)
    assert again.written == (first.written[0],)
    assert len(again.kept) == 2


def test_mirroring_is_used_where_it_gains_enough() -> None:
    better = {f"case_{i}": 0.8 + 0.01 * i for i in range(6)}
    worse = {case: dice - 0.01 for case, dice in better.items()}
    assert choose_mirroring(better, worse).is_used
    assert not choose_mirroring(worse, better).is_used
    assert not choose_mirroring(better, {case: dice - 0.0005 for case, dice in better.items()}).is_used
    assert choose_mirroring({}, {}).is_used
    assert choose_mirroring({"a": None, "b": 0.5}, {"a": 0.0, "b": 0.5}).is_used, "it keeps an empty case empty"


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "Balls"))


def test_a_fold_is_measured_both_ways_and_the_other_way_can_be_taken(copy: Path) -> None:
    folder = copy / "medseg3d-work/models/3d_fullres/fold_0/validation"
    made = read_record(folder / MIRRORING, FoldMirroring, "mirroring")
    assert made.has_other
    own, other = maps(folder), maps(folder / made.other)
    assert own.keys() == other.keys()
    metrics = (folder / "metrics.json").read_bytes()
    use_other_mirroring(folder)
    assert maps(folder) == other
    use_other_mirroring(folder)
    assert maps(folder) == own
    assert (folder / "metrics.json").read_bytes() == metrics
    assert load_model(copy).members[0].mirroring == made.is_used
    assert load_model(copy, mirroring=True).members[0].mirroring


def test_one_way_can_be_asked_for(copy: Path) -> None:
    folder = copy / "medseg3d-work/models/3d_fullres/fold_0/validation"
    before = maps(folder)
    validate(copy, tta="off")
    assert read_record(folder / MIRRORING, FoldMirroring, "mirroring") == FoldMirroring(is_used=False, has_other=False)
    validate(copy, tta="on")
    assert read_record(folder / MIRRORING, FoldMirroring, "mirroring") == FoldMirroring(is_used=True, has_other=False)
    assert maps(folder).keys() == before.keys()
    with pytest.raises(InputError, match="one way only"):
        use_other_mirroring(folder)


def test_select_chooses_one_way_for_all_folds_and_predict_follows(copy: Path) -> None:
    folder = copy / "medseg3d-work/models/3d_fullres/fold_0/validation"
    selection = select(copy)
    choice = selection.mirroring["3d_fullres"]
    assert choice.gain is not None
    assert choice.gain.n == len(maps(folder))
    assert any("mirroring changes the mean Dice" in note for note in selection.notes)
    assert read_record(folder / MIRRORING, FoldMirroring, "mirroring").is_used == choice.is_used
    for wanted in (True, False):
        changed = {"3d_fullres": type(choice)(is_used=wanted, gain=None, reason="by hand")}
        write_record(copy / "medseg3d-work/selection.json", _with_mirroring(selection, changed), "selection")
        assert load_model(copy).members[0].mirroring is wanted


def _with_mirroring(selection: Selection, mirroring: dict[str, object]) -> Selection:
    from dataclasses import replace

    return replace(selection, mirroring=mirroring)  # type: ignore[arg-type]


class Stopped(KeyboardInterrupt):
    """Ctrl-C at a place of our choice."""


def stopping_at(name: str, what: BaseException):  # type: ignore[no-untyped-def]
    segment = Model.segment

    def stop(self: Model, prepared: PreparedCase, **options: object) -> np.ndarray:
        if prepared.name == name:
            raise type(what)(*what.args)  # a new one: its traceback holds what the case held
        return segment(self, prepared, **options)  # type: ignore[arg-type]

    return stop


def test_a_run_that_is_stopped_goes_on(trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Model, "segment", stopping_at("scan_1", Stopped()))
        with pytest.raises(Stopped):
            predict(images, tmp_path / "out", PredictOptions(probabilities=True), dataset=trained)
    assert maps(tmp_path / "out").keys() == {"scan_0.nii.gz"}
    assert not list((tmp_path / "out").glob(".*"))
    again = predict(images, tmp_path / "out", PredictOptions(probabilities=True), dataset=trained)
    assert [path.name for path in again.kept] == ["scan_0.nii.gz"]
    assert len(again.written) == 2


def test_a_case_that_memory_does_not_hold_is_let_go_before_the_next_one(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medseg3d.workflows import predict_cases as module

    held: list[weakref.ref[np.ndarray]] = []
    seen: list[bool] = []
    prepare = module._prepare

    def watched(ready, model):  # type: ignore[no-untyped-def]
        seen.append(any(reference() is not None for reference in held))
        prepared = prepare(ready, model)
        held.append(weakref.ref(next(iter(prepared.images.values())).image))
        return prepared

    monkeypatch.setattr(module, "_prepare", watched)
    monkeypatch.setattr(Model, "segment", stopping_at("scan_0", MemoryError()))
    result = predict(images, tmp_path / "out", PredictOptions(max_ram_gb=1e-9), dataset=trained)
    assert [failure.case for failure in result.failures] == ["scan_0"]
    assert seen == [False, False, False]


@pytest.mark.parametrize("error", [MemoryError(), InputError("odd")])
def test_a_case_that_fails_while_it_is_written_does_not_stop_the_others(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    finish, calls = Model.finish, []

    def failing(self, indices, orientation):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 1:
            raise error
        return finish(self, indices, orientation)

    monkeypatch.setattr(Model, "finish", failing)
    result = predict(images, tmp_path / "out", PredictOptions(probabilities=True), dataset=trained)
    assert [failure.case for failure in result.failures] == ["scan_0"]
    assert len(result.written) == 2
    assert not list((tmp_path / "out").glob(".*"))


def test_a_disk_that_fails_ends_the_run_and_leaves_no_scratch_file(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medseg3d.dicom_objects import outputs as module

    def full(*_: object) -> Path:
        raise StorageError("the disk is full")

    monkeypatch.setattr(module, "write_label_map", full)
    with pytest.raises(StorageError):
        predict(images, tmp_path / "out", PredictOptions(probabilities=True), dataset=trained)
    assert not list((tmp_path / "out").glob(".*"))


def test_the_latest_of_two_models_outputs_counts(trained: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(images, out, dataset=trained)
    predict(images, out, PredictOptions(step=0.8, part=(1, 1), overwrite=True), dataset=trained)
    made = maps(out)
    assert len(predict(images, out, PredictOptions(step=0.8), dataset=trained).kept) == 3
    with pytest.raises(PlanMismatchError):
        predict(images, out, dataset=trained)
    assert maps(out) == made


def test_workers_take_folds_and_notice_other_weights(trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "Balls"))
    monkeypatch.chdir(images.parent)
    with ThreadPoolExecutor(2) as executor:
        first = predict(Path(images.name), tmp_path / "out", PredictOptions(folds=["0"]), dataset=copy, executor=executor)
        assert len(first.written) == 3
        weights = copy / "medseg3d-work/models/3d_fullres/fold_0/weights.safetensors"
        tensors, metadata = load_tensors(weights)
        max(tensors.values(), key=torch.numel).mul_(2)  # the first one may be zeros
        save_tensors(weights, tensors, metadata)
        again = predict(Path(images.name), tmp_path / "again", PredictOptions(folds=["0"]), dataset=copy, executor=executor)
    assert {case.model for case in again.cases.values()}.isdisjoint({case.model for case in first.cases.values()})
    assert maps(tmp_path / "again").keys() == maps(tmp_path / "out").keys()


@pytest.mark.parametrize("step", range(1, 12))
def test_an_exchange_of_both_ways_that_is_killed_is_measured_again(copy: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    folder = copy / "medseg3d-work/models/3d_fullres/fold_0/validation"
    made = read_record(folder / MIRRORING, FoldMirroring, "mirroring")
    by_way = {made.is_used: maps(folder), not made.is_used: maps(folder / made.other)}
    calls = []
    replace_file = Path.replace

    def killed(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == step:
            raise Stopped
        return replace_file(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with contextlib.suppress(Stopped):
            use_other_mirroring(folder)
    validate(copy, keep_finished=True)
    after = read_record(folder / MIRRORING, FoldMirroring, "mirroring")
    assert maps(folder) == by_way[after.is_used]
    assert after.has_other
    assert maps(folder / after.other) == by_way[not after.is_used]
    select(copy)


def test_a_measure_that_is_killed_leaves_none_of_the_other_way(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validate(copy, tta="on")
    mirrored = maps(copy / "medseg3d-work/models/3d_fullres/fold_0/validation")
    with monkeypatch.context() as patch:
        patch.setattr(Model, "segment", stopping_at(next(iter(mirrored)).removesuffix(".nii.gz"), Stopped()))
        with pytest.raises(Stopped):
            validate(copy, tta="off")
    validate(copy, tta="off", keep_finished=True)
    assert maps(copy / "medseg3d-work/models/3d_fullres/fold_0/validation").keys() == mirrored.keys()
    assert (copy / "medseg3d-work/models/3d_fullres/fold_0/validation/metrics.json").exists()


def test_an_older_validation_without_a_record_was_mirrored(copy: Path) -> None:
    folder = copy / "medseg3d-work/models/3d_fullres/fold_0/validation"
    validate(copy, tta="on")
    (folder / MIRRORING).unlink()
    validate(copy, tta="off", keep_finished=True)
    assert read_record(folder / MIRRORING, FoldMirroring, "mirroring") == FoldMirroring(is_used=False, has_other=False)


@pytest.mark.fault(
    "D", "`predict -o` names a folder that is not there yet, also several deep, for one image or many", "made, with the label maps in it"
)
@pytest.mark.parametrize("output", ["new", "a/b/c", "dots.v2.1", "ends.d"])
def test_the_output_folder_need_not_be_there(trained: Path, images: Path, tmp_path: Path, output: str) -> None:
    result = predict(images / "scan_0.nii.gz", tmp_path / output, PredictOptions(device="cpu"), dataset=trained)
    assert result.written == (tmp_path / output / "scan_0.nii.gz",)


@pytest.mark.fault(
    "A3", "a label map that was changed after it was predicted, and the same call again", "kept, with a warning that names it"
)
def test_a_kept_output_that_was_changed_is_named(trained: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (images / "scan_2.nii.gz").unlink()
    made = predict(images, tmp_path / "out", dataset=trained)
    changed = made.written[0]
    changed.write_bytes(changed.read_bytes()[:-20])
    again = predict(images, tmp_path / "out", dataset=trained)
    assert len(again.kept) == 2
    told = [record.getMessage() for record in caplog.records if "changed since predicted" in record.getMessage()]
    assert told == [
        f"1 output is kept, but changed since predicted: {changed.name}. If nobody corrected that by hand, predict again with --overwrite."
    ]
