"""Parts of other people are found by name, from files and from packages, and nothing else loads code."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medseg3d.errors import InputError, PlanError
from medseg3d.extensions import KINDS, Registry, extension_arguments, forget_extensions, loaded_extensions, use_arguments, use_extension


@pytest.fixture(autouse=True)
def _numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Numbers stand for parts; nothing is left behind."""
    monkeypatch.setitem(KINDS, "numbers", "number")
    forget_extensions()
    yield
    forget_extensions()


@pytest.fixture
def numbers() -> Iterator[Registry[int]]:
    """A registry that something still holds takes everything afterwards."""
    registry = Registry("numbers", int, {"one": 1, "two": 2})
    yield registry
    registry.part, registry.built_in = object, {}  # type: ignore[assignment]


def written(folder: Path, text: str, name: str = "my_parts.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_adds_parts_beside_those_that_are_built_in(tmp_path: Path, numbers: Registry[int]) -> None:
    assert list(numbers) == ["one", "two"]
    extension = use_extension(written(tmp_path, "NUMBERS = {'three': 3}"))
    assert dict(numbers) == {"one": 1, "two": 2, "three": 3}
    assert numbers.find("three") == 3
    assert numbers.provider("three") == extension.provider == f"file my_parts.py {extension.digest[:12]}"
    assert numbers.provider("one") == ""
    assert numbers.built_in == {"one": 1, "two": 2}
    assert loaded_extensions() == (extension,)


def test_the_same_file_is_run_once_and_a_changed_one_again(tmp_path: Path, numbers: Registry[int]) -> None:
    path = written(tmp_path, "NUMBERS = {'three': 3}")
    assert use_extension(path) is use_extension(str(path))
    use_extension(written(tmp_path, "NUMBERS = {'four': 4}"))
    assert list(numbers) == ["one", "two", "four"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NUMBERS = {'one': 3}", "the number 'one' is built in; give yours another name"),
        ("NUMBERS = {'three': 'x'}", "the number 'three' must be a int, found 'x'"),
        ("NUMBERS = [3]", "NUMBERS must be a dict from names to parts"),
        ("NUMBERS = {3: 3}", "NUMBERS must be a dict from names to parts"),
        ("x = 1", "holds at least one of the dicts NETWORKS, LOSSES, AUGMENTATIONS, METRICS, READERS, TRACKERS, NUMBERS; found none"),
        ("import torch\n\nx = undefined", "line 3: the extension cannot be run .NameError"),
        ("def", "line 1: the extension cannot be run .SyntaxError"),
        ("assert 1 == 2", "line 1: the extension cannot be run .AssertionError"),
        ("x = 1\nimport sys\nsys.exit(0)", "line 3: the extension cannot be run .SystemExit: 0"),
        ("class Own(Exception): pass\nraise Own('a\\nb')", "line 2: the extension cannot be run .Own: a b"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, numbers: Registry[int], text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        use_extension(written(tmp_path, text))
    assert "my_parts.py" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(numbers) == ["one", "two"]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        use_extension(tmp_path / "none.py")


def test_a_refused_change_leaves_the_parts_as_they_were(tmp_path: Path, numbers: Registry[int]) -> None:
    use_extension(written(tmp_path, "NUMBERS = {'three': 3}"))
    with pytest.raises(InputError, match="built in"):
        use_extension(written(tmp_path, "NUMBERS = {'one': 3}"))
    assert numbers["three"] == 3


def test_two_files_cannot_give_one_name(tmp_path: Path, numbers: Registry[int]) -> None:
    use_extension(written(tmp_path, "NUMBERS = {'three': 3}"))
    with pytest.raises(InputError, match=r"the number 'three' is also of the file my_parts.py"):
        use_extension(written(tmp_path, "NUMBERS = {'three': 3}", "others.py"))
    assert numbers["three"] == 3


def test_a_file_that_clashes_is_refused_also_where_the_stage_is_imported_later(tmp_path: Path) -> None:
    use_extension(written(tmp_path, "NUMBERS = {'one': 3}"))
    with pytest.raises(InputError, match="the number 'one' is built in"):
        Registry("numbers", int, {"one": 1})


def test_a_part_that_nobody_knows_is_named_with_those_that_are_known(numbers: Registry[int]) -> None:
    with pytest.raises(PlanError, match=r"There is no number 'three'; known are one, two\. A part of yours is named with --extension"):
        numbers.find("three")


def test_a_part_that_is_missing_here_names_where_it_is_from(numbers: Registry[int]) -> None:
    with pytest.raises(
        PlanError,
        match=r"^This needs the number 'three' of the extension my_parts.py: name it with --extension my_parts.py, in Python with "
        r"medseg3d.use_extension\.$",
    ):
        numbers.find("three", provider="file my_parts.py 0123456789ab")
    with pytest.raises(InputError, match=r"^This needs the number 'three' of the Python package lossy 1.2: install lossy\.$"):
        numbers.find("three", provider="package lossy 1.2", error=InputError)


def test_another_version_of_a_part_is_used_and_told(tmp_path: Path, numbers: Registry[int], caplog: pytest.LogCaptureFixture) -> None:
    old = use_extension(written(tmp_path, "NUMBERS = {'three': 3}")).provider
    assert numbers.find("three", provider=old) == 3
    assert not caplog.records
    use_extension(written(tmp_path, "NUMBERS = {'three': 4}"))
    with caplog.at_level(logging.WARNING):
        assert numbers.find("three", provider=old) == 4
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [f"The number three was that of the {old}"]


def test_a_child_process_is_told_what_was_loaded(tmp_path: Path, numbers: Registry[int]) -> None:
    use_extension(written(tmp_path, "NUMBERS = {'three': 3}"))
    arguments = extension_arguments()
    forget_extensions()
    assert use_arguments([*arguments, "rest", "--extension"]) == ["rest", "--extension"]
    assert numbers["three"] == 3


def in_a_new_process(code: str, path: Path) -> str:
    command = f"import sys\nsys.path.insert(0, {str(path)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", command], capture_output=True, encoding="utf-8", check=True).stdout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder that looks as if the package ``lossy`` were installed in it."""
    info = tmp_path / "lossy-1.2.dist-info"
    info.mkdir()
    written(info, "Metadata-Version: 2.1\nName: lossy\nVersion: 1.2\n", "METADATA")
    written(info, "[medseg3d.losses]\nthree = lossy:THREE\none = lossy:ONE\n", "entry_points.txt")
    written(tmp_path, "print('lossy is imported')\nTHREE = 3\nONE = 7\n", "lossy.py")
    return tmp_path


def test_a_package_gives_parts_by_entry_points_only_when_they_are_asked_for(package: Path) -> None:
    code = """
from medseg3d.extensions import Registry
losses = Registry("losses", int, {"two": 2})
print(losses["two"], losses.find("two"), "so far built in")
print(losses.find("three"), losses.provider("three"), sorted(losses))
"""
    lines = in_a_new_process(code, package).splitlines()
    assert lines == ["2 2 so far built in", "lossy is imported", "3 package lossy 1.2 ['one', 'three', 'two']"]


def test_a_package_does_not_replace_what_is_built_in(package: Path) -> None:
    code = """
from medseg3d.extensions import Registry
from medseg3d.errors import InputError
losses = Registry("losses", int, {"one": 1})
print(losses["one"])
try:
    list(losses)
except InputError as error:
    print(error)
"""
    assert in_a_new_process(code, package).splitlines() == ["1", "package lossy 1.2: the loss 'one' is built in; give yours another name."]


def test_a_package_that_cannot_be_imported_is_one_sentence(package: Path) -> None:
    written(package, "raise RuntimeError('no such driver')", "lossy.py")
    code = """
from medseg3d.extensions import Registry
from medseg3d.errors import InputError
try:
    Registry("losses", int, {"two": 2})["three"]
except InputError as error:
    print(error)
"""
    sentence = "package lossy 1.2: the loss 'three' cannot be loaded (RuntimeError: no such driver)."
    assert in_a_new_process(code, package).splitlines() == [sentence]


def test_an_error_is_told_to_be_that_of_an_extension_where_it_went_through_one(tmp_path: Path, package: Path) -> None:
    written(package, "def THREE():\n    import json\n    json.loads('x')\n", "lossy.py")
    file = written(tmp_path, "def four():\n    return int('a\\nb')\n\nLOSSES = {'four': four}")
    code = f"""
from medseg3d.extensions import Registry, failure_of, use_extension
use_extension({str(file)!r})
losses = Registry("losses", object, {{"one": lambda: 1 / 0}})
for name in ("one", "three", "four"):
    try:
        losses[name]()
    except (ArithmeticError, ValueError) as error:
        print(failure_of(error))
"""
    ours, of_package, of_file = in_a_new_process(code, package).splitlines()
    assert ours == "None"
    assert of_package.startswith(f"{package / 'lossy.py'}, line 3: the extension failed (JSONDecodeError: Expecting value")
    assert of_file.startswith(f"{file}, line 2: the extension failed (ValueError: invalid literal for int()")


NETWORK = """
from torch import nn

from medseg3d.networks import Family


def build(plan):
    return nn.Conv3d(plan.in_channels, plan.num_classes, 3, padding=1)


NETWORKS = {"one_convolution": Family(name="one_convolution", build=build, has_style=False, options={"speed": 1})}
"""


def test_a_network_has_one_name(tmp_path: Path) -> None:
    from medseg3d.networks import NETWORKS

    with pytest.raises(InputError, match="the network 'mine' is called 'one_convolution' by its Family; both are one name"):
        use_extension(written(tmp_path, NETWORK.replace('{"one_convolution":', '{"mine":')))
    assert "mine" not in NETWORKS


def test_a_network_of_a_file_is_built_from_a_plan_that_says_where_it_is_from(tmp_path: Path) -> None:
    from medseg3d.networks import NETWORKS, build_network
    from medseg3d.plan import NetworkPlan

    extension = use_extension(written(tmp_path, NETWORK))
    plan = NetworkPlan(
        family="one_convolution",
        dimensions=3,
        in_channels=1,
        num_classes=2,
        features=(8,),
        kernel_sizes=((3, 3, 3),),
        strides=((1, 1, 1),),
        encoder_blocks=(1,),
        decoder_blocks=(),
        provider=NETWORKS.provider("one_convolution"),
    )
    assert plan.provider == extension.provider
    assert sum(p.numel() for p in build_network(plan).parameters()) == 2 * 27 + 2
    forget_extensions()
    with pytest.raises(PlanError, match=r"This needs the network 'one_convolution' of the extension my_parts.py: name it with --extension"):
        build_network(plan)
