"""The image files of a folder by the name of their case, and what is found about them on the way."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from medseg3d import images
from medseg3d.errors import CaseFailure, ImageReadError
from medseg3d.images import case_name

STAGE = "files"
"""The stage of a failure that is found while files are listed."""


class Findings(list[str]):
    """What makes a dataset unusable as a whole, one sentence each; what costs a single case only is kept apart, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self._by_case: dict[str, list[str]] = {}
        self._refused: list[tuple[str, Path, str]] = []

    def fail(self, case: str, reason: str) -> None:
        """The case cannot be used, and the others can."""
        self._by_case.setdefault(case, []).append(reason)

    def refuse(self, case: str, file: Path, reason: str) -> None:
        """The file cannot be used; whether the case can, :meth:`settle` decides."""
        self._refused.append((case, file, reason))

    def settle(self, complete: Collection[str]) -> None:
        """Cases that are complete without a refused file do not suffer from it: it is listed by its own name."""
        for case, file, reason in self._refused:
            self.fail(printable(file.name) if case in complete else case, f"{printable(str(file))}: {reason}")
        self._refused = []

    @property
    def has_refused(self) -> bool:
        """Whether files wait for :meth:`settle`."""
        return bool(self._refused)

    @property
    def failures(self) -> tuple[CaseFailure, ...]:
        """One for each case that cannot be used, sorted by name."""
        return tuple(CaseFailure(case=case, stage=STAGE, reason="; ".join(reasons)) for case, reasons in sorted(self._by_case.items()))

    def take(self, other: Findings, name_of: Callable[[str], str]) -> None:
        """Take over the findings of another list, with its cases under other names."""
        self.extend(other)
        for case, reasons in other._by_case.items():
            self._by_case.setdefault(name_of(case), []).extend(reasons)
        self._refused.extend((name_of(case), file, reason) for case, file, reason in other._refused)


def image_files(folder: Path, findings: Findings, *, with_dicom: bool = True) -> dict[str, Path]:
    """The images of a folder by name without ending, sorted; ``with_dicom`` its DICOM files and the folders that hold some.

    Two files of one name, files of formats that are not read and names that are no Unicode cost their case. Names are composed
    (Unicode's NFC), so that a file that was copied over a Mac has the name it looks like.
    """
    files: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        findings.append(f"{folder}: cannot be looked into ({error.strerror})")
        return files
    twice: set[str] = set()
    for path in paths:
        if not with_dicom and (path.is_dir() or images.ending_of(path).endswith(".dcm")):
            continue
        reason = images.refusal(path)
        name = case_name(path)
        if reason and path.is_file():
            findings.refuse(name, path, reason)
            continue
        try:
            if not images.is_image(path):
                continue
        except ImageReadError as error:
            findings.fail(name, str(error))
            continue
        if not is_unicode(path.name):
            shown = printable(path.name)
            findings.fail(
                case_name(Path(shown)), f"{printable(str(folder))}/{shown}: the file name holds bytes that are no UTF-8. Rename the file"
            )
        elif name in files:
            twice.add(name)
            findings.fail(name, two_files(files[name], path))
        files.setdefault(name, path)
    return {name: path for name, path in files.items() if is_unicode(name)}


def two_files(first: Path, second: Path) -> str:
    """What is said of two images that are one case by their names."""
    if first.name != second.name and composed(first.name) == composed(second.name):
        return f"two files of this name in {first.parent}, which differ only in how an accent is stored (Unicode NFC and NFD); keep one"
    return f"two files of this name, {first.name} and {second.name}; keep one"


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), in which two names that look equal are equal."""
    return unicodedata.normalize("NFC", name)


def is_unicode(name: str) -> bool:
    """Whether a file name is text: bytes that are no UTF-8 come as surrogates, which no JSON file and no terminal takes."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    r"""A file name that can be written anywhere; bytes that are no UTF-8 are shown by their numbers.

    >>> printable("M\udcfcller.nii.gz")
    'M\\xfcller.nii.gz'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def listed_file(root: Path, text: str) -> Path:
    """The file that a JSON names, below ``root`` or absolute; also with Windows' separators, or with accents stored otherwise.

    The path as it is written where there is no such file.
    """
    asked = root / text
    if asked.exists():
        return asked
    turned = root / text.replace("\\", "/")
    for path in (turned, *_lookalikes(turned)):
        if path.exists():
            return path
    return asked


def _lookalikes(path: Path) -> list[Path]:
    """Files beside it whose names differ only in how accents are stored."""
    if path.name.isascii() or not path.parent.is_dir():
        return []
    return [other for other in path.parent.iterdir() if composed(other.name) == composed(path.name)]


def differs_in_case(name: str, others: Sequence[str]) -> str | None:
    """The name among ``others`` that differs in upper and lower case only."""
    return next((other for other in others if other != name and other.casefold() == name.casefold()), None)
