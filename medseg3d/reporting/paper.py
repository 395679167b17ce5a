"""What a paper needs of a report: methods, tables as LaTeX and CSV, the CLAIM checklist; on the page, and as files beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg3d.csv_text import csv_text
from medseg3d.files import remove_leftovers, write_text
from medseg3d.plan import Plan
from medseg3d.records import to_plain
from medseg3d.reporting.claim import checklist
from medseg3d.reporting.claim_facts import shown_scores, study_of, validation_kind
from medseg3d.reporting.claim_items import Item
from medseg3d.reporting.claim_results import SUPPLEMENT
from medseg3d.reporting.details import network_details, preprocessing_details, training_details
from medseg3d.reporting.flow import flow_of, flow_svg
from medseg3d.reporting.methods import REFERENCES, bibtex, chosen_configuration, methods_paragraphs, training_of
from medseg3d.reporting.scores import Score, columns_of, label_rows, mean_of_labels, one_per_case
from medseg3d.reporting.study import Study, template
from medseg3d.reporting.subgroups import subgroups, subgroups_csv
from medseg3d.reporting.tables import cases_csv, labels_csv, labels_latex

if TYPE_CHECKING:
    from medseg3d.reporting.page import ReportInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table as a file: its title, the file's name and its text."""

    title: str
    name: str
    text: str

    @property
    def uri(self) -> str:
        """The file as a link of the page."""
        kind = "text/csv" if self.name.endswith(".csv") else "application/x-tex"
        return f"data:{kind};base64,{base64.b64encode(self.text.encode('utf-8')).decode('ascii')}"


def paper_view(report: ReportInput) -> dict[str, Any]:
    """What the page shows of it."""
    from markupsafe import Markup

    items = checklist(report) if report.plan is not None else ()
    counts = {status: sum(item.status == status for item in items) for status in STATUSES}
    return {
        "methods": methods_paragraphs(report),
        "references": REFERENCES,
        "bibtex": bibtex(report),
        "paper_tables": list(tables_of(report)),
        "claim": items,
        "claim_counts": dict(zip(("filled", "study", "part", "authors"), counts.values(), strict=True)) if items else None,
        "flow": Markup(flow_svg(flow)) if (flow := flow_of(report)) and items else None,
    }


STATUSES = ("filled", "filled by study.toml", "filled in part", "authors")


def write_paper(report: ReportInput, folder: Path) -> tuple[Path, ...]:
    """The same as files: ``methods.md``, a supplement with ``plan.json``, ``references.bib``, tables, ``claim-2024.csv``, the flow of
    images, and a template of what only the authors know; none before anything is planned."""
    if report.plan is None:
        return ()
    items, flow = checklist(report), flow_of(report)
    open_items = {item.number: f"{item.topic}{f': {item.add}' if item.add else ''}" for item in items if item.status in STATUSES[2:]}
    references = "\n".join(f"{number}. {text}" for number, text in enumerate(REFERENCES, 1))
    files = {
        "methods.md": "\n\n".join((*methods_paragraphs(report), references)) + "\n",
        "references.bib": bibtex(report),
        SUPPLEMENT: _supplement(report, report.plan),
        "plan.json": json.dumps(to_plain(report.plan), indent=2) + "\n",
        "claim-2024.csv": claim_csv(items),
        "study-template.toml": template(open_items, report.study or Study()),
        **({"flow.svg": flow_svg(flow)} if flow else {}),
        **{table.name: table.text for table in tables_of(report)},
    }
    remove_leftovers(folder)
    return tuple(write_text(folder / name, text) for name, text in files.items())


def _supplement(report: ReportInput, plan: Plan) -> str:
    """Every number of preprocessing, network and training."""
    chosen = chosen_configuration(report, plan)
    parts = (
        ("Preprocessing", preprocessing_details(plan, chosen)),
        ("Network", network_details(plan, chosen)),
        ("Training", training_details(chosen, training_of(report, chosen))),
    )
    head = f"# Supplement: {chosen.name} of {plan.dataset}\n\nAll configurations stand in plan.json beside this file.\n"
    return head + "".join(f"\n## {title}\n\n{text}\n" for title, text in parts)


def tables_of(report: ReportInput) -> Iterator[Table]:
    """By configuration and for the test set: the labels as LaTeX and CSV, the cases as CSV."""
    names = list(dict.fromkeys(fold.configuration for fold in report.folds if fold.scores))
    for name in names:
        mine = [(fold.fold, score) for fold in report.folds if fold.configuration == name for score in fold.scores or ()]
        scores, folds = one_per_case(score for _, score in mine), dict[str, str]()
        for fold, score in mine:
            folds[score.case] = " ".join(dict.fromkeys([*folds.get(score.case, "").split(), fold]))
        what = f"{validation_kind(report)} of {name}, {len(folds)} images"
        yield from _tables(report, scores, folds, f"validation-{name}", f"Labels, {what}", what)
    if report.test_scores:
        what = f"test set, {len({score.case for score in report.test_scores})} images"
        yield from _tables(report, report.test_scores, {}, "test", f"Labels, {what}", what)
    for stem, scores in (("validation", shown_scores(report)), ("test", list(report.test_scores or ()))):
        if groups := subgroups(scores, report.patients, study_of(report)):
            yield Table(title=f"Groups of cases, {stem}", name=f"{stem}-groups.csv", text=subgroups_csv(groups))


def _tables(report: ReportInput, scores: Sequence[Score], folds: Mapping[str, str], stem: str, title: str, what: str) -> Iterator[Table]:
    rows, means, columns = label_rows(scores, report.patients), mean_of_labels(scores, report.patients), columns_of(scores)
    unit = "patients" if report.patients else "images"
    caption = f"Segmentation of {report.dataset}: mean and 95 % bootstrap interval over {unit}, {what}."
    latex = labels_latex(rows, means, columns, caption=caption, label=f"tab:{stem}")
    yield Table(title=title, name=f"{stem}-labels.tex", text=latex)
    yield Table(title=title, name=f"{stem}-labels.csv", text=labels_csv(rows, means, columns))
    yield Table(title=f"Cases, {what}", name=f"{stem}-cases.csv", text=cases_csv(scores, folds, report.patients))


def claim_csv(items: Sequence[Item]) -> str:
    """One row per item."""
    rows = [(item.number, item.section, item.topic, item.status, item.text, "" if item.study else item.add) for item in items]
    return csv_text([("item", "section", "topic", "status", "answer", "to_add"), *rows])
