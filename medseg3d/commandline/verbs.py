"""The verbs of the command line: each takes its record, calls the workflow of its name, and shows what comes back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medseg3d.commandline import commands as c
from medseg3d.commandline.arguments import Command
from medseg3d.commandline.examples import USAGES
from medseg3d.commandline.questions import is_interactive
from medseg3d.errors import CaseFailure, CasesFailedError, InputError
from medseg3d.options import DistillOptions, MeasureOptions
from medseg3d.processes import is_one_of_several
from medseg3d.wording import counted, listed

if TYPE_CHECKING:
    from medseg3d.commandline.console import Console
    from medseg3d.domain import Domain
    from medseg3d.evaluation.metrics import Evaluation
    from medseg3d.options import RunOptions
    from medseg3d.training.initial import TakenOver
    from medseg3d.work_folder import WorkFolder
    from medseg3d.workflows.plan import PlanResult
    from medseg3d.workflows.preprocess import PreprocessResult

Result = TypeVar("Result")
Results = Mapping[str | None, Result]

FIRST_TRY = "--planner small --folds 0 --minutes 5"
"""Of a dataset to try with: all steps in minutes without a GPU. The plan's own length takes days there."""


def _plan(options: c.PlanCommand, console: Console) -> None:
    from medseg3d.workflows.plan import plan_from_fingerprint
    from medseg3d.workflows.plan_domains import plan_domains, share_a_network

    with console:
        if options.fingerprint is None:
            results = plan_domains(options.datasets, options.work, options, console.listen)
        elif share_a_network(options.datasets, options.work, options.planner):
            raise InputError("--fingerprint plans a single dataset without its images.")
        else:
            results = {None: plan_from_fingerprint(options.fingerprint, options.work, options)}
    console.show(results, lambda result: console.show_plan(result, explain=options.with_candidates))
    _report_failures(results, "cannot be used; the plan was made from the others")


def _preprocess(options: c.PreprocessCommand, console: Console) -> None:
    from medseg3d.workflows.preprocess import preprocess

    def verb(domain: Domain) -> PreprocessResult:
        chosen = replace(options, configurations=options.configurations or domain.configuration)
        return preprocess(domain.dataset, domain.folder.root, chosen, console.listen)

    with console:
        results = _for_each(verb, options)
    console.show(results, console.show_preprocessed)
    _report_failures(results, "could not be preprocessed; the others are done")


def _train(options: c.TrainCommand, console: Console) -> None:
    from medseg3d.workflows.add_domain import add_domain
    from medseg3d.workflows.team_member import take_part
    from medseg3d.workflows.train import refuse_choice, train, what_was_taken

    if options.validate:
        console.warn("train --validate is called medseg3d validate now.")
        _validate(c.ValidateCommand.of(options), console)
        return
    if options.find_lr:
        console.warn("train --find-lr is called medseg3d find-lr now.")
        _find_lr(c.FindLrCommand.of(options), console)
        return
    with console:
        if is_one_of_several(os.environ) and options.add_domain is None:
            results = take_part(options.dataset, options.work, options, os.environ, console.listen)
        elif options.add_domain is None:
            _tell_divided(options, console)
            results = train(options.dataset, options.work, options, console.listen)
        else:
            refuse_choice(options.dataset, options.configuration)
            results = add_domain(options.add_domain, options.work, options, console.listen)
    taken = None if options.add_domain is not None else what_was_taken(options.dataset, options.work, options)
    _show_validation(results, options.fold, console, began_with=taken)


def _validate(options: c.ValidateCommand, console: Console) -> None:
    from medseg3d.workflows.validate import validate_domain

    with console:
        _tell_divided(options, console)
        results = _for_each(lambda domain: validate_domain(domain, options, console.listen), options)
    _show_validation(results, options.fold, console)


def _tell_divided(options: c.TrainCommand | c.ValidateCommand, console: Console) -> None:
    """Say where a fold trains and validates on images of one patient."""
    from medseg3d.domain import domains_of
    from medseg3d.workflows.choose_folds import tell_divided

    for domain in domains_of(options.dataset, options.work):
        if domain.folder.splits.exists() and options.fold != "all":
            tell_divided(domain.folder.splits, console.listen)


def _show_validation(results: Results[Evaluation | None], fold: str, console: Console, *, began_with: TakenOver | None = None) -> None:
    title = f"Validation of fold {fold}"
    console.show(results, lambda evaluation: console.show_evaluation(evaluation, title=title, began_with=began_with))
    _report_failures(results, "failed; the others are used", lost=tuple(console.lost.values()))


def _find_lr(options: c.FindLrCommand, console: Console) -> None:
    from medseg3d.domain import domain_of
    from medseg3d.workflows.find_lr import find_lr

    domain = domain_of(options.dataset, options.work, options.domain)
    with console:
        chosen = replace(options, configuration=options.configuration or domain.configuration)
        found = find_lr(domain.dataset, domain.folder.root, chosen, console.listen)
    console.show_learning_rate(found)


def _select(options: c.SelectCommand, console: Console) -> None:
    from medseg3d.workflows.select import select

    with console:
        results = _for_each(lambda domain: select(domain.dataset, domain.folder.root, options, console.listen), options)
    console.show(results, console.show_selection)


def _compare(options: c.CompareCommand, console: Console) -> None:
    from medseg3d.workflows.compare import compare

    with console:
        comparison = compare(options.dataset, options.work, options, console.listen)
    console.show_comparison(comparison)


def _predict(options: c.PredictCommand, console: Console) -> None:
    from medseg3d.commandline.case_tables import structure_table
    from medseg3d.domain import domain_of
    from medseg3d.workflows.predict import predict

    if options.model is not None and (options.dataset != Path() or options.work is not None or options.domain is not None):
        raise InputError("-m names the model: leave out the dataset, -w and --domain.")
    model = options.model
    if model is None:
        domain = domain_of(options.dataset, options.work, options.domain)
        is_named = options.work is not None or domain.name is not None
        model = domain.folder.root if is_named else options.dataset  # or a model in the place of the dataset
    with console:
        result = predict(options.input, options.output, options, model=model, on=console.listen)
    console.show_predicted(result)
    if result.structures is not None and not options.json:
        console.show_parts(None, structure_table(result.structures))
    others = "the others are done" if result.written or result.kept else "no other is left"
    _report_failures({None: result}, f"could not be predicted; {others}")


def _evaluate(options: c.EvaluateCommand, console: Console) -> None:
    from medseg3d.workflows.evaluate import evaluate

    with console:
        evaluation = evaluate(options.predictions, options.references, output=options.output, seed=options.seed, on=console.listen)
    console.show_evaluation(evaluation, title="Evaluation")
    others = "the others are done" if evaluation.cases else "no other is left, so nothing is written"
    _report_failures({None: evaluation}, f"could not be evaluated; {others}")
    if missing := evaluation.missing_predictions:
        message = f"{counted(len(missing), 'reference')} without a prediction; the means are over the others: {listed(missing)}."
        raise CasesFailedError(message, ())


def _propose(options: c.ProposeCommand, console: Console) -> None:
    from medseg3d.commandline.case_tables import proposal_table
    from medseg3d.records import to_plain
    from medseg3d.workflows.propose import propose

    with console:
        found = propose(options.dataset, options.work, options, console.listen)
    console.show_parts(to_plain(found), proposal_table(found))
    _report_failures({None: found}, "could not be predicted, and are not proposed")


def _correct(options: c.CorrectCommand, console: Console) -> None:
    from medseg3d.commandline.case_tables import correction_table
    from medseg3d.records import to_plain
    from medseg3d.work_folder import work_folder
    from medseg3d.workflows.correct import correct

    with console:
        now = correct(options.dataset, options.work, options, console.listen)
    console.show_parts(to_plain(now), correction_table(now, work_folder(options.dataset, options.work).root))


def _measure(options: c.MeasureCommand, console: Console) -> None:
    from medseg3d.commandline.case_tables import structure_table
    from medseg3d.records import to_plain
    from medseg3d.workflows.measure import measure

    with console:
        found = measure(options.label_maps, options.images, MeasureOptions.of(options), output=options.output, on=console.listen)
    console.show_parts(to_plain(found), structure_table(found))
    others = "the others are done" if found.cases else "no other is left, so nothing is written"
    _report_failures({None: found}, f"could not be measured; {others}")


def _distill(options: c.DistillCommand, console: Console) -> None:
    from medseg3d.workflows.distill import distill

    with console:
        made = distill(options.dataset, options.model, options.output, DistillOptions.of(options), on=console.listen)
    said = f"{made.dataset}: {counted(made.num_cases, 'case')} with soft labels. Next: medseg3d run {made.dataset} --planner small"
    console.show_parts({"dataset": str(made.dataset), "num_cases": made.num_cases}, [said])
    _report_failures({None: made}, "could not be distilled; the others are done")


def _run(options: c.RunCommand, console: Console) -> None:
    from medseg3d.workflows.run import run_domains

    if options.dry_run:
        _dry_run(options, console)
        return
    asks = is_interactive() and not (options.yes or options.json or options.quiet)
    with console:
        review = partial(_review, console) if asks else None
        results = run_domains(options.datasets, options.work, options, console.listen, review=review)
    console.show(results, console.show_run)
    _report_failures(results, "failed; the others are done")


def _review(console: Console, planned: PlanResult, folder: WorkFolder, options: RunOptions) -> RunOptions:
    """Ask what only a person knows, before anything is trained."""
    from medseg3d.commandline.questions import answered, asked_hours, standard_terminal
    from medseg3d.fingerprint.records import Fingerprint
    from medseg3d.records import read_record
    from medseg3d.workflows.estimate import estimates, measured_speed
    from medseg3d.workflows.unknown import unknown_of

    terminal = standard_terminal()
    with console.paused():
        fingerprint = read_record(folder.fingerprint, Fingerprint, "fingerprint")
        options = answered(unknown_of(planned.plan, fingerprint, options), options, terminal)
        if options.hours is None and options.epochs is None and options.cluster is None:
            speed = measured_speed(options.device)
            folds = estimates(planned.plan, folder, options, speed, num_folds=len(planned.folds.folds) if planned.folds else 1)
            options = asked_hours(folds, speed.device, options, terminal)
    return options


def _dry_run(options: c.RunCommand, console: Console) -> None:
    from medseg3d.workflows.dry_run import dry_run
    from medseg3d.workflows.plan_domains import share_a_network

    if share_a_network(options.datasets, options.work, options.planner):
        raise InputError("--dry-run is for a single dataset.")
    with console:
        found = dry_run(options.datasets[0] if options.datasets else Path(), options.work, options, console.listen)
    console.show_dry_run(found, options.hours)


def _export(options: c.ExportCommand, console: Console) -> None:
    from medseg3d.workflows.export import export_model

    with console:
        result = export_model(
            options.model,
            options.output,
            format=options.format,
            configuration=options.configuration,
            folds=options.folds,
            level=options.level,
        )
    console.show_exported(result)


def _import(options: c.ImportCommand, console: Console) -> None:
    from medseg3d.models.sources import kind_of

    if kind_of(options.model) not in ("nnU-Net result folder", "nnU-Net zip"):
        raise InputError(f"{options.model}: not an nnU-Net result folder; expected plans.json, dataset.json and fold_K/checkpoint_*.pth.")
    _export(c.ExportCommand.of(options, format="medseg3d"), console)


def _info(options: c.InfoCommand, console: Console) -> None:
    from medseg3d.domain import is_universal, read_domains
    from medseg3d.work_folder import WorkFolder
    from medseg3d.workflows.info import info

    work = WorkFolder(options.model)
    places = {domain.name: domain.folder.root for domain in read_domains(work)} if is_universal(work) else {None: options.model}
    with console:
        results = {name: info(place) for name, place in places.items()}
    console.show(results, console.show_info)


def _serve(options: c.ServeCommand, console: Console) -> None:
    from medseg3d.workflows.serve import serve

    with console:
        token = options.token or os.environ.get("MEDSEG3D_TOKEN")
        serve(options.model, replace(options, token=token), console.listen)


def _listen(options: c.ListenCommand, console: Console) -> None:
    from medseg3d.workflows.listen import listen

    with console:
        listen(options.rules, options, console.listen)


def _doctor(options: c.DoctorCommand, console: Console) -> int:
    from medseg3d.workflows.doctor import doctor

    with console:
        reports = _for_each(lambda domain: doctor(domain.dataset, fix=options.fix, on=console.listen), options)
    codes: list[int] = []
    console.show(reports, lambda report: codes.append(console.show_doctor(report)))
    return max(codes)


def _demo(options: c.DemoCommand, console: Console) -> None:
    from medseg3d.workflows.demo import demo

    with console:
        demo(options.folder, seed=options.seed, dicom=options.dicom)
    console.say(f"A phantom dataset lies in {options.folder}. Try: medseg3d run {options.folder} {FIRST_TRY}")


def _report(options: c.ReportCommand, console: Console) -> None:
    from medseg3d.workflows.run import write_report

    with console:
        pages = _for_each(
            lambda domain: write_report(
                domain.dataset,
                domain.folder,
                is_uncertainty_shown=options.uncertainty,
                device=str(options.device),
                study=options.study,
            ),
            options,
        )
    console.show(pages, lambda page: console.say(f"The report lies in {page}"))


def _reproduce(options: c.ReproduceCommand, console: Console) -> int:
    from medseg3d.workflows.reproduce import reproduce

    with console:
        result = reproduce(options.work, options, console.listen)
    console.show_reproduction(result)
    return 0 if result.is_same else CasesFailedError.exit_code


def _slurm(options: c.SlurmCommand, console: Console) -> None:
    from medseg3d.workflows.slurm import slurm

    with console:
        result = slurm(options.dataset, options.work, options)
    console.say(f"{counted(len(result.jobs), 'job')} written into {result.submit.parent}. Look at them, then submit them: {result.submit}")


def _completion(options: c.CompletionCommand, console: Console) -> None:
    from medseg3d.commandline.completion import completion

    sys.stdout.write(completion(options.shell, COMMANDS))  # as it is: no line may be broken


def _docs(options: c.DocsCommand, console: Console) -> None:
    from medseg3d.pages import page_of, pages, section_of

    if options.page is None:
        console.show_pages(pages())
        return
    name, _, anchor = options.page.partition("#")
    path = page_of(USAGES[name].page if name in USAGES and name not in pages() else name)
    text = path.read_text(encoding="utf-8")
    console.show_page(path, section_of(text, anchor) if anchor else text)


def _for_each(verb: Callable[[Domain], Result], options: c.OnDomain) -> Results[Result]:
    """What a verb gives for each domain that is meant, by its name; of an ordinary work folder for the only one, which has none."""
    from medseg3d.domain import domains_of

    return {domain.name: verb(domain) for domain in domains_of(options.dataset, options.work, options.domain)}


def _report_failures(results: Mapping[str | None, Any], what: str, *, lost: Sequence[CaseFailure] = ()) -> None:
    """End with exit code 3 where a case failed; ``what`` became of these and of the others. ``lost`` are cases that no result tells of."""
    failed: list[CaseFailure] = [failure for result in results.values() if result is not None for failure in result.failures]
    failed += [failure for failure in lost if failure.case not in {each.case for each in failed}]
    if failed:
        raise CasesFailedError(f"{counted(len(failed), 'case')} {what}:", failed)


COMMANDS: Mapping[str, Command[Any]] = {
    "run": Command("the whole chain, ending in a report page", c.RunCommand, _run),
    "plan": Command("measure the dataset and decide spacing, patch, batch and network", c.PlanCommand, _plan),
    "preprocess": Command("crop, normalize and resample all cases", c.PreprocessCommand, _preprocess),
    "train": Command("train one fold; run it again to go on where it stopped", c.TrainCommand, _train),
    "validate": Command("predict and evaluate a trained fold's validation cases again", c.ValidateCommand, _validate),
    "find-lr": Command("try learning rates from small to large on a fold and suggest one", c.FindLrCommand, _find_lr),
    "select": Command("choose the best configuration or ensemble of two, and the postprocessing", c.SelectCommand, _select),
    "compare": Command("train several presets alike on one fold, and compare them case by case", c.CompareCommand, _compare),
    "predict": Command("label maps for new images", c.PredictCommand, _predict),
    "evaluate": Command("evaluate label maps against references", c.EvaluateCommand, _evaluate),
    "propose": Command("which images to annotate next: those that the model is unsure of, and unlike ones", c.ProposeCommand, _propose),
    "correct": Command("take corrected label maps into the training set and learn on from the present weights", c.CorrectCommand, _correct),
    "measure": Command("volume, place, intensities and distances of each structure", c.MeasureCommand, _measure),
    "distill": Command("teach a small network what a model knows: a dataset with its probabilities", c.DistillCommand, _distill),
    "doctor": Command("find what is wrong with a dataset", c.DoctorCommand, _doctor),
    "demo": Command("make a phantom dataset to try everything on", c.DemoCommand, _demo),
    "report": Command("write report.html again from what is there", c.ReportCommand, _report),
    "export": Command("write a model as one file, as ONNX, or as a MONAI bundle", c.ExportCommand, _export),
    "import": Command("take a model that another program trained", c.ImportCommand, _import),
    "info": Command("what a model is: labels, networks, folds, metrics", c.InfoCommand, _info),
    "serve": Command("keep a model warm and predict what is sent to it", c.ServeCommand, _serve),
    "listen": Command("take DICOM studies in by rules, predict them and send the results on", c.ListenCommand, _listen),
    "reproduce": Command("make a run again from its record, and say whether it is the same bit for bit", c.ReproduceCommand, _reproduce),
    "slurm": Command("write the jobs of a plan for Slurm, one fold a job", c.SlurmCommand, _slurm),
    "docs": Command("show the documentation that came with the package", c.DocsCommand, _docs),
    "completion": Command("print a script that completes commands, options and files in a shell", c.CompletionCommand, _completion),
}
"""The verbs by their name, in the order of ``--help``."""
