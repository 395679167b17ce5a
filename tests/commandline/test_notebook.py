"""Progress of a notebook: bars of ipywidgets where a kernel runs, lines elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from medseg3d import ProgressBars
from medseg3d.events import Event

EVENTS = [
    Event(stage="preprocess", done=3, total=8),
    Event(stage="train 2d fold 0, epoch 1", done=10, total=250, overall=0.26),
    Event(stage="train", message="epoch 1 <loss>"),
]
IN_A_KERNEL = """
import json, sys, types
import IPython
shell = type("ZMQInteractiveShell", (), {})()
IPython.get_ipython = lambda: shell
shown = []
import IPython.display
IPython.display.display = shown.append
from medseg3d import ProgressBars
from tests.commandline.test_notebook import EVENTS
bars = ProgressBars(messages=2)
found = []
for event in [*EVENTS, *EVENTS]:
    bars(event)
    widgets = bars._widgets
    found.append([widgets.stage.value, widgets.stage.max, widgets.stage_text.value, widgets.whole.value, widgets.whole_text.value,
                  widgets._whole_box.layout.display, widgets.messages.value])
print(json.dumps([len(shown), found]))
"""


def test_in_a_notebook_two_bars_and_the_last_messages_stand_below_the_cell() -> None:
    pytest.importorskip("ipywidgets")
    done = subprocess.run([sys.executable, "-c", IN_A_KERNEL], capture_output=True, encoding="utf-8", check=True)
    num_shown, (read, trained, told, *again) = json.loads(done.stdout)
    assert num_shown == 1, "the widgets are shown once and then changed"
    assert read[:3] == [3, 8, "preprocess: 3 of 8"]
    assert read[5] == "none", "nothing is known of all work"
    assert trained[:5] == [10, 250, "train 2d fold 0, epoch 1: 10 of 250", 260, "all together: 26 %"]
    assert trained[5] != "none"
    assert told[6] == "<code>epoch 1 &lt;loss&gt;</code>"
    assert again[-1][6].count("<code>") == 2
    assert "Traceback" not in done.stderr


def test_elsewhere_a_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    bars = ProgressBars()
    for event in EVENTS:
        bars(event)
    assert capsys.readouterr().err.splitlines() == ["preprocess …", "train 2d fold 0 …", "epoch 1 <loss>"]
