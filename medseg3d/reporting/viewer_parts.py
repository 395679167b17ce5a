"""The viewer's script and style for a page, and the digest by which the page lets this script run and no other."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
from functools import cache
from typing import Any

SCRIPTS = ("slices.js", "outlines.js", "drawing.js", "panel.js", "toolbar.js", "viewer.js")
"""In this order: the last one opens the viewers of the page."""


@cache
def viewer_script() -> str:
    """All files as one script that leaves a single name, ``medseg3dViewer``."""
    return "(() => {\n'use strict';\n" + "\n".join(_file(name) for name in SCRIPTS) + "})();\n"


@cache
def page_script() -> str:
    """The script of a report: the viewer, and what copies texts and opens what is folded for printing."""
    return viewer_script() + "(() => {\n'use strict';\n" + _file("page.js") + "})();\n"


@cache
def viewer_style() -> str:
    """The style sheet; colors are the page's own variables."""
    return _file("viewer.css")


def script_source(*scripts: str) -> str:
    """What a content security policy says of inline scripts, for instance ``'sha256-…'``."""
    digests = (base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii") for script in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def as_data(value: Any) -> str:
    """JSON for a ``<script type="application/json">``: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    return importlib.resources.files("medseg3d.reporting").joinpath("viewer", name).read_text(encoding="utf-8")
