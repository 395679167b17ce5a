"""Train: one fold of a network, of a dataset or of several that share it, from preprocessed cases to weights and measured label maps."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from medseg3d.data.dataset import Split
from medseg3d.devices import choose_device, deterministic_algorithms, several_devices, use_all_cores
from medseg3d.domain import UNIVERSAL, Domain, domains_of, refuse_part_of_several
from medseg3d.errors import CaseFailure, InputError, InterruptedBySignalError
from medseg3d.evaluation.metrics import Evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.files import remove_tree
from medseg3d.locks import Lock
from medseg3d.models.checkpoints import load_tensors, read_card
from medseg3d.networks.build import sharing_of
from medseg3d.options import TrainOptions, ValidateOptions
from medseg3d.records import read_record, to_plain, write_record
from medseg3d.signals import StopRequest, stop_on_signals
from medseg3d.team import ALONE, Team
from medseg3d.training.domains import NO_NAME, TrainingDomain
from medseg3d.training.initial import InitialWeights, TakenOver
from medseg3d.training.loop import train_domains
from medseg3d.training.state import BEST, LAST, STATE, TrainingState, read_summary, saved_tuning
from medseg3d.training.tuning import tuning_for
from medseg3d.validation.box import BOXES
from medseg3d.wording import counted, listed
from medseg3d.work_folder import work_folder
from medseg3d.workflows.domain_weights import export_domains
from medseg3d.workflows.first_stage import first_stage
from medseg3d.workflows.initial_weights import image_contents, initial_weights
from medseg3d.workflows.origins import note_training_data
from medseg3d.workflows.plan_time import tell_of_unplanned_time
from medseg3d.workflows.processes import train_on_devices
from medseg3d.workflows.profiling import profiled
from medseg3d.workflows.progress import Length, follow
from medseg3d.workflows.renew_cases import renew_cases
from medseg3d.workflows.run_record import RunRecord, facts_of, from_anywhere, note_run, this_environment, train_command
from medseg3d.workflows.splits import ALL_CASES, check_cascade, check_fold, own_fold, plan_digest, read_split, seed_of, stored_cases
from medseg3d.workflows.taking_turns import added_folders, fold_lock, joining_lock
from medseg3d.workflows.tracking import tracked
from medseg3d.workflows.validate import validate_domain
from medseg3d.workflows.verb import verb

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFold:
    """What one training is of: a fold of the network of some domains, whose weights lie in ``folder``.

    ``added`` is the domain that joins it, where it is there already and only the parts of that one are trained, in a folder below.
    """

    name: str
    fold: str
    folder: Path
    domains: tuple[Domain, ...]
    added: str | None = None

    @property
    def target(self) -> Path:
        """Where the training leaves its files."""
        return self.folder if self.added is None else added_folders(self.folder) / self.added


@verb(TrainOptions)
def train(root: Path, work: Path | None, options: TrainOptions, on: Listener) -> dict[str | None, Evaluation | None]:
    """Train a fold to its end, going on where an earlier run stopped, then validate it; by domain, None where there is nothing to measure.

    The domains of a universal work folder are trained together; one with fewer folds takes part with fold ``fold`` modulo their number.
    ``tta`` is the mirroring of the validation cases: ``on``, ``off``, or both ways, of which the better one stays (``auto``).
    Raises :class:`InterruptedBySignalError` when SIGINT or SIGTERM came: the state is saved then, and the best weights so far can be used.
    Raises :class:`BusyError` where another process trains or validates the fold.
    """
    network = network_fold(root, work, options)
    if options.hours is not None and len(network.domains) == 1 and not (network.target / LAST).exists():
        tell_of_unplanned_time(network.domains[0].folder, options.hours)
    with tracked(options.track, on) as listener:
        if options.devices is not None:
            places = several_devices(str(options.devices))
            options = replace(options, devices=None, device=places[0])
            if len(places) > 1:
                train_on_devices(root, work, options, places, listener)
                return measured(network, options, on)
        return train_in_team(network, options, ALONE, listener)


def network_fold(root: Path, work: Path | None, options: TrainOptions) -> NetworkFold:
    """What the options train; raises :class:`InputError` for what is not there."""
    domains = _trained_together(root, work, options.configuration)
    refuse_part_of_several(work_folder(root, work))
    check_fold(domains, options.fold)
    name = str(domains[0].configuration) if domains[0].name is None else UNIVERSAL
    return NetworkFold(name=name, fold=options.fold, folder=work_folder(root, work).fold(name, options.fold), domains=domains)


def train_in_team(network: NetworkFold, options: TrainOptions, team: Team, on: Listener) -> dict[str | None, Evaluation | None]:
    """:func:`train` in one process of a team, whose first one holds the fold and writes what all of them have made."""
    with fold_lock(network.folder, "is being trained") if team.is_first else nullcontext() as lock:
        if not _others_joined(network, options):
            if options.restart:
                team.in_turn(lambda: remove_joined(network) if team.is_first else None)
            train_network(network, options, lock, on, team)
        found = measured(network, options, on, team)
        if team.is_first:
            _tell_results(network, found, on)
        return found


def what_was_taken(root: Path, work: Path | None, options: TrainOptions) -> TakenOver | None:
    """What the run of a fold took of the weights that it began with; None where these were fresh, or an older version has begun it."""
    domains = _trained_together(root, work, options.configuration)
    name = str(domains[0].configuration) if domains[0].name is None else UNIVERSAL
    state = read_summary(work_folder(root, work).fold(name, options.fold))
    return None if state is None else state.taken


def _trained_together(root: Path, work: Path | None, configuration: str | None) -> tuple[Domain, ...]:
    """The domains of a network, each with the configuration that it trains."""
    domains = domains_of(root, work)
    if domains[0].name is not None:
        refuse_choice(root, configuration)
    return tuple(
        replace(domain, configuration=domain.folder.read_plan().configuration(domain.configuration or configuration).name)
        for domain in domains
        if not domain.is_added
    )


def refuse_choice(root: Path, configuration: str | None) -> None:
    """Raise :class:`InputError` where a dataset or a configuration is named for a network of several."""
    if configuration is not None or root != Path():
        raise InputError("A universal network trains the configuration and the datasets of its plan: leave -c and DATASET out.")


def _others_joined(network: NetworkFold, options: TrainOptions) -> bool:
    """Domains joined the network, which is finished and must stay as it is; raises :class:`InputError` where it could not."""
    joined = ", ".join(sorted(path.name for path in added_folders(network.folder).glob("*")))
    if not joined or options.restart:
        return False
    if options.init is not None:
        raise InputError(f"--init {options.init}: {network.folder} holds a network that {joined} joined. Leave --init out, or --restart.")
    if not is_finished(network.folder) or options.epochs is not None or options.hours is not None:
        raise InputError(
            f"{network.folder}: {joined} joined this network. Training it on would change what they stand on; --restart trains it "
            "anew, and they have to join again."
        )
    return True


def remove_joined(network: NetworkFold) -> None:
    """Delete what domains that joined have trained; raises :class:`BusyError` where one is being trained."""
    with ExitStack() as held:
        for folder in sorted(added_folders(network.folder).glob("*")):
            held.enter_context(fold_lock(folder, "is being deleted"))
        remove_tree(added_folders(network.folder))


def is_finished(target: Path) -> bool:
    """The training in a folder came to its end."""
    return (target / STATE).exists() and read_record(target / STATE, TrainingState, "training").is_finished


def train_network(network: NetworkFold, options: TrainOptions, lock: Lock | None, on: Listener, team: Team = ALONE) -> None:
    """Train to the end or to a signal; either way each domain of a common network has its weights then."""
    domains = team.in_turn(lambda: [training_domain(domain, network.fold, on, device=options.device) for domain in network.domains])
    first, target, stage = domains[0], network.target, f"train {network.name} fold {network.fold}"
    if team.is_first:
        note_training_data(target, _data_of(domains), is_restart=options.restart, weights=first.previous_weights)
        if first.boxes is not None and (options.restart or not (target / LAST).exists()):
            write_record(target / BOXES, first.boxes, "boxes")
    length = _length(options, first, target)
    on(Event(stage=stage, total=length.epochs))
    stop: StopRequest

    is_noted = not team.is_first

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal is_noted
        if not is_noted:  # not before: a run with other settings is refused, and a finished one is left as it is
            _note_run(network, options, domains, team, on)
            is_noted = True
        on(Event(stage=f"{stage}, epoch {epoch}", done=step, total=steps, overall=length.done(epoch, step / steps)))
        tick()

    def on_validation(epoch: int, done: int, total: int) -> None:
        on(Event(stage=f"{stage}, epoch {epoch}, validating", done=done, total=total, overall=length.done(epoch, 1.0)))

    try:
        with (
            stop_on_signals() as stop,
            deterministic_algorithms(options.deterministic),
            profiled(options.profile and team.is_first, target / "profile", on) as tick,
        ):
            epochs = train_domains(
                domains,
                name=network.name,
                fold=network.fold,
                folder=target,
                device=choose_device(options.device),
                options=replace(options, seed=seed_of(network.domains, network.fold, options.seed)),
                plan_digest=_digest(network, domains),
                stop=stop,
                init=_initial(network, first, options.init),
                added=network.added,
                tuning=tuning_for(options, None if options.restart else saved_tuning(target), target),
                check=(lambda: None) if lock is None else lock.check,
                team=team,
                on_step=on_step,
                on_validation=on_validation,
            )
            if team.is_first:
                follow(epochs, f"{network.name}, fold {network.fold}" + (f", adding {network.added}" if network.added else ""), target, on)
            else:
                deque(epochs, maxlen=0)
    finally:  # also where it was stopped or diverged: the best weights so far can be used
        if first.name != NO_NAME and team.is_first:
            with joining_lock(network.folder):  # several domains may be added at the same time
                export_domains(network.domains, target, network.folder, network.fold, network.added)
    if stop.signal_number is not None:
        again = " without --restart" if options.restart else ""
        advice = f"Run the same command again{again} to go on."
        raise InterruptedBySignalError(stop.signal_number, f"Stopped; the state is saved in {target}. {advice}")


def _length(options: TrainOptions, first: TrainingDomain, target: Path) -> Length:
    """How long the training is to be, and what of it an earlier run has used."""
    before = None if options.restart else read_summary(target)
    return Length(
        epochs=options.epochs or first.configuration.training.epochs,
        hours=options.hours,
        used_seconds=0.0 if before is None else before.elapsed_seconds,
    )


def _data_of(domains: Sequence[TrainingDomain]) -> dict[str, str]:
    """The digest of each training case."""
    return {f"{domain.name}/{case.name}".lstrip("/"): case.digest for domain in domains for case in domain.training}


def _note_run(network: NetworkFold, options: TrainOptions, domains: Sequence[TrainingDomain], team: Team, on: Listener) -> None:
    """Write what this training is beside its weights, and tell it to whoever keeps track of it."""
    work, plan = network.folder.parent.parent.parent, domains[0].plan
    goes_on = (network.target / LAST).exists()
    dataset, options = network.domains[0].dataset.absolute(), from_anywhere(options)
    if network.domains[0].name is None:
        options = replace(options, configuration=network.name)
    record = RunRecord(
        command=train_command(dataset, work.absolute(), options),
        dataset=str(dataset),
        options=options,
        seed=seed_of(network.domains, network.fold, options.seed),
        plan_digest=_digest(network, domains),
        data=_data_of(domains),
    )
    use_all_cores()
    environment = this_environment(device=str(choose_device(options.device).device), processes=team.size)
    written = note_run(network.target, record, environment, goes_on=goes_on)
    configuration = to_plain(domains[0].configuration)
    facts = {"dataset": plan.dataset, "planner": plan.planner, "labels": list(plan.labels.names), "configuration": configuration}
    on(Event(stage="train", facts=facts_of(written, work=work, folder=network.target, plan=facts, goes_on=goes_on)))


def _initial(network: NetworkFold, first: TrainingDomain, init: Path | None) -> InitialWeights | None:
    """The weights to begin with; there may be a warning that they have seen the validation cases of a dataset of its own."""
    if init is None:
        return None
    plan = first.plan if first.name == NO_NAME else None
    contents = image_contents(network.domains[0].folder)
    validation = {case.name: (case.digest.partition("-")[0], contents.get(case.name, "")) for case in first.validation}
    return initial_weights(init, configuration=first.configuration.name, fold=network.fold, plan=plan, validation=validation)


def _without(split: Split, failed: Collection[str]) -> Split:
    if failed:
        logger.warning(
            "%s cannot be preprocessed as %s now; training without %s.",
            listed(sorted(failed)),
            "it is" if len(failed) == 1 else "they are",
            "it" if len(failed) == 1 else "them",
        )
    kept = [tuple(name for name in names if name not in failed) for names in (split.train, split.validation)]
    return Split(train=kept[0], validation=kept[1])


def training_domain(domain: Domain, fold: str, on: Listener = silent, *, device: str = "auto") -> TrainingDomain:
    """A domain as training sees it; stored cases that are damaged or out of date are made again before.

    So are the label maps of the first stage of a cascade; cases without one are left out, as are those that cannot be made again: what is
    stored of them is no longer true.
    """
    plan, wanted = domain.folder.read_plan(), _split_of(domain, fold)
    configuration = plan.configuration(domain.configuration)
    check_cascade(domain, configuration)
    failures = renew_cases(domain.dataset, domain.folder, plan, configuration, (*wanted.train, *wanted.validation), on=on)
    split = _without(wanted, {failure.case for failure in failures})
    first = first_stage(domain, configuration, (*split.train, *split.validation), device=device, on=on)
    if first is not None:
        kept = [tuple(name for name in names if name in first.cases) for names in (split.train, split.validation)]
        split = Split(train=kept[0], validation=kept[1])
    training, validation = stored_cases(domain.folder, configuration, split, None if first is None else first.boxes)
    lost = _lost(wanted, failures, {case.name for case in (*training, *validation)})
    if lost:
        on(Event(stage="train", failures=tuple(replace(each, case=domain.named(each.case)) for each in lost)))
    if len(training) < 3:
        few = counted(len(training), "training case")
        logger.warning("%s", domain.named(f"Only {few}: expect a network that knows what it was shown and little else."))
    return TrainingDomain(
        name=domain.name or NO_NAME,
        plan=plan,
        configuration=configuration,
        training=training,
        validation=validation,
        previous=None if first is None else first.maps,
        previous_weights={} if first is None else first.weights,
        boxes=None if first is None else first.choice,
    )


def _lost(wanted: Split, failures: Sequence[CaseFailure], used: Collection[str]) -> tuple[CaseFailure, ...]:
    """The cases of a fold that the training goes on without, each with the reason."""
    known = {failure.case: failure for failure in failures}
    reason = "is not part of the training: it is not preprocessed, or damaged, or has no label map of the first stage."
    names = (name for name in (*wanted.train, *wanted.validation) if name not in used)
    return tuple(known.get(name) or CaseFailure(case=name, stage="train", reason=reason) for name in dict.fromkeys(names))


def _split_of(domain: Domain, fold: str) -> Split:
    return read_split(domain.folder, own_fold(domain, fold))


def _digest(network: NetworkFold, domains: Sequence[TrainingDomain]) -> str:
    """Changes when the plan or the cases of any domain change, the domains themselves, or the shared tensors that one is added to."""
    digests = {
        trained.name: plan_digest(trained.plan, trained.configuration, _split_of(domain, network.fold))
        for domain, trained in zip(network.domains, domains, strict=True)
    }
    if NO_NAME in digests:
        return digests[NO_NAME]
    digest = hashlib.blake2b(digest_size=8)
    for name, own in digests.items():
        digest.update(f"{name} {own}".encode())
    if network.added is not None:
        domain_of = sharing_of(read_card(network.folder / BEST).networks).domain_of
        for key, tensor in sorted(load_tensors(network.folder / BEST)[0].items()):
            if domain_of(key) is None:
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _tell_results(network: NetworkFold, found: Mapping[str | None, Evaluation | None], on: Listener) -> None:
    """The Dice of whole validation cases, beside the curves of the training."""
    state, values = read_summary(network.target), {}
    for name, evaluation in found.items():
        domain = "" if name is None else f"{name}/"
        for label in () if evaluation is None else evaluation.labels:
            if label.dice.mean is not None:
                values[f"validation_dice/{domain}{label.name}"] = label.dice.mean
    if values and state is not None:
        on(Event(stage="validate", values=values, step=state.epoch))


def measured(network: NetworkFold, options: TrainOptions, on: Listener, team: Team = ALONE) -> dict[str | None, Evaluation | None]:
    """Validate what was trained, where that is not done yet; by domain, None where there is nothing to validate on."""
    found: dict[str | None, Evaluation | None] = {}
    for domain in network.domains:
        if network.fold == ALL_CASES or not _split_of(domain, network.fold).validation:
            message = domain.named("Trained on all cases: there is nothing to validate on, so the quality is not known.")
            on(Event(stage="validate", message=message))
            found[domain.name] = None
        else:
            found[domain.name] = validate_domain(domain, ValidateOptions.of(options, keep_finished=True), on, team)
    return found
