"""Experiment trackers hear of a training, each in its own words; those that are not installed are stood in for."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from medseg3d.errors import InputError
from medseg3d.events import Event
from medseg3d.extensions import forget_extensions, use_extension
from medseg3d.workflows.tracking import TRACKERS, flat, tracked

VALUES = ({"train_loss": 1.5, "pseudo_dice/left (kidney)": 0.25}, {"train_loss": 1.25, "validation_loss": float("nan")})


def told(names: Any, fold: Path, *, goes_on: bool = False, stops: bool = False) -> list[Event]:
    """Tell of a training of two epochs; what is passed on."""
    passed: list[Event] = []
    facts = {"dataset": "Balls", "configuration": "3d_fullres", "fold": "0", "folder": str(fold), "work": str(fold.parent)}
    facts |= {"goes_on": goes_on, "command": "medseg3d train", "seed": 7, "plan": {"patch_size": [8, 16]}}  # type: ignore[dict-item]
    try:
        with tracked(names, passed.append) as listen:
            listen(Event(stage="train", facts=facts))
            for step, values in enumerate(VALUES):
                listen(Event(stage="train", values=values, step=step))
            if stops:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    return passed


class Calls:
    """A module, a client or a run that notes what it is asked to do."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answers = answers

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.made.append((name, arguments, keywords))
            return self.answers.get(name)

        return call

    def __setitem__(self, key: str, value: object) -> None:
        self.made.append(("set", (key, value), {}))

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The calls of a name."""
        return [(arguments, keywords) for called, arguments, keywords in self.made if called == name]


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **parts: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(parts)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    (tmp_path / "fold_0").mkdir()
    return tmp_path / "fold_0"


def test_mlflow_gets_parameters_curves_and_an_end(fold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(info=SimpleNamespace(run_id="abc"))
    client, places = Calls({"create_experiment": "1", "create_run": run}), []
    stand_in(monkeypatch, "mlflow", is_tracking_uri_set=lambda: False, set_tracking_uri=places.append, MlflowClient=lambda: client)
    told("mlflow", fold)
    assert str(fold.parent) in places[0]
    assert (("abc", "seed", "7"), {}) in client.of("log_param")
    metrics = [(arguments, keywords["step"]) for arguments, keywords in client.of("log_metric")]
    expected = [("train_loss", 1.5), ("pseudo_dice/left _kidney_", 0.25)]
    assert metrics == [(("abc", *pair), 0) for pair in expected] + [(("abc", "train_loss", 1.25), 1)]
    assert client.of("set_terminated") == [(("abc",), {"status": "FINISHED"})]
    told("mlflow", fold, goes_on=True, stops=True)
    assert len(client.of("create_run")) == 1
    assert client.of("set_terminated")[-1] == (("abc",), {"status": "KILLED"})


def test_weights_and_biases_is_offline_and_goes_on_under_its_number(fold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = Calls({})
    run.id = "x1"  # type: ignore[attr-defined]
    module = Calls({"init": run})
    stand_in(monkeypatch, "wandb", init=module.init)
    told(["wandb"], fold)
    told(["wandb"], fold, goes_on=True)
    begun = [keywords for _, keywords in module.of("init")]
    assert [(each["mode"], each["id"], each["project"], each["name"]) for each in begun] == [
        ("offline", None, "Balls", "3d_fullres fold 0"),
        ("offline", "x1", "Balls", "3d_fullres fold 0"),
    ]
    assert begun[0]["config"]["plan"] == {"patch_size": [8, 16]}
    assert run.of("log")[:2] == [((VALUES[0],), {"step": 0}), (({"train_loss": 1.25},), {"step": 1})]
    assert run.of("finish") == [((), {"exit_code": 0})] * 2


def test_aim_keeps_facts_and_curves_in_the_work_folder(fold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, begun = Calls({}), []
    run.hash = "h"  # type: ignore[attr-defined]
    stand_in(monkeypatch, "aim", Run=lambda **keywords: begun.append(keywords) or run)
    told("aim", fold)
    assert begun == [{"repo": str(fold.parent), "experiment": "Balls", "run_hash": None}]
    assert ((1.25,), {"name": "train_loss", "step": 1}) in run.of("track")
    assert run.of("set")[0][0][1]["seed"] == 7
    assert len(run.of("close")) == 1


def test_a_tracker_of_a_file_hears_everything_and_all_is_passed_on(fold: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        """
import json
from medseg3d.workflows.tracking import Tracker

class Lines:
    number = "1"
    def __init__(self, module, training):
        self.file = training.folder / "lines.jsonl"
        self.log({"seed": training.facts["seed"]}, -1)
    def log(self, values, step):
        with self.file.open("a") as stream:
            stream.write(json.dumps([step, values]) + "\\n")
    def finish(self, *, is_whole):
        self.log({"whole": is_whole}, 99)

TRACKERS = {"lines": Tracker(meaning="a line per epoch", package="json", install="python", begin=Lines)}
""",
        encoding="utf-8",
    )
    use_extension(tmp_path / "mine.py")
    try:
        passed = told("lines", fold)
    finally:
        forget_extensions()
    lines = [json.loads(line) for line in (fold / "lines.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [[-1, {"seed": 7}], [0, VALUES[0]], [1, {"train_loss": 1.25}], [99, {"whole": True}]]
    assert len(passed) == 3


def test_a_tracker_that_fails_costs_its_curves_alone(fold: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(**keywords: object) -> None:
        raise ConnectionError("no server")

    stand_in(monkeypatch, "wandb", init=refuse)
    with caplog.at_level(logging.WARNING, logger="medseg3d"):
        assert len(told("wandb", fold)) == 3
    assert caplog.messages == ["--track wandb: failed, and hears nothing more of this training (ConnectionError: no server)."]


def test_what_is_not_installed_or_not_known_is_one_sentence(fold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aim", None)
    with pytest.raises(InputError, match=r"^--track aim needs the Python package aim: pip install aim\.$"):
        told("aim", fold)
    with pytest.raises(InputError, match=r"There is no tracker 'nothing'; known are aim, mlflow, tensorboard, wandb"):
        told("nothing", fold)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TRACKERS.built_in))
def test_the_real_trackers_take_it_and_write_into_the_work_folder(name: str, fold: Path) -> None:
    pytest.importorskip(TRACKERS[name].package)
    told(name, fold)
    told(name, fold, goes_on=True)
    assert list(json.loads((fold / "tracking.json").read_text(encoding="utf-8"))) == [name]
    assert any(path.name in ("tensorboard", "mlruns", "wandb", ".aim") for path in (*fold.iterdir(), *fold.parent.iterdir()))


def test_facts_become_names_and_values() -> None:
    assert flat({"a": {"b": 1, "c": None}, "d": [1, 2]}) == {"a.b": 1, "d": "[1, 2]"}
