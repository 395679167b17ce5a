"""Ask a person at a terminal what a dataset does not say: names of channels and labels, patients, and how long training may take."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medseg3d.commandline.terminal import is_terminal
from medseg3d.errors import InputError
from medseg3d.options import RunOptions
from medseg3d.wording import counted, duration

if TYPE_CHECKING:
    from medseg3d.workflows.estimate import FoldEstimate
    from medseg3d.workflows.unknown import GroupQuestion, LabelQuestion, Unknown

MOST_LABELS = 12
"""More are named in a file rather than one after the other."""
LONG_SECONDS = 12 * 3600.0
"""Training that takes longer than a night is worth a question."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where is asked: ``write`` shows a text, ``read`` gives the line that was typed, an empty text at the end of the input."""

    write: Callable[[str], object]
    read: Callable[[], str]

    def say(self, text: str) -> None:
        """A sentence, its lines broken between words."""
        width = shutil.get_terminal_size().columns
        self.write("\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in text.split("\n")) + "\n")

    def ask(self, question: str, taken: str) -> str:
        """What was typed, ``taken`` for nothing."""
        self.write(f"{question} [{taken}]: ")  # the cursor stays in the line
        line = self.read()
        if not line:
            self.write("\n")  # the end of the input: everything else is taken as it is
        return line.strip() or taken


def is_interactive() -> bool:
    """Somebody sits at a terminal and can answer. A job in the background of a shell would be stopped where it reads from it."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, AttributeError):  # not the terminal of this session; Windows knows no such groups
        return not hasattr(os, "tcgetpgrp")


def standard_terminal() -> Terminal:
    """Questions on standard error, as results go to standard output; answers from standard input."""

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    return Terminal(write, sys.stdin.readline)


def answered(unknown: Unknown, options: RunOptions, terminal: Terminal) -> RunOptions:
    """The options with the answers of a person; what is only confirmed counts as an answer too, so that it is not asked again."""
    if not unknown.is_any:
        return options
    terminal.say("The dataset leaves some things open. Enter takes what stands in brackets; Ctrl-C stops, and nothing is lost.")
    if unknown.channels:
        names = []
        for channel in unknown.channels:
            terminal.say(f"\nChannel {channel.number}: {channel.seen}. The name CT decides how values are scaled; others are names only.")
            names.append(terminal.ask("  CT, MRI, PET or another modality", channel.taken))
        options = replace(options, channels=tuple(names))
    if unknown.labels:
        options = replace(options, label_names={**(options.label_names or {}), **_names(unknown.labels, terminal)})
    if unknown.groups is not None:
        options = _groups(unknown.groups, options, terminal)
    terminal.say("\nKept in the plan. To change an answer, give --channels, --labels, --groups or --no-groups.")
    return options


def _names(labels: Sequence[LabelQuestion], terminal: Terminal) -> dict[int, str]:
    """A name for each label value, all different."""
    taken = {label.value: label.taken for label in labels}
    if len(labels) > MOST_LABELS:
        return _names_from_file(taken, terminal)
    names: dict[int, str] = {}
    for label in labels:
        terminal.say(f"\nLabel {label.value}: {label.seen}.")
        while True:
            name = terminal.ask("  which structure (left_kidney, tumor, …)", label.taken)
            if name not in names.values() and not re.search("[=,]", name):
                break
            terminal.say("  A name stands once, without = and commas.")
        names[label.value] = name
    return names


def _names_from_file(taken: dict[int, str], terminal: Terminal) -> dict[int, str]:
    from medseg3d.data.label_names import names_in_file

    terminal.say(f"\n{counted(len(taken), 'label')} have no names.")
    while True:
        answer = terminal.ask("  a file with the columns value,name (labels.csv)", "none")
        if answer == "none":
            return taken
        try:
            return {**taken, **names_in_file(Path(answer).expanduser())}
        except InputError as error:
            terminal.say(f"  {error}")


def _groups(question: GroupQuestion, options: RunOptions, terminal: Terminal) -> RunOptions:
    """Which cases stay in one fold."""
    seen = f"{question.seen}." if question.seen else "Nothing tells which cases are of one patient."
    terminal.say(f"\n{seen} Cases of one patient must stay in one fold, or the measured quality is too good.")
    if question.is_found:
        return options if _is_yes("  keep each patient in one fold, yes or no", "yes", terminal) else replace(options, no_groups=True)
    if not _is_yes("  do several cases show one patient, yes or no", "no", terminal):
        return replace(options, no_groups=True)
    terminal.say("  Say which: a CSV file with the columns case,group, or a pattern that is the same for images of one patient.")
    while True:
        answer = terminal.ask("  file or pattern, such as ^(p\\d+)_", "none")
        if answer == "none":
            return replace(options, no_groups=True)
        try:
            return _grouped(answer, question.cases, options)
        except InputError as error:
            terminal.say(f"  {error}")


def _is_yes(question: str, taken: str, terminal: Terminal) -> bool:
    while True:
        answer = terminal.ask(question, taken).lower()
        if answer in ("y", "yes", "n", "no"):
            return answer.startswith("y")
        terminal.say("  Expected yes or no.")


def _grouped(answer: str, cases: Sequence[str], options: RunOptions) -> RunOptions:
    """The options with a table or a pattern, which is tried on the names of the cases; raises :class:`InputError`."""
    from medseg3d.training.folds import check_groups, groups_from_csv, groups_from_pattern

    if answer.endswith(".csv"):
        table = Path(answer).expanduser()
        check_groups(groups_from_csv(table), cases, str(table))
        return replace(options, groups=table)
    groups_from_pattern(cases, answer)
    return replace(options, group_pattern=answer)


def asked_hours(folds: Sequence[FoldEstimate], device: str, options: RunOptions, terminal: Terminal) -> RunOptions:
    """The options with the hours that a person gives to training, where it would take longer than a night."""
    from medseg3d.workflows.estimate import in_words

    seconds = sum(fold.seconds for fold in folds)
    if seconds <= LONG_SECONDS:
        return options
    terminal.say(f"\n{in_words(folds, device)}")
    while True:
        answer = terminal.ask("  hours that all training may take", "no limit")
        if answer == "no limit":
            return options
        try:
            hours = float(answer.removesuffix("h").strip())
        except ValueError:
            hours = 0.0
        if 0 < hours < float("inf"):
            terminal.say(f"  All training takes {duration(hours * 3600)}, shared equally by {counted(len(folds), 'training')}.")
            return replace(options, hours=hours)
        terminal.say("  Expected a number above 0, such as 8.")
