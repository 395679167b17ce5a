"""Parts of other people: a Python file or an installed package goes in, its networks, losses, augmentations, metrics and readers are known.

A file that the user names holds dicts: ``NETWORKS = {"my_net": Family(…)}``, ``LOSSES``, ``AUGMENTATIONS``, ``METRICS``, ``READERS``,
``TRACKERS``. A
package names single parts as entry points of the groups ``medseg3d.networks`` and so on. Each stage has its parts in a :class:`Registry`,
which also finds these. Code is loaded because a user names a file or installed a package, never because a plan or a model says so: these
only note where a part came from.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Generic, TypeVar

from medseg3d.errors import InputError, MedsegError, PlanError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

logger = logging.getLogger(__name__)

Part = TypeVar("Part")
KINDS = {
    "networks": "network",
    "losses": "loss",
    "augmentations": "augmentation",
    "metrics": "metric",
    "readers": "reader",
    "trackers": "tracker",
}
"""What can be added, and one of it. A file's dict has the name in capitals, a package's group of entry points ``medseg3d.`` before it."""
SHOWN_DIGITS = 12
"""Of a file's checksum: enough to tell versions of one file apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """A file that was run: where it is, what it is, and its parts by kind and name."""

    path: Path
    digest: str
    parts: Mapping[str, Mapping[str, object]]

    @property
    def provider(self) -> str:
        """How a plan and a model file name it."""
        return f"file {self.path.name:.150} {self.digest[:SHOWN_DIGITS]}"


_loaded: dict[Path, Extension] = {}
_registries: list[weakref.ref[Registry]] = []
"""Asked when a file is run, so that a name that is taken is refused at once."""


def use_extension(file: Path | str) -> Extension:
    """Run a Python file of the user's and know its parts from now on, in this process and those that it starts.

    The same file again changes nothing; where its text has changed, its parts replace the earlier ones. Raises :class:`InputError` where
    it cannot be run, holds no parts, or parts of a wrong type or with a name that is taken.
    """
    path = Path(file).expanduser().resolve()
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read as an extension ({error.strerror or error}).") from error
    digest = hashlib.sha256(text).hexdigest()
    before = _loaded.get(path)
    if before is not None and before.digest == digest:
        return before
    extension = Extension(path=path, digest=digest, parts=_parts(_run(path, text, digest), path))
    _loaded[path] = extension
    try:
        for registry in _registries:
            if (known := registry()) is not None:
                known.added()
    except MedsegError:
        _loaded.pop(path)
        if before is not None:
            _loaded[path] = before
        raise
    return extension


def loaded_extensions() -> tuple[Extension, ...]:
    """The files that were run, in their order."""
    return tuple(_loaded.values())


def forget_extensions() -> None:
    """As if no file had been run; what was built of their parts goes on working."""
    _loaded.clear()


def extension_arguments() -> list[str]:
    """What a child process is told on its command line, so that it knows the same parts; see :func:`use_arguments`."""
    return [part for path in _loaded for part in ("--extension", str(path))]


def version_of(provider: str) -> str:
    """What tells versions of a part apart: the checksum of a file, whatever it is called now; the name and version of a package."""
    return provider.rpartition(" ")[2] if provider.startswith("file ") else provider


def source_text(provider: str) -> str:
    """Where a part is from, as people read it: ``my_parts.py 980c…``, or the name and version of a package."""
    return provider.partition(" ")[2] or provider


def needed_arguments(providers: Iterable[str]) -> list[str]:
    """What a command line needs so that the parts of these providers are known; packages need no word."""
    files = (source_text(provider).rpartition(" ")[0] for provider in providers if provider.startswith("file "))
    return [part for file in dict.fromkeys(files) for part in ("--extension", file)]


def use_arguments(arguments: list[str]) -> list[str]:
    """Run the files that :func:`extension_arguments` named at the beginning of a command line; what is left is returned."""
    while arguments[:1] == ["--extension"]:
        use_extension(arguments[1])
        arguments = arguments[2:]
    return arguments


def _run(path: Path, text: bytes, digest: str) -> ModuleType:
    module = ModuleType(f"medseg3d_extension_{digest[:SHOWN_DIGITS]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # records look their types up there
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # a file of others may raise, or leave by, whatever it likes
        sys.modules.pop(module.__name__)
        raise InputError(f"{path}{_line(error, str(path))}: the extension cannot be run ({_said(error)}).") from error
    return module


def failure_of(error: BaseException) -> str | None:
    """A sentence on an error that went through the code of an extension, a file or a package; None for one that did not."""
    modules = {point.module.partition(".")[0] for kind in KINDS for point in _entry_points(kind).values()}
    found, trace = None, error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        if any(file == str(path) for path in _loaded) or name.partition(".")[0] in modules:
            found = file
        trace = trace.tb_next
    return None if found is None else f"{found}{_line(error, found)}: the extension failed ({_said(error)})."


def _said(error: BaseException) -> str:
    return f"{' '.join(f'{type(error).__name__}: {error}'.split()):.300}"


def _line(error: BaseException, file: str) -> str:
    """The last line of the file that an error went through."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f", line {error.lineno}"
    line, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return line


def _parts(module: ModuleType, path: Path) -> dict[str, Mapping[str, object]]:
    parts = {kind: found for kind in KINDS if (found := getattr(module, kind.upper(), None)) is not None}
    expected = f"one of the dicts {', '.join(kind.upper() for kind in KINDS)}"
    if not parts:
        raise InputError(f"{path}: an extension holds at least {expected}; found none.")
    for kind, found in parts.items():
        if not isinstance(found, Mapping) or not all(isinstance(name, str) and 0 < len(name) <= 200 for name in found):
            raise InputError(f"{path}: {kind.upper()} must be a dict from names to parts, found {found!r:.100}.")
    return parts


class Registry(Mapping[str, Part], Generic[Part]):
    """The parts of a stage by name: its own, which are written where the registry is made, those of files, and those of packages.

    Packages are looked at only for a name that is neither built in nor of a file, and where all names are listed.
    """

    def __init__(self, kind: str, part: type[Part], built_in: Mapping[str, Part]) -> None:
        self.kind, self.part, self.built_in = kind, part, built_in
        self.added()
        _registries.append(weakref.ref(self))

    def __getitem__(self, name: str) -> Part:
        """Raises ``KeyError`` for a name that nobody knows; :meth:`find` says more."""
        if name in self.built_in:
            return self.built_in[name]
        of_files = self.added()
        if name in of_files:
            return of_files[name][0]
        return self._packaged(name)

    def __iter__(self) -> Iterator[str]:
        packaged = _entry_points(self.kind)
        for name in packaged:
            self._check_name(name, _package(self.kind, name))
        return iter({**self.built_in, **self.added(), **packaged})

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def added(self) -> dict[str, tuple[Part, str]]:
        """The parts of files, each with its provider; raises :class:`InputError` for a wrong type and a name that is taken."""
        parts: dict[str, tuple[Part, str]] = {}
        for extension in _loaded.values():
            for name, part in extension.parts.get(self.kind, {}).items():
                self._check_name(name, str(extension.path))
                if name in parts:
                    raise InputError(f"{extension.path}: the {self.noun} {name!r} is also of the {parts[name][1]}; give it another name.")
                parts[name] = (self._checked(part, name, str(extension.path)), extension.provider)
        return parts

    def provider(self, name: str) -> str:
        """Where a part comes from, as plans and models note it; empty for one that is built in."""
        if name in self.built_in:
            return ""
        of_files = self.added()
        if name in of_files:
            return of_files[name][1]
        return _package(self.kind, name)

    def find(self, name: str, *, provider: str = "", error: type[MedsegError] = PlanError) -> Part:
        """A part by name; ``provider`` is what a plan or a model notes of it.

        Raises ``error`` with one sentence where it is not known; where another version of the same part is, a warning says so.
        """
        if name not in self.built_in and name not in self.added() and name not in _entry_points(self.kind):
            raise error(self._refusal(name, provider))
        part, found = self[name], self.provider(name)
        if provider and version_of(found) != version_of(provider):
            logger.warning("The %s %s was that of the %s; here it is that of the %s.", self.noun, name, provider, found or "package itself")
        return part

    @property
    def noun(self) -> str:
        """What one part is called."""
        return KINDS[self.kind]

    def _refusal(self, name: str, provider: str) -> str:
        source, _, rest = provider.partition(" ")
        owner = rest.rpartition(" ")[0]
        if source == "file":
            return (
                f"This needs the {self.noun} {name!r} of the extension {owner}: name it with --extension {owner}, "
                "in Python with medseg3d.use_extension."
            )
        if source == "package":
            return f"This needs the {self.noun} {name!r} of the Python package {rest}: install {owner or 'it'}."
        return (
            f"There is no {self.noun} {name!r}; known are {', '.join(sorted(self))}. "
            "A part of yours is named with --extension FILE.py, in Python with medseg3d.use_extension."
        )

    def _packaged(self, name: str) -> Part:
        point = _entry_points(self.kind)[name]
        try:
            part = point.load()
        except (Exception, SystemExit) as error:  # as in a file
            raise InputError(f"{_package(self.kind, name)}: the {self.noun} {name!r} cannot be loaded ({_said(error)}).") from error
        return self._checked(part, name, self.provider(name))

    def _check_name(self, name: str, source: str) -> None:
        if name in self.built_in:
            raise InputError(f"{source}: the {self.noun} {name!r} is built in; give yours another name.")

    def _checked(self, part: object, name: str, source: str) -> Part:
        if not isinstance(part, self.part):
            raise InputError(f"{source}: the {self.noun} {name!r} must be a {self.part.__name__}, found {part!r:.100}.")
        if self.kind == "networks" and (own := getattr(part, "name", name)) != name:
            raise InputError(f"{source}: the {self.noun} {name!r} is called {own!r} by its Family; both are one name.")
        return part


@cache
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=f"medseg3d.{kind}")}


def _package(kind: str, name: str) -> str:
    distribution = _entry_points(kind)[name].dist
    return "package" if distribution is None else f"package {distribution.name} {distribution.version}"
