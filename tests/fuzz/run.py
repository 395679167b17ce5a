"""Draw inputs, hand them to workers, and count what became of them."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fuzz.mutations import mutate
from fuzz.seeds import Seed

LIMIT_MIB = 2048
"""Above what a worker holds before it meets the first file."""
SECONDS = 30.0
"""An input that takes longer hangs; the slowest honest one takes two."""
CALLS = {
    "dataset.json": "dataset",
    "splits_final.json": "dataset",
    "annotated.csv": "dataset",
    "listen.toml": "listen",
    "codes.csv": "codes",
    "labels.csv": "label names",
    "labels.json": "label names",
    "planner.toml": "planner",
    "groups.csv": "groups",
    "weights.safetensors": "model",
    "model.medseg3d": "model",
    "plan.json": "plan file",
    "fingerprint.json": "fingerprint file",
}
"""What reads a format; images for all others."""
OUTCOMES = ("refused", "read", "crash", "traceback", "hang", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One input: a format, its number and the call that meets it."""

    format: str
    number: int
    call: str


@dataclass(slots=True)
class Worker:
    """A process that answers; a new one is begun where it died."""

    with_torch: bool
    process: subprocess.Popen[str] | None = None
    lines: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def ask(self, task: dict[str, str]) -> dict[str, str]:
        """What became of an input: the worker's answer, a crash or a hang."""
        process = self.process or self._begin()
        assert process.stdin is not None
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        try:
            line = self.lines.get(timeout=SECONDS)
        except queue.Empty:
            self.end()
            return {"outcome": "hang", "message": f"no answer within {SECONDS:g} s"}
        if line is None:
            code = process.wait()
            self.end()
            return {"outcome": "crash", "message": f"the process ended with {code}"}
        return dict(json.loads(line))

    def end(self) -> None:
        """Stop the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _begin(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-m", "fuzz.worker", str(LIMIT_MIB), *(["torch"] if self.with_torch else [])]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process, self.lines = process, queue.Queue()
        threading.Thread(target=self._listen, args=(process, self.lines), daemon=True).start()
        if self.lines.get(timeout=120) is None:
            raise RuntimeError("the worker did not begin")
        return process

    @staticmethod
    def _listen(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)


def reading_tasks(formats: Sequence[str], count: int) -> Iterator[Task]:
    """``count`` inputs spread over the formats, met by what reads the format."""
    for number in range(count):
        name = formats[number % len(formats)]
        yield Task(format=name, number=number // len(formats), call=CALLS.get(name, "image"))


def verb_tasks(formats: Sequence[str], count: int) -> Iterator[Task]:
    """``count`` inputs in whole datasets, met by doctor, doctor --fix, plan and predict in turn."""
    verbs = ("doctor", "plan", "predict", "fix")
    images = [name for name in formats if name not in CALLS]
    for number in range(count):
        yield Task(format=images[number % len(images)], number=100_000 + number, call=verbs[number // len(images) % len(verbs)])


def run(
    tasks: Iterable[Task],
    seeds: dict[str, Seed],
    *,
    seed: int,
    scratch: Path,
    dataset: Path,
    model: Path | None,
    keep: Path | None,
    num_workers: int = 2,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Counts of outcomes by format, and a line for each input that was neither read nor refused."""
    waiting: queue.Queue[Task] = queue.Queue()
    for task in tasks:
        waiting.put(task)
    counts: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        worker, place = Worker(with_torch=model is not None), scratch / f"worker{number}"
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                break
            asked = _prepare(task, seeds[task.format], seed, place, dataset, model)
            answer = worker.ask(asked)
            with lock:
                name = f"{task.format}, whole verbs" if task.number >= 100_000 else task.format
                counts.setdefault(name, Counter())[answer["outcome"]] += 1
                if answer["outcome"] not in ("refused", "read"):
                    wrong.append(f"{task}: {answer['outcome']}: {answer['message']}")
                    tell(wrong[-1])
                    if keep is not None:
                        shutil.copytree(place, keep / f"{len(wrong):03d}", dirs_exist_ok=True)
        worker.end()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts, wrong


def _prepare(task: Task, seed_file: Seed, seed: int, place: Path, dataset: Path, model: Path | None) -> dict[str, str]:
    """Put the damaged file where the call expects it."""
    random = Random(f"{seed}/{task.format}/{task.number}")
    damaged = mutate(seed_file.content, seed_file.kind, random)
    shutil.rmtree(place, ignore_errors=True)
    if task.number < 100_000:
        shutil.copytree(seed_file.folder, place)
        (place / seed_file.file).write_bytes(damaged)
        return {"call": task.call, "folder": str(place), "file": seed_file.file}
    shutil.copytree(dataset, place)
    is_series, is_label = seed_file.file.startswith("series/"), task.format in ("NRRD of 3D Slicer", "DICOM SEG")
    part = "imagesTr" if (random.random() < 0.5 and not is_label) or is_series or task.call == "predict" else "labelsTr"
    old = place / part / ("b_0000.nii.gz" if part == "imagesTr" else "b.nii.gz")
    name = old.name.removesuffix(".nii.gz")
    old.unlink()
    if is_series:
        shutil.copytree(seed_file.folder / "series", old.parent / name)
        (old.parent / name / "1.dcm").write_bytes(damaged)
    else:
        ending = seed_file.file.removeprefix("a")
        for companion in seed_file.folder.iterdir():
            if companion.name != seed_file.file:
                shutil.copy(companion, old.parent / companion.name)
        (old.parent / f"{name}{ending}").write_bytes(damaged)
    return {"call": task.call, "folder": str(place), "file": "", "source": "imagesTr", "model": str(model)}


def table(counts: dict[str, Counter[str]]) -> str:
    """Markdown, a row per format and one of sums."""
    head = ("format", "inputs", "refused with a message", "read", "crashes", "tracebacks", "hangs", "memory over limit")
    total: Counter[str] = Counter()
    rows = []
    for name in sorted(counts):
        total.update(counts[name])
        rows.append((name, counts[name]))
    rows.append(("**all**", total))
    lines = [f"| {' | '.join(head)} |", f"|---{'|--:' * (len(head) - 1)}|"]
    for name, count in rows:
        lines.append(f"| {name} | {' | '.join(str(n) for n in (sum(count.values()), *(count[o] for o in OUTCOMES)))} |")
    return "\n".join(lines) + "\n"
