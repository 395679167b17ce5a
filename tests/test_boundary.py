from __future__ import annotations

import pytest

from medseg3d.boundary import CaseBoundary
from medseg3d.errors import ImageReadError, PlanMismatchError, StorageError
from medseg3d.execution import run_cases


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


@pytest.mark.parametrize("error", [StorageError("full"), OSError("broken"), PlanMismatchError("other"), KeyboardInterrupt()])
def test_what_concerns_all_cases_stops_the_work(error) -> None:
    boundary = CaseBoundary("try")
    with pytest.raises(type(error)), boundary.around("a"):
        raise error
