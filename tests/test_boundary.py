from __future__ import annotations

import errno
from pathlib import Path

import pytest

from medseg3d.boundary import CaseBoundary
from medseg3d.errors import DiskReadError, ImageReadError, PlanMismatchError, StorageError
from medseg3d.execution import run_cases
from medseg3d.images.opening import reading


def outcomes(errors: dict[str, BaseException]) -> dict[str, str]:
    """Run three cases a, b, c, of which some raise; the reasons of those that fail."""

    def work(name: str) -> str:
        if name in errors:
            raise errors[name]
        return name

    found = {done.item: done.failure for done in run_cases(work, "abc", name_of=str, stage="try", num_workers=2)}
    return {name: failure.reason for name, failure in found.items() if failure is not None}


@pytest.mark.fault("B", "a decoder that raises any error on one image", "costs that case; exit 3 lists it")
@pytest.mark.parametrize(
    "error", [ImageReadError("x"), MemoryError(), ValueError("x"), RuntimeError("x"), OverflowError("x"), KeyError("x")]
)
def test_an_error_of_one_case_costs_that_case(error) -> None:
    assert list(outcomes({"b": error})) == ["b"]


def test_a_defect_is_called_one() -> None:
    assert "a defect of medseg3d (KeyError: 'x')" in outcomes({"b": KeyError("x")})["b"]


def test_a_defect_that_hits_every_case_surfaces() -> None:
    with pytest.raises(KeyError, match="x"):
        outcomes({name: KeyError("x") for name in "abc"})


def test_wrong_files_of_every_case_are_no_defect() -> None:
    assert set(outcomes({name: ImageReadError("x") for name in "abc"})) == {"a", "b", "c"}


@pytest.mark.fault("B", "a bad sector in one image", "costs that case; a disk or a share that is gone stops the work")
def test_a_disk_that_fails_at_one_file_costs_its_case() -> None:
    assert list(outcomes({"b": DiskReadError("x")})) == ["b"]
    boundary = CaseBoundary("try")
    for name in "abcd":  # never three in a row
        with boundary.around(name) as attempt:
            if name != "c":
                raise DiskReadError(name)
        assert (attempt.failure is None) == (name == "c")
    with boundary.around("e"):
        raise DiskReadError("e")
    with pytest.raises(DiskReadError, match="f"), boundary.around("f"):
        raise DiskReadError("f")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN])
def test_what_fails_while_a_file_is_read_is_told_apart_from_a_share_that_is_gone(number: int) -> None:
    with pytest.raises(StorageError, match="cannot be read") as raised, reading(Path("scan.nii.gz")):
        raise OSError(number, "broken")
    assert isinstance(raised.value, DiskReadError) is (number == errno.EIO)


@pytest.mark.parametrize("error", [StorageError("full"), OSError("broken"), PlanMismatchError("other"), KeyboardInterrupt()])
def test_what_concerns_all_cases_stops_the_work(error) -> None:
    boundary = CaseBoundary("try")
    with pytest.raises(type(error)), boundary.around("a"):
        raise error
