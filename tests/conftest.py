"""Tiny datasets that tests share, made once per run; real ones only where MEDSEG3D_DATA names a folder."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import nibabel
import numpy as np
import pytest

from tests.faults import Fault, render
from tests.tiny_planner import tiny_planner

os.environ.setdefault("OMP_NUM_THREADS", "2")
for number in (signal.SIGINT, signal.SIGHUP):  # in the background of a script both are ignored, and so in every process that a test starts
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """The bytes of a file are no name: a gzip member holds the time, and processes that share the tests must name them alike."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and two test cases, 20×18×12 voxels: a bright ball in noise, label values 0, 3 and 7, mixed orientations."""
    root = tmp_path_factory.mktemp("tiny") / "Balls"
    rng = np.random.default_rng(1)
    affines = [np.diag([1.0, 1.0, 1.5, 1.0]), np.diag([-1.0, 1.0, 1.5, 1.0]), np.diag([-1.0, -1.0, 1.5, 1.0])]
    for number in range(8):
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in (20, 18, 12)), indexing="ij")).astype(float)
        center = rng.uniform(7, 11, 3) * [1, 1, 0.6]
        distance = np.sqrt((((grid - center[:, None, None, None]) * np.array([1, 1, 1.5])[:, None, None, None]) ** 2).sum(0))
        labels = np.where(distance < 3, 7, np.where(distance < 6, 3, 0)).astype(np.uint8)
        image = (labels * 40 + rng.normal(100, 10, labels.shape)).astype(np.int16)
        is_test = number >= 6
        affine = affines[number % 3]
        for kind, array in (("images", image), ("labels", labels)):
            folder = root / f"{kind}{'Ts' if is_test else 'Tr'}"
            folder.mkdir(parents=True, exist_ok=True)
            name = f"ball_{number}_0000.nii.gz" if kind == "images" else f"ball_{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / name)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "shell": 3, "core": 7},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    (root / "tiny.toml").write_text(tiny_planner(), encoding="utf-8")
    return root


@pytest.fixture
def tiny(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy of the tiny dataset that a test may change."""
    return Path(shutil.copytree(tiny_source, tmp_path / "Balls"))


@pytest.fixture(scope="session")
def trained(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny dataset with its work folder, fold 0 trained for two epochs of four steps."""
    from medseg3d.commandline.cli import main

    root = Path(shutil.copytree(tiny_source, tmp_path_factory.mktemp("trained") / "Balls"))
    assert main(["plan", str(root), "--planner", str(root / "tiny.toml"), "-q"]) == 0
    assert main(["preprocess", str(root), "-q"]) == 0
    assert main(["train", str(root), "--fold", "0", "--device", "cpu", "-q"]) == 0
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets; tests that ask for it skip where there is none."""
    folder = os.environ.get("MEDSEG3D_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MEDSEG3D_DATA names no folder of datasets")
    return Path(folder)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", metavar="FILE", help="write the table of faults that were tried")


_faults: dict[tuple[str, str], Fault] = {}
_marks: dict[str, tuple[str, str]] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("fault")
        if mark is not None:
            fault = Fault(*mark.args)
            _faults.setdefault((fault.kind, fault.what), fault)
            _marks[item.nodeid] = (fault.kind, fault.what)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    key = _marks.get(report.nodeid)
    if key is None or (report.when != "call" and report.passed):
        return
    tries = max([int(value) for name, value in report.user_properties if name == "tries"], default=1)
    outcomes = _faults[key].outcomes
    outcomes[report.outcome] = outcomes.get(report.outcome, 0) + tries


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--reliability")
    if target:
        Path(target).write_text(render(fault for fault in _faults.values() if fault.outcomes), encoding="utf-8")


@pytest.fixture(autouse=True)
def _usual_log_level() -> Iterator[None]:
    """A command with ``-q`` or ``-v``, in a fixture or a test, sets the level of the whole process; the next test begins without it."""
    logging.getLogger("medseg3d").setLevel(logging.NOTSET)
    yield
    logging.getLogger("medseg3d").setLevel(logging.NOTSET)
