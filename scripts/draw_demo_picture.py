"""Draw docs/images/demo.png: the test case of the demo whose mean Dice is the median, predictions over references.

In: the folder of ``scripts/demo``, and the work folder in it or another one. Out: the picture, and on the terminal the line that
shows it in the README, under "How good is it".
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.reading import read_case
from medseg3d.evaluation.metrics import RECORD_KIND, CaseMetrics, Evaluation
from medseg3d.geometry import to_canonical
from medseg3d.images import read_image
from medseg3d.labels import as_integers
from medseg3d.records import read_record
from medseg3d.reporting.figures import case_figure
from medseg3d.work_folder import work_folder

PICTURE = Path(__file__).parents[1] / "docs/images/demo.png"


def main() -> None:
    """Write the picture beside the documentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the folder that scripts/demo has made")
    parser.add_argument("-w", "--work", type=Path, help="its work folder (default: medseg3d-work in it)")
    options = parser.parse_args()
    predictions = work_folder(options.demo, options.work).root / "predictions"
    evaluation = read_record(predictions / "metrics.json", Evaluation, RECORD_KIND)
    chosen = median_case(evaluation)
    drawn = Image.open(BytesIO(picture(options.demo, predictions, chosen)))
    drawn.convert("RGB").save(PICTURE, optimize=True)
    dice = f"mean Dice {chosen.foreground_dice:.3f}, the median of its {len(evaluation.cases)} test cases"
    print(f"![A test case of the demo: contours of prediction and reference in three views, {dice}](docs/images/demo.png)")
    print(", ".join(f"{label.name} {label.dice:.3f}" for label in chosen.labels))


def median_case(evaluation: Evaluation) -> CaseMetrics:
    """The case in the middle by mean Dice, the lower one of two."""
    ranked = sorted(evaluation.cases, key=lambda case: case.foreground_dice or 0.0)
    return ranked[(len(ranked) - 1) // 2]


def picture(demo: Path, predictions: Path, chosen: CaseMetrics) -> bytes:
    """PNG bytes of three views of a case."""
    dataset = open_dataset(demo)
    raw = read_case(next(case for case in dataset.test if case.name == chosen.case))
    path = predictions / f"{chosen.case}.nii.gz"
    predicted: np.ndarray = as_integers(to_canonical(read_image(path).array, raw.orientation), str(path))
    labels = {label.value: label.name for label in chosen.labels}
    return case_figure(raw.image[0], raw.labels, predicted, spacing=raw.spacing, labels=labels)


if __name__ == "__main__":
    main()
