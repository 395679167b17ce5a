"""What only the authors of a study know, as a TOML file says it: each key answers an item of the CLAIM checklist."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from medseg3d.records import Checked, from_plain, read_toml, to_plain

NAME = "study.toml"
"""Beside the dataset, where no other is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study(Checked):
    """The file. Every key is a text and may be left out; one that is unknown is a slip, and refused."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    conclusion: str = ""
    background: str = ""
    aims: str = ""
    design: str = ""
    goal: str = ""
    sources: str = ""
    ethics: str = ""
    eligibility: str = ""
    deidentification: str = ""
    acquisition: str = ""
    reference_standard: str = ""
    reference_rationale: str = ""
    annotators: str = ""
    test_annotation: str = ""
    rater_variability: str = ""
    partitions: str = ""
    sample_size: str = ""
    initial_weights: str = ""
    external_testing: str = ""
    registration: str = ""
    exclusions: str = ""
    demographics: str = ""
    limitations: str = ""
    implications: str = ""
    protocol: str = ""
    availability: str = ""
    funding: str = ""

    def problems(self) -> Any:
        """None: what stands in it is the authors'."""
        return iter(())

    def of_item(self, number: int) -> str:
        """What the authors say of an item, empty where nothing."""
        texts = (getattr(self, key) for key in KEYS.get(number, ()))
        return " ".join(text.strip() for text in texts if text.strip())


KEYS: dict[int, tuple[str, ...]] = {
    2: ("conclusion",),
    3: ("background",),
    4: ("aims",),
    5: ("design",),
    6: ("goal",),
    7: ("sources", "ethics"),
    8: ("eligibility",),
    11: ("deidentification",),
    13: ("acquisition",),
    14: ("reference_standard",),
    15: ("reference_rationale",),
    16: ("annotators",),
    17: ("test_annotation",),
    18: ("rater_variability",),
    19: ("partitions",),
    21: ("sample_size",),
    24: ("initial_weights",),
    33: ("external_testing",),
    34: ("registration",),
    35: ("exclusions",),
    36: ("demographics",),
    40: ("limitations",),
    41: ("implications",),
    42: ("protocol",),
    43: ("availability",),
    44: ("funding",),
}
"""Item → the keys that answer it."""


def read_study(path: Path) -> Study:
    """Read the file; raises :class:`InputError` that names what is wrong with it."""
    return from_plain(read_toml(path), Study, str(path))


def template(open_items: dict[int, str], study: Study) -> str:
    """A file to fill in: a comment with what each open item asks, its keys, and what is said already."""
    said = to_plain(study)
    lines = ["# What only you know of the study. Fill in, put it beside the dataset as study.toml, and run medseg3d report again."]
    for number, keys in KEYS.items():
        if number not in open_items and not any(said[key] for key in keys):
            continue
        lines += ["", f"# Item {number}: {open_items.get(number, 'answered')}"]
        lines += [f"{key} = {_quoted(said[key])}" for key in keys]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are among TOML's."""
    import json

    return json.dumps(text, ensure_ascii=False)
