"""What is uploaded: the wheel and the sdist hold everything that the package needs, and nothing is fetched to make or to install them."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_NETWORK = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@pytest.fixture(scope="module")
def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def packaged(settings: configparser.ConfigParser) -> dict[str, tuple[Path, list[str]]]:
    """By package the folder that it is made from and the patterns of its data."""
    mapped = dict(line.replace(" ", "").split("=") for line in settings["options"]["package_dir"].split("\n") if line)
    patterns = {key: [each.strip() for each in value.split(",")] for key, value in settings["options.package_data"].items()}
    return {
        name: (ROOT / mapped.get(name, name.replace(".", "/")), patterns.get(name, [])) for name in settings["options"]["packages"].split()
    }


def test_every_file_of_a_package_is_code_or_shipped_data(settings: configparser.ConfigParser) -> None:
    shipped: set[Path] = set()
    for folder, patterns in packaged(settings).values():
        for pattern in patterns:
            found = set(folder.glob(pattern))
            assert found or pattern.startswith("gallery/"), f"{folder}: {pattern} is nothing"
            shipped |= found
    data = {
        path
        for name in ("medseg3d", "planners", "docs")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "docs/site" not in path.as_posix()
    }
    assert sorted(path.relative_to(ROOT).as_posix() for path in data - shipped) == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that was made from the sdist, as an index gets them, from a copy of what is under version control."""
    pytest.importorskip("build")
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = (
        subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
        .stdout.decode()
        .split("\0")
    )
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(source)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **NO_NETWORK})
    return dist


@pytest.mark.slow
def test_an_index_would_take_both(built: Path) -> None:
    pytest.importorskip("twine")
    files = sorted(map(str, built.iterdir()))
    assert [Path(file).suffix for file in files] == [".whl", ".gz"]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_sdist_the_tests(built: Path, settings: configparser.ConfigParser) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name, (folder, patterns) in packaged(settings).items():
        inside = name.replace(".", "/")
        for pattern in ("*.py", *patterns):
            lacking = [path for path in folder.glob(pattern) if f"{inside}/{path.relative_to(folder).as_posix()}" not in names]
            assert [path for path in lacking if path.name != "conf.py"] == []
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/conftest.py", "scripts/test", "constraints.txt", "Dockerfile", "docs/start.md", "planners/default.toml"} <= held


@pytest.mark.slow
def test_the_installed_package_works_without_the_checkout(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, env={**os.environ, **NO_NETWORK})
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def run(*words: str) -> str:
        command = [sys.executable, "-P", "-m", "medseg3d", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("--version").startswith("medseg3d ")
    assert run("docs", "predict").startswith("# Predict\n")
    assert str(target) in run("docs", "messages", "--json")
    run("demo", str(tmp_path / "phantom"), "-q")
    assert "Recommended: " in run("plan", str(tmp_path / "phantom"), "--planner", "small")
