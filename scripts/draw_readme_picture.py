"""Draw docs/images/pipeline.svg: the way of one dataset through medseg3d, in the reader's light or dark colors."""

from __future__ import annotations

from html import escape
from pathlib import Path

STAGES = (
    ("Check", "what is wrong,", "all at once"),
    ("Measure", "sizes, spacing,", "intensities, labels"),
    ("Plan", "patch, batch, network", "by rules you can read"),
    ("Preprocess", "crop, normalize,", "resample"),
    ("Train", "one network per fold,", "resumes by itself"),
    ("Choose", "configuration or pair,", "postprocessing"),
    ("Predict", "label maps on the", "grid of each image"),
)
FILES = ("", "fingerprint.json", "plan.json", "preprocessed/", "models/", "selection.json", "predictions/")
WIDTH, HEIGHT = 1120, 292
BOX, GAP, TOP, TALL = 142, 16, 96, 92
STYLE = """
  .ink { fill: #1a1f24 } .soft { fill: #5b6670 } .accent { fill: #0b6e7f } .box { fill: #ffffff; stroke: #c9d1d8 }
  .line { stroke: #0b6e7f; fill: none } .leaf { fill: #f1f4f6; stroke: #aeb8c1 } .a { fill: #e8590c } .b { fill: #1c7ed6 }
  .outline { stroke: #5b6670; fill: none }
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, "DejaVu Sans", sans-serif }
  @media (prefers-color-scheme: dark) {
    .ink { fill: #e7eaed } .soft { fill: #9aa5af } .accent { fill: #4cc3d6 } .box { fill: #161a1f; stroke: #39424b }
    .line { stroke: #4cc3d6 } .leaf { fill: #20262c; stroke: #59646f } .a { fill: #ff8c42 } .b { fill: #4dabf7 }
    .outline { stroke: #9aa5af }
  }
"""


def main() -> None:
    """Write the picture beside the documentation."""
    path = Path(__file__).parent.parent / "docs" / "images" / "pipeline.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(picture(), encoding="utf-8")


def picture() -> str:
    """The whole SVG."""
    left = (WIDTH - len(STAGES) * BOX - (len(STAGES) - 1) * GAP) / 2
    parts = [text(left, 34, "A folder of labelled images", "ink", 17, weight=600)]
    parts += [text(WIDTH - left, 34, "A measured, explained model", "ink", 17, weight=600, anchor="end")]
    parts += [slices(left, 48), page(WIDTH - left - 28, 46)]
    parts += [arrow(left + 74, WIDTH - left - 44, 64)]
    for number, (stage, file) in enumerate(zip(STAGES, FILES, strict=True)):
        x = left + number * (BOX + GAP)
        parts += [box(x, stage)]
        if number:
            parts += [f'<path class="line" stroke-width="2" d="M{x - GAP + 2:g},{TOP + TALL / 2:g}h{GAP - 4}"/>']
        if file:
            parts += [f'<path class="line" stroke-width="1" stroke-dasharray="2 3" d="M{x + BOX / 2:g},{TOP + TALL + 4}v18"/>']
            parts += [text(x + BOX / 2, TOP + TALL + 38, file, "soft", 12, anchor="middle", family="ui-monospace, Menlo, monospace")]
    note = "Every stage leaves a file you can read, and is skipped when nothing changed. All of it ends in report.html."
    parts += [text(WIDTH / 2, HEIGHT - 26, note, "soft", 14, anchor="middle")]
    body = "\n".join(parts)
    title = "medseg3d: check, measure, plan, preprocess, train, choose, predict"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{title}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def box(x: float, stage: tuple[str, str, str]) -> str:
    """One stage: its verb and two lines."""
    verb, first, second = stage
    middle = x + BOX / 2
    return "\n".join(
        [
            f'<rect class="box" x="{x:g}" y="{TOP}" width="{BOX}" height="{TALL}" rx="10"/>',
            text(middle, TOP + 34, verb, "accent", 16, weight=600, anchor="middle"),
            text(middle, TOP + 57, first, "soft", 11.5, anchor="middle"),
            text(middle, TOP + 73, second, "soft", 11.5, anchor="middle"),
        ]
    )


def slices(x: float, y: float) -> str:
    """A small stack of slices with two labels."""
    sheets = [f'<rect class="leaf" x="{x + 9 * i:g}" y="{y + 3 * (2 - i):g}" width="40" height="30" rx="4"/>' for i in range(3)]
    organs = f'<ellipse class="b" cx="{x + 34:g}" cy="{y + 16:g}" rx="9" ry="7"/><circle class="a" cx="{x + 46:g}" cy="{y + 20:g}" r="4"/>'
    return "".join(sheets) + organs


def page(x: float, y: float) -> str:
    """A small page with a curve: the report."""
    sheet = f'<rect class="leaf" x="{x:g}" y="{y:g}" width="28" height="36" rx="3"/>'
    curve = f'<path class="line" stroke-width="2" d="M{x + 5:g},{y + 19:g}c5,-2 5,-10 18,-11"/>'
    lines = f'<path class="outline" stroke-width="1.5" d="M{x + 5:g},{y + 25:g}h18M{x + 5:g},{y + 30:g}h12"/>'
    return sheet + curve + lines


def arrow(start: float, end: float, y: float) -> str:
    """From the images to the report."""
    head = f'<path class="accent" d="M{end:g},{y:g}l-9,-5v10z"/>'
    return f'<path class="line" stroke-width="1.5" d="M{start:g},{y:g}H{end - 8:g}"/>{head}'


def text(x: float, y: float, words: str, kind: str, size: float, *, weight: int = 400, anchor: str = "start", family: str = "") -> str:
    """One line of words."""
    style = f' style="font-family:{family}"' if family else ""
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place} font-size="{size:g}" font-weight="{weight}"{style}>{escape(words)}</text>'


if __name__ == "__main__":
    main()
