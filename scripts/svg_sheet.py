"""The sheet that all pictures of networks are drawn on: its size, its colors in light and dark, and words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, MARGIN = 1120, 36
STYLE = """
  .sheet { fill: #ffffff; stroke: #c9d1d8 } .ink { fill: #1a1f24 } .soft { fill: #5b6670 } .accent { fill: #0b6e7f }
  .box { fill: #ffffff; stroke: #c9d1d8 } .leaf { fill: #f1f4f6; stroke: #aeb8c1 } .line { stroke: #0b6e7f; fill: none }
  .outline { stroke: #5b6670; fill: none } .full { fill: #0b6e7f } .depthwise { fill: #e8590c } .pointwise { fill: #1c7ed6 }
  .own { fill: #fff4ec; stroke: #e8590c } .shared { fill: #edf5fc; stroke: #1c7ed6 }
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, "DejaVu Sans", sans-serif }
  @media (prefers-color-scheme: dark) {
    .sheet { fill: #0f1317; stroke: #39424b } .ink { fill: #e7eaed } .soft { fill: #9aa5af } .accent { fill: #4cc3d6 }
    .box { fill: #161a1f; stroke: #39424b } .leaf { fill: #20262c; stroke: #59646f } .line { stroke: #4cc3d6 }
    .outline { stroke: #9aa5af } .full { fill: #4cc3d6 } .depthwise { fill: #ff8c42 } .pointwise { fill: #4dabf7 }
    .own { fill: #2a1d14; stroke: #ff8c42 } .shared { fill: #13212e; stroke: #4dabf7 }
  }
"""


def sheet(parts: Sequence[str], height: float, title: str) -> str:
    """The whole SVG on its rounded background."""
    background = f'<rect class="sheet" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="14"/>'
    body = "\n".join([background, *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" role="img" '
        f'aria-label="{escape(title)}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, words: str, kind: str, size: float, *, weight: int = 400, anchor: str = "start") -> str:
    """One line of words."""
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place} font-size="{size:g}" font-weight="{weight}">{escape(words)}</text>'
