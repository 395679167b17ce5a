"""The documentation as a site, built by ``scripts/docs``: the Markdown pages of the repository, and a reference made from docstrings.

The source folder of Sphinx is the repository itself, so that the links between pages are those that a reader of the files follows.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from medseg3d.version import __version__  # noqa: E402

NAVIGATION = {
    "Start": ["docs/start", "docs/notebooks/pieces"],
    "How to": [
        "docs/how-to/own-dataset",
        "docs/how-to/labels",
        "docs/how-to/predict",
        "docs/how-to/measure",
        "docs/how-to/correct",
        "docs/how-to/nnunet-models",
        "docs/how-to/share",
        "docs/how-to/compare-networks",
        "docs/how-to/cascades",
        "docs/how-to/fine-tune",
        "docs/how-to/distill",
        "docs/how-to/serve",
        "docs/how-to/slicer",
        "docs/how-to/monai-label",
        "docs/how-to/napari",
        "docs/how-to/ohif",
        "docs/how-to/docker",
        "docs/how-to/hospital",
        "docs/how-to/resume",
        "docs/how-to/cluster",
        "docs/how-to/track",
        "docs/how-to/bad-data",
        "docs/how-to/messages",
    ],
    "Gallery": [
        "docs/gallery/index",
        "docs/gallery/hippocampus",
        "docs/gallery/cardiac",
        "docs/gallery/head-and-neck",
        "docs/gallery/mouse",
        "docs/gallery/electron-microscopy",
    ],
    "Extending": ["docs/extending"],
    "Concepts": [
        "docs/concepts/data-flow",
        "docs/concepts/fingerprint-and-plan",
        "docs/concepts/networks",
        "docs/concepts/training",
        "docs/concepts/prediction",
        "docs/concepts/evaluation",
        "docs/concepts/provenance",
    ],
    "Reference": [
        "docs/reference/python",
        "docs/reference/command-line",
        "docs/reference/metrics",
        "docs/reference/structures",
        "docs/reference/nnunet-training",
        "planners/README",
        "CHANGELOG",
    ],
    "Measured": ["docs/benchmarks", "docs/reliability", "docs/fuzz", "docs/fault-simulator"],
    "The code": ["docs/map", "CONTRIBUTING"],
}
"""The pages in the order of the bar at the side; a page that is missing here fails the build."""

project, author, version, release = "medseg3d", "the medseg3d authors", __version__, __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "planners/README.md", "docs/**"]
exclude_patterns = [".*", "build", "dist", "**/__pycache__", "docs/conf.py", "docs/site"]
source_suffix = {".md": "markdown", ".ipynb": "notebook"}
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
smartquotes = False  # two dashes begin an option
html_theme = "furo"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e7f", "color-brand-content": "#0b6e7f"},
    "dark_css_variables": {"color-brand-primary": "#4cc3d6", "color-brand-content": "#4cc3d6"},
}
html_title = "medseg3d"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_extra_path = ["site/root"]
html_copy_source = False
html_show_copyright = False
pygments_style, pygments_dark_style = "friendly", "github-dark"


class NotebookParser(MystParser):
    """A notebook as the page that its cells make, with the outputs that are stored in it; nothing is executed."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: Any) -> None:
        """The cells one after the other as Markdown."""
        super().parse("\n\n".join(part for cell in json.loads(inputstring)["cells"] for part in _cell(cell)), document)


def _cell(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return [source]
    return [f"```python\n{source}\n```", *(_output(output) for output in cell["outputs"])]


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f'```{{raw}} html\n<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">\n```'
    return f"```text\n{''.join(output.get('text') or data['text/plain']).rstrip()}\n```"


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """The front page is the README; the tables of contents are not part of the file."""
    if page == root_doc:
        for caption, pages in NAVIGATION.items():
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(f"/{each}" for each in pages) + "\n```\n"


def public_name(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Docstrings name a thing by the module where it lives; the reference may show it under its public name."""
    last = node.get("reftarget", "").rpartition(".")[2]
    for name, found in env.domains.python_domain.objects.items():
        if node.get("refdomain") == "py" and last and name.rpartition(".")[2] == last and name.startswith("medseg3d"):
            return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, content, name)
    return None


def readable_defaults(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None) -> Any:
    """Defaults that are no Python text would turn a signature into one line of plain text: functions by their names, ... for others."""
    return signature and re.sub(r"<factory>", "...", re.sub(r"<function (\w+)[^<>]*>", r"\1", signature)), returned


def setup(app: Sphinx) -> None:
    """Register the parser of notebooks, the navigation, and what docstrings need."""
    app.connect("missing-reference", public_name)
    app.connect("autodoc-process-signature", readable_defaults)
    app.add_source_parser(NotebookParser)
    app.connect("source-read", add_navigation)
