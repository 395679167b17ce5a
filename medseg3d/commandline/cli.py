"""The command line: arguments → workflows → what is printed. Environment and arguments are read here and nowhere else."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg3d.commandline.arguments import build_parser
from medseg3d.commandline.terminal import Once, make_printable
from medseg3d.errors import CasesFailedError, InputError, InterruptedBySignalError, MedsegError
from medseg3d.signals import STOPPED, Stopped, ending_on_signals
from medseg3d.wording import counted, listed

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from medseg3d.evaluation.metrics import Evaluation
    from medseg3d.training.train_fold import TrainingOptions

Command = Callable[[argparse.Namespace], int]

EXIT_DONE, EXIT_DEFECT = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 our defect, 2 wrong input, 3 some cases failed, 130/143 stopped)."""
    make_printable(sys.stdout, sys.stderr)
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "command"):
        parser.print_help()
        return EXIT_DONE
    _set_up_logging(options)
    with nullcontext() if options.command == "serve" else ending_on_signals():  # a server lets the job at hand end
        return _run_command(options)


def _run_command(options: argparse.Namespace) -> int:
    try:
        return COMMANDS[options.command](options)
    except MedsegError as error:
        _print_error(error, as_json=getattr(options, "json", False))
        return error.exit_code
    except KeyboardInterrupt as error:
        print(f"\n{STOPPED}", file=sys.stderr)
        return 128 + (error.signal_number if isinstance(error, Stopped) else signal.SIGINT)
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:  # a path that was named, met where nobody thought of it
        reason = f"{error.filename or error}: {error.strerror}. Choose another file or folder, or change its permissions."
        _print_error(InputError(reason), as_json=getattr(options, "json", False))
        return InputError.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; nothing more can be said
        return EXIT_DONE


def _plan(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.plan import DEFAULT_PLANNER, plan, plan_from_fingerprint

    if _is_for_domains(options):
        return _plan_domains(options)
    options.dataset = options.datasets[0] if options.datasets else Path()
    with Console(options) as console:
        if options.fingerprint is not None:
            result = plan_from_fingerprint(
                options.fingerprint,
                work=options.work,
                planner=options.planner or DEFAULT_PLANNER,
                gpu_memory_gb=options.gpu_memory,
                label_names=options.labels,
                with_candidates=options.explain,
            )
        else:
            result = plan(
                options.dataset,
                options.work,
                planner=options.planner,
                gpu_memory_gb=options.gpu_memory,
                channels=options.channels,
                label_names=options.labels,
                group_pattern=options.group_pattern,
                groups=options.groups,
                no_groups=options.no_groups,
                jobs=options.jobs,
                max_ram_gb=options.max_ram,
                with_candidates=options.explain,
                on=console.listen,
            )
    console.show_plan(result, explain=options.explain)
    if result.failures:
        raise CasesFailedError(
            f"{counted(len(result.failures), 'case')} cannot be used; the plan was made from the others:", result.failures
        )
    return EXIT_DONE


def _is_for_domains(options: argparse.Namespace) -> bool:
    """Several datasets share a network: they are named, the planner is universal, or the work folder is."""
    from medseg3d.universal import is_universal
    from medseg3d.work_folder import WorkFolder

    several = len(getattr(options, "datasets", ())) > 1
    if not several and getattr(options, "planner", None) != "universal":
        if hasattr(options, "domain") and options.dataset != Path():
            return False  # a domain is meant by its dataset
        return options.work is not None and getattr(options, "domain", None) is None and is_universal(WorkFolder(options.work))
    if getattr(options, "fingerprint", None) is not None:
        raise InputError("--fingerprint plans a single dataset without its images.")
    if options.work is None:
        raise InputError("Several datasets need a work folder of their own: name one with -w WORK.")
    if any(getattr(options, name, None) for name in ("channels", "labels", "group_pattern", "groups", "no_groups")):
        raise InputError(
            "--channels, --labels, --group-pattern, --groups and --no-groups belong to one dataset; write names and folds into "
            "each dataset."
        )
    return True


def _plan_domains(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.universal import plan_universal

    with Console(options) as console:
        results = plan_universal(
            _datasets(options),
            options.work,
            planner=options.planner,
            gpu_memory_gb=options.gpu_memory,
            jobs=options.jobs,
            max_ram_gb=options.max_ram,
            with_candidates=options.explain,
            on=console.listen,
        )
    console.show_domains(results, lambda name, result: console.show_plan(result, explain=options.explain))
    failures = [failure for result in results.values() for failure in result.failures]
    if failures:
        raise CasesFailedError(f"{counted(len(failures), 'case')} cannot be used; the plans were made from the others:", failures)
    return EXIT_DONE


def _datasets(options: argparse.Namespace) -> list[Path]:
    """Those that are named, or those of the universal work folder."""
    if options.datasets:
        return list(options.datasets)
    from medseg3d.universal import read_universal
    from medseg3d.work_folder import WorkFolder

    universal = read_universal(WorkFolder(options.work))
    return [universal.dataset(name) for name in universal.joint]


def _preprocess_domains(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.universal import preprocess_universal

    with Console(options) as console:
        results = preprocess_universal(
            options.work, jobs=options.jobs, max_ram_gb=options.max_ram, device=options.device, on=console.listen
        )
    console.show_domains(results, lambda name, result: console.show_preprocessed(result))
    failures = [failure for result in results.values() for failure in result.failures]
    if failures:
        raise CasesFailedError(f"{counted(len(failures), 'case')} could not be preprocessed; the others are done:", failures)
    return EXIT_DONE


def _train_domains(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.universal import add_domain, train_universal

    if options.configuration or options.dataset != Path():
        raise InputError("A universal network trains the configuration and the datasets of its plan: leave -c and DATASET out.")
    if options.add_domain is not None and options.init is not None:
        raise InputError("--init: a domain that is added begins with the network that it is added to.")
    if options.validate or options.find_lr:
        raise InputError("--validate and --find-lr work on one dataset: name its work folder, -w WORK/domains/NAME.")
    if options.work is None:
        raise InputError("--add-domain needs the universal work folder: name it with -w WORK.")
    length = _training_options(options)
    with Console(options) as console:
        if options.add_domain is not None:
            results = add_domain(
                options.work,
                options.add_domain,
                fold=options.fold,
                device=options.device,
                options=length,
                tta=options.tta,
                on=console.listen,
            )
        else:
            results = train_universal(
                options.work,
                fold=options.fold,
                device=options.device,
                options=length,
                init=options.init,
                tta=options.tta,
                on=console.listen,
            )
    console.show_domains(results, lambda name, result: console.show_evaluation(result, title=f"Validation of {name}, fold {options.fold}"))
    failures = [failure for result in results.values() for failure in result.failures]
    if failures:
        raise CasesFailedError(f"{counted(len(failures), 'validation case')} failed; the others are measured:", failures)
    return EXIT_DONE


def _training_options(options: argparse.Namespace) -> TrainingOptions:
    from medseg3d.training.train_fold import TrainingOptions

    return TrainingOptions(
        epochs=options.epochs,
        iterations=options.iterations,
        hours=options.hours,
        batch_size=options.batch_size,
        seed=options.seed,
        restart=options.restart,
    )


def _run_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the chain is told of one dataset or of several."""
    names = ("planner", "folds", "epochs", "iterations", "hours", "device", "jobs", "seed", "restart")
    return {name: getattr(options, name) for name in names} | {"gpu_memory_gb": options.gpu_memory, "max_ram_gb": options.max_ram}


def _preprocess(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.preprocess import preprocess

    if _is_for_domains(options):
        if options.configuration or options.dataset != Path():
            raise InputError("The datasets of a universal network are preprocessed together, as planned: leave -c and DATASET out.")
        return _preprocess_domains(options)
    with Console(options) as console:
        result = preprocess(
            options.dataset,
            options.work,
            configurations=options.configuration,
            jobs=options.jobs,
            max_ram_gb=options.max_ram,
            device=options.device,
            on=console.listen,
        )
    console.show_preprocessed(result)
    if result.failures:
        raise CasesFailedError(f"{counted(len(result.failures), 'case')} could not be preprocessed; the others are done:", result.failures)
    return EXIT_DONE


def _train(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.work_folder import work_folder
    from medseg3d.workflows.choose_folds import tell_divided
    from medseg3d.workflows.train import train
    from medseg3d.workflows.validate import validate

    if options.add_domain is not None or _is_for_domains(options):
        return _train_domains(options)
    if options.find_lr:
        return _find_lr(options)
    evaluation: Evaluation | None
    with Console(options) as console:
        splits = work_folder(options.dataset, options.work).splits
        if splits.exists() and options.fold != "all":
            tell_divided(splits, console.listen)
        if options.validate:
            evaluation = validate(
                options.dataset,
                options.work,
                configuration=options.configuration,
                fold=options.fold,
                device=options.device,
                tta=options.tta,
                on=console.listen,
            )
        else:
            evaluation = train(
                options.dataset,
                options.work,
                configuration=options.configuration,
                fold=options.fold,
                device=options.device,
                options=_training_options(options),
                init=options.init,
                tta=options.tta,
                on=console.listen,
            )
    console.show_evaluation(evaluation, title=f"Validation of fold {options.fold}")
    if evaluation is not None and evaluation.failures:
        raise CasesFailedError(
            f"{counted(len(evaluation.failures), 'validation case')} failed; the others are measured:", evaluation.failures
        )
    return EXIT_DONE


def _choose_domain(options: argparse.Namespace) -> None:
    """Put a domain's own dataset and work folder in the place of the universal ones."""
    from medseg3d.universal import resolve_domain

    options.dataset, options.work = resolve_domain(options.work, options.dataset, options.domain)


def _find_lr(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.find_lr import find_lr

    with Console(options) as console:
        found = find_lr(
            options.dataset,
            options.work,
            configuration=options.configuration,
            fold=options.fold,
            device=options.device,
            batch_size=options.batch_size,
            seed=options.seed,
            on=console.listen,
        )
    console.show_learning_rate(found)
    return EXIT_DONE


def _select(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.select import select

    if _is_for_domains(options):
        from medseg3d.workflows.universal import domains_of

        with Console(options) as console:
            chosen = {name: select(root, work, device=options.device, on=console.listen) for name, root, work in domains_of(options.work)}
        console.show_domains(chosen, lambda name, selection: console.show_selection(selection))
        return EXIT_DONE
    _choose_domain(options)
    with Console(options) as console:
        result = select(options.dataset, options.work, device=options.device, on=console.listen)
    console.show_selection(result)
    return EXIT_DONE


def _predict(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.models.nnunet import is_nnunet_model
    from medseg3d.workflows.predict import predict

    if options.model is not None and (options.dataset != Path() or options.work is not None):
        raise InputError("-m names the model: leave out the dataset and -w.")
    if options.model is None and (options.dataset.is_file() or is_nnunet_model(options.dataset)):
        options.model, options.dataset = options.dataset, Path()  # a model in the place of the dataset, as info and export take it
    _choose_domain(options)
    with Console(options) as console, _cluster(options.cluster) as executor:
        result = predict(
            options.input,
            options.output,
            dataset=options.dataset,
            work=options.work,
            model=options.model,
            configuration=options.configuration,
            folds=options.fold,
            tta=options.tta,
            step=options.step,
            skip_empty=options.skip_empty,
            probabilities=options.probabilities,
            overwrite=options.overwrite,
            strict=options.strict,
            device=options.device,
            precision=options.precision,
            max_ram_gb=options.max_ram,
            part=options.part,
            series_description=options.series_description,
            executor=executor,
            on=console.listen,
        )
    console.show_predicted(result)
    if result.failures:
        others = "the others are done" if result.written or result.kept else "no other is left"
        raise CasesFailedError(f"{counted(len(result.failures), 'case')} could not be predicted; {others}:", result.failures)
    return EXIT_DONE


@contextmanager
def _cluster(address: str | None) -> Iterator[Executor | None]:
    """The workers of a dask scheduler; None where no address is given."""
    if address is None:
        yield None
        return
    try:
        from distributed import Client  # an optional extra
    except ImportError:
        raise InputError("--cluster needs dask: pip install 'medseg3d[cluster]'.") from None
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"--cluster {address}: no dask scheduler answers there ({error}).") from None
    with client:
        yield client.get_executor()


def _export(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.models.nnunet import is_nnunet_model
    from medseg3d.workflows.export import export_model

    if getattr(options, "kind", None) == "nnunet" and not is_nnunet_model(options.model):
        raise InputError(f"{options.model}: not an nnU-Net result folder; expected plans.json, dataset.json and fold_K/checkpoint_*.pth.")
    with Console(options) as console:
        result = export_model(options.model, options.output, format=options.format, configuration=options.configuration, folds=options.fold)
    console.show_exported(result)
    return EXIT_DONE


def _serve(options: argparse.Namespace) -> int:
    import os

    from medseg3d.commandline.console import Console
    from medseg3d.workflows.serve import serve

    limits = ("max_upload_mb", "max_upload_minutes", "max_unpacked_mb", "max_jobs", "keep_minutes", "max_kept")
    names = ("host", "port", *limits, "device", "tta", "step")
    token = options.token or os.environ.get("MEDSEG3D_TOKEN")
    chosen = {name: getattr(options, name) for name in names}
    with Console(options) as console:
        serve(options.model, configuration=options.configuration, folds=options.fold, token=token, on=console.listen, **chosen)
    return EXIT_DONE


def _info(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.info import info

    with Console(options) as console:
        found = info(options.model)
    console.show_info(found)
    return EXIT_DONE


def _evaluate(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.evaluate import evaluate

    with Console(options) as console:
        evaluation = evaluate(options.predictions, options.references, output=options.output, seed=options.seed, on=console.listen)
    console.show_evaluation(evaluation, title="Evaluation")
    if evaluation.failures:
        others = "the others are done" if evaluation.cases else "no other is left, so nothing is written"
        raise CasesFailedError(f"{counted(len(evaluation.failures), 'case')} could not be measured; {others}:", evaluation.failures)
    if evaluation.missing_predictions:
        missing = evaluation.missing_predictions
        message = f"{counted(len(missing), 'reference')} without a prediction; the means are over the others: {listed(missing)}."
        raise CasesFailedError(message, ())
    return EXIT_DONE


def _run(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.run import run

    if _is_for_domains(options):
        return _run_domains(options)
    options.dataset = options.datasets[0] if options.datasets else Path()
    with Console(options) as console:
        result = run(
            options.dataset,
            work=options.work,
            channels=options.channels,
            label_names=options.labels,
            group_pattern=options.group_pattern,
            groups=options.groups,
            no_groups=options.no_groups,
            configurations=options.configuration,
            **_run_options(options),
            on=console.listen,
        )
    console.show_run(result)
    if result.failures:
        raise CasesFailedError(f"{counted(len(result.failures), 'case')} failed; the others are done:", result.failures)
    return EXIT_DONE


def _run_domains(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.universal import run_universal

    if options.configuration:
        raise InputError("-c: all datasets of a universal network train 3d_fullres (2d where a dataset has single slices).")
    with Console(options) as console:
        results = run_universal(_datasets(options), options.work, **_run_options(options), on=console.listen)
    console.show_domains(results, lambda name, result: console.show_run(result))
    failures = [failure for result in results.values() for failure in result.failures]
    if failures:
        raise CasesFailedError(f"{counted(len(failures), 'case')} failed; the others are done:", failures)
    return EXIT_DONE


def _doctor(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.doctor import doctor

    with Console(options) as console:
        report = doctor(options.dataset, fix=options.fix, on=console.listen)
    return console.show_doctor(report)


def _demo(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.workflows.demo import demo

    with Console(options) as console:
        demo(options.folder, seed=options.seed)
    console.say(f"A phantom dataset lies in {options.folder}. Try: medseg3d run {options.folder}")
    return EXIT_DONE


def _report(options: argparse.Namespace) -> int:
    from medseg3d.commandline.console import Console
    from medseg3d.work_folder import WorkFolder, work_folder
    from medseg3d.workflows.run import write_report

    if _is_for_domains(options):
        from medseg3d.workflows.universal import domains_of

        with Console(options) as console:
            pages = {name: write_report(root, WorkFolder(work)) for name, root, work in domains_of(options.work)}
        console.show_domains(pages, lambda name, page: console.say(f"The report lies in {page}"))
        return EXIT_DONE
    _choose_domain(options)
    with Console(options) as console:
        path = write_report(options.dataset, work_folder(options.dataset, options.work))
    console.say(f"The report lies in {path}")
    return EXIT_DONE


def _set_up_logging(options: argparse.Namespace) -> None:
    level = logging.INFO if options.verbose else logging.ERROR if options.quiet else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Once())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("medseg3d").setLevel(level)


def _print_error(error: MedsegError, *, as_json: bool) -> None:
    if isinstance(error, InterruptedBySignalError):
        print(str(error), file=sys.stderr)
    elif as_json and not isinstance(error, CasesFailedError):  # its cases stand in the document that is printed already
        print(json.dumps({"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}))
    else:
        print(f"medseg3d: {error}", file=sys.stderr)


COMMANDS: dict[str, Command] = {
    "demo": _demo,
    "doctor": _doctor,
    "evaluate": _evaluate,
    "export": _export,
    "info": _info,
    "plan": _plan,
    "predict": _predict,
    "preprocess": _preprocess,
    "report": _report,
    "run": _run,
    "select": _select,
    "serve": _serve,
    "train": _train,
}
"""The verbs by their name."""
