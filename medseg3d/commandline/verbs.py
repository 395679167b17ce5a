"""The verbs of the command line: each takes its record, calls the workflow of its name, and shows what comes back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg3d.commandline import commands as c
from medseg3d.commandline.arguments import Command
from medseg3d.errors import CaseFailure, CasesFailedError, InputError
from medseg3d.options import PlanningOptions
from medseg3d.wording import counted, listed

if TYPE_CHECKING:
    from medseg3d.commandline.console import Console


def _plan(options: c.PlanCommand, console: Console) -> None:
    from medseg3d.workflows.plan import plan, plan_from_fingerprint

    if _is_for_domains(options):
        _plan_domains(options, console)
        return
    with console:
        if options.fingerprint is not None:
            result = plan_from_fingerprint(options.fingerprint, options.work, options)
        else:
            result = plan(_only(options.datasets), options.work, options, console.listen)
    console.show_plan(result, explain=options.with_candidates)
    _report_failures(result.failures, "cannot be used; the plan was made from the others")


def _preprocess(options: c.PreprocessCommand, console: Console) -> None:
    from medseg3d.workflows.preprocess import preprocess

    if _is_for_domains(options):
        _preprocess_domains(options, console)
        return
    with console:
        result = preprocess(options.dataset, options.work, options, console.listen)
    console.show_preprocessed(result)
    _report_failures(result.failures, "could not be preprocessed; the others are done")


def _train(options: c.TrainCommand, console: Console) -> None:
    from medseg3d.work_folder import work_folder
    from medseg3d.workflows.choose_folds import tell_divided
    from medseg3d.workflows.train import train

    if options.add_domain is not None or _is_for_domains(options):
        _train_domains(options, console)
        return
    if options.validate:
        console.warn("train --validate is called medseg3d validate now.")
        _validate(c.ValidateCommand.of(options), console)
        return
    if options.find_lr:
        console.warn("train --find-lr is called medseg3d find-lr now.")
        _find_lr(c.FindLrCommand.of(options), console)
        return
    with console:
        splits = work_folder(options.dataset, options.work).splits
        if splits.exists() and options.fold != "all":
            tell_divided(splits, console.listen)
        evaluation = train(options.dataset, options.work, options, console.listen)
    if evaluation is not None:
        console.show_evaluation(evaluation, title=f"Validation of fold {options.fold}")
        _report_failures(evaluation.failures, "failed; the others are measured", noun="validation case")


def _validate(options: c.ValidateCommand, console: Console) -> None:
    from medseg3d.work_folder import work_folder
    from medseg3d.workflows.choose_folds import tell_divided
    from medseg3d.workflows.validate import validate

    with console:
        splits = work_folder(options.dataset, options.work).splits
        if splits.exists() and options.fold != "all":
            tell_divided(splits, console.listen)
        evaluation = validate(options.dataset, options.work, options, console.listen)
    console.show_evaluation(evaluation, title=f"Validation of fold {options.fold}")
    _report_failures(evaluation.failures, "failed; the others are measured", noun="validation case")


def _find_lr(options: c.FindLrCommand, console: Console) -> None:
    from medseg3d.workflows.find_lr import find_lr

    with console:
        found = find_lr(options.dataset, options.work, options, console.listen)
    console.show_learning_rate(found)


def _select(options: c.SelectCommand, console: Console) -> None:
    from medseg3d.workflows.select import select

    if _is_for_domains(options):
        from medseg3d.workflows.universal import domains_of

        with console:
            chosen = {name: select(root, work, options, console.listen) for name, root, work in domains_of(_work(options))}
        console.show_domains(chosen, lambda name, selection: console.show_selection(selection))
        return
    dataset, work = _resolved(options)
    with console:
        result = select(dataset, work, options, console.listen)
    console.show_selection(result)


def _predict(options: c.PredictCommand, console: Console) -> None:
    from medseg3d.models.nnunet import is_nnunet_model
    from medseg3d.workflows.predict import predict

    if options.model is not None and (options.dataset != Path() or options.work is not None):
        raise InputError("-m names the model: leave out the dataset and -w.")
    (dataset, work), model = _resolved(options), options.model
    if model is None and (options.dataset.is_file() or is_nnunet_model(options.dataset)):
        model, dataset = options.dataset, Path()  # a model in the place of the dataset, as info and export take it
    with console:
        result = predict(options.input, options.output, options, dataset=dataset, work=work, model=model, on=console.listen)
    console.show_predicted(result)
    others = "the others are done" if result.written or result.kept else "no other is left"
    _report_failures(result.failures, f"could not be predicted; {others}")


def _evaluate(options: c.EvaluateCommand, console: Console) -> None:
    from medseg3d.workflows.evaluate import evaluate

    with console:
        evaluation = evaluate(options.predictions, options.references, output=options.output, seed=options.seed, on=console.listen)
    console.show_evaluation(evaluation, title="Evaluation")
    others = "the others are done" if evaluation.cases else "no other is left, so nothing is written"
    _report_failures(evaluation.failures, f"could not be measured; {others}")
    if missing := evaluation.missing_predictions:
        message = f"{counted(len(missing), 'reference')} without a prediction; the means are over the others: {listed(missing)}."
        raise CasesFailedError(message, ())


def _run(options: c.RunCommand, console: Console) -> None:
    from medseg3d.workflows.run import run

    if _is_for_domains(options):
        _run_domains(options, console)
        return
    with console:
        result = run(_only(options.datasets), options.work, options, console.listen)
    console.show_run(result)
    _report_failures(result.failures, "failed; the others are done")


def _export(options: c.ExportCommand, console: Console) -> None:
    from medseg3d.workflows.export import export_model

    with console:
        result = export_model(
            options.model, options.output, format=options.format, configuration=options.configuration, folds=options.folds
        )
    console.show_exported(result)


def _import(options: c.ImportCommand, console: Console) -> None:
    from medseg3d.models.nnunet import is_nnunet_model

    if not is_nnunet_model(options.model):
        raise InputError(f"{options.model}: not an nnU-Net result folder; expected plans.json, dataset.json and fold_K/checkpoint_*.pth.")
    _export(c.ExportCommand.of(options, format="medseg3d"), console)


def _info(options: c.InfoCommand, console: Console) -> None:
    from medseg3d.workflows.info import info

    with console:
        found = info(options.model)
    console.show_info(found)


def _serve(options: c.ServeCommand, console: Console) -> None:
    from medseg3d.workflows.serve import serve

    with console:
        token = options.token or os.environ.get("MEDSEG3D_TOKEN")
        serve(options.model, replace(options, token=token), console.listen)


def _doctor(options: c.DoctorCommand, console: Console) -> int:
    from medseg3d.workflows.doctor import doctor

    with console:
        report = doctor(options.dataset, fix=options.fix, on=console.listen)
    return console.show_doctor(report)


def _demo(options: c.DemoCommand, console: Console) -> None:
    from medseg3d.workflows.demo import demo

    with console:
        demo(options.folder, seed=options.seed)
    console.say(f"A phantom dataset lies in {options.folder}. Try: medseg3d run {options.folder}")


def _report(options: c.ReportCommand, console: Console) -> None:
    from medseg3d.work_folder import WorkFolder, work_folder
    from medseg3d.workflows.run import write_report

    if _is_for_domains(options):
        from medseg3d.workflows.universal import domains_of

        with console:
            pages = {name: write_report(root, WorkFolder(work)) for name, root, work in domains_of(_work(options))}
        console.show_domains(pages, lambda name, page: console.say(f"The report lies in {page}"))
        return
    dataset, work = _resolved(options)
    with console:
        path = write_report(dataset, work_folder(dataset, work))
    console.say(f"The report lies in {path}")


def _completion(options: c.CompletionCommand, console: Console) -> None:
    from medseg3d.commandline.completion import completion

    sys.stdout.write(completion(options.shell, COMMANDS))  # as it is: no line may be broken


def _report_failures(failures: Iterable[CaseFailure], what: str, *, noun: str = "case") -> None:
    """End with exit code 3 where a case failed; ``what`` became of these and of the others."""
    failed = list(failures)
    if failed:
        raise CasesFailedError(f"{counted(len(failed), noun)} {what}:", failed)


def _only(datasets: tuple[Path, ...]) -> Path:
    return datasets[0] if datasets else Path()


def _is_for_domains(options: Any) -> bool:
    """Several datasets share a network: they are named, the planner is universal, or the work folder is."""
    from medseg3d.universal import is_universal
    from medseg3d.work_folder import WorkFolder

    several = isinstance(options, c.OnDatasets) and len(options.datasets) > 1
    planning = options if isinstance(options, PlanningOptions) else PlanningOptions()
    if not several and planning.planner != "universal":
        if isinstance(options, c.OnDomain) and (options.dataset != Path() or options.domain is not None):
            return False  # a domain is meant by its dataset or its name
        return options.work is not None and is_universal(WorkFolder(options.work))
    if isinstance(options, c.PlanCommand) and options.fingerprint is not None:
        raise InputError("--fingerprint plans a single dataset without its images.")
    if options.work is None:
        raise InputError("Several datasets need a work folder of their own: name one with -w WORK.")
    if any((planning.channels, planning.label_names, planning.group_pattern, planning.groups, planning.no_groups)):
        raise InputError(
            "--channels, --labels, --group-pattern, --groups and --no-groups belong to one dataset; write names and folds into "
            "each dataset."
        )
    return True


def _resolved(options: c.OnDomain) -> tuple[Path, Path | None]:
    """A domain's own dataset and work folder in the place of the universal ones."""
    from medseg3d.universal import resolve_domain

    return resolve_domain(options.work, options.dataset, options.domain)


def _work(options: c.WorkOptions) -> Path:
    """The work folder of several datasets, which is always named."""
    if options.work is None:
        raise InputError("Several datasets need a work folder of their own: name one with -w WORK.")
    return options.work


def _datasets(options: c.OnDatasets) -> list[Path]:
    """Those that are named, or those of the universal work folder."""
    if options.datasets:
        return list(options.datasets)
    from medseg3d.universal import read_universal
    from medseg3d.work_folder import WorkFolder

    universal = read_universal(WorkFolder(_work(options)))
    return [universal.dataset(name) for name in universal.joint]


def _plan_domains(options: c.PlanCommand, console: Console) -> None:
    from medseg3d.workflows.universal import plan_universal

    with console:
        results = plan_universal(_datasets(options), _work(options), options, console.listen)
    console.show_domains(results, lambda name, result: console.show_plan(result, explain=options.with_candidates))
    failures = [failure for result in results.values() for failure in result.failures]
    _report_failures(failures, "cannot be used; the plans were made from the others")


def _preprocess_domains(options: c.PreprocessCommand, console: Console) -> None:
    from medseg3d.workflows.universal import preprocess_universal

    if options.configurations or options.dataset != Path():
        raise InputError("The datasets of a universal network are preprocessed together, as planned: leave -c and DATASET out.")
    with console:
        results = preprocess_universal(_work(options), options, console.listen)
    console.show_domains(results, lambda name, result: console.show_preprocessed(result))
    failures = [failure for result in results.values() for failure in result.failures]
    _report_failures(failures, "could not be preprocessed; the others are done")


def _train_domains(options: c.TrainCommand, console: Console) -> None:
    from medseg3d.workflows.universal import add_domain, train_universal

    if options.configuration or options.dataset != Path():
        raise InputError("A universal network trains the configuration and the datasets of its plan: leave -c and DATASET out.")
    if options.add_domain is not None and options.init is not None:
        raise InputError("--init: a domain that is added begins with the network that it is added to.")
    if options.validate or options.find_lr:
        raise InputError(ONE_DATASET)
    if options.work is None:
        raise InputError("--add-domain needs the universal work folder: name it with -w WORK.")
    with console:
        if options.add_domain is not None:
            results = add_domain(options.work, options.add_domain, options, on=console.listen)
        else:
            results = train_universal(options.work, options, console.listen)
    console.show_domains(results, lambda name, result: console.show_evaluation(result, title=f"Validation of {name}, fold {options.fold}"))
    failures = [failure for result in results.values() for failure in result.failures]
    _report_failures(failures, "failed; the others are measured", noun="validation case")


ONE_DATASET = "validate and find-lr work on one dataset: name its work folder, -w WORK/domains/NAME."


def _run_domains(options: c.RunCommand, console: Console) -> None:
    from medseg3d.workflows.universal import run_universal

    if options.configurations:
        raise InputError("-c: all datasets of a universal network train 3d_fullres (2d where a dataset has single slices).")
    with console:
        results = run_universal(_datasets(options), _work(options), options, console.listen)
    console.show_domains(results, lambda name, result: console.show_run(result))
    failures = [failure for result in results.values() for failure in result.failures]
    _report_failures(failures, "failed; the others are done")


COMMANDS: Mapping[str, Command[Any]] = {
    "run": Command("the whole chain, ending in a report page", c.RunCommand, _run),
    "plan": Command("measure the dataset and decide spacing, patch, batch and network", c.PlanCommand, _plan),
    "preprocess": Command("crop, normalize and resample all cases", c.PreprocessCommand, _preprocess),
    "train": Command("train one fold; run it again to go on where it stopped", c.TrainCommand, _train),
    "validate": Command("predict and evaluate a trained fold's validation cases again", c.ValidateCommand, _validate),
    "find-lr": Command("try learning rates from small to large on a fold and suggest one", c.FindLrCommand, _find_lr),
    "select": Command("choose the best configuration or ensemble of two, and the postprocessing", c.SelectCommand, _select),
    "predict": Command("label maps for new images", c.PredictCommand, _predict),
    "evaluate": Command("measure label maps against references", c.EvaluateCommand, _evaluate),
    "doctor": Command("find what is wrong with a dataset", c.DoctorCommand, _doctor),
    "demo": Command("make a phantom dataset to try everything on", c.DemoCommand, _demo),
    "report": Command("write report.html again from what is there", c.ReportCommand, _report),
    "export": Command("write a model as one file, as ONNX, or as a MONAI bundle", c.ExportCommand, _export),
    "import": Command("take a model that another program trained", c.ImportCommand, _import),
    "info": Command("what a model is: labels, networks, folds, measures", c.InfoCommand, _info),
    "serve": Command("keep a model warm and predict what is sent to it", c.ServeCommand, _serve),
    "completion": Command("print a script that completes commands, options and files in a shell", c.CompletionCommand, _completion),
}
"""The verbs by their name, in the order of ``--help``."""
