"""From nothing to a SEG in an archive, by the commands of docs/how-to/hospital.md, each with its seconds: by hand, and by a listener.

    python scripts/hospital_trial.py trial                  # a new folder; needs Debian's orthanc and dcmtk, and medseg3d[dicom]
    python scripts/hospital_trial.py trial --minutes 6      # trains for as long as the demo does

A phantom is made and trained on, its test images stand for a scanner's. Orthanc runs on loopback, on ports that are free. Ends with 1 where
a SEG is not in the archive, or not on the slices of its study.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 600.0
"""Seconds that are waited for anything: a machine that does other things as well loads torch in a minute."""
MEDSEG3D = (sys.executable, "-m", "medseg3d")


def main() -> int:
    """Do it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training (default: 1)")
    options = parser.parse_args()
    for program in ("Orthanc", "storescu"):
        if shutil.which(program) is None:
            parser.error(f"{program} is not installed (Debian: apt install orthanc dcmtk)")
    options.folder.mkdir(parents=True)
    trial = Trial(options.folder.resolve())
    trial.run("medseg3d demo phantom --dicom")
    trial.run(f"medseg3d run phantom --planner small --folds 0 --minutes {options.minutes:g} -q")
    with trial.archive():
        trial.by_hand("phantom_024")
        trial.by_night("phantom_025")
    print(f"Commands took {sum(trial.seconds.values()):.0f} s, without the training {trial.without_training:.0f} s.")
    return 0 if trial.is_right else 1


class Trial:
    """Where everything lies, and how long each command took."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds, self.is_right = folder, dict[str, float](), True
        self.http, self.dicom, self.listener = (free_port() for _ in range(3))

    @property
    def without_training(self) -> float:
        """Seconds of all commands but ``run``."""
        return sum(seconds for command, seconds in self.seconds.items() if not command.startswith("medseg3d run"))

    def run(self, command: str) -> None:
        """One command, as it is typed in the folder."""
        print(f"$ {command}", flush=True)
        words = [word for part in shlex.split(command) for word in (sorted(map(str, self.folder.glob(part))) if "*" in part else [part])]
        began = time.monotonic()
        subprocess.run([*MEDSEG3D, *words[1:]] if words[0] == "medseg3d" else words, cwd=self.folder, check=True)
        self.seconds[command] = time.monotonic() - began
        print(f"  {self.seconds[command]:.0f} s", flush=True)

    def by_hand(self, case: str) -> None:
        """Three commands."""
        store = f"storescu -R -aec ORTHANC 127.0.0.1 {self.dicom}"
        self.run(f"{store} phantom/dicom/{case}/*.dcm")
        self.run(f"medseg3d predict -m phantom -i phantom/dicom/{case} -o results --output-type dicom-seg dicom-sr")
        self.run(f"{store} results/*.dcm")
        self.check(case)

    def by_night(self, case: str) -> None:
        """A file of rules; a study goes into the archive, from there to the listener, and its results come back."""
        (self.folder / "night.toml").write_text(NIGHT.format(port=self.listener, archive=self.dicom), encoding="utf-8")
        print("$ medseg3d listen night.toml &", flush=True)
        with subprocess.Popen([*MEDSEG3D, "listen", "night.toml", "-q"], cwd=self.folder) as listener:
            try:
                until(lambda: is_open(self.listener))
                self.run(f"storescu -R -aec ORTHANC 127.0.0.1 {self.dicom} phantom/dicom/{case}/*.dcm")
                study = self.study_of(case)
                print(f"$ curl -X POST http://127.0.0.1:{self.http}/modalities/medseg3d/store -d {study}", flush=True)
                began = time.monotonic()
                self.ask("modalities/medseg3d/store", study.encode())
                until(lambda: {"SEG", "SR"} <= self.modalities(case))
                self.seconds["night"] = time.monotonic() - began
                print(f"  {self.seconds['night']:.0f} s until SEG and SR are in the archive", flush=True)
            finally:
                listener.terminate()
                listener.wait(PATIENCE)
        self.check(case)

    def check(self, case: str) -> None:
        """The SEG of a case is there, and refers to the series of its slices."""
        found = {each["MainDicomTags"]["Modality"]: each for each in self.ask("series?expand") if self.is_of(each, case)}
        if not {"MR", "SEG", "SR"} <= found.keys():
            self.is_right = False
            print(f"  {case}: WRONG, the archive has {', '.join(sorted(found))}")
            return
        tags = self.ask(f"instances/{found['SEG']['Instances'][0]}/simplified-tags")
        is_same = tags["ReferencedSeriesSequence"][0]["SeriesInstanceUID"] == found["MR"]["MainDicomTags"]["SeriesInstanceUID"]
        self.is_right &= is_same
        names = ", ".join(each["SegmentLabel"] for each in tags["SegmentSequence"])
        print(f"  {case}: the archive has MR, SEG ({names}) and SR; {'on the slices of' if is_same else 'WRONG, not on'} its series")

    def is_of(self, series: Any, case: str) -> bool:
        """Whether a series is of the study of a case."""
        return bool(series["ParentStudy"] == self.study_of(case))

    def study_of(self, case: str) -> str:
        """Orthanc's name of the study."""
        return str(next(each["ID"] for each in self.ask("studies?expand") if each["PatientMainDicomTags"]["PatientID"] == case))

    def modalities(self, case: str) -> set[str]:
        """Of the series in its study."""
        return {each["MainDicomTags"]["Modality"] for each in self.ask("series?expand") if self.is_of(each, case)}

    def ask(self, path: str, content: bytes | None = None) -> Any:
        """Orthanc's answer."""
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.http}/{path}", content), timeout=120) as answer:
            return json.loads(answer.read())

    @contextmanager
    def archive(self) -> Iterator[None]:
        """Orthanc, while the block lasts."""
        configuration = {
            "StorageDirectory": "orthanc-db",
            "IndexDirectory": "orthanc-db",
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True,
            "DicomModalities": {"medseg3d": ["MEDSEG3D", "127.0.0.1", self.listener]},
        }
        (self.folder / "orthanc.json").write_text(json.dumps(configuration, indent=2), encoding="utf-8")
        print("$ Orthanc orthanc.json &", flush=True)
        with (
            (self.folder / "orthanc.log").open("w") as log,
            subprocess.Popen(["Orthanc", "orthanc.json"], cwd=self.folder, stdout=log, stderr=log) as process,
        ):
            try:
                until(lambda: is_open(self.http))
                yield
            finally:
                process.terminate()


NIGHT = """[receive]
port = {port}
settle_seconds = 5

[[rule]]
name = "phantom"
model = "phantom"
modality = "MR"
description = "t1"
outputs = ["dicom-seg", "dicom-sr"]
send_to = ["pacs"]

[[destination]]
name = "pacs"
host = "127.0.0.1"
port = {archive}
ae_title = "ORTHANC"
"""


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def is_open(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(is_there: Callable[[], bool]) -> None:
    """Wait; raises :class:`TimeoutError` after ``PATIENCE``."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if is_there():
                return
        except (urllib.error.URLError, OSError):
            pass
        if time.monotonic() > end:
            raise TimeoutError("it did not come")
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
