"""A metric of an extension is measured, averaged, written and shown beside those that are built in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medseg3d.evaluation.evaluate_case import evaluate_case
from medseg3d.evaluation.measures import METRICS
from medseg3d.evaluation.metrics import (
    OWN_FIELDS,
    Evaluation,
    read_evaluation,
    summarize_cases,
    table_header,
    table_rows,
    to_csv,
    write_evaluation,
)
from medseg3d.extensions import forget_extensions, use_extension
from medseg3d.labels import Labels
from medseg3d.records import to_plain
from medseg3d.reporting.scores import label_rows, scores_of

ROOT = Path(__file__).parents[2]
LABELS = Labels(names=("background", "left", "right", "rare"), values=(0, 3, 7, 9))
TEXT = """
from medseg3d.evaluation.measures import Metric

METRICS = {
    "sensitivity": Metric(
        title="Sens.", definition="|P∩R| / |R|", measure=lambda m: m.num_common / m.num_referenced if m.num_referenced else None
    ),
    "odd": Metric(title="Odd", definition="never a number", measure=lambda m: float("nan")),
}
"""


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    forget_extensions()


@pytest.fixture
def _extension(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TEXT, encoding="utf-8")
    use_extension(path)


def evaluated() -> Evaluation:
    reference, prediction = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    reference[:2], prediction[1:3] = 3, 3
    prediction[3] = 7  # only predicted
    cases = [
        evaluate_case(prediction, array, spacing=(1, 1, 2), labels=LABELS, name=name)
        for name, array in (("a", reference), ("b", prediction))
    ]
    return summarize_cases(cases, tolerance_mm=1.0)


@pytest.mark.usefixtures("_extension")
def test_it_is_measured_per_label_and_averaged_over_the_cases_that_have_it() -> None:
    evaluation = evaluated()
    left, right, rare = evaluation.cases[0].labels
    assert (left.value_of("sensitivity"), right.value_of("sensitivity"), rare.value_of("sensitivity")) == (0.5, None, None)
    assert left.value_of("odd") is None
    means = [label.mean_of("sensitivity") for label in evaluation.labels]
    assert [(mean.mean, mean.n) for mean in means] == [(0.75, 2), (1.0, 1), (None, 0)]


@pytest.mark.usefixtures("_extension")
def test_it_is_written_read_and_shown_also_where_its_extension_is_not_there(tmp_path: Path) -> None:
    evaluation = evaluated()
    path, _ = write_evaluation(evaluation, tmp_path / "metrics.json")
    assert read_evaluation(path) == evaluation
    assert to_csv(evaluation).splitlines()[0].endswith(",tolerance_mm,sensitivity,odd")
    assert to_csv(evaluation).splitlines()[1].endswith(",1.0,0.5,")
    assert table_header(evaluation)[-4:] == ("Sens.", "Odd", "FN cases", "FP cases")
    assert table_rows(evaluation)[0][-4] == "0.750 (2)"
    assert all(len(row) == len(table_header(evaluation)) for row in table_rows(evaluation))
    assert label_rows(scores_of(evaluation))[0]["values"]["sensitivity"]["mean"] == 0.75
    forget_extensions()
    again = read_evaluation(path)
    assert table_header(again)[-4:] == ("odd", "sensitivity", "FN cases", "FP cases")
    assert table_rows(again)[0][-3] == "0.750 (2)"


def test_without_extensions_files_and_tables_are_as_they_were() -> None:
    evaluation = evaluated()
    written = to_plain(evaluation)
    assert not any("further" in label for label in (*written["labels"], *written["cases"][0]["labels"]))
    assert "further" not in to_csv(evaluation)
    assert table_header(evaluation)[1:8] == ("Dice", "IoU", "NSD 1 mm", "HD95 mm", "ASSD mm", "ΔVolume ml", "Lesion F1")


def test_every_field_is_a_metric_and_every_metric_stands_in_the_reference_as_it_is_defined() -> None:
    assert set(OWN_FIELDS) <= set(METRICS.built_in)
    page = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8").replace("\\|", "|")
    for name, metric in METRICS.built_in.items():
        assert f"| `{name}` | {metric.definition} |" in page
