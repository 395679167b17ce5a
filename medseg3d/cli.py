"""The command line: arguments → workflows → what is printed. Environment and arguments are read here and nowhere else."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg3d import __version__
from medseg3d.errors import CasesFailedError, InputError, InterruptedBySignalError, MedsegError
from medseg3d.wording import counted, listed

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from medseg3d.evaluation.metrics import Evaluation
    from medseg3d.training.train_fold import TrainingOptions

Command = Callable[[argparse.Namespace], int]

EXIT_DONE, EXIT_DEFECT = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 our defect, 2 wrong input, 3 some cases failed, 130/143 stopped)."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "command"):
        parser.print_help()
        return EXIT_DONE
    _set_up_logging(options)
    try:
        return int(options.command(options))
    except MedsegError as error:
        _print_error(error, as_json=getattr(options, "json", False))
        return error.exit_code
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on where it stopped.", file=sys.stderr)
        return 128 + signal.SIGINT
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:  # a path that was named, met where nobody thought of it
        reason = f"{error.filename or error}: {error.strerror}. Choose another file or folder, or change its permissions."
        _print_error(InputError(reason), as_json=getattr(options, "json", False))
        return InputError.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; nothing more can be said
        return EXIT_DONE


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = _Parser(
        prog="medseg3d",
        description="From a folder of labelled 3D medical images to a trained, measured, explained segmentation model.",
        epilog="Without a dataset or model the current folder is meant. Start with: medseg3d run DATASET",
    )
    parser.add_argument("--version", action="version", version=f"medseg3d {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = _dataset_command(commands, "run", _run, "the whole chain, ending in a report page", several=True)
    _planning_options(run)
    _device_option(run)
    _jobs_options(run)
    _seed_option(run)
    _configuration_option(run, default="the recommended one")
    run.add_argument("--folds", nargs="+", metavar="K", help="folds to train (default: all)")
    run.add_argument("--restart", action="store_true", help="train anew, where the plan or the cases changed since the last training")
    _training_length_options(run)

    plan = _dataset_command(commands, "plan", _plan, "measure the dataset and decide spacing, patch, batch and network", several=True)
    _planning_options(plan)
    _jobs_options(plan)
    plan.add_argument("--explain", action="store_true", help="for every number: the rule, its inputs, what would change it")
    plan.add_argument("--fingerprint", type=Path, metavar="FILE", help="plan without images, from our fingerprint.json or nnU-Net's")

    preprocess = _dataset_command(commands, "preprocess", _preprocess, "crop, normalize and resample all cases")
    _configuration_option(preprocess, default="all of the plan")
    _jobs_options(preprocess)
    preprocess.add_argument("--device", default="cpu", metavar="auto|cpu|cuda", help="where images are resampled (default: cpu)")

    train = _dataset_command(commands, "train", _train, "train one fold; run it again to go on where it stopped")
    _configuration_option(train, default="the recommended one", several=False)
    train.add_argument("--add-domain", type=Path, metavar="DATASET", help="train one more dataset on a universal network, with -w WORK")
    train.add_argument("--fold", required=True, metavar="K|all", help="which fold; all trains on every case without validation")
    _training_length_options(train)
    train.add_argument("--batch-size", type=_positive_int, metavar="N", help="default: the plan's")
    goal = train.add_mutually_exclusive_group()
    goal.add_argument("--restart", action="store_true", help="begin anew instead of going on")
    goal.add_argument("--validate", action="store_true", help="only measure the fold's best weights again")
    goal.add_argument("--find-lr", action="store_true", help="only try learning rates from small to large and suggest one")
    _tta_option(train)
    train.add_argument("--init", type=Path, metavar="MODEL", help="start from the weights of another model (weights.safetensors)")
    _device_option(train)
    _seed_option(train)

    select = _dataset_command(commands, "select", _select, "choose the best configuration or pair, and the postprocessing")
    _domain_option(select)
    _device_option(select)

    predict = _dataset_command(commands, "predict", _predict, "label maps for new images")
    predict.add_argument("-i", "--input", type=Path, required=True, metavar="INPUT", help="a folder of images or one image")
    predict.add_argument("-o", "--output", type=Path, required=True, metavar="OUTPUT", help="a folder, or a .nii.gz file for one image")
    _domain_option(predict)
    predict.add_argument("-m", "--model", type=Path, help="a work folder, a fold's folder or a weights.safetensors file")
    _configuration_option(predict, default="the selected one or pair; before select, the recommended one", several=False)
    predict.add_argument("--fold", nargs="+", metavar="K", help="folds to average (default: all finished)")
    _tta_option(predict)
    predict.add_argument(
        "--precision", choices=("auto", "float32"), default="auto", help="float32, or what is fastest here and gives the same (default)"
    )
    predict.add_argument("--backend", choices=("torch", "openvino"), default="torch", help="what computes the networks (default: torch)")
    predict.add_argument("--step", type=float, default=0.5, metavar="0.5", help="distance of windows as a share of the window")
    predict.add_argument("--probabilities", action="store_true", help="write CASE.npz with float16 probabilities as well")
    predict.add_argument("--overwrite", action="store_true", help="replace outputs of another model")
    predict.add_argument("--part", type=_part, metavar="I/N", help="only the I-th of N parts of the images: one for each machine")
    predict.add_argument("--cluster", metavar="ADDRESS", help="predict on the workers of this dask scheduler, such as tcp://host:8786")
    predict.add_argument(
        "--max-ram", type=_positive_float, metavar="GB", help="read the next image ahead within this (default: 60 %% of the free)"
    )
    _device_option(predict)

    evaluate = commands.add_parser("evaluate", help="measure label maps against references", description="Measure label maps.")
    evaluate.add_argument("predictions", type=Path, help="a folder of label maps")
    evaluate.add_argument("references", type=Path, help="a folder of reference label maps with the same names")
    evaluate.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="a .json file (.csv beside it) or a folder (default: metrics.json in the folder of predictions; for two files none)",
    )
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    evaluate.set_defaults(command=_evaluate)
    _common_options(evaluate)

    doctor = _dataset_command(commands, "doctor", _doctor, "find what is wrong with a dataset")
    doctor.add_argument("--fix", action="store_true", help="repair what can be repaired without doubt")

    demo = commands.add_parser("demo", help="make a phantom dataset to try everything on", description="Make a phantom dataset.")
    demo.add_argument("folder", type=Path)
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(command=_demo)
    _common_options(demo)

    report = _dataset_command(commands, "report", _report, "write report.html again from what is there")
    _domain_option(report)
    _model_commands(commands)
    return parser


def _model_commands(commands: Any) -> None:
    """The verbs that work on models: give one away, look at one, take one from nnU-Net."""
    export = commands.add_parser(
        "export", help="write a model as one file, as ONNX, or as a MONAI bundle", description="Give a model away."
    )
    _model_argument(export, "work folder or its dataset, .medseg3d file, weights.safetensors, or nnU-Net result folder (default: here)")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="OUTPUT", help="NAME.medseg3d, NAME.onnx, or a new folder")
    export.add_argument("--format", choices=("medseg3d", "onnx", "monai"), help="default: what the output's name ends with")
    _part_of_model(export)
    export.set_defaults(command=_export)
    _common_options(export)

    importing = commands.add_parser("import", help="take a model that another program trained", description="Take a model over.")
    importing.add_argument("kind", choices=("nnunet",), help="which program: nnunet (version 2)")
    importing.add_argument("model", type=Path, metavar="MODEL_FOLDER", help="its result folder: TRAINER__PLANS__CONFIGURATION")
    importing.add_argument("-o", "--output", type=Path, required=True, metavar="NAME.medseg3d", help="the file to write")
    _part_of_model(importing)
    importing.set_defaults(command=_export, format="medseg3d")
    _common_options(importing)

    info = commands.add_parser("info", help="what a model is: labels, networks, folds, measures", description="Say what a model is.")
    _model_argument(info, "as for export (default: here)")
    info.set_defaults(command=_info)
    _common_options(info)

    serve = commands.add_parser("serve", help="keep a model warm and predict what is sent to it", description="Serve a model over HTTP.")
    _model_argument(serve, "as for export (default: here)")
    _part_of_model(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only; others need a token)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    serve.add_argument("--token", help="what clients must send (default: the environment variable MEDSEG3D_TOKEN)")
    serve.add_argument("--max-upload-mb", type=_positive_float, default=2048, metavar="MB", help="of one upload (default: 2048)")
    serve.add_argument("--max-unpacked-mb", type=_positive_float, default=8192, metavar="MB", help="of a zip (default: 8192)")
    serve.add_argument("--max-jobs", type=_positive_int, default=16, metavar="N", help="jobs that wait (default: 16)")
    serve.add_argument("--keep-minutes", type=_positive_float, default=60, metavar="MIN", help="results are kept so long (default: 60)")
    serve.add_argument("--max-kept", type=_positive_int, default=100, metavar="N", help="results that are kept at once (default: 100)")
    _tta_option(serve)
    serve.add_argument("--step", type=float, default=0.5, metavar="0.5", help="distance of windows as a share of the window")
    _device_option(serve)
    serve.set_defaults(command=_serve)
    _common_options(serve)


def _model_argument(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("model", nargs="?", type=Path, default=Path(), metavar="MODEL", help=help_text)


def _part_of_model(parser: argparse.ArgumentParser) -> None:
    _configuration_option(parser, default="the selected one or pair", several=False)
    parser.add_argument("--fold", nargs="+", metavar="K", help="only these folds (default: all finished)")


class _Parser(argparse.ArgumentParser):
    """Takes options by their whole names only, and names the nearest one for an option that it does not know."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            nearest = [option for word in unknown if word.startswith("--") for option in self._nearest(word.split("=")[0])]
            advice = f". Did you mean {' and '.join(nearest)}?" if nearest else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{advice}")
        return options, unknown

    def _nearest(self, word: str) -> list[str]:
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        longer = [option for option in known if option.startswith(word)]
        return longer[:1] or difflib.get_close_matches(word, known, n=1)


def _dataset_command(commands: Any, name: str, command: Command, help_text: str, *, several: bool = False) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    if several:
        help_datasets = "the dataset's folder (default: here); several with --planner universal and -w"
        parser.add_argument("datasets", nargs="*", type=Path, metavar="DATASET", help=help_datasets)
    else:
        parser.add_argument("dataset", nargs="?", type=Path, default=Path(), metavar="DATASET", help="the dataset's folder (default: here)")
    parser.add_argument("-w", "--work", type=Path, metavar="WORK", help="work folder (default: DATASET/medseg3d-work)")
    parser.set_defaults(command=command)
    _common_options(parser)
    return parser


def _common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="say more")
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what went wrong")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def _planning_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--planner", metavar="NAME|FILE.toml", help="rules to plan by (default: those of the present plan)")
    parser.add_argument("--gpu-memory", type=_positive_float, metavar="GB", help="memory that a training step may take")
    parser.add_argument("--channels", type=lambda text: text.split(","), metavar="CT,…", help="modality of each channel")
    groups = parser.add_mutually_exclusive_group()
    groups.add_argument("--group-pattern", metavar="REGEX", help="cases with the same match (first group) stay in one fold")
    groups.add_argument("--groups", type=Path, metavar="FILE.csv", help="columns case,group: cases of a group stay in one fold")


def _configuration_option(parser: argparse.ArgumentParser, *, default: str, several: bool = True) -> None:
    parser.add_argument(
        "-c",
        "--configuration",
        nargs="+" if several else None,
        metavar="CONFIGURATION",
        help=f"2d, 3d_fullres, 3d_lowres … (default: {default})",
    )


def _domain_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domain", metavar="NAME", help="which dataset of a universal work folder (default: that of DATASET)")


def _device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda|mps",
        help="where networks run, cuda:1 for the second GPU (default: a GPU if any)",
    )


def _tta_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tta", choices=("auto", "on", "off"), default="auto", help="mirroring at prediction (default: where validation showed a gain)"
    )


def _jobs_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=_positive_int, metavar="N", help="cases measured or preprocessed at once (default: the cores)")
    parser.add_argument("--max-ram", type=_positive_float, metavar="GB", help="memory that these may take (default: 60 %% of the free)")


def _seed_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")


def _training_length_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=_positive_int, metavar="N", help="default: the plan's")
    parser.add_argument("--iterations", type=_positive_int, metavar="N", help="steps per epoch (default: the plan's)")
    parser.add_argument("--hours", type=_positive_float, metavar="H", help="train for this time; the learning rate follows it")


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 1")
    return int(text)


def _part(text: str) -> tuple[int, int]:
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise argparse.ArgumentTypeError(f"{text}: expected two numbers such as 2/8, the first from 1 to the second")
    return int(number), int(total)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0, without a unit")
    return value


def _plan(options: argparse.Namespace) -> int:
    from medseg3d.console import Console
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
                with_candidates=options.explain,
            )
        else:
            result = plan(
                options.dataset,
                options.work,
                planner=options.planner,
                gpu_memory_gb=options.gpu_memory,
                channels=options.channels,
                group_pattern=options.group_pattern,
                groups=options.groups,
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
    if getattr(options, "channels", None) or getattr(options, "group_pattern", None) or getattr(options, "groups", None):
        raise InputError("--channels, --group-pattern and --groups belong to one dataset; write channel names and folds into each dataset.")
    return True


def _plan_domains(options: argparse.Namespace) -> int:
    from medseg3d.console import Console
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
    from medseg3d.console import Console
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
    from medseg3d.console import Console
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
    from medseg3d.console import Console
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
    from medseg3d.console import Console
    from medseg3d.workflows.train import train, validate

    if options.add_domain is not None or _is_for_domains(options):
        return _train_domains(options)
    if options.find_lr:
        return _find_lr(options)
    evaluation: Evaluation | None
    with Console(options) as console:
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
    from medseg3d.console import Console
    from medseg3d.workflows.find_learning_rate import find_lr

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
    from medseg3d.console import Console
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
    from medseg3d.console import Console
    from medseg3d.workflows.predict import predict

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
            probabilities=options.probabilities,
            overwrite=options.overwrite,
            device=options.device,
            precision=options.precision,
            backend=options.backend,
            max_ram_gb=options.max_ram,
            part=options.part,
            executor=executor,
            on=console.listen,
        )
    console.show_predicted(result)
    if result.failures:
        raise CasesFailedError(f"{counted(len(result.failures), 'case')} could not be predicted; the others are done:", result.failures)
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
    from medseg3d.console import Console
    from medseg3d.nnunet import is_nnunet_model
    from medseg3d.workflows.export import export_model

    if getattr(options, "kind", None) == "nnunet" and not is_nnunet_model(options.model):
        raise InputError(f"{options.model}: not an nnU-Net result folder; expected plans.json, dataset.json and fold_K/checkpoint_*.pth.")
    with Console(options) as console:
        result = export_model(options.model, options.output, format=options.format, configuration=options.configuration, folds=options.fold)
    console.show_exported(result)
    return EXIT_DONE


def _serve(options: argparse.Namespace) -> int:
    import os

    from medseg3d.console import Console
    from medseg3d.workflows.serve import serve

    names = ("host", "port", "max_upload_mb", "max_unpacked_mb", "max_jobs", "keep_minutes", "max_kept", "device", "tta", "step")
    token = options.token or os.environ.get("MEDSEG3D_TOKEN")
    chosen = {name: getattr(options, name) for name in names}
    with Console(options) as console:
        serve(options.model, configuration=options.configuration, folds=options.fold, token=token, on=console.listen, **chosen)
    return EXIT_DONE


def _info(options: argparse.Namespace) -> int:
    from medseg3d.console import Console
    from medseg3d.workflows.info import info

    with Console(options) as console:
        found = info(options.model)
    console.show_info(found)
    return EXIT_DONE


def _evaluate(options: argparse.Namespace) -> int:
    from medseg3d.console import Console
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
    from medseg3d.console import Console
    from medseg3d.workflows.run import run

    if _is_for_domains(options):
        return _run_domains(options)
    options.dataset = options.datasets[0] if options.datasets else Path()
    with Console(options) as console:
        result = run(
            options.dataset,
            work=options.work,
            channels=options.channels,
            group_pattern=options.group_pattern,
            groups=options.groups,
            configurations=options.configuration,
            **_run_options(options),
            on=console.listen,
        )
    console.show_run(result)
    if result.failures:
        raise CasesFailedError(f"{counted(len(result.failures), 'case')} failed; the others are done:", result.failures)
    return EXIT_DONE


def _run_domains(options: argparse.Namespace) -> int:
    from medseg3d.console import Console
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
    from medseg3d.console import Console
    from medseg3d.workflows.doctor import doctor

    with Console(options) as console:
        report = doctor(options.dataset, fix=options.fix, on=console.listen)
    return console.show_doctor(report)


def _demo(options: argparse.Namespace) -> int:
    from medseg3d.console import Console
    from medseg3d.workflows.demo import demo

    with Console(options) as console:
        demo(options.folder, seed=options.seed)
    console.say(f"A phantom dataset lies in {options.folder}. Try: medseg3d run {options.folder}")
    return EXIT_DONE


def _report(options: argparse.Namespace) -> int:
    from medseg3d.console import Console
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
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("medseg3d").setLevel(level)


def _print_error(error: MedsegError, *, as_json: bool) -> None:
    if isinstance(error, InterruptedBySignalError):
        print(str(error), file=sys.stderr)
    elif as_json and not isinstance(error, CasesFailedError):  # its cases stand in the document that is printed already
        print(json.dumps({"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}))
    else:
        print(f"medseg3d: {error}", file=sys.stderr)
