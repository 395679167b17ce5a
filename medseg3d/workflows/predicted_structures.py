"""``predict --statistics``: the structures of the label maps that were written, measured with the images that they were predicted from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medseg3d.data.dataset import Case
from medseg3d.errors import InputError
from medseg3d.events import Event, Listener
from medseg3d.execution import memory_budget
from medseg3d.files import file_digest
from medseg3d.images import ending_of
from medseg3d.options import PredictOptions
from medseg3d.plan import Plan
from medseg3d.structures.measure_folders import Wanted, measure_cases
from medseg3d.structures.records import CaseStructures, Structures, read_structures, write_structures
from medseg3d.workflows.measure import NAME, wanted_of
from medseg3d.workflows.taking_turns import record_lock

logger = logging.getLogger(__name__)


def measure_predicted(cases: Sequence[Case], targets: Mapping[str, Path], plan: Plan, options: PredictOptions, on: Listener) -> Structures:
    """Measure what lies in the targets of the cases, as ``measure`` would, and write it beside them.

    In a folder the files are ``structures.json`` and ``.csv`` (``structures-2-of-8`` of a part); beside a single label map they begin
    with its name. Numbers of other label maps, which earlier calls wrote into the same folder, stay as long as the label maps do.
    """
    predicted = [replace(case, label=targets[case.name], annotated=None, soft=()) for case in cases]
    wanted: Wanted = wanted_of(options)
    found = measure_cases(
        predicted,
        labels=replace(plan.labels, soft=False),
        channel_names=plan.channels,
        wanted=wanted,
        max_bytes=memory_budget(options.max_ram_gb),
        on=on,
    )
    if found.cases:
        place = _beside(targets, options.part)
        with record_lock(place):  # one process per image may write into one folder
            written = write_structures(_with_earlier(found, place), place)
        on(Event(stage="measure", message=f"Written: {', '.join(str(file) for file in written)}"))
    return found


def _with_earlier(found: Structures, place: Path) -> Structures:
    """With the cases of an earlier call whose label maps are still the ones that were measured."""
    try:
        earlier = read_structures(place) if place.exists() else None
    except InputError:
        logger.warning("%s: was damaged, and is written anew without what it held.", place)
        return found
    if earlier is None:
        return found
    names = {case.case for case in found.cases}
    kept = [case for case in earlier.cases if case.case not in names and case.digest and _is_digest_of(place, case)]
    return replace(found, cases=tuple(sorted((*found.cases, *kept), key=lambda case: case.case)))


def _is_digest_of(place: Path, case: CaseStructures) -> bool:
    file = place.with_name(f"{case.case}.nii.gz")
    return file.is_file() and file_digest(file) == case.digest


def check_measurable(targets: Mapping[str, Path]) -> None:
    """Raise :class:`InputError` where only DICOM objects are written, of which there is no label map to measure."""
    wrong = next((target for target in targets.values() if ending_of(target) not in (".nii.gz", ".nii")), None)
    if wrong is not None:
        raise InputError(f"{wrong.name}: --statistics measures NIfTI label maps. Name nifti first: --output-type nifti dicom-seg.")


def _beside(targets: Mapping[str, Path], part: tuple[int, int] | None) -> Path:
    """Where the numbers go: by the folder, or by the only file, which may lie among others."""
    (name, target), *others = targets.items()
    if not others and target.name != f"{name}.nii.gz":
        return target.with_name(f"{target.name.removesuffix('.gz').removesuffix('.nii')}-{NAME}.json")
    return target.with_name(f"{NAME}.json" if part is None else f"{NAME}-{part[0]}-of-{part[1]}.json")
