"""The viewer in a browser: what is packed here is unpacked there, keys and pointers do what the help says, and nothing is loaded."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medseg3d.evaluation.failure_kinds import Failure
from medseg3d.reporting.case_pictures import Picture
from medseg3d.reporting.chosen_slices import embed_case
from medseg3d.reporting.page import FoldResult, ReportInput, build_report
from medseg3d.reporting.scene import Volumes, quantize
from medseg3d.reporting.scores import Score
from tests.browser import CHROMIUM, Browser, browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

LABELS = ("organ", "<b>lesion</b>")


def volumes() -> tuple[np.ndarray, Volumes]:
    values = np.random.default_rng(0).normal(40, 60, (12, 20, 16)).astype(np.float32)
    reference = np.zeros(values.shape, np.uint8)
    reference[3:9, 5:15, 4:12] = 1
    prediction = np.roll(reference, 2, axis=2)
    prediction[5:7, 8:11, 8:10] = 2
    return values, Volumes(
        channels=(np.zeros(0),), reference=reference, prediction=prediction, uncertainty=(prediction * 90).astype(np.uint8)
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values, drawn = volumes()
    numbers, levels = quantize(values, name="CT", is_ct=True, num_levels=1024)
    packed = Volumes(channels=(numbers,), reference=drawn.reference, prediction=drawn.prediction, uncertainty=drawn.uncertainty)
    scenes = [
        embed_case(case, packed, levels=[levels], labels=LABELS, spacing=(3.0, 1.0, 1.0), max_pixels=1e6, title=f"{case}: Dice")
        for case in ("first", "second")
    ]
    pictures = tuple(Picture(case=scene["case"], role="worst", png=b"", scene=scene) for scene in scenes)
    folds = (FoldResult(configuration="3d", fold="0", scores=(Score(case="first", label="organ", values={"dice": 0.5}),)),)
    path = tmp_path_factory.mktemp("page") / "report.html"
    return build_report(ReportInput(output=path, dataset="d", work="w", folds=folds, pictures=pictures))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


READY = "document.querySelector('.viewer').viewer.panels.every((panel) => panel.slice)"
VIEWER = "document.querySelector('.viewer').viewer"


def opened(chromium: Browser, page: Path, *, is_phone: bool = False) -> Browser:
    chromium.errors.clear()
    chromium.requests.clear()
    chromium.open(page.as_uri(), width=390 if is_phone else 1280, is_phone=is_phone)
    chromium.wait(READY)
    chromium.run("document.querySelector('.viewer').scrollIntoView({ behavior: 'instant' })")
    return chromium


def test_every_pixel_arrives_and_nothing_is_asked_of_the_network(chromium: Browser, page: Path) -> None:
    opened(chromium, page)
    values, drawn = volumes()
    for axis in range(3):
        plane, pixels, labels, value = chromium.run(
            f"(async () => {{ const panel = {VIEWER}.panels[{axis}]; const levels = panel.scene.channels[0];"
            f"const slice = await {VIEWER}.source.slice({axis}, 1);"
            "return [panel.plane, [...slice.channels[0]], [...slice.prediction], levels] })()"
        )
        index = plane["indices"][1]
        rows, columns = np.arange(plane["rows"]), np.arange(plane["columns"])
        voxels: list[np.ndarray] = [np.array(index)] * 3
        voxels[plane["row_axis"]] = (plane["row_from"] - rows)[:, None]
        voxels[plane["column_axis"]] = (plane["column_from"] - columns)[None, :]
        assert drawn.prediction is not None
        assert np.array_equal(np.reshape(labels, (plane["rows"], plane["columns"])), drawn.prediction[tuple(voxels)])
        shown = np.reshape(pixels, (plane["rows"], plane["columns"])) * value["step"] + value["offset"]
        assert np.abs(shown - values[tuple(voxels)]).max() <= value["step"] / 2 + 1e-3
    assert chromium.errors == []
    assert {address.split(":")[0] for address in chromium.requests} <= {"file", "data"}


def test_keys_do_what_the_help_says(chromium: Browser, page: Path) -> None:
    opened(chromium, page)
    chromium.run(f"{VIEWER}.panels[0].canvas.focus()")
    before = chromium.run(f"{VIEWER}.panels[0].place")
    chromium.key("ArrowUp")
    assert chromium.run(f"{VIEWER}.panels[0].place") == before + 1
    for key in ("r", "p", "d", "u", "2", "w", "x", "c"):
        chromium.key(key)
    state = chromium.run(f"(({{ state, root }}) => ({{ ...state, hidden: [...state.hidden], layout: root.dataset.layout }}))({VIEWER})")
    assert (state["reference"], state["prediction"], state["hidden"], state["layout"]) == ("fill", "fill", [2], "1")
    assert state["differences"]
    assert state["uncertainty"]
    assert state["crosshair"]
    assert state["window"] == {"low": -1350, "high": 150}
    chromium.key("]")
    assert chromium.run(f"{VIEWER}.scene.case") == "second"


def test_a_click_moves_the_other_planes_there(chromium: Browser, page: Path) -> None:
    opened(chromium, page)
    x, y = chromium.run(
        f"(() => {{ const panel = {VIEWER}.panels[0]; const box = panel.canvas.getBoundingClientRect();"
        "const at = panel.onCanvas([0, 9, 6], panel.placed(1)); return [box.left + at.x, box.top + at.y] })()"
    )
    chromium.click(x, y)
    assert chromium.run(f"{VIEWER}.position.slice(1)") == [9, 6]
    assert chromium.run(f"{VIEWER}.panels.slice(1).map((panel) => panel.plane.indices[panel.place])") == [9, 6]
    assert "HU" in chromium.run("document.querySelector('.v-status').textContent")


def test_a_label_that_is_off_is_not_drawn(chromium: Browser, page: Path) -> None:
    opened(chromium, page)
    colored = (
        f"(() => {{ const {{ canvas }} = {VIEWER}.panels[0]; {VIEWER}.panels[0].draw();"
        "const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data; let count = 0;"
        "for (let i = 0; i < pixels.length; i += 4) count += Math.abs(pixels[i] - pixels[i + 2]) > 60; return count })()"
    )
    assert chromium.run(colored) > 100
    chromium.run(f"{VIEWER}.set({{ areLabelsOn: false }})")
    assert chromium.run(colored) == 0


def test_a_finger_scrolls_on_a_phone_and_no_page_is_wider_than_it(chromium: Browser, page: Path) -> None:
    opened(chromium, page, is_phone=True)
    assert chromium.run("document.documentElement.scrollWidth") == 390
    place, x, y = chromium.run(
        f"(() => {{ const panel = {VIEWER}.panels[0]; panel.show(0); const box = panel.canvas.getBoundingClientRect();"
        "return [panel.place, box.left + 60, box.top + 60] })()"
    )
    chromium.swipe(x, y, 30)
    assert chromium.run(f"{VIEWER}.panels[0].place") > place


def test_outlines_are_closed_along_the_edges_of_pixels(chromium: Browser, page: Path) -> None:
    opened(chromium, page)
    loops = chromium.run("[...medseg3dViewer.outlinesOf([0,1,0, 1,0,2, 0,0,2], 3, 3)]")
    assert [(label, len(own), sorted(map(len, own))) for label, own in loops] == [(1, 2, [8, 8]), (2, 1, [8])]
    bars = "(({ barLength, lengthText }) => [0.004, 0.7, 45, 260].map((mm) => lengthText(barLength(mm))))(medseg3dViewer)"
    assert chromium.run(bars) == ["2 µm", "0.5 mm", "2 cm", "20 cm"]


@pytest.fixture(scope="module")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tables with many cases, long and short names of labels, and every metric; without images."""
    names = [f"left_structure_number_{n}" for n in range(7)]
    metrics = ("dice", "iou", "nsd", "hd95_mm", "assd_mm", "volume_difference_ml", "lesion_f1")
    scores = tuple(
        Score(case=f"patient_{c:03d}", label=n, values=dict.fromkeys(metrics, 0.5 + c / 100), volume_ml=c + 1.0, spacing_mm=(c + 1.0, 1.0))
        for c in range(30)
        for n in names
    )
    mistakes = {
        f"patient_{c:03d}": tuple(Failure(label=n, kind="mixed", dice=0.5, detail="101% of it") for n in names[:4]) for c in range(15)
    }
    explained = tuple(
        {"configuration": "3d", "quantity": f"number {n}", "value": 1, "rule": "a rule " * 20, "inputs": "x " * 30, "changes_it": "y " * 20}
        for n in range(20)
    )
    path = tmp_path_factory.mktemp("long") / "report.html"
    folds = (FoldResult(configuration="3d", fold="0", scores=scores),)
    return build_report(
        ReportInput(output=path, dataset="d", work="w", folds=folds, test_scores=scores, mistakes=mistakes, explanations=explained)
    )


def test_on_paper_nothing_is_cut_and_no_page_is_blank(chromium: Browser, long_page: Path, tmp_path: Path) -> None:
    chromium.open(long_page.as_uri(), width=688)  # A4 within its margins, in pixels of CSS
    chromium.send("Emulation.setEmulatedMedia", media="print")
    wide = chromium.run(
        "[...document.querySelectorAll('main *, header *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map((e) => e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 40))"
    )
    chromium.send("Emulation.setEmulatedMedia", media="")
    assert wide == []
    pages = pages_of(chromium.paper(tmp_path / "report.pdf").read_bytes())
    assert len(pages) > 3
    assert min(content.count(b"Tj") + content.count(b"TJ") for content in pages) >= 3  # texts on each of them


def pages_of(pdf: bytes) -> list[bytes]:
    """The drawing of each page of a PDF as Chromium writes it."""
    objects = {int(number): body for number, body in re.findall(rb"(\d+) 0 obj(.*?)endobj", pdf, re.S)}
    contents = [re.search(rb"/Contents (\d+) 0 R", body) for body in objects.values() if re.search(rb"/Type /Page\b", body)]
    streams = [objects[int(found[1])].partition(b"stream\n")[2] for found in contents if found]
    return [zlib.decompressobj().decompress(stream) for stream in streams]


def test_on_a_phone_no_name_is_broken(chromium: Browser, long_page: Path) -> None:
    chromium.open(long_page.as_uri(), width=390, height=844, is_phone=True)
    assert chromium.run("document.documentElement.scrollWidth") == 390
    tops = "new Set([...e.getClientRects()].map((box) => Math.round(box.top))).size"
    lines = chromium.run(f"[...document.querySelectorAll('.whole')].map((e) => {tops})")
    assert len(lines) > 50
    assert set(lines) <= {0, 1}  # 0: folded
