"""What can be typed: the parser of the command line, with every option and what it means."""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from medseg3d.version import __version__

EXIT_USAGE = 2


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = _Parser(
        prog="medseg3d",
        description="From a folder of labelled 3D medical images to a trained, measured, explained segmentation model.",
        epilog="Without a dataset or model the current folder is meant. Start with: medseg3d run DATASET",
    )
    parser.add_argument("--version", action="version", version=f"medseg3d {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = _dataset_command(commands, "run", "the whole chain, ending in a report page", several=True)
    _planning_options(run)
    _device_option(run)
    _jobs_options(run)
    _seed_option(run)
    _configuration_option(run, default="the recommended one")
    run.add_argument("--folds", nargs="+", metavar="K", help="folds to train (default: all)")
    run.add_argument("--restart", action="store_true", help="train anew, where the plan or the cases changed since the last training")
    _training_length_options(run)

    plan = _dataset_command(commands, "plan", "measure the dataset and decide spacing, patch, batch and network", several=True)
    _planning_options(plan)
    _jobs_options(plan)
    plan.add_argument("--explain", action="store_true", help="for every number: the rule, its inputs, what would change it")
    plan.add_argument("--fingerprint", type=Path, metavar="FILE", help="plan without images, from our fingerprint.json or nnU-Net's")

    preprocess = _dataset_command(commands, "preprocess", "crop, normalize and resample all cases")
    _configuration_option(preprocess, default="all of the plan")
    _jobs_options(preprocess)
    preprocess.add_argument("--device", default="cpu", metavar="auto|cpu|cuda", help="where images are resampled (default: cpu)")

    train = _dataset_command(commands, "train", "train one fold; run it again to go on where it stopped")
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
    train.add_argument("--init", type=Path, metavar="MODEL", help="start from the weights of another model (of any kind)")
    _device_option(train)
    _seed_option(train)

    select = _dataset_command(commands, "select", "choose the best configuration or pair, and the postprocessing")
    _domain_option(select)
    _device_option(select)

    predict = _dataset_command(commands, "predict", "label maps for new images")
    predict.add_argument(
        "-i", "--input", type=Path, required=True, metavar="INPUT", help="a folder of images, one image, or a tree of DICOM series"
    )
    predict.add_argument("-o", "--output", type=Path, required=True, metavar="OUTPUT", help="a folder, or a .nii.gz file for one image")
    _domain_option(predict)
    predict.add_argument(
        "-m",
        "--model",
        type=Path,
        help="a work folder, a .medseg3d file, an nnU-Net result folder, a fold's folder or a weights.safetensors file",
    )
    _configuration_option(predict, default="the selected one or pair; before select, the recommended one", several=False)
    predict.add_argument("--fold", nargs="+", metavar="K", help="folds to average (default: all finished)")
    _tta_option(predict)
    predict.add_argument(
        "--precision",
        choices=("auto", "float32"),
        default="auto",
        help="half precision where that is faster, a few voxels at borders differ (auto, default); float32 is exact",
    )
    predict.add_argument("--step", type=float, default=0.5, metavar="0.5", help="distance of windows as a share of the window")
    predict.add_argument(
        "--skip-empty", action="store_true", help="leave out windows that validation says hold nothing, as beside the body"
    )
    predict.add_argument("--probabilities", action="store_true", help="write CASE.npz with float16 probabilities as well")
    predict.add_argument("--overwrite", action="store_true", help="replace outputs of another model")
    predict.add_argument(
        "--strict",
        action="store_true",
        help="let an image fail that is unlike the training images (default: a warning, also in predictions.json)",
    )
    predict.add_argument(
        "--series-description", metavar="REGEX", help="of DICOM series only those in whose description this regular expression is found"
    )
    predict.add_argument("--part", type=_part, metavar="I/N", help="only the I-th of N parts of the images: one for each machine")
    predict.add_argument("--cluster", metavar="ADDRESS", help="predict on the workers of this dask scheduler, such as tcp://host:8786")
    predict.add_argument(
        "--max-ram", type=_positive_float, metavar="GB", help="memory for reading ahead and for sums of logits (default: 60 %% of the free)"
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
    evaluate.set_defaults(command="evaluate")
    _common_options(evaluate)

    doctor = _dataset_command(commands, "doctor", "find what is wrong with a dataset")
    doctor.add_argument("--fix", action="store_true", help="repair what can be repaired without doubt")

    demo = commands.add_parser("demo", help="make a phantom dataset to try everything on", description="Make a phantom dataset.")
    demo.add_argument("folder", type=Path)
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(command="demo")
    _common_options(demo)

    report = _dataset_command(commands, "report", "write report.html again from what is there")
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
    export.set_defaults(command="export")
    _common_options(export)

    importing = commands.add_parser("import", help="take a model that another program trained", description="Take a model over.")
    importing.add_argument("kind", choices=("nnunet",), metavar="nnunet", help="which program: nnunet (version 2)")
    importing.add_argument("model", type=Path, metavar="MODEL_FOLDER", help="its result folder: TRAINER__PLANS__CONFIGURATION")
    importing.add_argument("-o", "--output", type=Path, required=True, metavar="NAME.medseg3d", help="the file to write")
    _part_of_model(importing)
    importing.set_defaults(command="export", format="medseg3d")
    _common_options(importing)

    info = commands.add_parser("info", help="what a model is: labels, networks, folds, measures", description="Say what a model is.")
    _model_argument(info, "as for export (default: here)")
    info.set_defaults(command="info")
    _common_options(info)

    serve = commands.add_parser("serve", help="keep a model warm and predict what is sent to it", description="Serve a model over HTTP.")
    _model_argument(serve, "as for export (default: here)")
    _part_of_model(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only; others need a token)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    serve.add_argument("--token", help="what clients must send (default: the environment variable MEDSEG3D_TOKEN)")
    serve.add_argument("--max-upload-mb", type=_positive_float, default=2048, metavar="MB", help="of one upload (default: 2048)")
    serve.add_argument(
        "--max-upload-minutes", type=_positive_float, default=30, metavar="MIN", help="that one upload may take (default: 30)"
    )
    serve.add_argument("--max-unpacked-mb", type=_positive_float, default=8192, metavar="MB", help="of a zip (default: 8192)")
    serve.add_argument("--max-jobs", type=_positive_int, default=16, metavar="N", help="jobs that wait (default: 16)")
    serve.add_argument("--keep-minutes", type=_positive_float, default=60, metavar="MIN", help="results are kept so long (default: 60)")
    serve.add_argument("--max-kept", type=_positive_int, default=100, metavar="N", help="results that are kept at once (default: 100)")
    _tta_option(serve)
    serve.add_argument("--step", type=float, default=0.5, metavar="0.5", help="distance of windows as a share of the window")
    _device_option(serve)
    serve.set_defaults(command="serve")
    _common_options(serve)


def _model_argument(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("model", nargs="?", type=Path, default=Path(), metavar="MODEL", help=help_text)


def _part_of_model(parser: argparse.ArgumentParser) -> None:
    _configuration_option(parser, default="the selected one or pair", several=False)
    parser.add_argument("--fold", nargs="+", metavar="K", help="only these folds (default: all finished)")


class _Parser(argparse.ArgumentParser):
    """Takes options by their whole names only, names the nearest one for an option that it does not know, and obeys ``--json``."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)
        self._given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = list(sys.argv[1:] if args is None else args)
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """One message and exit code 2; with ``--json`` as a document on standard output."""
        nearest = self._nearest() or self._nearest_command(message)
        if nearest:
            message += f". Did you mean {' and '.join(nearest)}?"
        if "--json" in self._given:
            sys.stdout.write(json.dumps({"error": "UsageError", "message": message, "exit_code": EXIT_USAGE}) + "\n")
            self.exit(EXIT_USAGE)
        super().error(message)

    def _nearest_command(self, message: str) -> list[str]:
        """The command that was probably meant where there is no such one."""
        if "argument COMMAND: invalid choice" not in message:
            return []
        commands = [name for action in self._actions if isinstance(action, argparse._SubParsersAction) for name in action.choices]
        typed = next((word for word in self._given if not word.startswith("-")), "")
        return difflib.get_close_matches(typed, commands, n=1)

    def _nearest(self) -> list[str]:
        """For each option that is not known the one that was probably meant."""
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        words: Iterable[str] = self._given
        if any(isinstance(action, argparse._SubParsersAction) for action in self._actions):  # what follows belongs to a command
            words = itertools.takewhile(lambda word: word.startswith("-"), words)
        unknown = [word.split("=")[0] for word in words if word.startswith("--") and word.split("=")[0] not in known]
        found = []
        for word in unknown:
            longer = [option for option in known if option.startswith(word)]
            found += longer[:1] or difflib.get_close_matches(word, known, n=1)
        return found


def _dataset_command(commands: Any, name: str, help_text: str, *, several: bool = False) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    if several:
        help_datasets = "the dataset's folder (default: here); several with --planner universal and -w"
        parser.add_argument("datasets", nargs="*", type=Path, metavar="DATASET", help=help_datasets)
    else:
        parser.add_argument("dataset", nargs="?", type=Path, default=Path(), metavar="DATASET", help="the dataset's folder (default: here)")
    parser.add_argument("-w", "--work", type=Path, metavar="WORK", help="work folder (default: DATASET/medseg3d-work)")
    parser.set_defaults(command=name)
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
    parser.add_argument(
        "--labels", type=_label_names, metavar="2=left_kidney,…", help="names of label values (default: dataset.json, labels.csv)"
    )
    groups = parser.add_mutually_exclusive_group()
    groups.add_argument("--group-pattern", metavar="REGEX", help="cases with the same match (first group) stay in one fold")
    groups.add_argument("--groups", type=Path, metavar="FILE.csv", help="columns case,group: cases of a group stay in one fold")
    groups.add_argument("--no-groups", action="store_true", help="cases whose names look like one patient's may be in different folds")


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


def _label_names(text: str) -> dict[int, str]:
    from medseg3d.data.label_names import names_from_text
    from medseg3d.errors import InputError

    try:
        return names_from_text(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
