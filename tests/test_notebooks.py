"""The notebooks of the documentation run as they stand, and show what is stored in them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import medseg3d
from medseg3d.extensions import forget_extensions

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("docs/**/*.ipynb"))
MOST_BYTES = 300_000
"""Of a notebook with its pictures: the repository stays small."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_notebook", ROOT / "scripts/run_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_extension_is_left() -> Iterator[None]:
    yield
    forget_extensions()


def kinds(outputs: list[dict[str, Any]]) -> list[list[str]]:
    """What a cell shows, without the numbers, which differ between machines."""
    return [sorted(output.get("data", {"text": ""})) for output in outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_and_shows_what_is_stored_in_it(
    path: Path, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    for cell, outputs in script.run(notebook):
        assert kinds(outputs) == kinds(cell["outputs"]), f"python scripts/run_notebook.py {path.relative_to(ROOT)} stores them again"
    assert path.stat().st_size < MOST_BYTES


def test_the_notebook_of_the_pieces_calls_every_public_function() -> None:
    cells = json.loads((ROOT / "docs/notebooks/pieces.ipynb").read_text(encoding="utf-8"))["cells"]
    code, prose = (
        "".join("".join(cell["source"]) for cell in cells if (cell["cell_type"] == "code") == is_code) for is_code in (True, False)
    )
    records = {"Dataset", "Evaluation", "Fingerprint", "Model", "Plan", "Store", "__version__"}
    missing = {name for name in medseg3d.__all__ if f"medseg3d.{name}(" not in code} - records
    assert missing == {
        "run",
        "compare",
        "read_plan",
        "dry_run",
        "measure",
        "ProgressBars",
    }  # the whole chain takes too long; it leaves the plan that is read
    assert all(f"medseg3d.{name}(" in prose for name in missing)
