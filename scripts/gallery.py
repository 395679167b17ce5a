"""Run the stories of the gallery on real data, and write docs/gallery from what came out.

In: the folder of datasets that MEDSEG3D_DATA names. Each command of a story runs once: stopped and called again, the script goes on with
the next. Out: a work folder per story, and with --write the pages with commands, times, metrics and pictures. A page says how long was
trained; nothing stands in it that the commands did not print or write.

    MEDSEG3D_DATA=… python scripts/gallery.py OUT --minutes 5 --write
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from gallery_stories import STORIES, Story
from PIL import Image

from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.reading import read_case
from medseg3d.evaluation.metrics import RECORD_KIND, CaseMetrics, Evaluation, table_header, table_rows
from medseg3d.files import write_text
from medseg3d.geometry import to_canonical
from medseg3d.images import read_image
from medseg3d.labels import as_integers
from medseg3d.records import read_record
from medseg3d.reporting.figures import case_figure
from medseg3d.version import __version__
from medseg3d.wording import duration
from medseg3d.work_folder import WorkFolder

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs/gallery"
WIDTH = 1100
"""Pixels of a picture at most."""
MOST_LINES = 14
"""Of what a command printed, on a page."""
MOST_ROWS = 12
"""Of a table of labels; of more, the best and the worst."""


def main() -> None:
    """Run what is not run yet, then write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="where the stories run")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training per story (default: 5; with the rest about 8 on a core)")
    parser.add_argument("--only", nargs="+", choices=[story.name for story in STORIES], help="some of the stories")
    parser.add_argument("--write", action="store_true", help="write docs/gallery; a story that is not finished says so")
    options = parser.parse_args()
    data = Path(os.environ["MEDSEG3D_DATA"])
    for story in STORIES:
        if options.only is None or story.name in options.only:
            run_story(story, data, options.output / story.name, options.minutes)
    if options.write:
        for story in STORIES:
            folder = options.output / story.name
            text = page(story, data, folder) if is_finished(story, folder) else page_without_run(story, options.minutes)
            write_text(PAGES / f"{story.name}.md", text)
        write_text(PAGES / "index.md", index(options.output))


# --- running


def commands(story: Story, dataset: str, work: str, minutes: float) -> list[list[str]]:
    """What a story types, one command after the other; fold 0 is enough for a story."""
    run = [
        "run",
        dataset,
        "-w",
        work,
        "--folds",
        "0",
        "--minutes",
        f"{minutes:g}",
        "--device",
        "cpu",
        *story.options,
    ]
    return [["doctor", dataset], [*run, "--dry-run"], run]


def run_story(story: Story, data: Path, folder: Path, minutes: float) -> None:
    """Run the commands that have not run yet, and note what each took."""
    folder.mkdir(parents=True, exist_ok=True)
    done = steps_of(folder)
    typed = commands(story, str(data / story.dataset), str(folder / "work"), minutes)
    shown = commands(story, story.dataset, "work", minutes)
    for words, said in list(zip(typed, shown, strict=True))[len(done) :]:
        print(f"{story.name}: medseg3d {' '.join(said)}", flush=True)
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        ended = subprocess.run([sys.executable, "-m", "medseg3d", *words], capture_output=True, encoding="utf-8", check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        text = (ended.stderr + ended.stdout).replace(str(data) + "/", "").replace(str(folder) + "/", "").replace(str(folder), "")
        if ended.returncode not in (0, 3):
            sys.exit(f"{story.name}: medseg3d {' '.join(words)} ended with {ended.returncode}:\n{text[-3000:]}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        step = {"command": said, "seconds": time.monotonic() - began, "cpu_seconds": cpu, "output": text, "results": ended.stdout}
        done.append({**step, "minutes": minutes, "version": __version__})
        write_text(folder / "steps.json", json.dumps(done, indent=1))


def steps_of(folder: Path) -> list[dict[str, object]]:
    """What has run already."""
    file = folder / "steps.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def is_finished(story: Story, folder: Path) -> bool:
    """All its commands have run."""
    return len(steps_of(folder)) == len(commands(story, "", "", 1))


# --- writing


def page_without_run(story: Story, minutes: float) -> str:
    """The Markdown of a story that has not run: what it is about, and what to type."""
    typed = "\n".join(f"medseg3d {' '.join(words)}" for words in commands(story, story.dataset, "work", minutes))
    parts = [
        f"# {story.title}\n\n{story.intro}\n\n{story.special}",
        f"## What to type\n\n```sh\n{typed}\n```",
        "**Not run yet** by `scripts/gallery.py` with this version, so no numbers stand here.",
        f"## The data\n\n{story.source}",
    ]
    return "\n\n".join(parts) + "\n"


def page(story: Story, data: Path, folder: Path) -> str:
    """The Markdown of a story."""
    steps, work = steps_of(folder), WorkFolder(folder / "work")
    configuration = work.read_plan().recommended
    evaluation = read_record(work.validation(configuration, "0") / "metrics.json", Evaluation, RECORD_KIND)
    doctor, dry, run = steps
    parts = [
        f"# {story.title}\n\n{story.intro}\n\n{story.special}",
        "## What was typed\n\n" + _commands(steps),
        "## What doctor says\n\n" + _quoted(str(doctor["results"])),
        "## What run would do\n\n" + _quoted(_without_table_of_plan(str(dry["results"])), most=40),
        "## What was planned\n\n" + _plan(work),
        f"## What came out\n\n{_trained(run, evaluation)}\n\n{_table(evaluation)}",
        *([_ejection_fractions(story, data, work, evaluation)] if story.name == "cardiac" else []),
        "## What the report shows\n\n" + _report(run, evaluation) + "\n\n" + _curve(story, work, configuration),
        "## A case\n\n" + _picture(story, data, work, configuration, evaluation),
        f"## The data\n\n{story.source}",
        f"Made by `scripts/gallery.py` with medseg3d {run['version']}.",
    ]
    return "\n\n".join(parts) + "\n"


def _commands(steps: Sequence[dict[str, object]]) -> str:
    typed = "\n".join(f"medseg3d {' '.join(step['command'])}" for step in steps)
    rows = []
    for step in steps:
        name = f"{step['command'][0]}{' --dry-run' if '--dry-run' in step['command'] else ''}"
        rows.append(f"| `{name}` | {duration(step['seconds'])} | {duration(step['cpu_seconds'])} |")
    return f"```sh\n{typed}\n```\n\n" + "\n".join(["| command | took | CPU time |", "|---|---|---|", *rows])


def _quoted(text: str, most: int = MOST_LINES) -> str:
    lines = [line.rstrip() for line in text.strip().splitlines()]
    more = [f"… ({len(lines) - most} more lines)"] if len(lines) > most else []
    return "```text\n" + "\n".join([*lines[:most], *more]) + "\n```"


def _without_table_of_plan(text: str) -> str:
    """The steps of a dry run; the plan has a section of its own, and free space is the machine's own affair."""
    start = text.find("What run would do")
    lines = text[text.rfind("\n", 0, start) + 1 :].splitlines()
    return "\n".join(line for line in lines if not line.startswith("Nothing was written"))


def _plan(work: WorkFolder) -> str:
    plan = work.read_plan()
    chosen = plan.configuration(plan.recommended)
    by = "×".join
    rows = [
        ("configuration", f"`{chosen.name}`: {plan.recommended_reason}"),
        ("spacing", by(f"{n:.4g}" for n in chosen.spacing) + " mm"),
        ("patch, batch", by(map(str, chosen.patch_size)) + f" voxels, {chosen.batch_size}"),
        ("median case", by(f"{n:.4g}" for n in chosen.median_shape) + " voxels"),
        ("kernels of the first stage", by(map(str, chosen.network.kernel_sizes[0]))),
        (
            "normalization",
            ", ".join(f"{name}: {how.scheme}" for name, how in zip(plan.channels, chosen.normalization, strict=True)),
        ),
        ("mirrored axes", ", ".join(["slices", "rows", "columns"][axis] for axis in chosen.mirror_axes) or "none"),
        ("pairs of left and right", str(len(plan.labels.pairs))),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _trained(run: dict[str, object], evaluation: Evaluation) -> str:
    dice = evaluation.foreground_dice
    interval = "" if dice.low is None else f" (95 % interval {dice.low:.3f} to {dice.high:.3f})"
    cases = f"{evaluation.num_cases} validation case" + ("s" if evaluation.num_cases > 1 else "")
    return (
        f"Fold 0 was trained for {run['minutes']:g} minutes without a GPU. On {cases} the mean Dice is **{dice.mean:.3f}**{interval}. "
        "A training of hours gives more; this page shows what minutes give."
    )


def _table(evaluation: Evaluation) -> str:
    header, rows = table_header(evaluation)[:6], [row[:6] for row in table_rows(evaluation)]
    *labels, overall = rows
    if len(labels) > MOST_ROWS:
        half = MOST_ROWS // 2
        ranked = sorted(labels, key=lambda row: -float(re.match(r"[\d.]+", row[1])[0]) if re.match(r"[\d.]+", row[1]) else 1.0)
        labels = [*ranked[:half], (f"… {len(ranked) - 2 * half} more", *[""] * 5), *ranked[-half:]]
    lines = [f"| {' | '.join(row)} |" for row in [*labels, overall]]
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *lines])


SENTENCES = (
    r"\d+ cases look like .*?; each patient stays in one fold",
    r"What is named left lies on the right side by the headers",
    r"Selected: .*?\)",
)
"""Of what run says, those that stand on the report as well."""


def _report(run: dict[str, object], evaluation: Evaluation) -> str:
    """The warnings on top, and the worst cases, as the page has them."""
    text = " ".join(str(run["output"]).split())  # lines are broken anywhere
    told = [found for sentence in SENTENCES for found in re.findall(sentence, text)]
    scored = sorted((dice, case) for case, dice in evaluation.dice_per_case().items() if dice is not None)
    worst = ", ".join(f"{case} {dice:.3f}" for dice, case in scored[:3])
    lowest = min((label for label in evaluation.labels if label.dice.mean is not None), key=lambda label: label.dice.mean)
    lines = [f"- {line.strip()}" for line in dict.fromkeys(told)]
    lines += [
        f"- Worst cases first, with pictures: {worst}.",
        f"- The lowest label is {lowest.name}, Dice {lowest.dice.mean:.3f} in {lowest.dice.n} cases.",
    ]
    return "`work/report.html` is one page that needs no network. On it:\n\n" + "\n".join(lines)


def _curve(story: Story, work: WorkFolder, configuration: str) -> str:
    source = work.fold(configuration, "0") / "progress.png"
    _save(Image.open(source), PAGES / f"{story.name}-progress.png")
    return f"![Losses, pseudo-Dice and learning rate of the training over its epochs]({story.name}-progress.png)"


def _picture(story: Story, data: Path, work: WorkFolder, configuration: str, evaluation: Evaluation) -> str:
    """A validation case where the terms of the data allow it, else the phantom."""
    if not story.may_show:
        return (
            "The terms of these images do not allow to show one here. The picture is what the report draws of the phantom that "
            "`medseg3d demo` makes.\n\n"
            "![A case of the phantom: contours of prediction and reference in three views](../images/demo.png)"
        )
    chosen = _median_case(evaluation)
    predictions = work.validation(configuration, "0")
    drawn = Image.open(BytesIO(drawing(data / story.dataset, predictions, chosen)))
    _save(drawn, PAGES / f"{story.name}.png")
    return (
        f"Validation case {chosen.case}, the median by Dice ({chosen.foreground_dice:.3f}); the reference is dashed.\n\n"
        f"![Contours of prediction and reference in three views]({story.name}.png)"
    )


def _median_case(evaluation: Evaluation) -> CaseMetrics:
    ranked = sorted(evaluation.cases, key=lambda case: case.foreground_dice or 0.0)
    return ranked[(len(ranked) - 1) // 2]


def drawing(dataset: Path, predictions: Path, chosen: CaseMetrics) -> bytes:
    """PNG bytes of three views of a validation case."""
    raw = read_case(next(case for case in open_dataset(dataset).training if case.name == chosen.case))
    path = predictions / f"{chosen.case}.nii.gz"
    predicted: np.ndarray = as_integers(to_canonical(read_image(path).array, raw.orientation), str(path))
    labels = {label.value: label.name for label in chosen.labels}
    return case_figure(raw.image[0], raw.labels, predicted, spacing=raw.spacing, labels=labels)


def _save(image: Image.Image, target: Path) -> None:
    """No wider than a page. In its own colors: a palette has none left for thin contours beside so many greys."""
    image = image.convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, optimize=True)


def _ejection_fractions(story: Story, data: Path, work: WorkFolder, evaluation: Evaluation) -> str:
    """Of each validated patient, from the two volumes of the left cavity."""
    plan, configuration = work.read_plan(), work.read_plan().recommended
    value = plan.labels.values[plan.labels.names.index("left_ventricle_cavity")]
    cases = {case.name: case for case in open_dataset(data / story.dataset).training}

    def volume(path: Path) -> int:
        return int((np.asarray(read_image(path).array) == value).sum())

    rows, errors = [], []
    for patient in sorted({case.case.rpartition("_")[0] for case in evaluation.cases}):
        fractions = []
        for place in (lambda name: work.validation(configuration, "0") / f"{name}.nii.gz", lambda name: cases[name].label):
            diastole, systole = (volume(place(f"{patient}_{phase}")) for phase in ("ED", "ES"))
            fractions.append(100 * (diastole - systole) / max(diastole, 1))
        errors.append(abs(fractions[0] - fractions[1]))
        rows.append(f"| {patient} | {fractions[0]:.0f} % | {fractions[1]:.0f} % |")
    head = ["| patient | ejection fraction, predicted | from the reference |", "|---|---|---|"]
    return "\n".join([*head, *rows]) + f"\n\nThe mean absolute difference is {np.mean(errors):.1f} percentage points."


def index(output: Path) -> str:
    """The page that lists the stories."""
    rows = []
    for story in STORIES:
        if not is_finished(story, output / story.name):
            rows.append(f"| [{story.title}]({story.name}.md) | not run yet | | |")
            continue
        run, work = steps_of(output / story.name)[-1], WorkFolder(output / story.name / "work")
        found = read_record(work.validation(work.read_plan().recommended, "0") / "metrics.json", Evaluation, RECORD_KIND)
        cells = (
            f"[{story.title}]({story.name}.md)",
            f"{run['minutes']:g} min",
            duration(run["cpu_seconds"]),
            f"{found.foreground_dice.mean:.3f} ({found.num_cases})",
        )
        rows.append(f"| {' | '.join(cells)} |")
    head = "| story | trained for | CPU time of `run` | mean Dice (validation cases) |\n|---|---|---|---|"
    return (
        "# Gallery\n\nFive datasets of very different kinds, all with the same commands: `doctor`, `run --dry-run`, `run`. No option "
        "says what the images are. All was trained for minutes on a CPU, to show the way and not the end of it.\n\n"
        + "\n".join([head, *rows])
        + "\n\nRun them yourself: `MEDSEG3D_DATA=FOLDER python scripts/gallery.py OUT --minutes 5 --write`.\n"
    )


if __name__ == "__main__":
    main()
