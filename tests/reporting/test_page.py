"""The page: everything is escaped, nothing is loaded, and what is missing is said."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from medseg3d.errors import CaseFailure
from medseg3d.evaluation.failure_kinds import Failure
from medseg3d.reporting.case_pictures import Picture
from medseg3d.reporting.page import (
    DatasetFacts,
    FoldResult,
    LabelFacts,
    ReportInput,
    as_text,
    build_report,
    case_rows,
    render,
)
from medseg3d.reporting.scores import Score, label_rows, mean_of_labels
from medseg3d.reporting.training_facts import TrainingFacts

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


class Tags(HTMLParser):
    """Collects start tags, attributes and text; complains about tags that are not closed."""

    VOID = frozenset({"meta", "img", "line", "path", "circle", "br", "wbr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def full_report(path: Path, name: str = "liver") -> ReportInput:
    history = tuple({"epoch": e, "train_loss": 1.0 - e / 10, "pseudo_dice": {name: e / 10}, "seconds": 2.0} for e in range(5))
    scores = (
        Score(case="good", label=name, values={"dice": 0.9, "hd95_mm": 2.0, "nsd": 0.95}, volume_ml=3.0, spacing_mm=(5.0, 1.0, 1.0)),
        Score(case=name, label=name, values={"dice": 0.0, "nsd": 0.0}, is_false_negative=True, volume_ml=1.0, spacing_mm=(3.0, 1.0, 1.0)),
        Score(case="absent", label=name),
    )
    return ReportInput(
        output=path,
        dataset=name,
        work=name,
        facts=DatasetFacts(
            channels=(name,),
            shapes=((10, 20, 20), (12, 20, 20)),
            spacings=((5.0, 1.0, 1.0), (5.0, 1.0, 1.0)),
            orientations={"RAS": 1, name: 1},
            labels=(LabelFacts(name=name, value=1, num_cases=2, volumes_ml=(1.0, 2.0), components=(1, 3)),),
            num_test=1,
        ),
        explanations=({"configuration": name, "quantity": name, "value": name, "rule": name, "inputs": name, "changes_it": name},),
        folds=(FoldResult(configuration="3d_fullres", fold="0", history=history, scores=scores),),
        selected=("3d_fullres",),
        selection_notes=(name,),
        test_scores=scores,
        pictures=(Picture(case=name, role="worst", png=b"\x89PNG", dice=0.0, scene={"case": name, "title": name}),),
        mistakes={name: (Failure(label=name, kind="missed", dice=0.0, detail=name),)},
        patients={name: name, "good": name},
        training=(TrainingFacts(configuration="3d_fullres", fold="0", cpu=name, device=name, versions={name: name}),),
        timings={name: 10.0, "train": 30.0},
        failures=(CaseFailure(case=name, stage=name, reason=name),),
        warnings=(name,),
        made_by="medseg3d",
    )


def test_names_of_cases_and_labels_never_become_tags(tmp_path: Path) -> None:
    page = build_report(full_report(tmp_path / "report.html", EVIL)).read_text(encoding="utf-8")
    tags = Tags(page)
    assert not tags.open
    assert [attributes.get("type") for tag, attributes in tags.found if tag == "script"] == ["application/json", None]
    assert all(not key.startswith("on") for _, attributes in tags.found for key in attributes)
    assert "alert(1)" in "".join(tags.text)


def test_the_page_lets_its_own_script_run_and_no_other(tmp_path: Path) -> None:
    page = render(full_report(tmp_path / "report.html", EVIL))
    (policy,) = re.findall(r"script-src ([^\"]*)\"", page)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    digests = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts]
    assert policy.replace("&#39;", "'").split() == digests
    data = re.findall(r'<script type="application/json" id="scenes">(.*?)</script>', page, re.S)
    assert json.loads(data[0]) == [{"case": EVIL, "title": EVIL}]


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = render(full_report(tmp_path / "report.html"))
    addresses = [value for _, attributes in Tags(page).found for key, value in attributes.items() if key in ("src", "href")]
    assert addresses
    assert all(
        str(a).startswith(("#", "data:image/png;base64,", "data:text/csv;base64,", "data:application/x-tex;base64,")) for a in addresses
    )
    assert not re.search(r"https?:|@import|url\(", page)


def test_an_empty_work_folder_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    text = "".join(Tags(render(ReportInput(output=tmp_path / "r.html", dataset="d", work="w"))).text)
    for sentence in (
        "nothing is evaluated yet",
        "There is no fingerprint yet",
        "There is no plan yet",
        "No epoch has been trained yet",
    ):
        assert sentence in text


def test_a_missed_label_counts_as_zero_and_an_absent_one_not_at_all() -> None:
    scores = [
        Score(case="a", label="x", values={"dice": 0.8}),
        Score(case="b", label="x", values={"dice": 0.0}, is_false_negative=True),
        Score(case="c", label="x", values={"dice": None}),
    ]
    (row,) = label_rows(scores)
    dice = row["values"]["dice"]
    assert dice["mean"] == pytest.approx(0.4)
    assert (dice["from"], dice["to"]) == pytest.approx((0.0, 0.8))
    assert (dice["num"], row["num"], row["num_false_negatives"]) == (2, 3, 1)


def test_the_mean_of_labels_counts_every_label_once() -> None:
    scores = [Score(case=str(i), label="often", values={"dice": 1.0}) for i in range(9)] + [
        Score(case="0", label="rare", values={"dice": 0.0})
    ]
    assert mean_of_labels(scores)["dice"].mean == pytest.approx(0.5)


def test_cases_come_worst_first_and_those_without_a_value_last() -> None:
    def score(case: str, dice: float | None) -> Score:
        return Score(case=case, label="x", values={"dice": dice})

    folds = [
        FoldResult(configuration="c", fold="0", scores=(score("b", 0.5), score("none", None))),
        FoldResult(configuration="c", fold="1", scores=(score("a", 0.2), score("d", 0.9))),
        FoldResult(configuration="c", fold="2", scores=None),
    ]
    assert [(row["case"], row["fold"]) for row in case_rows(folds)] == [("a", "1"), ("b", "0"), ("d", "1"), ("none", "0")]


def test_a_page_with_many_labels_and_folds_still_renders(tmp_path: Path) -> None:
    names = [f"structure {n}" for n in range(61)]
    folds = tuple(
        FoldResult(
            configuration="3d_fullres",
            fold=str(k),
            history=tuple({"epoch": e, "pseudo_dice": dict.fromkeys(names, 0.5)} for e in range(3)),
            scores=tuple(Score(case=f"c{k}_{c}", label=n, values={"dice": 0.5}) for c in range(6) for n in names),
        )
        for k in range(3)
    )
    tags = Tags(render(ReportInput(output=tmp_path / "r.html", dataset="d", work="w", folds=folds)))
    assert "Lowest label" in tags.text
    assert "The other 3 cases" in tags.text


def test_values_of_explanations_are_written_for_people() -> None:
    assert as_text([32, 192, 0.78125]) == "32\u00a0×\u00a0192\u00a0×\u00a00.7812"
    assert as_text([[1, 2], [2, 2]]) == "(1\u00a0×\u00a02), (2\u00a0×\u00a02)"
    assert as_text({"ratio": 6.2, "separate": True, "why": None}) == "ratio: 6.2; separate: yes; why: –"
