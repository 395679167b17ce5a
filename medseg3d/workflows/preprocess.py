"""Preprocess: raw cases → the store of every wanted configuration. What is current is not done again."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from medseg3d.data.dataset import Case, Dataset
from medseg3d.data.digests import digest_of, stamp_of
from medseg3d.data.label_names import other_meaning
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.reading import read_case
from medseg3d.errors import CaseFailure, ChannelCountError, DatasetError, ImageReadError, InputError
from medseg3d.events import Event, Listener
from medseg3d.execution import Done, available_cores, memory_budget, run_cases, single_threaded_libraries, total_memory
from medseg3d.fingerprint.records import Fingerprint
from medseg3d.options import PreprocessOptions
from medseg3d.plan import Configuration, Plan
from medseg3d.preprocessing.preprocess_case import data_digest, preprocess_for
from medseg3d.preprocessing.store import Store
from medseg3d.records import read_record
from medseg3d.wording import listed
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.taking_turns import case_lock, tidy
from medseg3d.workflows.verb import verb
from medseg3d.workflows.workers import Workers, cluster_workers, on_absolute_paths

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseWritten:
    """One case that is in the store now; ``written``: the names of data that were made, without those that were current.

    ``files_digest`` is that of its raw files.
    """

    name: str
    written: tuple[str, ...]
    files_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessResult:
    """What preprocessing did: cases made anew, cases kept as they were, and those that failed; ``folders`` are the stores."""

    configurations: tuple[str, ...]
    made: tuple[str, ...]
    kept: tuple[str, ...]
    failures: tuple[CaseFailure, ...]
    folders: tuple[Path, ...]


@verb(PreprocessOptions)
def preprocess(root: Path, work: Path | None, options: PreprocessOptions, on: Listener) -> PreprocessResult:
    """Preprocess the training cases for the named configurations, all of the plan if none is named.

    Images are resampled on ``options.device``; a GPU gives the same but for rounding.

    A case that fails is listed and the others go on. Raises :class:`InputError` for an unusable dataset or a missing plan, and
    :class:`StorageError` where the disk is full; what is finished by then stays.
    """
    folder = work_folder(root, work)
    plan = folder.read_plan()
    names = [options.configurations] if isinstance(options.configurations, str) else options.configurations
    wanted = [plan.configuration(name) for name in names or plan.configurations]
    resampler = _resampler(options.device)
    dataset = open_dataset(root, channels=plan.channels)
    failures = list(dataset.failures)
    made: list[str] = []
    kept: list[str] = []
    digests: dict[str, str] = {}
    total = len(dataset.training)
    on(Event(stage="preprocess", done=0, total=total))
    with cluster_workers(options.cluster) as cluster:
        done = preprocess_cases(
            dataset, plan, wanted, folder, jobs=options.jobs, max_ram_gb=options.max_ram_gb, device=resampler, cluster=cluster
        )
        for number, case in enumerate(done, 1):
            if case.failure is not None:
                failures.append(case.failure)
            elif case.result is not None:
                (made if case.result.written else kept).append(case.item.name)
                digests[case.item.name] = case.result.files_digest
            on(Event(stage="preprocess", done=number, total=total))
    _warn_of_an_old_plan(folder, digests)
    warn_of_other_labels(dataset, plan)
    return PreprocessResult(
        configurations=tuple(configuration.name for configuration in wanted),
        made=tuple(sorted(made)),
        kept=tuple(sorted(kept)),
        failures=tuple(sorted(failures, key=lambda failure: failure.case)),
        folders=tuple(dict.fromkeys(folder.store(configuration.data) for configuration in wanted)),
    )


def preprocess_dataset(dataset: Dataset, plan: Plan, work: Path | str, configuration: str | None = None) -> Store:
    """Preprocess the training cases for a configuration (the recommended one for None) below the folder ``work``; the store of them.

    What is there and current is kept. A case that fails is logged and left out; raises :class:`DatasetError` where none is left.
    """
    chosen, folder = plan.configuration(configuration), WorkFolder(Path(work))
    failures = [done.failure for done in preprocess_cases(dataset, plan, [chosen], folder) if done.failure is not None]
    for failure in failures:
        logger.error("%s", failure)
    if len(failures) == len(dataset.training):
        raise DatasetError(f"{dataset.root}: no training case could be preprocessed.", [str(failure) for failure in failures])
    return Store(folder.store(chosen.data or chosen.name))


def warn_of_other_labels(dataset: Dataset, plan: Plan) -> None:
    """Where label values mean something else today than when the plan was made: names in tables and reports are those of the plan."""
    if said := other_meaning(dataset.labels, plan.labels, plan.given_names):
        logger.warning(
            "%s: %s. Run medseg3d plan and train again; until then all names are those of the plan.", dataset.root / "dataset.json", said
        )


def _warn_of_an_old_plan(folder: WorkFolder, digests: Mapping[str, str]) -> None:
    """Where the plan was made from other files than those that were preprocessed."""
    try:
        planned = read_record(folder.fingerprint, Fingerprint, "fingerprint").cases
    except InputError:  # a plan may come without it
        return
    changed = sorted(case.name for case in planned if digests.get(case.name, case.digest) != case.digest)
    if changed:
        logger.warning(
            "%s was made before files of %s changed. Run medseg3d plan, which measures them again, if spacing, intensities or labels of "
            "the dataset are others now.",
            folder.plan,
            listed(changed, most=5),
        )


def _resampler(device: str) -> str | None:
    """The torch device to resample on; None for the CPU, where NumPy does it and torch need not be imported."""
    if device == "cpu":
        return None
    from medseg3d.devices import choose_device

    return choose_device(device).for_resampling


def preprocess_cases(
    dataset: Dataset,
    plan: Plan,
    configurations: Sequence[Configuration],
    folder: WorkFolder,
    *,
    jobs: int | None = None,
    max_ram_gb: float | None = None,
    device: str | None = None,
    cluster: Workers | None = None,
) -> Iterator[Done[Case, CaseWritten]]:
    """Yield the cases as they finish. A raw case is read once for all data it lacks; configurations that share data write it once.

    The workers of a ``cluster`` read and write the same folders.
    """
    work = _Preprocessing.of(plan, configurations, folder if cluster is None else WorkFolder(folder.root.resolve()), device)
    tidy(folder.root / "preprocessed")
    for store in work.stores.values():
        store.remove_leftovers()
    cases = dataset.training if cluster is None else on_absolute_paths(dataset).training
    workers = min(jobs or available_cores(), max(1, len(cases))) if cluster is None else cluster.num_threads
    with ExitStack() as stack:
        if workers > 1 and cluster is None:
            stack.enter_context(single_threaded_libraries())
        yield from run_cases(
            work,
            cases,
            name_of=lambda case: case.name,
            stage="preprocess",
            bytes_of=lambda case: bytes_to_preprocess(case, plan, list(work.by_data.values())),
            num_workers=workers,
            max_bytes=memory_budget(max_ram_gb),
            executor=None if cluster is None else cluster.cases,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Preprocessing:
    """What is done to each case; a record, so that it can be sent to another machine."""

    plan: Plan
    folder: WorkFolder
    by_data: Mapping[str, Configuration]
    stores: Mapping[str, Store]
    plan_parts: Mapping[str, str]
    device: str | None

    @classmethod
    def of(cls, plan: Plan, configurations: Sequence[Configuration], folder: WorkFolder, device: str | None) -> _Preprocessing:
        by_data = {configuration.data or configuration.name: configuration for configuration in reversed(configurations)}
        return cls(
            plan=plan,
            folder=folder,
            by_data=by_data,
            stores={data: Store(folder.store(data), patch_size=configuration.patch_size) for data, configuration in by_data.items()},
            plan_parts={data: data_digest(plan, configuration) for data, configuration in by_data.items()},
            device=device,
        )

    def __call__(self, case: Case) -> CaseWritten:
        """Make a case in the stores that lack it as it is now."""
        plan, stores = self.plan, self.stores
        stamp = stamp_of(case)
        try:
            files = digest_of(case)
        except OSError as error:
            raise ImageReadError(f"{case.name}: {error.filename or 'its files'} cannot be read ({error.strerror or error}).") from error
        digests = {data: f"{files}-{part}" for data, part in self.plan_parts.items()}
        found = {data: store.version(case.name) for data, store in stores.items()}
        lacking = [data for data, store in stores.items() if not store.is_current(case.name, digests[data])]
        if not lacking:
            return CaseWritten(name=case.name, written=(), files_digest=files)
        with case_lock(self.folder, case.name):
            for data in [data for data in lacking if stores[data].version(case.name) != found[data]]:  # another process made it meanwhile
                if stores[data].is_current(case.name, digests[data]):
                    lacking.remove(data)
            if not lacking:
                return CaseWritten(name=case.name, written=(), files_digest=files)
            _check_memory(case, bytes_to_preprocess(case, plan, list(self.by_data.values())))
            raw = read_case(case, frame=plan.reading_frame)
            _check(raw.image.shape[0], raw.labels is not None, case, plan)
            made = preprocess_for(raw, plan=plan, configurations=[self.by_data[data] for data in lacking], device=self.device)
            for data, preprocessed in zip(lacking, made, strict=True):
                stores[data].write(preprocessed, digests[data], stamp)
            logger.info("Preprocessed %s for %s", case.name, ", ".join(lacking))
        return CaseWritten(name=case.name, written=tuple(lacking), files_digest=files)


def _check_memory(case: Case, needed: int) -> None:
    """Raise ``MemoryError`` for a case that no memory of this machine holds, most likely for a unit that is wrong in its header."""
    total = total_memory()
    if total is not None and needed > MOST_OF_MEMORY * total:
        raise MemoryError(
            f"resampled to the plan's spacing it would take {needed / 2**30:.3g} GiB, and this machine has {total / 2**30:.3g} GiB of "
            "memory. Check the spacing in its header (unit, size), or plan with a coarser one"
        )


MOST_OF_MEMORY = 2.0
"""The peak is predicted on the high side, and there is swap: only what cannot be meant is refused."""


def bytes_to_preprocess(case: Case, plan: Plan, configurations: Sequence[Configuration]) -> int:
    """The memory that a case takes at its peak, predicted from the header of its first channel; 0 where that cannot be read.

    Raw image and normalized copy (with the file's own array while it is read), the resampled image, and while one channel is resampled a
    volume between the old and the new shape.
    """
    from medseg3d.images import read_header

    try:
        geometry = read_header(case.channels[0].path, files=case.channels[0].files).geometry
    except InputError:
        return 0  # the reader will say what is wrong with it
    raw = float(math.prod(geometry.shape))
    volume_mm3 = raw * math.prod(geometry.spacing)
    resampled = 0.0
    for configuration in configurations:
        # a 2D plan keeps the distance of slices: that of the coarsest axis is close enough for a prediction
        spacing = configuration.spacing if len(configuration.spacing) == 3 else (max(geometry.spacing), *configuration.spacing)
        resampled = max(resampled, volume_mm3 / math.prod(spacing))
    num_channels = len(plan.channels) + (plan.labels.num_classes if plan.labels.soft else 0)
    return int(8 * num_channels * raw + 8 * raw + 4 * (num_channels + 1) * resampled + 4 * max(raw, resampled) + 4 * resampled)


def _check(num_channels: int, has_labels: bool, case: Case, plan: Plan) -> None:
    if num_channels != len(plan.channels):
        raise ChannelCountError(
            f"{case.name}: {num_channels} channels, but the plan was made for {len(plan.channels)} ({', '.join(plan.channels)}). "
            "Correct the case, or plan again."
        )
    if not has_labels:
        raise ImageReadError(f"{case.name}: a training case needs a label map, and this one has none.")
