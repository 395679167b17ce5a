"""How images were acquired, and of whom: DICOM headers, JSON files beside images, and a table of participants in, text by case out.

Only what a paper tells of a group is read (:data:`FIELDS`): no name, no number, no date of a patient.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medseg3d.data.dataset import Case
from medseg3d.errors import InputError, MedsegError
from medseg3d.images import ending_of
from medseg3d.images.dicom_file import read_dicom_file
from medseg3d.parsing import parse_json, read_table
from medseg3d.wording import listed

MAX_SIDECAR_BYTES = 1 << 20
"""Of a JSON file beside an image; converters write a few thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """What is told of an image: its name in a DICOM header, its other names in a JSON file, and the unit of both."""

    title: str
    tag: str
    keys: tuple[str, ...] = ()
    unit: str = ""
    json_factor: float = 1.0
    """JSON files of converters (BIDS) give times in seconds, headers in milliseconds."""


FIELDS: Mapping[str, Field] = {
    "modality": Field(title="modality", tag="Modality"),
    "manufacturer": Field(title="manufacturer", tag="Manufacturer"),
    "scanner": Field(title="scanner", tag="ManufacturerModelName", keys=("ManufacturersModelName",)),
    "field_strength": Field(title="field strength", tag="MagneticFieldStrength", unit="T"),
    "sequence": Field(title="sequence", tag="ScanningSequence"),
    "repetition_time": Field(title="repetition time", tag="RepetitionTime", unit="ms", json_factor=1000.0),
    "echo_time": Field(title="echo time", tag="EchoTime", unit="ms", json_factor=1000.0),
    "inversion_time": Field(title="inversion time", tag="InversionTime", unit="ms", json_factor=1000.0),
    "flip_angle": Field(title="flip angle", tag="FlipAngle", unit="°"),
    "tube_voltage": Field(title="tube voltage", tag="KVP", unit="kV"),
    "tube_current": Field(title="tube current", tag="XRayTubeCurrent", unit="mA"),
    "kernel": Field(title="kernel", tag="ConvolutionKernel"),
    "contrast": Field(title="contrast agent", tag="ContrastBolusAgent"),
    "slice_thickness": Field(title="slice thickness", tag="SliceThickness", unit="mm"),
    "age": Field(title="age", tag="PatientAge", unit="years"),
    "sex": Field(title="sex", tag="PatientSex"),
    "identity_removed": Field(title="identity removed", tag="PatientIdentityRemoved"),
    "deidentification": Field(title="de-identification method", tag="DeidentificationMethod", keys=("DeidentificationMethodCodeSequence",)),
}
PEOPLE = ("age", "sex")
MAX_FURTHER_COLUMNS = 6
"""Of a participants table besides age and sex: a paper's first table has about as many rows."""


def acquisition_of(case: Case) -> dict[str, str]:
    """What header or JSON file of the first channel tell; empty where neither is there, or neither can be read."""
    channel = case.channels[0]
    found: dict[str, str] = {}
    with suppress(MedsegError, OSError):
        if channel.path.is_dir():
            file = next(iter(channel.files or tuple(sorted(path for path in channel.path.iterdir() if path.is_file()))), None)
            found = {} if file is None else _of_header(file)
        else:
            found = _of_sidecar(channel.path, case.name)
    return found


def _of_header(file: Path) -> dict[str, str]:
    header = read_dicom_file(file)
    return _tidied({name: header.text(field.tag) for name, field in FIELDS.items()})


def _of_sidecar(image: Path, case: str) -> dict[str, str]:
    stem = image.name[: len(image.name) - len(ending_of(image))]
    places = [image.with_name(f"{name}.json") for name in dict.fromkeys((stem, case))]
    sidecar = next((place for place in places if place.is_file() and place.stat().st_size <= MAX_SIDECAR_BYTES), None)
    document = parse_json(sidecar.read_text(encoding="utf-8", errors="replace"), str(sidecar)) if sidecar is not None else {}
    if not isinstance(document, dict):
        return {}
    return _tidied({name: _of_json(document, field) for name, field in FIELDS.items()})


def _of_json(document: Mapping[str, object], field: Field) -> str:
    value = next((document[key] for key in (field.tag, *field.keys) if document.get(key) not in (None, "", [])), "")
    if isinstance(value, bool):
        return "YES" if value else "NO"
    if isinstance(value, int | float):
        return f"{value * (field.json_factor if field.unit else 1.0):g}"
    if isinstance(value, list):
        parts = [each.get("CodeMeaning") if isinstance(each, dict) else each for each in value]
        return ", ".join(part for part in parts if isinstance(part, str))
    return value if isinstance(value, str) else ""


def _tidied(found: Mapping[str, str]) -> dict[str, str]:
    """Without what is empty; ages as years."""
    tidy = {name: re.sub(r"\s+", " ", text).strip()[:80] for name, text in found.items() if text.strip()}
    if "age" in tidy:
        tidy["age"] = _years(tidy["age"])
    return {name: text for name, text in tidy.items() if text}


def _years(text: str) -> str:
    """DICOM writes an age as 045Y, 006M, 012W or 010D.

    >>> _years("045Y"), _years("006M"), _years("61.5"), _years("old")
    ('45', '0.5', '61.5', '')
    """
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*([YMWD]?)", text, re.IGNORECASE)
    if match is None:
        return ""
    parts = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}[match[2].upper()]
    return f"{float(match[1]) / parts:.3g}"


def participants(root: Path, cases: Iterable[str], patients: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By case the row of ``participants.tsv`` (or ``.csv``) beside the dataset: age, sex and a few further columns.

    The first column names the case, its patient (by ``patients``), or the beginning of the case's name up to an underscore.
    """
    file = next((root / name for name in ("participants.tsv", "participants.csv") if (root / name).is_file()), None)
    if file is None:
        return {}
    try:
        header, *rows = read_table(file)
    except (InputError, ValueError):
        return {}
    names = [name.strip().lower() for name in header]
    further = [name for name in names[1:] if name not in PEOPLE][:MAX_FURTHER_COLUMNS]
    table = {row[0].strip(): dict(zip(names, map(str.strip, row), strict=False)) for row in rows if row}
    found = {}
    for case in cases:
        row = next((table[name] for name in _names_of(case, patients) if name in table), None)
        if row is not None:
            found[case] = {name: row[name] for name in (*PEOPLE, *further) if row.get(name) not in (None, "", "n/a")}
    return found


def _names_of(case: str, patients: Mapping[str, str]) -> Sequence[str]:
    parts = case.split("_")
    starts = ["_".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return [*starts, *(f"sub-{start}" for start in starts), *([patients[case]] if case in patients else [])]


def describe(rows: Sequence[Mapping[str, str]], name: str, *, unit: str = "") -> str:
    """One field over many images: the median and range of numbers, the counts of words; how many do not tell. Empty where none tells.

    >>> describe([{"age": "40"}, {"age": "60"}, {}], "age", unit="years")
    'median 50 years (40 to 60; not told of 1)'
    >>> describe([{"sex": "F"}, {"sex": "M"}, {"sex": "F"}], "sex")
    'F (2), M (1)'
    """
    told = [row[name] for row in rows if row.get(name)]
    if not told:
        return ""
    silent = len(rows) - len(told)
    try:
        numbers = sorted(map(float, told))
    except ValueError:
        counts = {value: told.count(value) for value in dict.fromkeys(told)}
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return listed([f"{value} ({count})" for value, count in ordered], most=8) + (f"; not told of {silent}" if silent else "")
    middle = (numbers[(len(numbers) - 1) // 2] + numbers[len(numbers) // 2]) / 2
    after = f" {unit}" if unit else ""
    if numbers[0] == numbers[-1]:
        return f"{middle:g}{after}" + (f" (not told of {silent})" if silent else "")
    return f"median {middle:g}{after} ({numbers[0]:g} to {numbers[-1]:g}{f'; not told of {silent}' if silent else ''})"
