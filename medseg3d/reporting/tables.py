"""The tables of a report for a paper: scores go in, CSV for spreadsheets and LaTeX (booktabs) for manuscripts come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg3d.csv_text import csv_text
from medseg3d.evaluation.compare import Interval
from medseg3d.reporting.scores import Column, Score, columns_of

MINUS = "−"
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "Δ": r"$\Delta$",
    MINUS: "$-$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def labels_csv(rows: Sequence[Mapping[str, Any]], means: Mapping[str, Interval], columns: Sequence[Column]) -> str:
    """One row per label and metric, and the mean of the labels' means last; what is not defined is empty."""
    lines: list[list[object]] = [["label", "metric", "mean", "interval_low", "interval_high", "standard_deviation", "median", "n"]]
    for row in rows:
        for column in columns:
            s = row["values"][column.name]
            values = (s["mean"], s["from"], s["to"], s["std"], s["median"])
            lines.append([row["name"], column.name, *map(_exact, values), s["num"]])
    for column in columns:
        mean = means[column.name]
        lines.append(["mean of labels", column.name, _exact(mean.mean), _exact(mean.low), _exact(mean.high), "", "", mean.n])
    return csv_text(lines)


def cases_csv(scores: Sequence[Score], folds: Mapping[str, str], patients: Mapping[str, str]) -> str:
    """One row per case and label with every metric, the case's fold and patient; what is not defined is empty."""
    columns = columns_of(scores)
    rows = [["case", "patient", "fold", "label", *(column.name for column in columns), "volume_reference_ml", "spacing_mm"]]
    for score in scores:
        names = (score.case, patients.get(score.case, score.case), folds.get(score.case, ""), score.label)
        spacing = " ".join(f"{edge:g}" for edge in score.spacing_mm)
        values = [_exact(score.values.get(column.name)) for column in columns]
        rows.append([*names, *values, _exact(score.volume_ml), spacing])
    return csv_text(rows)


def labels_latex(
    rows: Sequence[Mapping[str, Any]], means: Mapping[str, Interval], columns: Sequence[Column], *, caption: str, label: str
) -> str:
    r"""A table of ``mean [interval]`` per label and metric; it needs ``\usepackage{booktabs}``. Every text is escaped."""
    head = " & ".join(latex(column.title) for column in columns)
    lines = [
        r"\begin{table}",
        r"  \centering\small",
        rf"  \caption{{{latex(caption)}}}",
        rf"  \label{{{label}}}",
        rf"  \begin{{tabular}}{{l{'r' * len(columns)}r}}",
        r"    \toprule",
        rf"    Label & {head} & $n$ \\",
        r"    \midrule",
    ]
    for row in rows:
        cells = [
            _cell(row["values"][c.name]["mean"], row["values"][c.name]["from"], row["values"][c.name]["to"], c.digits) for c in columns
        ]
        lines.append(rf"    {latex(row['name'])} & {' & '.join(cells)} & {row['num']} \\")
    if len(rows) > 1:
        cells = [_cell(means[c.name].mean, means[c.name].low, means[c.name].high, c.digits) for c in columns]
        lines += [r"    \midrule", rf"    Mean of labels & {' & '.join(cells)} & {len(rows)} \\"]
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""])


def latex(text: str) -> str:
    r"""A text for LaTeX.

    >>> latex("left_kidney & 5 %")
    'left\\_kidney \\& 5 \\%'
    """
    return "".join(_LATEX.get(character, character) for character in text)


def _cell(mean: float | None, low: float | None, high: float | None, digits: int) -> str:
    if mean is None:
        return "--"
    if low is None or high is None:
        return _short(mean, digits)
    return f"{_short(mean, digits)} [{_short(low, digits)}, {_short(high, digits)}]"


def _short(value: float, digits: int) -> str:
    """Fixed decimals; of lengths in microscopy the figures that count."""
    return f"{value:.2g}" if 0 < abs(value) < 0.1**digits else f"{value + 0.0:.{digits}f}"


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
