"""Cut a run off at each of its operations on the disk, then run the same command again: it must end with the same bytes.

``python -m tests.fault_simulator [--every N] [--verbs …] [--markdown FILE]`` makes a tiny dataset, and for each verb counts the
operations of an undisturbed run. For each of them a process is forked in which that operation kills the process or fails (the disk is
full from there on, or answers EIO once), or that gets SIGTERM there; then the same command runs undisturbed, and the folders are
compared with those of a run that was never disturbed. Times are left out (:data:`TIMES`). It prints one JSON document.
``--markdown`` replaces the rows of what was tried and keeps the others; ``--found FILE …`` takes such documents instead of trying.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.tiny_planner import tiny_planner

KINDS = ("kill", "full", "EIO", "SIGTERM")
KILLED, TERMINATED = 137, 143
EXPECTED = {"kill": (0, KILLED), "full": (0, 2, 3), "EIO": (0, 2, 3), "SIGTERM": (0, TERMINATED)}
"""Exit codes of a run that is disturbed: some operations are the last one, or tidy up only."""
VERBS: dict[str, list[str]] = {
    "plan": ["plan", "Balls", "--planner", "tiny.toml", "--jobs", "1"],
    "preprocess": ["preprocess", "Balls", "-c", "3d_fullres", "--jobs", "1"],
    "train": ["train", "Balls", "--fold", "0", "--device", "cpu"],
    "select": ["select", "Balls", "--device", "cpu"],
    "predict": ["predict", "Balls", "-i", "Balls/imagesTs", "-o", "out", "--probabilities", "--device", "cpu"],
    "export": ["export", "Balls/medseg3d-work", "-o", "balls.medseg3d"],
    "export to MONAI": ["export", "Balls/medseg3d-work", "-o", "bundle", "--format", "monai"],
    "report": ["report", "Balls"],
    "predict --overwrite": ["predict", "Balls", "-i", "Balls/imagesTs", "-o", "out", "--overwrite", "--step", "0.8", "--device", "cpu"],
    "measure": ["measure", "out", "Balls/imagesTs", "-o", "volumes.csv"],
    "evaluate": ["evaluate", "out", "Balls/labelsTs", "-o", "metrics"],
    "propose": ["propose", "Balls", "-i", "Balls/imagesTs", "--device", "cpu"],
    "distill": ["distill", "Balls", "-m", "balls.medseg3d", "-o", "soft", "--device", "cpu"],
    "train --restart": ["train", "Balls", "--fold", "0", "--restart", "--seed", "1", "--device", "cpu"],
    "correct": ["correct", "Balls", "--epochs", "1", "--device", "cpu"],
    "plan of two datasets": ["plan", "Balls", "Cubes", "-w", "both", "--planner", "both.toml", "--jobs", "1"],
    "preprocess of two datasets": ["preprocess", "-w", "both", "--jobs", "1"],
    "train of two datasets": ["train", "-w", "both", "--fold", "0", "--device", "cpu"],
}
"""In this order: each begins with what the ones before have made."""
ALONE: dict[str, list[str]] = {
    "run": ["run", "Balls", "--planner", "tiny.toml", "--folds", "0", "--jobs", "1", "--device", "cpu"],
    "compare": ["compare", "tiny.toml", "wide.toml", "-d", "Balls", "--steps", "1", "--jobs", "1", "--device", "cpu"],
}
"""These begin with the dataset."""
COMMANDS = VERBS | ALONE
TIMES = re.compile(
    r'"(?:\w*seconds\w*|epoch_waiting|waiting_share|elapsed_seconds|finished|peak_mib|read|preprocess|segment|write|sha256)": [-+.\de]+|'
    r'"(?:digest|seal|checksum)": "[0-9a-f]+"|"stamp": "[-\d,]+"'
)
"""What is measured in seconds, what stands for a content that holds such, and the times of files."""
ENDED_BEFORE = {"correct": "no correction that is new"}
"""What a command says that is called again after the last operation of an undisturbed run: it has nothing left to do."""
NOT_COMPARED = re.compile(r"progress\.png|report\.html|comparison\.html|timings\.json|run\.json|tracking\.json")
"""Pictures and pages that show seconds, and records that say when and how often a training was begun."""


@dataclass(slots=True)
class Outcome:
    """What became of a verb under one kind of fault."""

    points: int = 0
    tried: int = 0
    corrupt: int = 0
    leftovers: int = 0
    problems: list[str] = field(default_factory=list)
    version: str = ""
    """The commit that was tried."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="try every N-th operation only")
    parser.add_argument("--verbs", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no other operation after so many seconds")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file; rows that were not tried now stay")
    parser.add_argument("--found", type=Path, nargs="+", help="what calls elsewhere printed, in the place of trying")
    options = parser.parse_args(arguments)
    found = _try_all(options) if options.found is None else _read(options.found)
    json.dump({verb: {kind: asdict(outcome) for kind, outcome in kinds.items()} for verb, kinds in found.items()}, sys.stdout, indent=1)
    if options.markdown:
        options.markdown.write_text(table(rows(found, options.markdown)), encoding="utf-8")
    return int(any(outcome.problems for kinds in found.values() for outcome in kinds.values()))


def _read(files: Iterable[Path]) -> dict[str, dict[str, Outcome]]:
    """Of several documents, the last one with a verb and a kind of fault counts."""
    found: dict[str, dict[str, Outcome]] = {}
    for file in files:
        for verb, kinds in json.loads(file.read_text(encoding="utf-8")).items():
            found.setdefault(verb, {}).update({kind: Outcome(**outcome) for kind, outcome in kinds.items()})
    return found


def _try_all(options: argparse.Namespace) -> dict[str, dict[str, Outcome]]:
    os.environ["OMP_NUM_THREADS"] = "1"  # a process with OpenMP threads cannot be forked
    end = time.monotonic() + options.seconds
    version = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    _warm_up()
    found: dict[str, dict[str, Outcome]] = {}
    with tempfile.TemporaryDirectory(prefix="medseg3d-faults-") as folder:
        root = Path(folder)
        _make_dataset(root / "fresh")
        shutil.copytree(root / "fresh", root / "start")
        last = max((list(VERBS).index(verb) for verb in options.verbs if verb in VERBS), default=-1)
        for verb in (*list(VERBS)[: last + 1], *(verb for verb in ALONE if verb in options.verbs)):
            before, after = root / ("start" if verb in VERBS else "fresh"), root / "done"
            shutil.copytree(before, after)
            count = root / "count"
            code = _run(after, verb, count_file=count)
            if code != 0:
                raise SystemExit(f"{verb}: ends with {code} undisturbed: {(after / 'log').read_text(encoding='utf-8')}")
            operations = count.read_text(encoding="utf-8").splitlines()
            if verb in options.verbs:
                found[verb] = {kind: _try(verb, kind, operations, before, after, root, options.every, end) for kind in options.kinds}
                for outcome in found[verb].values():
                    outcome.version = version
            if verb in ALONE:
                shutil.rmtree(after)
                continue
            shutil.rmtree(before)
            after.rename(before)
    return found


NAMES = {"kill": "killed", "full": "disk full", "EIO": "input/output error", "SIGTERM": "SIGTERM"}
Row = tuple[str, ...]


def rows(found: dict[str, dict[str, Outcome]], page: Path) -> list[Row]:
    """What the page says, with what was found now in the place of what it says of that, in the order of the verbs and faults."""
    lines = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("| ")]
    known = {row[:2]: row for row in cells if row[0] in COMMANDS}
    for verb, kinds in found.items():
        for kind, outcome in kinds.items():
            counts = (outcome.points, outcome.tried, outcome.corrupt, outcome.leftovers)
            known[verb, NAMES[kind]] = (verb, NAMES[kind], *map(str, counts), outcome.version)
    return [known[verb, name] for verb in COMMANDS for name in NAMES.values() if (verb, name) in known]


def table(rows: Iterable[Row]) -> str:
    """The page of the documentation."""
    lines = [
        "# Cut off at every operation",
        "",
        "Made by `scripts/fault_simulator`. An undisturbed run of each command on a tiny dataset writes, syncs, renames and deletes so",
        "often; at as many of these operations as the table says the process was killed, found the disk full from there on, got an",
        "input/output error once, or got SIGTERM. Then the same command was run again. Corrupt: it did not end with the bytes of an",
        "undisturbed run (times apart). Leftovers: temporary files and locks that stayed. What has no row was not tried.",
        "",
        "| command | fault | operations | tried | corrupt states | leftovers | version |",
        "|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "Where fewer were tried than there are, they are spread evenly; `scripts/fault_simulator` without arguments tries all. The rows",
        "come from several calls; the version is the commit that was tried.",
    ]
    return "\n".join(lines) + "\n"


def _try(verb: str, kind: str, operations: list[str], before: Path, after: Path, root: Path, every: int, end: float) -> Outcome:
    outcome = Outcome(points=len(operations))
    expected = _contents(after)
    for number in range(1 + (outcome.points - 1) % every, outcome.points + 1, every):
        if time.monotonic() > end:
            break
        place = root / "try"
        shutil.copytree(before, place)
        what = f"{verb}, {kind} at {number} of {outcome.points} ({operations[number - 1]})"
        code = _run(place, verb, fault=(kind, number))
        if code not in EXPECTED[kind]:
            outcome.problems.append(f"{what}: ends with {code}: {(place / 'log').read_text(encoding='utf-8')[-600:]}")
        is_removal = operations[number - 1].startswith("remove")  # what could not be removed stays until the next start
        if kind != "kill" and not is_removal and (there := _left(_contents(place))):
            outcome.problems.append(f"{what}: leaves {there[:4]}")
        again = _run(place, verb)
        outcome.tried += 1
        found = _contents(place)
        left = _left(found)
        log = (place / "log").read_text(encoding="utf-8")[-600:]
        is_refused = again != 0 and code != 0 and ENDED_BEFORE.get(verb, log + ".") not in log  # a finished export is not replaced
        if is_refused or {name: content for name, content in found.items() if name not in left} != expected:
            outcome.corrupt += 1
            differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            outcome.problems.append(f"{what}: then {again}; other are {differing[:6]}; {log}")
        if left:
            outcome.leftovers += 1
            outcome.problems.append(f"{what}: left over {left[:4]}")
        shutil.rmtree(place)
    lines = [f"{verb}, {kind}: {outcome.tried} of {outcome.points} operations, {len(outcome.problems)} problems", *outcome.problems]
    sys.stderr.write("\n  ".join(lines) + "\n")
    sys.stderr.flush()
    return outcome


def _left(found: Iterable[str]) -> list[str]:
    """Temporary files and locks."""
    return [name for name in found if ".tmp" in name or "lock/" in name or ".old." in name]


def _contents(root: Path) -> dict[str, bytes]:
    """Every file with its bytes, without times; empty folders as well."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.name == "tensorboard":
            continue  # where it is installed; the names of its files hold times
        if path.is_dir():
            found[f"{name}/"] = b""
        elif name == "log" or "tensorboard" in path.parts:
            continue
        elif NOT_COMPARED.fullmatch(path.name):
            found[name] = b"is there"
        elif path.suffix == ".safetensors":
            content = path.read_bytes()
            end = 8 + int.from_bytes(content[:8], "little")
            head = content[8:end].decode().rstrip().replace('\\"', '"')  # filled up with blanks, as many as the times leave
            found[name] = re.sub(r'"medseg3d_digest":"[0-9a-f]+"', "", TIMES.sub("", head)).encode() + content[end:]
        elif path.suffix in (".json", ".jsonl"):
            place = rf"{re.escape(str(root.parent))}/(fresh|start|done|try)"  # universal.json says where, also what was made before
            found[name] = TIMES.sub("", re.sub(place, "", path.read_text(encoding="utf-8"))).encode()
        else:
            found[name] = path.read_bytes()
    return found


def _run(place: Path, verb: str, *, fault: tuple[str, int] | None = None, count_file: Path | None = None) -> int:
    """The exit code of a verb in a forked process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _in_child(place, verb, fault, count_file)
            for thread in threading.enumerate():  # as the interpreter does at its end
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join(30)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _in_child(place: Path, verb: str, fault: tuple[str, int] | None, count_file: Path | None) -> int:
    import traceback

    from medseg3d.commandline.cli import main as run_command
    from medseg3d.files import using_storage

    os.chdir(place)
    log = os.open("log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    double = _double()(*(fault or ("none", 0)))
    try:
        with using_storage(double):
            code = run_command([*COMMANDS[verb], "-q"])
    except BaseException:  # to be seen in the log
        traceback.print_exc()
        return 1
    if count_file is not None:
        count_file.write_text("\n".join(double.operations), encoding="utf-8")
    return code


def _double() -> Callable[[str, int], object]:
    from medseg3d.files import Storage

    class FaultyStorage(Storage):
        """Fails or kills at the n-th operation, whichever thread comes to it."""

        def __init__(self, kind: str, number: int) -> None:
            self.kind, self.number = kind, number
            self.operations: list[str] = []
            self._counting = threading.Lock()

        def _step(self, what: str, path: Path) -> None:
            with self._counting:
                self.operations.append(f"{what} {path.name}")
                here = len(self.operations)
            if self.kind == "kill" and here == self.number:
                if what == "write":  # a part of the content is there
                    os.truncate(path, path.stat().st_size // 2)
                os._exit(KILLED)
            if self.kind == "SIGTERM" and here == self.number:
                os.kill(os.getpid(), signal.SIGTERM)
            if self.kind == "full" and here >= self.number and what in ("write", "make folder", "sync"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if self.kind == "EIO" and here == self.number:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

        def make_folder(self, folder: Path) -> None:
            self._step("make folder", folder)
            super().make_folder(folder)

        def finish(self, path: Path) -> None:
            self._step("write", path)

        def sync(self, path: Path) -> None:
            self._step("sync", path)
            super().sync(path)

        def replace(self, source: Path, target: Path) -> None:
            self._step("replace", target)
            super().replace(source, target)

        def rename(self, source: Path, target: Path) -> None:
            self._step("rename", target)
            super().rename(source, target)

        def remove(self, path: Path) -> None:
            self._step("remove", path)
            super().remove(path)

        def remove_tree(self, folder: Path) -> None:
            self._step("remove tree", folder)
            super().remove_tree(folder)

    return FaultyStorage


def _warm_up() -> None:
    """Import what the verbs import, so that each forked process begins at once; compute nothing."""
    import torch

    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core: one worker, and so one order of the operations
    import medseg3d.commandline.cli
    import medseg3d.commandline.console
    import medseg3d.reporting.figures
    import medseg3d.workflows.compare
    import medseg3d.workflows.correct
    import medseg3d.workflows.distill
    import medseg3d.workflows.evaluate
    import medseg3d.workflows.export
    import medseg3d.workflows.measure
    import medseg3d.workflows.plan
    import medseg3d.workflows.predict
    import medseg3d.workflows.preprocess
    import medseg3d.workflows.propose
    import medseg3d.workflows.run
    import medseg3d.workflows.select
    import medseg3d.workflows.train  # noqa: F401


def _make_dataset(root: Path) -> None:
    for name, seed in (("Balls", 1), ("Cubes", 2)):
        _make_images(root / name, seed)
    (root / "tiny.toml").write_text(tiny_planner(iterations=1, validations=1), encoding="utf-8")
    (root / "wide.toml").write_text(tiny_planner(iterations=1, validations=1, features=(6, 12)), encoding="utf-8")
    (root / "both.toml").write_text(tiny_planner("universal", iterations=1, validations=1), encoding="utf-8")


def _make_images(root: Path, seed: int) -> None:
    import nibabel
    import numpy as np

    rng = np.random.default_rng(seed)
    for number in range(5):
        labels = np.zeros((12, 12, 8), np.uint8)
        labels[3 : 7 + number % 2, 3:8, 2:6] = 1
        image = (labels * 40 + rng.normal(100, 10, labels.shape)).astype(np.int16)
        side = "Ts" if number == 4 else "Tr"
        for kind, array in (("images", image), ("labels", labels)):
            (root / f"{kind}{side}").mkdir(parents=True, exist_ok=True)
            name = f"case_{number}_0000.nii.gz" if kind == "images" else f"case_{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), root / f"{kind}{side}" / name)
    (root / "corrections").mkdir()
    labels[3:5] = 0
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), root / "corrections" / "case_0.nii.gz")
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 1}, "numTraining": 4, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
