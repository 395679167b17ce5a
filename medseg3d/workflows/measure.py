"""Measure: label maps, with their images → the numbers of each structure, written as JSON and CSV."""

from __future__ import annotations

from pathlib import Path

from medseg3d.events import Event, Listener, silent
from medseg3d.execution import memory_budget
from medseg3d.files import check_writable
from medseg3d.labels import Labels
from medseg3d.options import MeasureOptions, StructureOptions
from medseg3d.structures.measure_folders import Wanted, measure_folders
from medseg3d.structures.records import Structures, write_structures
from medseg3d.wording import counted, listed

NAME = "structures"
"""Of the files in a folder."""
NO_OPTIONS = MeasureOptions()


def measure(
    label_maps: Path | str,
    images: Path | str | None = None,
    options: MeasureOptions = NO_OPTIONS,
    *,
    output: Path | str | None = None,
    labels: Labels | None = None,
    on: Listener = silent,
) -> Structures:
    """Measure a folder of label maps (or one file) and write ``output`` as ``.json`` and ``.csv``.

    Without ``output`` it is ``structures.json`` in the folder of label maps; for a single file nothing is written. An ``output`` that
    ends with neither is a folder. ``images`` give intensities. Cases that failed are in the result's ``failures``.
    """
    label_maps = Path(label_maps)
    target = _target(label_maps, None if output is None else Path(output))
    if target is not None:
        check_writable(target.parent)
    found = measure_folders(
        label_maps,
        None if images is None else Path(images),
        labels=labels,
        wanted=wanted_of(options),
        num_workers=options.jobs,
        max_bytes=None if options.max_ram_gb is None else memory_budget(options.max_ram_gb),
        on=on,
    )
    if found.without_image:
        alone = found.without_image
        on(Event(stage="measure", message=f"{counted(len(alone), 'label map')} without an image, so without intensities: {listed(alone)}"))
    if target is not None and found.cases:
        written = write_structures(found, target)
        on(Event(stage="measure", message=f"Written: {written[0]}, {', '.join(file.name for file in written[1:])}"))
    return found


def wanted_of(options: StructureOptions) -> Wanted:
    """What the options ask for."""
    asked = (options.distances,) if isinstance(options.distances, str) else tuple(options.distances)
    return Wanted(distances=asked, radiomics=options.radiomics)


def _target(label_maps: Path, output: Path | None) -> Path | None:
    if output is None:
        return label_maps / f"{NAME}.json" if label_maps.is_dir() else None
    return output if output.suffix.lower() in (".json", ".csv") and not output.is_dir() else output / f"{NAME}.json"
