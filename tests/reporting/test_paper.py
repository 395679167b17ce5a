"""What a paper gets: intervals over patients, tables that spreadsheets and LaTeX read, methods and a checklist of what is known."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from medseg3d.errors import CaseFailure, InputError
from medseg3d.evaluation.failure_kinds import Failure
from medseg3d.plan import Plan, TrainingPlan
from medseg3d.records import to_plain
from medseg3d.reporting.claim import checklist
from medseg3d.reporting.claim_items import TOPICS, Item
from medseg3d.reporting.flow import flow_of, flow_sentence, flow_svg
from medseg3d.reporting.methods import methods_paragraphs
from medseg3d.reporting.page import DatasetFacts, FoldResult, LabelFacts, ReportInput, render
from medseg3d.reporting.paper import claim_csv, tables_of, write_paper
from medseg3d.reporting.scatter import explaining_charts
from medseg3d.reporting.scores import Score, columns_of, label_rows, mean_of_labels
from medseg3d.reporting.study import KEYS, Study, read_study
from medseg3d.reporting.study_facts import StudyFacts
from medseg3d.reporting.subgroups import subgroups
from medseg3d.reporting.tables import cases_csv, labels_csv, labels_latex
from medseg3d.reporting.training_facts import TrainingFacts, partition_of, training_facts
from medseg3d.workflows.plan import plan as plan_dataset


def score(case: str, label: str, dice: float | None, **about: object) -> Score:
    return Score(case=case, label=label, values={"dice": dice, "hd95_mm": None if dice is None else 10 - 9 * dice}, **about)  # type: ignore[arg-type]


SCORES = tuple(
    score(f"p{patient}_{visit}", label, 0.5 + 0.05 * patient, volume_ml=float(patient + 1), spacing_mm=(1.0 + patient, 1.0, 1.0))
    for patient in range(6)
    for visit in ("a", "b")
    for label in ("=cmd", "left_lung")
)
PATIENTS = {s.case: s.case[:2] for s in SCORES}


@pytest.fixture(scope="module")
def planned(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    root = Path(shutil.copytree(tiny_source, tmp_path_factory.mktemp("planned") / "Balls"))
    return plan_dataset(root, planner=str(root / "tiny.toml")).plan


@pytest.fixture
def report(planned: Plan) -> ReportInput:
    plan = planned
    label = LabelFacts(name="shell", value=3, num_cases=6, volumes_ml=(1.0,), components=(1,))
    return ReportInput(
        output=Path("r.html"),
        dataset="Balls",
        work="/work",
        plan=plan,
        facts=DatasetFacts(
            channels=("MRI",), shapes=((12, 18, 20),), spacings=((1.5, 1.0, 1.0),), orientations={"RAS": 1}, labels=(label,), num_test=2
        ),
        folds=(FoldResult(configuration=plan.recommended, fold="0", history=({"epoch": 0, "seconds": 60.0},), scores=SCORES),),
        test_scores=SCORES[:4],
        nsd_tolerance_mm=1.0,
        mistakes={"p0_a": (Failure(label="left_lung", kind="shifted", dice=0.5),)},
        patients=PATIENTS,
        grouping="found",
        num_folds=5,
        training=(
            TrainingFacts(
                configuration=plan.recommended, fold="0", cpu="Some CPU  9, AVX2", device="cpu", versions={"torch": "2.13"}, seed=7
            ),
        ),
        made_by="medseg3d 0.1.0",
    )


def test_intervals_of_patients_are_wider_than_those_of_their_images() -> None:
    def width(patients: dict[str, str]) -> float:
        values = label_rows(SCORES, patients)[0]["values"]["dice"]
        return float(values["to"] - values["from"])

    assert width(PATIENTS) > 1.2 * width({})
    assert label_rows(SCORES, PATIENTS)[0]["values"]["dice"]["mean"] == pytest.approx(0.625)
    assert label_rows(SCORES, dict.fromkeys(PATIENTS, "one"))[0]["values"]["dice"]["from"] is None


def test_the_csv_of_labels_reads_back_and_holds_no_formula() -> None:
    rows, means, columns = label_rows(SCORES, PATIENTS), mean_of_labels(SCORES, PATIENTS), columns_of(SCORES)
    read = list(csv.DictReader(io.StringIO(labels_csv(rows, means, columns))))
    assert [(row["label"], row["metric"]) for row in read[:2]] == [("'=cmd", "dice"), ("'=cmd", "hd95_mm")]
    assert float(read[0]["mean"]) == pytest.approx(0.625)
    assert float(read[0]["interval_low"]) < 0.625 < float(read[0]["interval_high"])
    assert read[-2]["label"] == "mean of labels"
    cases = list(csv.DictReader(io.StringIO(cases_csv(SCORES, {"p0_a": "3"}, PATIENTS))))
    assert (cases[0]["patient"], cases[0]["fold"], len(cases)) == ("p0", "3", len(SCORES))


def test_the_latex_of_labels_escapes_names_and_has_as_many_cells_as_columns() -> None:
    rows, means, columns = label_rows(SCORES, PATIENTS), mean_of_labels(SCORES, PATIENTS), columns_of(SCORES)
    text = labels_latex(rows, means, columns, caption="50 % of {x}", label="tab:x")
    body = text.split(r"\midrule")[1].strip().split("\n")
    assert r"left\_lung" in text
    assert r"50 \% of \{x\}" in text
    assert all(line.count("&") == len(columns) + 1 + line.count(r"\&") and line.endswith(r"\\") for line in body)


def test_methods_say_what_was_done_and_nothing_else(report: ReportInput) -> None:
    text = "\n".join(methods_paragraphs(report))
    for said in (
        "6 patients",
        "shell, core",
        "Some CPU 9",
        "for 1 epoch, 1 min a fold",
        "2000 resamples of whole patients",
        "Seed: 7",
        "torch 2.13",
    ):
        assert said in text
    assert "None" not in text
    assert methods_paragraphs(replace(report, plan=None)) == ()
    bare = "\n".join(methods_paragraphs(replace(report, facts=None, folds=(), training=(), patients={}, test_scores=None)))
    assert "None" not in bare
    assert "bootstrap" not in bare


def test_a_training_that_left_the_plan_is_told_as_it_was(report: ReportInput) -> None:
    assert report.plan is not None
    chosen = report.plan.configurations[report.plan.recommended]
    recipe = replace(
        chosen.training, optimizer="adamw", learning_rate=0.002, schedule="cosine", warmup=0.05, weight_averaging=0.1, best_on_tiles=True
    )
    facts = replace(report.training[0], recipe=recipe, batch_size=37, init="abc", frozen=("encoder.*",))
    short = replace(report, training=(facts,))
    told = [*methods_paragraphs(short), *(item.answer for item in checklist(short) if item.number in (22, 24, 25, 26))]
    text = "\n".join(told)
    for said in (
        "AdamW",
        "0.002",
        "cosine",
        "warm-up of 5%",
        "batches of 37",
        "fixed windows",
        "running average",
        "digest abc",
        "encoder.*",
    ):
        assert text.count(said) >= 2
    assert "stochastic gradient descent" not in text
    assert "at random" not in text
    tuned = replace(report, training=(replace(facts, learning_rate=0.5),))
    assert "learning rate of 0.5 " in "\n".join(methods_paragraphs(tuned))


def numbers_of(items: tuple[Item, ...], status: str) -> set[int]:
    return {item.number for item in items if item.status == status}


def test_items_are_filled_by_what_is_known_and_the_others_are_named(report: ReportInput) -> None:
    items = checklist(report)
    assert [item.number for item in items] == list(range(1, 45))
    assert len(TOPICS) == 44
    assert numbers_of(items, "authors") == {3, 4, 15, 16, 17, 18, 34, 41, 44}
    assert numbers_of(items, "filled in part") == {2, 5, 7, 8, 11, 13, 14, 19, 21, 33, 36, 43}, (
        "of a test set nothing tells where it is from"
    )
    assert len(numbers_of(items, "filled")) == 23
    assert all(item.add for item in items if item.status == "filled in part")
    assert not any("None" in item.answer for item in items)
    assert len(claim_csv(items).splitlines()) == 45


ABOUT = {"description": "Balls", "reference": "doi:10.0/balls", "licence": "CC0"}


def test_a_folder_of_nifti_files_whose_dataset_json_tells_its_source_fills_twenty_seven(report: ReportInput) -> None:
    plain = replace(report, test_scores=None, study_facts=StudyFacts(about=ABOUT), facts=replace(report.facts, num_test=None))
    items = checklist(plain)
    assert numbers_of(items, "filled in part") == {2, 7, 8, 11, 13, 14, 21, 33, 36}
    assert len(numbers_of(items, "filled")) == 27
    assert "CC0" in next(item.answer for item in items if item.number == 43)


def test_thirty_one_are_filled_where_headers_tell_of_scanners_and_people(report: ReportInput) -> None:
    names = [*PATIENTS, "t0", "t1"]
    header = {"manufacturer": "ACME", "scanner": "One", "field_strength": "3", "echo_time": "2.5", "identity_removed": "YES"}
    images = {name: {**header, "deidentification": "CTP basic profile"} for name in names}
    people = {name: {"age": str(30 + place), "sex": "FM"[place % 2]} for place, name in enumerate(names)}
    facts = StudyFacts(about=ABOUT, images=images, people=people, num_test=2, num_read=14, is_older=True, test_names=("t0", "t1"))
    items = checklist(replace(report, study_facts=facts, facts=replace(report.facts, names=tuple(PATIENTS))))
    assert numbers_of(items, "filled in part") == {7, 8, 14, 21, 33}
    assert len(numbers_of(items, "filled")) == 31
    said = {item.number: item.answer for item in items}
    assert "field strength 3 T" in said[13]
    assert "CTP basic profile (14)" in said[11]
    assert "age median 35.5 years (30 to 41)" in said[36]
    assert "sex F (6), M (6)" in said[36]
    assert "by sex: F" in said[30]
    without_age = {name: {"sex": row["sex"]} for name, row in people.items()}
    assert 36 in numbers_of(checklist(replace(report, study_facts=replace(facts, people=without_age))), "filled in part")


def test_what_the_authors_say_answers_the_rest_and_is_counted_apart(report: ReportInput, tmp_path: Path) -> None:
    before = checklist(report)
    paths = {path.name: path for path in write_paper(report, tmp_path / "report")}
    text = paths["study-template.toml"].read_text(encoding="utf-8")
    assert "# Item 16: Who annotated" in text
    filled = tmp_path / "study.toml"
    filled.write_text(re.sub(r' = ""', ' = "We say \\"so\\"."', text), encoding="utf-8")
    items = checklist(replace(report, study=read_study(filled)))
    assert numbers_of(items, "filled") == numbers_of(before, "filled")
    assert len(numbers_of(items, "filled by study.toml")) == 44 - len(numbers_of(before, "filled"))
    assert 'We say "so".' in items[15].text
    page = render(replace(report, study=read_study(filled)))
    assert "21 by study.toml" in page
    (tmp_path / "wrong.toml").write_text("fundng = 'X'", encoding="utf-8")
    with pytest.raises(InputError, match="fundng"):
        read_study(tmp_path / "wrong.toml")


def test_every_key_of_a_study_answers_an_item_once() -> None:
    keys = [key for keys in KEYS.values() for key in keys]
    assert sorted(keys) == sorted(field.name for field in fields(Study))
    assert Study().of_item(16) == ""
    assert Study(sources="A.", ethics=" B. ").of_item(7) == "A. B."


def test_images_are_counted_from_the_folder_to_the_evaluation(report: ReportInput) -> None:
    facts = replace(report.facts, shapes=((12, 18, 20),) * 12, names=tuple(PATIENTS))
    failures = (CaseFailure(case="p9_a", stage="read", reason="<damaged>"), CaseFailure(case="t2", stage="read", reason="cut off"))
    study_facts = StudyFacts(num_test=2, num_test_failures=1, test_names=("t0", "t1", "t2"))
    whole = replace(report, facts=facts, failures=failures, study_facts=study_facts, fold_sizes=((9, 3), (9, 3)), left_out=("p8",))
    text = flow_sentence(flow_of(whole))
    assert text.startswith(
        "Found in the dataset's folder: 13 labelled images, 3 test images (2 left out, as they could not be used (p9_a: <dam"
    )
    assert "Included: 12 labelled images of 6 patients (1 left out, as the given folds do not name them)" in text
    assert "fold 1: 9 to train, 3 to validate" in text
    assert text.endswith("in the test set")
    drawing = ElementTree.fromstring(flow_svg(flow_of(whole)))
    words = " ".join(each.text or "" for each in drawing.iter("{http://www.w3.org/2000/svg}text"))
    assert "<damaged>" in words
    assert flow_of(replace(whole, facts=None)) == ()


def test_groups_of_cases_are_made_where_something_varies_and_of_no_single_case() -> None:
    facts = StudyFacts(people={case: {"sex": "F" if case < "p3" else "M"} for case in PATIENTS})
    found = {(each.by, each.kind): each.dice for each in subgroups(SCORES, PATIENTS, facts)}
    assert found["sex", "F"].mean == pytest.approx(0.55)
    assert found["sex", "M"].mean == pytest.approx(0.70)
    assert found["coarsest spacing (mm)", "up to 3.5"].mean == pytest.approx(0.55), "larger spacing is of later patients"
    assert sum(dice.n for (by, _), dice in found.items() if by == "sex") == 12
    one = StudyFacts(people={**facts.people, "p0_a": {"sex": "O"}})
    assert not any(each.by == "sex" for each in subgroups(SCORES, PATIENTS, one))
    some = StudyFacts(people={"p0_a": {"sex": "F"}, "p1_a": {"sex": "M"}})
    assert not any(each.by == "sex" for each in subgroups(SCORES, PATIENTS, some))


def test_what_is_not_known_is_left_to_the_authors(report: ReportInput) -> None:
    untrained = {item.number: item.status for item in checklist(replace(report, folds=(), test_scores=None, mistakes={}))}
    assert all(untrained[number] == "authors" for number in (2, 25, 28, 32, 33, 34, 37, 38, 39, 40))
    assert {item.status for item in checklist(replace(report, plan=None))} == {"authors"}


def test_files_for_a_paper_are_written_and_stand_on_the_page(report: ReportInput, tmp_path: Path) -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in write_paper(report, tmp_path / "report")}
    assert {"methods.md", "references.bib", "claim-2024.csv", "test-labels.tex", "test-cases.csv"} <= set(written)
    assert {table.name for table in tables_of(report)} <= set(written)
    page = render(report)
    assert "CLAIM 2024" in page
    assert "What the Dice depends on" in page
    assert write_paper(replace(report, plan=None), tmp_path / "none") == ()


def test_dots_stand_where_volume_and_dice_say_and_what_does_not_vary_is_not_drawn() -> None:
    volume, spacing = explaining_charts(SCORES)
    assert [line.name for line in volume.lines] == ["=cmd", "left_lung"]
    dots = volume.lines[0].dots
    assert dots == tuple(sorted(dots))  # larger volumes to the right, and here with higher Dice
    assert [y for _, y in dots] == sorted((y for _, y in dots), reverse=True)
    assert len(spacing.lines[0].dots) == 12
    assert explaining_charts([replace(s, volume_ml=2.0, spacing_mm=(1.0,)) for s in SCORES]) == []


def test_a_training_says_what_it_was_and_a_folder_without_files_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "3d_fullres" / "fold_2"
    folder.mkdir(parents=True)
    environments = [{"versions": {"torch": "1"}}, {"versions": {"torch": "2"}, "cpu": "C", "device": "cuda", "processes": 2}]
    (folder / "run.json").write_text(json.dumps({"seed": 4, "environments": environments}), encoding="utf-8")
    state = {"epoch": 9, "iterations_per_epoch": 250, "hours": 1, "batch_sizes": [3], "recipe": to_plain(TrainingPlan(optimizer="adamw"))}
    state["tuning"] = {"learning_rate": 0.1, "freeze": ["a.*"]}
    (folder / "training.json").write_text(json.dumps(state), encoding="utf-8")
    facts = training_facts(folder)
    assert (facts.configuration, facts.fold, facts.seed, facts.epochs, facts.hours) == ("3d_fullres", "2", 4, 9, 1.0)
    assert (facts.batch_size, facts.learning_rate, facts.frozen) == (3, 0.1, ("a.*",))
    assert facts.recipe == TrainingPlan(optimizer="adamw")
    assert (facts.versions, facts.cpu, facts.device, facts.processes) == ({"torch": "2"}, "C", "cuda", 2)
    assert training_facts(tmp_path / "c" / "fold_1") == TrainingFacts(configuration="c", fold="1")
    (folder / "run.json").write_text("[", encoding="utf-8")
    assert training_facts(folder).versions == {}


def test_patients_come_from_the_splits_or_in_older_ones_from_the_names(tmp_path: Path) -> None:
    names = [f"p{n}_{phase}" for n in range(5) for phase in ("ED", "ES")]
    fold = {"train": names[:5], "validation": names[5:]}
    older = tmp_path / "splits.json"

    def written(**more: object) -> dict[str, str]:
        older.write_text(json.dumps({"format": "medseg3d/splits", "format_version": 1, "folds": [fold], **more}), encoding="utf-8")
        return dict(partition_of(older).patients)

    assert written()["p3_ES"] == "p3"
    assert written(grouping="off") == {}
    assert written(grouping="given", patients={"a": "1", "b": "1"}) == {"a": "1", "b": "1"}
    assert partition_of(tmp_path / "missing.json").num_folds == 0


def test_networks_with_other_seeds_give_each_case_one_value_and_are_no_cross_validation(report: ReportInput) -> None:
    worse = tuple(replace(score, values={"dice": 0.3, "hd95_mm": None}) for score in SCORES)
    (fold,) = report.folds
    members = replace(report, folds=(fold, replace(fold, fold="1", scores=worse)), members=2, num_folds=2, test_scores=None)
    rows = label_rows([*SCORES, *worse], PATIENTS)
    halves = label_rows([replace(score, values={"dice": (score.dice or 0) / 2 + 0.15}) for score in SCORES], PATIENTS)
    assert [row["num"] for row in rows] == [12, 12]
    for row, expected in zip(rows, halves, strict=True):
        assert row["values"]["dice"] == pytest.approx(expected["values"]["dice"])
        assert row["values"]["hd95_mm"]["num"] == 12
    assert mean_of_labels([*SCORES, *worse], PATIENTS)["dice"].mean == pytest.approx(rows[0]["values"]["dice"]["mean"])
    texts = [*(item.answer for item in checklist(members)), *methods_paragraphs(members), *(table.title for table in tables_of(members))]
    assert not any("ross-validation" in text for text in texts)
    assert any("2 networks with other seeds" in text for text in texts)
    (cases,) = (table.text for table in tables_of(members) if table.name.endswith("-cases.csv"))
    assert len(cases.splitlines()) == 1 + len(SCORES)
    assert "p0_a,p0,0 1," in cases
    assert "hold-out validation, the mean of 2 networks" in render(members)
