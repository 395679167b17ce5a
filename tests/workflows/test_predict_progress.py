"""What a listener hears of a prediction: the share of all cases never falls, and ends at the whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medseg3d.events import Event
from medseg3d.workflows.predict import _Progress


@given(cases=st.integers(1, 6), windows=st.integers(1, 9), written_behind=st.integers(0, 2))
def test_the_share_never_falls_and_ends_at_the_whole(cases: int, windows: int, written_behind: int) -> None:
    heard: list[Event] = []
    names = [f"case_{number}" for number in range(cases)]
    told = _Progress(names, heard.append)

    def made():  # as predict_cases gives them: a case is written while later ones are in the network
        waiting = []
        for place, name in enumerate(names):
            for done in range(1, windows + 1):
                told.windows(place, done, windows)
            waiting.append(name)
            if len(waiting) > written_behind:
                yield waiting.pop(0)
        yield from waiting

    assert list(told.counted(made())) == names  # type: ignore[arg-type]
    shares = [event.overall for event in heard]
    assert shares == sorted(shares)  # type: ignore[type-var]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert (heard[-1].done, heard[-1].total) == (cases, cases)


def test_nothing_to_predict_is_no_share() -> None:
    heard: list[Event] = []
    assert list(_Progress([], heard.append).counted(iter(()))) == []
    assert [(event.total, event.overall) for event in heard] == [(0, None)]
