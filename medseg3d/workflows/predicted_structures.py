"""``predict --statistics``: the structures of the label maps that were written, measured with the images that they were predicted from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medseg3d.data.dataset import Case
from medseg3d.errors import InputError
from medseg3d.events import Event, Listener
from medseg3d.execution import memory_budget
from medseg3d.images import ending_of
from medseg3d.options import PredictOptions
from medseg3d.plan import Plan
from medseg3d.structures.measure_folders import Wanted, measure_cases
from medseg3d.structures.records import Structures, write_structures
from medseg3d.workflows.measure import NAME, wanted_of


def measure_predicted(cases: Sequence[Case], targets: Mapping[str, Path], plan: Plan, options: PredictOptions, on: Listener) -> Structures:
    """Measure what lies in the targets of the cases, as ``measure`` would, and write it beside them.

    In a folder the files are ``structures.json`` and ``.csv`` (``structures-2-of-8`` of a part); beside a single label map they begin
    with its name.
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
        written = write_structures(found, _beside(targets, options.part))
        on(Event(stage="measure", message=f"Written: {', '.join(str(file) for file in written)}"))
    return found


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
