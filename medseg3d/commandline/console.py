"""What the command line shows: bars while work runs, then tables of results; with ``--json`` one document instead."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import rich.console
from rich.markup import escape

from medseg3d.commandline.bars import Bars
from medseg3d.commandline.tables import candidates_table, dry_run_table, megabytes, plan_table, stage_table, table_of_names
from medseg3d.commandline.terminal import ProgressLines, is_terminal
from medseg3d.errors import CaseFailure
from medseg3d.events import Event
from medseg3d.options import OutputOptions
from medseg3d.wording import counted

if TYPE_CHECKING:
    from rich.table import Table

    from medseg3d.data.checks import DoctorReport
    from medseg3d.evaluation.metrics import Evaluation
    from medseg3d.plan import Plan
    from medseg3d.training.initial import TakenOver
    from medseg3d.validation.preset_comparison import Comparison
    from medseg3d.validation.selection import Selection
    from medseg3d.workflows.dry_run import DryRun
    from medseg3d.workflows.export import ExportResult
    from medseg3d.workflows.find_lr import LearningRateResult
    from medseg3d.workflows.info import Info
    from medseg3d.workflows.plan import PlanResult
    from medseg3d.workflows.predict import PredictResult
    from medseg3d.workflows.preprocess import PreprocessResult
    from medseg3d.workflows.reproduce import Reproduction
    from medseg3d.workflows.run import RunResult

Result = TypeVar("Result")
SHOWN_CASES = 5
FILE_WIDTH = 160
"""Columns where the output is no terminal: a table must not be cut off in a log file."""


class Console:
    """Bars and messages on standard error, results on standard output; a context manager around the work."""

    def __init__(self, options: OutputOptions) -> None:
        self._is_json: bool = options.json
        self._is_quiet: bool = options.quiet
        self._is_verbose: bool = options.verbose
        self._out = rich.console.Console(
            highlight=False, emoji=False, quiet=options.quiet, width=None if is_terminal(sys.stdout) else FILE_WIDTH
        )
        self._err = rich.console.Console(stderr=True, highlight=False, emoji=False, width=None if is_terminal(sys.stderr) else FILE_WIDTH)
        self._bars = Bars(self._err, is_shown=not self._is_quiet and self._err.is_terminal)
        self._progress: ProgressLines | None = None
        if not self._is_quiet and not self._err.is_terminal:
            self._progress = ProgressLines(lambda line: self._err.print(line, markup=False))
        self._collected: list[Any] | None = None
        self.lost: dict[str, CaseFailure] = {}
        """Cases that the work went on without, each for the first reason that was told."""

    def __enter__(self) -> Console:
        self._bars.start()
        if self._progress is not None:
            self._progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)

    def listen(self, event: Event) -> None:
        """Draw an event: a message stays on the screen, progress moves the bar of its stage, or is a line now and then in a file."""
        for failure in event.failures:
            self.lost.setdefault(failure.case, failure)
        if event.message is not None and not self._is_quiet:
            self._err.print(event.message, markup=False)
        if self._progress is not None:
            self._progress.listen(event)
        else:
            self._bars.listen(event)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No bars while a person is asked."""
        self._bars.stop()
        yield
        self._bars.start()

    def warn(self, text: str) -> None:
        """A note on standard error."""
        if not self._is_quiet:
            self._err.print(f"Note: {text}", markup=False)

    def say(self, text: str) -> None:
        """A line on standard output."""
        if self._is_json:
            self._print_json({"message": text})
        elif not self._is_quiet:
            self._out.print(text, markup=False)

    def show_parts(self, document: Any, parts: Iterable[Table | str]) -> None:
        """Tables and lines for people; with ``--json`` the document."""
        if self._is_json:
            self._print_json(document)
            return
        for part in parts:
            if isinstance(part, str):
                self._lines([part])
            else:
                self._out.print(part)

    def show_plan(self, result: PlanResult, *, explain: bool) -> None:
        """The configurations, which one is recommended, warnings; with ``explain`` every number's reason."""
        from medseg3d.records import to_plain

        if self._is_json:
            self._print_json(
                {
                    "plan": to_plain(result.plan),
                    "explanations": [to_plain(e) for e in result.explanations] if explain else None,
                    "candidates": [to_plain(c) for c in result.candidates] if explain else None,
                    "warnings": list(result.warnings),
                    "failures": _failure_dicts(result.failures),
                    "path": None if result.path is None else str(result.path),
                }
            )
            return
        self._show_plan(result.plan)
        if explain:
            self._explain(result)
        self._lines([f"Note: {warning}" for warning in result.warnings])
        if result.path is not None:
            self._lines([f"Written: {result.path}"])

    def _show_plan(self, plan: Plan) -> None:
        self._out.print(plan_table(plan))
        self._lines([f"Recommended: {plan.recommended}. {plan.recommended_reason}", *plan.notes])

    def _explain(self, result: PlanResult) -> None:
        last = None
        for e in result.explanations:
            if e.configuration != last:
                self._out.rule(e.configuration or "dataset")
                last = e.configuration
            self._out.print(f"[bold]{escape(e.quantity)}[/bold] = [cyan]{escape(str(e.value))}[/cyan]")
            self._out.print(f"  why: {e.rule}", markup=False)
            self._out.print(f"  from: {e.inputs}", markup=False)
            self._out.print(f"  changes with: {e.changes_it}", markup=False)

        self._candidates(result)

    def _candidates(self, result: PlanResult) -> None:
        """What other networks would take, the ones worth training first."""
        if not result.candidates:
            return
        shown = [c for c in result.candidates if c.is_proposed or c.parameters or c.problem]
        self._out.print(candidates_table(shown))
        others: dict[str, list[str]] = {}
        for c in result.candidates:
            if c not in shown:
                others.setdefault(c.reason, []).append(c.planner)
        self._lines(["Not proposed:", *(f"  {', '.join(names)}: {reason}." for reason, names in others.items())])
        self._lines(["Rules of thumb; medseg3d compare PRESET PRESET trains some of them alike on one fold."])

    def show_preprocessed(self, result: PreprocessResult) -> None:
        """How many cases were made and kept."""
        if self._is_json:
            self._print_json({"made": list(result.made), "kept": list(result.kept), "failures": _failure_dicts(result.failures)})
        else:
            made = counted(len(result.made), "case")
            self._lines([f"{made} preprocessed, {len(result.kept)} unchanged and kept, {len(result.failures)} failed."])

    def show_evaluation(self, evaluation: Evaluation | None, *, title: str, began_with: TakenOver | None = None) -> None:
        """A row per label with the number of cases beside each mean, then the worst cases.

        With ``--json`` the document also says what training took of the weights that it began with, which was told as it began.
        """
        if evaluation is None and not (self._is_json and (began_with or self.lost)):
            return
        from medseg3d.evaluation.metrics import table_header, table_rows
        from medseg3d.records import to_plain

        if self._is_json or evaluation is None:
            more = {} if began_with is None else {"began_with": to_plain(began_with)}
            self._print_json({**({} if evaluation is None else to_plain(evaluation)), **more})
            return
        self._out.print(table_of_names(title, table_header(evaluation), table_rows(evaluation)))
        scored = sorted((d, c) for c, d in evaluation.dice_per_case().items() if d is not None)
        if len(scored) > 1:
            self._lines(["Worst cases: " + ", ".join(f"{case} {dice:.3f}" for dice, case in scored[:SHOWN_CASES])])

    def show_learning_rate(self, result: LearningRateResult) -> None:
        """The suggested learning rate beside the plan's, where training diverged, and where the figure lies."""
        from medseg3d.records import to_plain

        if self._is_json:
            self._print_json(to_plain(result))
            return
        curve = result.curve
        suggested = "none: the loss never fell by more than its noise" if curve.suggested is None else f"{curve.suggested:.2g}"
        diverged = "did not diverge" if curve.diverged is None else f"diverged from {curve.diverged:.2g}"
        self._lines([f"Suggested learning rate: {suggested} (plan {result.planned:.2g}; {diverged}).", f"Figure: {result.figure}"])
        if curve.suggested is not None:
            self._lines([f"To train with it: medseg3d train with --learning-rate {suggested}."])

    def show_selection(self, selection: Selection) -> None:
        """What was chosen, and why."""
        from medseg3d.records import to_plain

        if self._is_json:
            self._print_json(to_plain(selection))
            return
        self._lines([f"Selected: {' + '.join(selection.configurations)}. {selection.reason}", *selection.notes])
        for decision in selection.postprocessing.decisions:
            self._lines(
                [f"Postprocessing {decision.step.operation} of {decision.label}: {'yes' if decision.accepted else 'no'}, {decision.reason}"]
            )

    def show_comparison(self, comparison: Comparison) -> None:
        """A row per preset, what is unsure, and which presets are left out."""
        from medseg3d.records import to_plain

        if self._is_json:
            self._print_json(to_plain(comparison))
            return
        header, rows = comparison.table()
        title = f"Fold {comparison.fold}, {counted(len(comparison.cases), 'case')}, {comparison.length}"
        self._out.print(table_of_names(title, header, rows))
        self._lines([*comparison.notes, *(f"{name} is left out: {problem}" for name, problem in comparison.problems.items())])

    def show_predicted(self, result: PredictResult) -> None:
        """How many files were written and kept, and where; when verbose, the seconds of each stage."""
        from medseg3d.records import to_plain

        if self._is_json:
            self._print_json(
                {
                    "written": [str(path) for path in result.written],
                    "kept": [str(path) for path in result.kept],
                    "failures": _failure_dicts(result.failures),
                    "cases": to_plain(result.cases),
                    **({} if result.structures is None else {"structures": to_plain(result.structures)}),
                }
            )
            return
        if self._is_verbose and result.cases:
            self._out.print(stage_table(result.cases))
            self._lines([f"Computed in {', '.join(sorted({case.precision for case in result.cases.values()}))}."])
        files = (*result.written, *result.kept)
        if len(files) == 1:
            what = "Label map" if files[0].name.endswith((".nii.gz", ".nii")) else "Result"
            named = [str(files[0]), *(path.name for path in result.beside.get(files[0], ()))]
            self._lines([f"{what} {'written' if result.written else 'kept from before'}: {' and '.join(named)}"])
            return
        where = f" in {files[0].parent}" if files else ""
        more = sum(len(result.beside.get(path, ())) for path in result.written)
        others = f" and {counted(more, 'further file')}" if more else ""
        self._lines([f"{counted(len(result.written), 'label map')}{others} written{where}, {len(result.kept)} kept from before."])

    def show_exported(self, result: ExportResult) -> None:
        """What was written, and for ONNX how far it is from torch."""
        from medseg3d.records import to_plain

        if self._is_json:
            files = [str(path) for path in result.files]
            self._print_json({"output": str(result.output), "format": result.format, "files": files, "parity": to_plain(result.parity)})
            return
        lines = [f"Model written: {result.output}"]
        lines += [
            f"{each.file}: logits up to {each.max_difference:.1e} from torch's, {100 * each.label_agreement:.4f} % of labels agree"
            for each in result.parity
        ]
        self._lines(lines)

    def show_info(self, found: Info) -> None:
        """What a model is."""
        from medseg3d.records import to_plain
        from medseg3d.workflows.info import info_lines

        if self._is_json:
            self._print_json(to_plain(found))
        else:
            self._lines(info_lines(found))

    def show_run(self, result: RunResult) -> None:
        """The metrics of the test set where there are any, and where the report lies."""
        from medseg3d.records import to_plain

        if self._is_json:
            self._print_json(
                {
                    "report": str(result.report),
                    "selection": None if result.selection is None else to_plain(result.selection),
                    "test": None if result.test is None else to_plain(result.test),
                    "failures": _failure_dicts(result.failures),
                }
            )
            return
        if result.selection is not None:
            self.show_selection(result.selection)
        self.show_evaluation(result.test, title="Test set")
        self._lines([f"The report lies in {result.report}"])

    def show_dry_run(self, result: DryRun, hours: float | None) -> None:
        """The plan, then a row per step with its time and disk, and what is worth knowing before it begins."""
        from medseg3d.records import to_plain
        from medseg3d.workflows.dry_run import advice

        lines = advice(result, hours)
        if self._is_json:
            more = {"seconds": result.seconds, "disk_bytes": result.disk_bytes, "fits_disk": result.fits_disk, "advice": lines}
            self._print_json({**to_plain(result), **more})
            return
        self._show_plan(result.plan)
        self._out.print(dry_run_table(result))
        self._lines([*lines, *(f"Note: {warning}" for warning in result.warnings)])
        self._lines([f"Nothing was written. Results would lie in {result.work}, with {megabytes(result.free_bytes)} free there."])

    def show_reproduction(self, result: Reproduction) -> None:
        """What is the same and what is not, and what is different about machine and versions."""
        from medseg3d.records import to_plain

        if self._is_json:
            self._print_json({**to_plain(result), "is_same": result.is_same})
            return
        self._lines(
            [f"{'same    ' if each.is_same else 'DIFFERS '} {each.what}{': ' * bool(each.detail)}{each.detail}" for each in result.compared]
        )
        self._lines([f"Different now: {difference}" for difference in result.differences])
        verdict = "Everything is the same bit for bit." if result.is_same else "Not everything is the same."
        self._lines([f"{verdict} The new run lies in {result.folder}"])

    def show_doctor(self, report: DoctorReport) -> int:
        """All findings, the errors first, and their number at the end; returns the exit code: 2 where an error is left."""
        from medseg3d.records import to_plain

        errors = [finding for finding in report.findings if finding.severity == "error"]
        if self._is_json:
            self._print_json(to_plain(report))
            return 2 if errors else 0
        for finding in sorted(report.findings, key=lambda f: ("error", "fixable", "warning", "note").index(f.severity)):
            line = f"{finding.severity:8} {finding.case or 'dataset'}: {finding.message}"
            if not self._is_quiet:
                self._out.print(line, markup=False)
            elif finding.severity == "error":
                self._err.print(line, markup=False)
        self._lines([f"repaired {message}" for message in report.repaired])
        cases = counted(report.num_training + report.num_test, "case")
        self._lines([f"{cases} read, {counted(len(errors), 'error') if errors else 'no errors'}."])
        if report.num_fixable:
            self._lines([f"{counted(report.num_fixable, 'finding')} can be repaired: run the same command with --fix."])
        return 2 if errors else 0

    def show_pages(self, found: Mapping[str, Path]) -> None:
        """The pages of the documentation, each with its title."""
        titles = {name: path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for name, path in found.items()}
        if self._is_json:
            self._print_json({name: {"title": titles[name], "file": str(path)} for name, path in found.items()})
            return
        self._lines([f"{name:22} {title}" for name, title in titles.items()])
        self._lines(["medseg3d docs PAGE shows one."])

    def show_page(self, path: Path, text: str) -> None:
        """A page or a part of it, laid out on a terminal, as it is in a file."""
        from rich.markdown import Markdown

        if self._is_json:
            self._print_json({"file": str(path), "text": text})
        elif self._out.is_terminal:
            self._out.print(Markdown(text, hyperlinks=False))
            self._out.print(f"This page: {path}", markup=False)
        else:
            sys.stdout.write(f"{text}\n")

    def _lines(self, lines: Sequence[str]) -> None:
        if not self._is_quiet:
            for line in lines:
                self._out.print(line, markup=False)

    def show(self, results: Mapping[str | None, Result], show: Callable[[Result], object]) -> None:
        """``show(result)`` for every domain that has one, under its name; with ``--json`` one document with an entry for each.

        A result without a name is the only one, and is shown as it is.
        """
        if None in results:
            show(results[None])
            return
        documents: dict[str, Any] = {}
        for name, result in results.items():
            if result is not None:
                self._lines([f"— {name} —"] if not self._is_json else [])
                self._collected = []
                show(result)
                documents[str(name)] = self._collected[-1] if self._collected else None
        self._collected = None
        if self._is_json:
            self._print_json({"domains": documents})

    def _print_json(self, document: Any) -> None:
        """The document of a verb; where it trained, with the cases that training went on without (``left_out``)."""
        if self._collected is not None:
            self._collected.append(document)
            return
        if self.lost:
            document = {**document, "left_out": _failure_dicts(self.lost.values())}
        sys.stdout.write(json.dumps(document, indent=2, default=_path_as_text) + "\n")


def _failure_dicts(failures: Iterable[Any]) -> list[dict[str, str]]:
    return [{"case": f.case, "stage": f.stage, "reason": f.reason} for f in failures]


def _path_as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
