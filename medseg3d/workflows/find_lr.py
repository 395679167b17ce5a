"""Find a learning rate: the range test on a fold's training patches, drawn and measured as ``train`` does; a figure and its numbers."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from medseg3d.devices import choose_device, use_all_cores
from medseg3d.domain import domain_of
from medseg3d.errors import InputError
from medseg3d.events import Event, Listener
from medseg3d.options import FindLrOptions
from medseg3d.patches.augmentation import augment
from medseg3d.plan import Configuration
from medseg3d.preprocessing.boxed_case import BoxedCase
from medseg3d.preprocessing.store import Store, StoredCase
from medseg3d.records import write_record
from medseg3d.reporting.learning_rate_figure import learning_rate_figure
from medseg3d.training.domains import NO_NAME, TrainingDomain, patch_loader
from medseg3d.training.learner import in_trusted_precision, make_learner
from medseg3d.training.learning_rate_search import LearningRateCurve, find_learning_rate
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.first_stage import first_stage
from medseg3d.workflows.splits import read_split
from medseg3d.workflows.verb import verb

logger = logging.getLogger(__name__)
FIGURE, RECORD = "learning_rate.png", "learning_rate.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRateResult:
    """What was found for a fold of ``configuration``, beside the plan's learning rate, and where figure and numbers lie."""

    configuration: str
    fold: str
    planned: float
    curve: LearningRateCurve
    figure: Path
    record: Path


@verb(FindLrOptions)
def find_lr(root: Path, work: Path | None, options: FindLrOptions, on: Listener) -> LearningRateResult:
    """Search from fresh weights; writes ``learning_rate.png`` and ``learning_rate.json`` into the fold's folder and nothing else there.

    A trained fold stays as it is. Optimizer, gradient clip, augmentation and, unless it is given, the batch size are those of the
    plan, and the precision is checked as in training. Raises :class:`InputError` where no case of the fold is preprocessed,
    and what :func:`find_learning_rate` raises.
    """
    folder, fold, num_steps, seed = work_folder(root, work), options.fold, options.num_steps, options.seed
    plan = folder.read_plan()
    chosen = plan.configuration(options.configuration)
    cases = _training_cases(folder, chosen, fold)
    first = first_stage(domain_of(root, work), chosen, [case.name for case in cases], device=options.device, on=on)
    if first is not None:
        cases = [case for case in cases if case.name in first.cases]
        boxes = first.boxes
        cases = cases if boxes is None else [BoxedCase(case, boxes[case.name]) for case in cases]
    target = folder.fold(chosen.name, fold)
    use_all_cores()
    run_on = choose_device(options.device)
    samples = options.batch_size or chosen.batch_size
    previous = None if first is None else first.maps
    domain = TrainingDomain(name=NO_NAME, plan=plan, configuration=chosen, training=cases, validation=(), previous=previous)
    learner = make_learner([domain], run_on, seed=seed)
    learner = in_trusted_precision(learner, [domain], [samples], seed=seed, is_trained=False)
    loader = patch_loader(domain, batch_size=samples, seed=seed, on_gpu=run_on.is_gpu)
    # closing: a search that ends early must end the reading threads at once
    with closing(loader.batches(0, num_steps)) as batches:
        curve = find_learning_rate(
            learner,
            (augment(batch, domain.policy, run_on.device) for batch in batches),
            domain.loss,
            num_steps=num_steps,
            on_step=lambda step, steps: on(Event(stage=f"find learning rate of {chosen.name} fold {fold}", done=step, total=steps)),
        )
    logger.info("Found for %s fold %s: suggested %s, diverged at %s.", chosen.name, fold, curve.suggested, curve.diverged)
    return LearningRateResult(
        configuration=chosen.name,
        fold=fold,
        planned=chosen.training.learning_rate,
        curve=curve,
        figure=learning_rate_figure(
            curve, target / FIGURE, planned=chosen.training.learning_rate, title=f"Learning rate search, {chosen.name}, fold {fold}"
        ),
        record=write_record(target / RECORD, curve, "learning_rate"),
    )


def _training_cases(folder: WorkFolder, configuration: Configuration, fold: str) -> list[StoredCase]:
    """Those of the fold that are preprocessed, read from the disk patch by patch: a search draws too few to load them whole."""
    store = Store(folder.store(configuration.data))
    cases = [store.read(name) for name in read_split(folder, fold).train if name in store]
    if not cases:
        raise InputError(
            f"{folder.root}: no training case of fold {fold} is preprocessed for {configuration.name}. "
            f"Run medseg3d preprocess -c {configuration.name} first."
        )
    return cases
