"""What of the study stands in files beside the images: ``dataset.json``, headers, a participants table; and who is in which partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from medseg3d.errors import InputError
from medseg3d.records import read_json

if TYPE_CHECKING:
    from medseg3d.data.dataset import Case, Dataset

MAX_CASES_READ = 2000
"""Headers that are read for a report; of more, evenly spread ones stand for all, and the text says of how many."""
ABOUT = {"description": ("description",), "reference": ("reference",), "licence": ("licence", "license"), "release": ("release",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFacts:
    """``about`` is what ``dataset.json`` says of the dataset. ``images`` and ``people`` hold by case what headers or JSON files tell of the
    image, and headers or the participants table of the person.

    ``num_test`` test images were found; ``is_older`` says whether all of them existed before the training began, None where that is not
    known. ``shared`` are test images of patients that training images are of, or that bear the name of a training image.
    """

    about: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    people: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    num_training: int = 0
    num_test: int = 0
    num_test_failures: int = 0
    num_read: int = 0
    is_older: bool | None = None
    shared: tuple[str, ...] = ()
    test_names: tuple[str, ...] = ()

    def rows(self, of: Mapping[str, Mapping[str, str]], cases: Sequence[str]) -> list[Mapping[str, str]]:
        """What ``images`` or ``people`` say of some cases, an empty row for a case that they do not know."""
        return [of.get(case, {}) for case in cases]

    def tells_all(self, name: str, cases: Sequence[str]) -> bool:
        """Whether this is known of every person."""
        return bool(cases) and all(self.people.get(case, {}).get(name) for case in cases)


def study_facts(dataset: Dataset, patients: Mapping[str, str], begun: Sequence[str]) -> StudyFacts:
    """Read what is beside the images; ``begun`` are the times at which trainings began (ISO 8601). What cannot be read is left out."""
    from medseg3d.data.acquisition import PEOPLE, acquisition_of, participants

    cases = [*dataset.training, *dataset.test]
    read = cases[:: max(1, -(-len(cases) // MAX_CASES_READ))]
    found = {case.name: acquisition_of(case) for case in read}
    table = participants(dataset.root, [case.name for case in cases], patients)
    people = {name: {key: row[key] for key in PEOPLE if key in row} for name, row in found.items()}
    return StudyFacts(
        about=_about(dataset.root),
        images={name: {key: value for key, value in row.items() if key not in PEOPLE} for name, row in found.items()},
        people={name: {**people.get(name, {}), **table.get(name, {})} for name in dict.fromkeys([*people, *table])},
        num_training=len(dataset.training),
        num_test=len(dataset.test),
        num_test_failures=len(dataset.test_failures),
        num_read=len(read),
        is_older=_is_older(dataset.test, begun),
        shared=_shared(dataset, patients),
        test_names=tuple(case.name for case in dataset.test),
    )


def _about(root: Path) -> dict[str, str]:
    try:
        declared = read_json(root / "dataset.json")
    except InputError:
        return {}
    if not isinstance(declared, dict):
        return {}
    values = {name: next((declared[key] for key in keys if declared.get(key)), "") for name, keys in ABOUT.items()}
    return {name: " ".join(str(value).split())[:400] for name, value in values.items() if isinstance(value, str | int | float) and value}


def _is_older(test: Sequence[Case], begun: Sequence[str]) -> bool | None:
    """A file that was written last before the training began was there before it; a later time may be that of a copy."""
    times = []
    for text in begun:
        with suppress(ValueError):
            times.append(datetime.fromisoformat(text).timestamp())
    if not times or not test:
        return None
    first = min(times)
    try:
        return True if all((case.channels[0].files or (case.channels[0].path,))[0].stat().st_mtime < first for case in test) else None
    except OSError:
        return None


def _shared(dataset: Dataset, patients: Mapping[str, str]) -> tuple[str, ...]:
    from medseg3d.data.grouping import find_groups

    training, test = {case.name for case in dataset.training}, {case.name for case in dataset.test}
    groups = {**find_groups(sorted(training | test)).group_of, **patients}
    known = {groups.get(name, f"case {name}") for name in training}
    return tuple(sorted(name for name in test if name in training or groups.get(name, "") in known))
