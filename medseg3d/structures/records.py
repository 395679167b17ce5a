"""The records of measured structures: per structure of a case, per case, and over all cases; and how they become CSV tables.

No number is ever NaN: what is not defined is None (``null`` in JSON, empty in CSV). Definitions: ``docs/reference/structures.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from medseg3d.csv_text import csv_text
from medseg3d.errors import CaseFailure
from medseg3d.files import remove_file, write_text
from medseg3d.records import Checked, read_record, write_record

RECORD_KIND = "structures"
Point = tuple[float, float, float]
"""Right, anterior, superior (RAS+) in mm, as NIfTI's affine gives them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensities(Checked):
    """The values of one channel inside of a structure, as they are stored in the image; ``std`` divides by the number of voxels."""

    mean: float
    std: float
    minimum: float
    p05: float
    median: float
    p95: float
    maximum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure(Checked):
    """One label of one case. Lengths in mm, volumes in ml; places in RAS+ mm.

    ``box_low_mm`` and ``box_high_mm`` hold all of its voxels, edges included; ``extent_mm`` is the difference. ``diameter_mm`` is the
    largest distance between the centers of two of its voxels. ``num_objects`` are connected by faces, edges or corners.
    ``is_at_edge``: it reaches the edge of the image, so that a part may be missing. ``intensities`` by channel. What has no voxel has
    no place.
    """

    value: int
    name: str
    voxels: int
    volume_ml: float
    num_objects: int = 0
    largest_object_ml: float = 0.0
    centroid_mm: Point | None = None
    box_low_mm: Point | None = None
    box_high_mm: Point | None = None
    extent_mm: Point | None = None
    diameter_mm: float | None = None
    is_at_edge: bool = False
    intensities: dict[str, Intensities] = field(default_factory=dict)
    radiomics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance(Checked):
    """Between the surfaces of two structures of a case, in mm between centers of surface voxels.

    ``minimum_mm`` is the gap; the means run over the surface voxels of one structure, each to the nearest of the other. ``is_touching``:
    a voxel of one shares a face with one of the other, or both have a voxel in common.
    """

    first: str
    second: str
    is_touching: bool
    minimum_mm: float
    mean_first_to_second_mm: float
    mean_second_to_first_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseStructures(Checked):
    """All structures of one label map that it was annotated for; ``shape`` and ``spacing_mm`` on the axes of its file.

    ``unannotated_voxels`` hold the ignore label: what of a structure lies in them is not counted. ``digest`` is that of the label map's
    file.
    """

    case: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    structures: tuple[Structure, ...]
    distances: tuple[Distance, ...] = ()
    unannotated_voxels: int = 0
    digest: str = ""
    came_later: ClassVar[tuple[str, ...]] = ("unannotated_voxels", "digest")

    def of(self, name: str) -> Structure | None:
        """A structure by its name."""
        return next((each for each in self.structures if each.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Structures:
    """All cases sorted by name, where they came from, and what could not be measured."""

    labels: str
    images: str
    cases: tuple[CaseStructures, ...]
    failures: tuple[CaseFailure, ...] = ()
    without_image: tuple[str, ...] = ()


def write_structures(found: Structures, path: Path) -> tuple[Path, ...]:
    """Write ``NAME.json`` and ``NAME.csv``, with distances ``NAME-distances.csv``. ``path`` is one of them, or ``NAME``.

    Distances of an earlier call do not stay beside numbers of this one.
    """
    stem = path.with_suffix("") if path.suffix.lower() in (".json", ".csv") else path
    tables = [write_text(stem.with_name(f"{stem.name}.csv"), to_csv(found.cases))]
    distances = stem.with_name(f"{stem.name}-distances.csv")
    if any(case.distances for case in found.cases):
        tables.append(write_text(distances, distances_csv(found.cases)))
    else:
        remove_file(distances)
    return write_record(stem.with_name(f"{stem.name}.json"), found, RECORD_KIND), *tables


def read_structures(path: Path) -> Structures:
    """Read the JSON of :func:`write_structures`."""
    return read_record(path, Structures, RECORD_KIND)


POINTS = ("centroid_mm", "box_low_mm", "box_high_mm", "extent_mm")
AXES = ("r", "a", "s")
PLAIN = tuple(
    each.name for each in fields(Structure) if each.name not in (*POINTS, "value", "name", "intensities", "radiomics")
)  # fmt: skip


def to_csv(cases: Sequence[CaseStructures]) -> str:
    """One row per case and structure; a column for each axis of a place, for each number of a channel, for each radiomic feature."""
    rows = [(case.case, each) for case in cases for each in case.structures]
    channels = _in_order(name for _, each in rows for name in each.intensities)
    features = _in_order(name for _, each in rows for name in each.radiomics)
    numbers = [each.name for each in fields(Intensities)]
    header = ["case", "value", "label", *PLAIN, *(f"{point.removesuffix('_mm')}_{axis}_mm" for point in POINTS for axis in AXES)]
    header += [f"{channel}_{number}" for channel in channels for number in numbers]
    return _table(
        [*header, *features],
        (
            [
                case,
                each.value,
                each.name,
                *(getattr(each, name) for name in PLAIN),
                *(number for name in POINTS for number in getattr(each, name) or (None,) * len(AXES)),
                *(getattr(each.intensities.get(channel), number, None) for channel in channels for number in numbers),
                *(each.radiomics.get(name) for name in features),
            ]
            for case, each in rows
        ),
    )


def distances_csv(cases: Sequence[CaseStructures]) -> str:
    """One row per case and pair of structures."""
    columns = [each.name for each in fields(Distance)]
    return _table(
        ["case", *columns], ([case.case, *(getattr(each, name) for name in columns)] for case in cases for each in case.distances)
    )


def _in_order(names: Iterable[str]) -> list[str]:
    """Each once, as they were met."""
    return list(dict.fromkeys(names))


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return csv_text([header, *([_cell(value) for value in row] for row in rows)])


def _cell(value: object) -> object:
    """Numbers in as many digits as tell them apart from others; yes and no as a spreadsheet knows them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value
