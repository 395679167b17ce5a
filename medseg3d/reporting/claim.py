"""The CLAIM 2024 checklist of a study with this model: what the work folder answers is filled in, the rest is named for the authors.

The items are those of Tejani et al. 2024 (44 of them), their topics in our words. An answer says only what files say; ``add`` names what
an item asks beyond that, by the explanations of its authors (Akinci D'Antonoli et al. 2026). An item is filled where nothing is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medseg3d.reporting.claim_data import about_data, about_study
from medseg3d.reporting.claim_items import TOPICS, Item
from medseg3d.reporting.claim_model import about_evaluation, about_model
from medseg3d.reporting.claim_results import about_results
from medseg3d.reporting.methods import chosen_configuration

if TYPE_CHECKING:
    from medseg3d.reporting.claim_items import Answers
    from medseg3d.reporting.page import ReportInput


def checklist(report: ReportInput) -> tuple[Item, ...]:
    """All 44 items in their order; without a plan only the authors' own file answers any."""
    answers = _answers(report)
    items = []
    for number, (section, topic) in enumerate(TOPICS, 1):
        answer, add = (text.strip() for text in answers.get(number, ("", "")))
        said = report.study.of_item(number) if report.study is not None else ""
        items.append(Item(number=number, section=section, topic=topic, answer=answer, add=add if answer else "", study=said))
    return tuple(items)


def _answers(report: ReportInput) -> Answers:
    if report.plan is None:
        return {}
    chosen = chosen_configuration(report, report.plan)
    return {
        **about_study(report, report.plan, chosen),
        **about_data(report, report.plan, chosen),
        **about_model(report, report.plan, chosen),
        **about_evaluation(report),
        **about_results(report, report.plan),
    }
