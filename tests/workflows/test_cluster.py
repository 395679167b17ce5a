"""The stages of a run on the workers of a dask scheduler."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from medseg3d.commandline.cli import main
from medseg3d.errors import CaseFailure, InputError
from medseg3d.events import Event
from medseg3d.preprocessing.store import Store
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.run import run
from medseg3d.workflows.workers import begin_on_worker, cluster_workers, event_of, tell_client, told_of

distributed = pytest.importorskip("distributed")


def digests(work: Path) -> dict[str, str]:
    """Of the preprocessed cases."""
    folder = WorkFolder(work)
    store = Store(folder.store(folder.read_plan().configuration("3d_fullres").data))
    return {name: store.checked(name).digest + str(sorted(store.checked(name).checksums.items())) for name in store.names()}


def test_workers_measure_and_preprocess_as_this_process_does(tiny_source: Path, tmp_path: Path) -> None:
    def prepared(name: str, *more: str) -> Path:
        place = [str(tiny_source), "-w", str(tmp_path / name), "-q", *more]
        assert main(["plan", *place, "--planner", str(tiny_source / "tiny.toml")]) == 0
        assert main(["preprocess", *place, "-c", "3d_fullres"]) == 0
        return tmp_path / name

    here = prepared("here")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        there = prepared("there", "--cluster", cluster.scheduler_address)
    assert json.loads((here / "fingerprint.json").read_text()) == json.loads((there / "fingerprint.json").read_text())
    assert len(digests(here)) == 6
    assert digests(here) == digests(there)


@pytest.mark.fault("B", "a case that a training on another machine goes on without", "whoever asked for the training hears of it")
def test_lost_cases_are_told_from_one_machine_to_the_other() -> None:
    event = Event(stage="train", message="a line", failures=(CaseFailure(case="a", stage="train", reason="is damaged"),))
    assert event_of(json.loads(json.dumps(told_of(event)))) == event


@pytest.mark.slow  # dask tries for ten seconds
def test_no_scheduler_is_one_sentence() -> None:
    with (
        pytest.raises(InputError, match=r"--cluster tcp://127\.0\.0\.1:1: no dask scheduler answers"),
        cluster_workers("tcp://127.0.0.1:1"),
    ):
        pass


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_ends_as_if_nothing_had_happened(tiny: Path, tmp_path: Path) -> None:
    options: Any = {"planner": tiny / "tiny.toml", "configurations": "3d_fullres", "folds": ["0", "1"], "epochs": 2, "seed": 5}
    killed = threading.Event()
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:

        def kill(event: Event) -> None:
            if event.message is not None and event.message.startswith("epoch    0") and not killed.is_set():
                killed.set()
                next(iter(cluster.workers.values())).process.process._process.kill()

        result = run(tiny, tmp_path / "there", on=kill, cluster=cluster.scheduler_address, **options)
    assert killed.is_set()
    assert result.failures == ()
    run(tiny, tmp_path / "here", **options)
    for fold in ("0", "1"):
        there, here = (WorkFolder(tmp_path / name).weights("3d_fullres", fold).read_bytes() for name in ("there", "here"))
        assert there == here
    there, here = ((tmp_path / name / "predictions/metrics.json").read_text() for name in ("there", "here"))
    assert json.loads(there)["cases"] == json.loads(here)["cases"]


def _works_on(place: str) -> str:
    begin_on_worker()
    while True:
        try:
            tell_client(Event(stage="train", message="a step"))
        except InputError as error:
            Path(place).write_text(str(error), encoding="utf-8")
            return str(error)
        time.sleep(0.05)


def test_what_workers_do_for_a_command_that_was_stopped_ends(tmp_path: Path) -> None:
    heard: list[Event] = []
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        with suppress(KeyboardInterrupt), cluster_workers(cluster.scheduler_address, heard.append) as workers:
            assert workers is not None
            workers.networks.submit(_works_on, str(tmp_path / "ended"))
            while not heard:
                time.sleep(0.05)
            raise KeyboardInterrupt
        until = time.monotonic() + 20
        while not (tmp_path / "ended").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
    assert heard[0].message == "a step"
