"""What trainings without the command line train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg3d.plan import Configuration, Plan
from medseg3d.preprocessing.store import Store, StoredCase
from medseg3d.work_folder import WorkFolder


@pytest.fixture
def material(trained: Path) -> tuple[Plan, Configuration, list[StoredCase]]:
    """The tiny dataset's plan, its configuration, and its preprocessed cases."""
    work = WorkFolder(trained / "medseg3d-work")
    plan = work.read_plan()
    configuration = plan.configuration(None)
    store = Store(work.store(configuration.data))
    return plan, configuration, [store.read(name, in_memory=True) for name in store.names()]
