"""The parser: made from records, so that what can be typed, its default and its help are said once; and the page that shows it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from medseg3d.commandline.arguments import Command, build_parser, taken
from medseg3d.commandline.cli import main
from medseg3d.commandline.reference import reference
from medseg3d.commandline.verbs import COMMANDS
from medseg3d.options import Option, OutputOptions

PAGE = Path(__file__).parents[2] / "docs/reference/command-line.md"


def typed(*words: str) -> Any:
    namespace = build_parser(COMMANDS).parse_args(words)
    return taken(COMMANDS[words[0]].record, namespace)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_not_typed_has_the_default_of_the_record(name: str) -> None:
    record = COMMANDS[name].record
    needed = {
        "train": ["--fold", "0"],
        "validate": ["--fold", "0"],
        "find-lr": ["--fold", "0"],
        "predict": ["-i", ".", "-o", "."],
        "evaluate": [".", "."],
        "measure": ["."],
        "propose": ["-i", "."],
        "demo": ["."],
        "export": ["-o", "."],
        "import": ["nnunet", ".", "-o", "."],
        "distill": [".", "-m", ".", "-o", "."],
        "completion": ["bash"],
        "reproduce": ["."],
        "listen": ["."],
    }
    assert typed(name, *needed.get(name, [])) == record()


def test_values_are_read_by_the_type_of_their_field() -> None:
    options = typed("run", "a", "b", "--channels", "CT,PET", "--labels", "2=liver", "--hours", "1.5", "--folds", "0", "all", "--seed", "7")
    assert (options.datasets, options.channels, options.label_names) == ((Path("a"), Path("b")), ("CT", "PET"), {2: "liver"})
    assert (options.hours, options.folds, options.seed) == (1.5, ("0", "all"), 7)
    options = typed("predict", "-i", "in", "-o", "out", "--part", "2/8", "--extension", "a.py", "--extension", "b.py")
    assert (options.part, options.extensions) == ((2, 8), (Path("a.py"), Path("b.py")))


@pytest.mark.fault("D", "an option with several values that is given again, such as --labels 2=a --labels 3=b", "all values count")
def test_what_is_given_again_is_added() -> None:
    options = typed(
        "run",
        "a",
        "--folds",
        "0",
        "--folds",
        "1",
        "2",
        "--labels",
        "2=left",
        "--labels",
        "3=right",
        "--channels",
        "CT",
        "--channels",
        "PET",
    )
    assert (options.folds, options.label_names, options.channels) == (("0", "1", "2"), {2: "left", 3: "right"}, ("CT", "PET"))
    rates = ("--layer-rates", "encoder=0.1", "--layer-rates", "decoder=1", "--layer-rates", "decoder=1")
    assert typed("train", "--fold", "0", *rates).layer_rates == {"encoder": 0.1, "decoder": 1.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--labels", "2=a", "--labels", "2=b"], "argument --labels: 2 is given twice, with different values"),
        (["run", "--hours", "2h"], "argument --hours: 2h: expected a number above 0, without a unit"),
        (["run", "--hours", "-2"], "argument --hours: -2: expected a number above 0, without a unit"),
        (["run", "--epochs", "0"], "argument --epochs: 0: expected a whole number of at least 1"),
        (["run", "--epochs", "1.5"], "argument --epochs: 1.5: expected a whole number of at least 1"),
        (["run", "--folds"], "argument --folds: expected at least one argument"),
        (["run", "--groups", "a.csv", "--no-groups"], "argument --no-groups: not allowed with argument --groups"),
        (["run", "--epoch", "3"], "unrecognized arguments: --epoch. Did you mean --epochs?"),
        (["rum"], "Did you mean run?"),
        (["serve", "--step", "2"], "argument --step-size/--step: 2: expected a number above 0 and up to 1"),
        (["train"], "the following arguments are required: --fold"),
        (["train", "--fold", "0", "--restart", "--validate"], "argument --validate: not allowed with argument --restart"),
    ],
)
def test_what_cannot_be_is_one_message_and_exit_code_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (words, [*words, "--json"]):
        with pytest.raises(SystemExit) as left:
            main(given)
        assert left.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert message in json.loads(printed.out)["message"]


@pytest.mark.parametrize(("former", "now"), [("--validate", "validate"), ("--find-lr", "find-lr")])
def test_former_options_of_train_are_verbs_and_say_so(former: str, now: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for words in (["train", former], [now]):
        assert main([*words, str(tmp_path), "--fold", "0"]) == 2
        said.append(capsys.readouterr().err.partition("More about this")[0])
    assert said == [f"Note: train {former} is called medseg3d {now} now.\n{said[1]}", said[1]]
    assert "there is no plan.json here" in said[1]


def test_a_new_option_is_one_field() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Tuned(OutputOptions):
        learning_rate: Annotated[float | None, Option("--learning-rate", "of the first step", metavar="LR", above=0)] = None

    commands: dict[str, Command[Any]] = {"tune": Command("tune", Tuned, lambda options, console: None)}
    parser = build_parser(commands)
    assert taken(Tuned, parser.parse_args(["tune", "--learning-rate", "0.01"])).learning_rate == 0.01
    assert "| `--learning-rate` | number above 0 |  | of the first step | `learning_rate` |" in reference(commands)


def test_the_page_shows_what_the_parser_takes() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(COMMANDS), "run scripts/command_line_reference.py"
