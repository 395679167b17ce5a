"""Run a notebook's code cells in one namespace, without a kernel, and store what they show in the notebook.

In: a notebook. Out: the same file with the outputs of each cell: what it prints, the value of its last line, and a figure of matplotlib
as a small PNG. A test runs the cells in the same way.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PICTURE_DPI = 70
"""Pictures in the repository stay small."""


def main() -> None:
    """Store the outputs in the notebook."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    path = parser.parse_args().notebook.resolve()
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for cell, outputs in run(notebook):
            cell["outputs"], cell["execution_count"] = outputs, None
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each code cell and what it shows, in the current folder; an error of a cell is raised as it is."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            yield cell, _shown("".join(cell["source"]), f"cell {number}", namespace)


def _shown(source: str, name: str, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)})
    if value is not None:
        outputs.append({"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": _data(value)})
    return outputs


def _data(value: object) -> dict[str, Any]:
    if hasattr(value, "savefig"):
        png = io.BytesIO()
        value.savefig(png, format="png", dpi=PICTURE_DPI)
        return {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": [type(value).__name__]}
    return {"text/plain": repr(value).splitlines(keepends=True)}


if __name__ == "__main__":
    main()
