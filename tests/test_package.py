"""The package as a whole: what is shipped, what is imported when, and that the documents say the same as the settings."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import medseg3d

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_every_package_of_the_tree_is_shipped(settings: configparser.ConfigParser) -> None:
    listed = set(settings["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "medseg3d").rglob("__init__.py")}
    assert listed == found | {"medseg3d.docs", "medseg3d.planners"}


def test_the_map_shows_the_layers_that_are_checked(settings: configparser.ConfigParser) -> None:
    layers = settings["importlinter:contract:layers"]["layers"].replace("medseg3d.", "").split()
    text = (ROOT / "docs/map.md").read_text(encoding="utf-8")
    drawn = text.split("Imports go one way")[1].split("```")[1].split()
    assert drawn == layers


def test_every_module_has_a_layer(settings: configparser.ConfigParser) -> None:
    layered = set(settings["importlinter:contract:layers"]["layers"].replace("|", " ").split())
    found = {f"medseg3d.{path.stem}" for path in (ROOT / "medseg3d").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"medseg3d.__init__", "medseg3d.__main__"} <= layered


def test_public_names_can_be_imported() -> None:
    assert all(hasattr(medseg3d, name) for name in medseg3d.__all__)
    assert set(medseg3d.__all__) == {*medseg3d.HOMES, "__version__"} == set(dir(medseg3d))


def test_type_checkers_see_the_public_names_where_they_are_found() -> None:
    tree = ast.parse(Path(medseg3d.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: f"medseg3d.{home}" for name, home in medseg3d.HOMES.items()}


def test_the_reference_holds_every_public_name() -> None:
    page = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\.\. auto(?:class|function):: medseg3d\.(\w+)(?:\(\))?$", page, flags=re.MULTILINE)
    assert sorted(documented) == sorted(set(medseg3d.__all__) - {"__version__"})


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not modules_after("import medseg3d") & {"torch", "numpy", "nibabel", "pydantic", "scipy", "SimpleITK", "rich"}


def modules_after(code: str) -> set[str]:
    command = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", command], capture_output=True, encoding="utf-8", check=True).stdout
    return set(output.splitlines()[-1].split())


def test_help_imports_nothing_heavy() -> None:
    code = "import contextlib\nfrom medseg3d.commandline.cli import main\nwith contextlib.suppress(SystemExit): main(['--help'])"
    loaded = modules_after(code)
    assert not loaded & {"torch", "numpy", "nibabel", "pydantic", "scipy", "SimpleITK", "rich", "matplotlib", "monai"}


def test_planning_imports_no_torch(tiny: Path) -> None:
    loaded = modules_after(f"from medseg3d.commandline.cli import main\nassert main(['plan', {str(tiny)!r}, '-q']) == 0")
    assert "nibabel" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize("name", ["network", "weights", "images", "normalized", "painted", "Segmenter"])
def test_what_bundles_of_older_versions_name_is_there(name: str) -> None:
    assert callable(getattr(import_module("medseg3d.bundle"), name))
