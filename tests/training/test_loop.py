"""The training loop where things go wrong, and what it decides by itself."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medseg3d.data.dataset import Split
from medseg3d.devices import Device
from medseg3d.errors import DivergedError, InputError, PlanMismatchError, StorageError
from medseg3d.files import Storage, using_storage
from medseg3d.frame import Frame
from medseg3d.models.checkpoints import load_tensors, save_tensors
from medseg3d.options import TrainingOptions
from medseg3d.plan import Configuration, Plan
from medseg3d.preprocessing.store import StoredCase
from medseg3d.records import read_record, to_plain
from medseg3d.signals import StopRequest
from medseg3d.training import failures, probe, step
from medseg3d.training.domains import NO_NAME, TrainingDomain
from medseg3d.training.initial import InitialWeights
from medseg3d.training.loop import train_domains
from medseg3d.training.state import EpochRecord, TrainingState, read_history, saved_tuning
from medseg3d.training.tuning import Tuning
from medseg3d.workflows.splits import plan_digest

FLOAT32 = Device(device=torch.device("cpu"), precision="float32")


def train(
    material: tuple[Plan, Configuration, list[StoredCase]],
    folder: Path,
    *,
    device: Device = FLOAT32,
    stop: StopRequest | None = None,
    init: Path | InitialWeights | None = None,
    tuning: Tuning | None = None,
    on_step: Callable[[int, int, int], None] = lambda *_: None,
    **options: object,
) -> list[EpochRecord]:
    """The records of the epochs."""
    plan, configuration, cases = material
    domain = TrainingDomain(name=NO_NAME, plan=plan, configuration=configuration, training=cases[:4], validation=cases[4:])
    epochs = train_domains(
        [domain],
        name=configuration.name,
        fold="0",
        folder=folder,
        device=device,
        options=TrainingOptions(**options),  # type: ignore[arg-type]
        plan_digest="x",
        stop=stop or StopRequest(),
        init=init,
        tuning=tuning,
        on_step=on_step,
    )
    return list(epochs)


def run(
    material: tuple[Plan, Configuration, list[StoredCase]], folder: Path, *, stop_after: int | None = None, **options: object
) -> list[EpochRecord]:
    """As :func:`train`; with ``stop_after`` the run is asked to stop after so many steps."""
    stop, steps = StopRequest(), []

    def count(*place: int) -> None:
        steps.append(place)
        if len(steps) == stop_after:
            stop.set(15)

    return train(material, folder, stop=stop, on_step=count, **options)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_bits(material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(material, tmp_path / name, epochs=1, iterations=3, seed=seed)
        weights.append(load_tensors(tmp_path / name / "last.safetensors")[0])
    first, same, other = weights
    assert all(first[name].equal(same[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)


def test_a_bad_batch_is_skipped_counted_and_named(
    material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="medseg3d")
    plan, configuration, cases = material
    cases[0].image[:] = float("nan")
    (record,) = run((plan, configuration, cases), tmp_path, epochs=1, iterations=8)
    assert 0 < record.skipped_iterations < 8
    assert cases[0].name in caplog.text
    tensors, _ = load_tensors(tmp_path / "weights.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_training_on_nan_alone_stops_with_a_clear_error(
    material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "MAX_BAD_STEPS_IN_A_ROW", 3)
    for case in material[2]:
        case.image[:] = float("nan")
    with pytest.raises(DivergedError, match="3 steps in a row"):
        run(material, tmp_path, epochs=1, iterations=8)


def test_a_short_time_budget_gets_a_smaller_batch_and_ends(
    material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="medseg3d")
    plan, configuration, cases = material
    falling = replace(configuration, batch_size=16, training=replace(configuration.training, follows_budget=False))
    run((plan, falling, cases), tmp_path, hours=2 / 3600)
    assert "instead of the plan's 16" in caplog.text
    history = read_history(tmp_path)
    rates = [float(str(epoch["learning_rate"])) for epoch in history]
    assert rates == sorted(set(rates), reverse=True)  # one epoch only, where other work takes the cores


def test_bf16_that_crashes_the_process_is_replaced_by_float32(
    material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(device=torch.device("cpu"), precision="bfloat16")
    crashing = tmp_path / "python"
    crashing.write_text(f"#!{sys.executable}\nimport os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n", encoding="utf-8")
    crashing.chmod(0o755)
    monkeypatch.setattr(probe.sys, "executable", str(crashing))
    assert probe.trusted_precision(device, material[1], 2).precision == "float32"


def test_the_probe_trusts_a_step_that_ends(material: tuple[Plan, Configuration, list[StoredCase]]) -> None:
    device = Device(device=torch.device("cpu"), precision="bfloat16")
    assert probe.trusted_precision(device, material[1], 2).precision == "bfloat16"


def test_a_restart_leaves_nothing_of_the_old_run(material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path) -> None:
    run(material, tmp_path, epochs=2, iterations=1)
    stop = StopRequest()
    stop.set(15)
    assert train(material, tmp_path, stop=stop, epochs=2, iterations=2, restart=True) == []
    assert read_history(tmp_path) == []
    assert (tmp_path / "weights.safetensors").exists()


def test_a_step_that_does_not_fit_the_memory_is_one_message(
    material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(material, tmp_path, epochs=1, iterations=2)

    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, "outputs_of", full)
    with pytest.raises(InputError, match=r"does not fit the memory of cpu.*--batch-size.*--gpu-memory"):
        run(material, tmp_path, epochs=2, iterations=2)
    assert read_history(tmp_path)[-1]["epoch"] == 0


def test_another_number_of_threads_is_pointed_out(
    material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="medseg3d")
    run(material, tmp_path, epochs=1, iterations=1)
    run(material, tmp_path, epochs=2, iterations=1)
    assert "threads" not in caplog.text
    tensors, metadata = load_tensors(tmp_path / "last.safetensors")
    metadata["state"] = {**metadata["state"], "threads": 77, "is_finished": False}  # type: ignore[dict-item]
    save_tensors(tmp_path / "last.safetensors", tensors, metadata)
    run(material, tmp_path, epochs=3, iterations=1)
    assert "begun with 77 threads" in caplog.text


def test_plans_from_before_a_new_number_keep_their_digest(material: tuple[Plan, Configuration, list[StoredCase]]) -> None:
    plan, configuration, _ = material
    split = Split(train=("a",), validation=("b",))
    old = to_plain(configuration)
    del old["training"]["unit_gradients"]
    old["training"].pop("follows_budget")  # says how a run chooses its own numbers, not what the plan's are
    parts = {"configuration": old, "labels": to_plain(plan.labels), "axis_order": plan.axis_order, "split": to_plain(split)}
    expected = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()
    assert plan_digest(plan, configuration, split) == expected
    changed = replace(configuration, training=replace(configuration.training, unit_gradients=True))
    assert plan_digest(plan, changed, split) != expected


@pytest.mark.fault("A0", "a dataset planned anew with other axes, and a fold trained with the earlier ones", "refused, as another plan")
def test_other_axes_are_another_plan(material: tuple[Plan, Configuration, list[StoredCase]]) -> None:
    plan, configuration, _ = material
    split = Split(train=("a",), validation=("b",))
    oblique = replace(plan, frame=Frame(directions=((0.0, 0.6, 0.8), (0.0, 0.8, -0.6), (1.0, 0.0, 0.0))))
    assert plan_digest(oblique, configuration, split) != plan_digest(plan, configuration, split)


def test_weights_of_another_family_are_refused(material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path) -> None:
    run(material, tmp_path / "a", epochs=1, iterations=1)
    state = tmp_path / "a/last.safetensors"  # its tensors have other names
    with pytest.raises(PlanMismatchError, match=r"weights\.safetensors"):
        train(material, tmp_path / "b", init=state, epochs=1)


def test_a_full_disk_while_weights_are_saved_is_one_message(material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path) -> None:
    class Full(Storage):
        def finish(self, path: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    run(material, tmp_path, epochs=1, iterations=2)
    kept = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(StorageError, match="disk is full"), using_storage(Full()):
        run(material, tmp_path, epochs=2, iterations=2)
    assert (tmp_path / "last.safetensors").read_bytes() == kept
    assert not list(tmp_path.glob(".*"))


FLOAT16 = Device(device=torch.device("cpu"), precision="float16")


@pytest.mark.slow
def test_float16_training_scales_its_loss_and_a_continued_run_keeps_the_scale(
    material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path
) -> None:
    run(material, tmp_path / "whole", device=FLOAT16, epochs=2, iterations=3)
    run(material, tmp_path / "parts", device=FLOAT16, epochs=2, iterations=3, stop_after=4)
    run(material, tmp_path / "parts", device=FLOAT16, epochs=2, iterations=3)
    states = [load_tensors(tmp_path / name / "last.safetensors") for name in ("whole", "parts")]
    for _, metadata in states:
        assert metadata["scaler"]["scale"] > 1  # type: ignore[index]
    assert states[0][1]["scaler"] == states[1][1]["scaler"]
    assert all(states[0][0][name].equal(states[1][0][name]) for name in states[0][0])


def test_a_gradient_that_overflows_in_float16_lowers_the_scale_and_skips_the_step(
    material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "scaler_for", lambda device: torch.amp.GradScaler("cpu", init_scale=2.0**40))
    (record,) = run(material, tmp_path, device=FLOAT16, epochs=1, iterations=4)
    assert record.skipped_iterations > 0
    _, metadata = load_tensors(tmp_path / "last.safetensors")
    assert metadata["scaler"]["scale"] < 2.0**40  # type: ignore[index]
    tensors, _ = load_tensors(tmp_path / "weights.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


@pytest.mark.fault("D", "--init where the folder holds a run", "refused unless the run began with the same weights, which then goes on")
def test_initial_weights_are_refused_where_a_run_began_with_others(
    material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path
) -> None:
    def begin(folder: Path, *, init: InitialWeights | None, restart: bool = False) -> list[EpochRecord]:
        return train(material, folder, init=init, epochs=1, iterations=1, restart=restart)

    begin(tmp_path / "a", init=None)
    tensors, _ = load_tensors(tmp_path / "a" / "weights.safetensors")
    initial = InitialWeights(source="a", tensors=tensors)
    with pytest.raises(InputError, match=r"--init a: .* began with fresh weights.* Say --restart"):
        begin(tmp_path / "a", init=initial)
    assert len(begin(tmp_path / "b", init=initial)) == 1
    assert begin(tmp_path / "b", init=initial) == []
    assert begin(tmp_path / "b", init=None) == []
    other = InitialWeights(source="other", tensors={name: tensor + 1 for name, tensor in tensors.items()})
    with pytest.raises(InputError, match=r"--init other: .* began with others"):
        begin(tmp_path / "b", init=other)
    assert len(begin(tmp_path / "b", init=other, restart=True)) == 1


@pytest.mark.fault("D", "more epochs asked of a finished fold whose last.safetensors was deleted", "refused; its good weights stay")
def test_a_finished_fold_without_its_state_is_not_begun_anew(
    material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path
) -> None:
    run(material, tmp_path, epochs=1)
    (tmp_path / "last.safetensors").unlink()
    weights = (tmp_path / "weights.safetensors").read_bytes()
    assert run(material, tmp_path, epochs=1) == []
    with pytest.raises(InputError, match=r"is finished \(1 epochs\), and last\.safetensors.* is not there any more\. Give --restart"):
        run(material, tmp_path, epochs=2)
    assert (tmp_path / "weights.safetensors").read_bytes() == weights
    assert len(run(material, tmp_path, epochs=2, restart=True)) == 2


def test_a_frozen_part_keeps_its_bits_and_a_continued_run_is_the_uninterrupted_one(
    material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path
) -> None:
    run(material, tmp_path / "first", epochs=1, iterations=1)
    tensors, _ = load_tensors(tmp_path / "first/weights.safetensors")
    initial = InitialWeights(source="first", tensors=tensors)
    tuning = Tuning(freeze=("encoder.*",), layer_rates={"decoder.up": 0.1})
    for folder, stops in (("whole", (None,)), ("parts", (3, None))):
        for stop_after in stops:
            run(material, tmp_path / folder, stop_after=stop_after, epochs=2, iterations=2, init=initial, tuning=tuning)
    ends = [load_tensors(tmp_path / folder / "last.safetensors")[0] for folder in ("whole", "parts")]
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])
    kept = {name for name, tensor in tensors.items() if tensor.equal(ends[0][f"network.{name}"])}
    assert {name for name in tensors if name.startswith("encoder.")} <= kept
    assert not {name for name in tensors if name.startswith(("decoder.stages.", "decoder.up.")) and name.endswith("weight")} & kept
    assert saved_tuning(tmp_path / "whole") == tuning
    taken = read_record(tmp_path / "whole/training.json", TrainingState, "training").taken
    assert taken is not None
    assert (taken.num_used, taken.fresh) == (len(tensors), ())
    with pytest.raises(InputError, match=r"fresh weights would never learn.*--init MODEL"):
        run(material, tmp_path / "fresh", epochs=1, tuning=tuning)


def test_hard_cases_are_measured_kept_and_drawn_the_same_after_a_stop(
    material: tuple[Plan, Configuration, list[StoredCase]], tmp_path: Path
) -> None:
    plan, configuration, cases = material
    settings = replace(configuration.training, hard_cases=0.8, balanced_cases=True, balanced_classes=True)
    hard = (plan, replace(configuration, training=settings), cases)
    run(hard, tmp_path / "whole", epochs=3, iterations=2)
    for stop_after in (3, None):
        run(hard, tmp_path / "parts", epochs=3, iterations=2, stop_after=stop_after)
    ends = [load_tensors(tmp_path / folder / "last.safetensors")[0] for folder in ("whole", "parts")]
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])
    kept = [read_record(tmp_path / folder / "training.json", TrainingState, "training").case_dice for folder in ("whole", "parts")]
    assert kept[0] == kept[1]
    assert set(kept[0]) <= {case.name for case in cases[:4]}
    assert kept[0]
