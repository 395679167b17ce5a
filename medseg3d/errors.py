"""Every error that a user can meet, each with the exit code that the command line returns for it.

A message says what was found, what was expected, where, and what to do.

```
MedsegError                     exit code 2
├── InputError                  a file, a folder or an argument is wrong
│   ├── DatasetError            findings over many cases, all in one message
│   ├── ImageReadError          a file cannot be decoded, or is not one volume with one value per voxel
│   ├── GeometryMismatchError   two files that must share a grid do not
│   ├── ChannelCountError       a case has another number of channels than the dataset or the plan
│   ├── NotFiniteError          NaN or infinite voxels
│   └── LabelValueError         label values outside the list, or not integers
├── UnsupportedError            the dataset asks for something that is not supported yet
├── PlanError                   a planner file is wrong, or no plan can be made
├── PlanMismatchError           a plan, a store or a model belongs to another dataset
├── BusyError                   another process works on the same files
├── StorageError                disk full, or a folder that cannot be written
│   ├── DiskReadError           the disk failed while a file was read
│   └── DamagedCaseError        a preprocessed case is not as it was written
├── DivergedError               training produced NaN or infinite losses again and again
├── ProcessError                one of the processes that train together failed, and has said why
├── CasesFailedError            exit code 3: done, but some cases failed and are listed
└── InterruptedBySignalError    exit code 128 + signal: stopped, the state is saved
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class MedsegError(Exception):
    """The root of all errors that are the user's to correct; printed without a traceback."""

    exit_code = 2
    page: ClassVar[str] = ""
    """The section of the documentation that is about errors of this kind; empty where a message says all."""


class InputError(MedsegError):
    """A file, a folder or an argument is wrong."""

    page = "how-to/messages.md#a-file-a-folder-or-an-option"


class DatasetError(InputError):
    """A dataset cannot be used; ``findings`` holds one sentence per problem, all found at once."""

    page = "how-to/messages.md#the-dataset"

    def __init__(self, message: str, findings: Sequence[str] = ()) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join([message, *(f"  - {finding}" for finding in self.findings)]))


class ImageReadError(InputError):
    """A file cannot be decoded, or is not one volume with one value per voxel."""

    page = "how-to/messages.md#a-case"


class GeometryMismatchError(InputError):
    """Two files that must lie on the same grid do not."""

    page = "how-to/messages.md#a-case"


class ChannelCountError(InputError):
    """A case has another number of channels than the dataset or the plan says."""

    page = "how-to/messages.md#a-case"


class NotFiniteError(InputError):
    """An image holds NaN or infinite voxels."""

    page = "how-to/messages.md#a-case"


class LabelValueError(InputError):
    """A label file holds values that are not integers or not in the list of labels."""

    page = "how-to/messages.md#a-case"


class UnsupportedError(MedsegError):
    """The dataset asks for something that is not supported yet; it is refused, never trained as something else."""

    page = "how-to/messages.md#not-supported"


class PlanError(MedsegError):
    """A planner file is wrong, or no plan can be made from the fingerprint."""

    page = "how-to/messages.md#the-plan"


class PlanMismatchError(MedsegError):
    """A plan, a preprocessed store or a model belongs to another dataset or configuration."""

    page = "how-to/messages.md#another-plan-than-before"


class BusyError(MedsegError):
    """Another process works on the same files now; the message says which one, where, and since when."""

    page = "how-to/messages.md#another-process"


class StorageError(MedsegError):
    """The disk is full, or a folder cannot be written."""

    page = "how-to/messages.md#the-disk"


class DiskReadError(StorageError):
    """The disk or the share failed while a file was read: that costs its case while those of others can be read, as of a bad sector."""


class DamagedCaseError(StorageError):
    """The files of a preprocessed case are not as they were written."""

    page = "how-to/messages.md#another-plan-than-before"


class DivergedError(MedsegError):
    """Training gave NaN or infinite losses again and again."""

    page = "how-to/messages.md#training-that-diverges"


class ProcessError(MedsegError):
    """One of the processes that train together failed, with this exit code; the message is its own."""

    page = "how-to/messages.md#one-of-several-processes"

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFailure:
    """One case that could not be done: its name, the stage it failed in and the reason."""

    case: str
    stage: str
    reason: str

    def __str__(self) -> str:
        """One line; most reasons begin with the case's name already."""
        reason = self.reason.removeprefix(f"{self.case}: ")
        return f"{self.case} ({self.stage}): {reason}"


class CasesFailedError(MedsegError):
    """The work is done, but the listed cases failed."""

    page = "how-to/messages.md#some-cases-failed"

    exit_code = 3

    def __init__(self, message: str, failures: Sequence[CaseFailure]) -> None:
        self.failures = tuple(failures)
        super().__init__("\n".join([message, *(f"  - {failure}" for failure in self.failures)]))


class InterruptedBySignalError(MedsegError):
    """A signal stopped the work; everything finished so far is saved."""

    def __init__(self, signal_number: int, message: str) -> None:
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        super().__init__(message)
