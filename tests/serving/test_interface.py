"""The server keeps what it says in /openapi.json, whatever the requests are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.test_slow_clients import address  # noqa: F401

EXAMPLES, SECONDS = 30, 90


@pytest.mark.slow
@pytest.mark.fault(
    "F",
    "requests that schemathesis makes up from /openapi.json",
    "answered with the statuses and bodies that the description names, never with 500",
)
def test_generated_requests_get_the_answers_that_are_described(address: tuple[str, int], tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("schemathesis", reason="part of medseg3d[dev]")
    place = f"http://{address[0]}:{address[1]}/openapi.json"
    # what is an image cannot be said in a schema, so that most of what fits the schema is refused
    command = ["run", place, "--max-examples", str(EXAMPLES), "--max-time", str(SECONDS), "--exclude-checks", "positive_data_acceptance"]
    code = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--no-color", "--seed", "1"], capture_output=True, encoding="utf-8", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
