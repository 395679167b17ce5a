"""A MONAI Label app over ``medseg3d serve``: predicts there, asks for what ``medseg3d propose`` names, learns by ``medseg3d correct``.

``monailabel start_server --app integrations/monailabel/medseg3d_app --studies IMAGES --conf server http://127.0.0.1:8000``
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from medseg3d.client import Server

logger = logging.getLogger(__name__)

DEFAULT_SERVER = "http://127.0.0.1:8000"
TOKEN = "MEDSEG3D_TOKEN"
"""The environment variable of the token: ``--conf`` shows in the list of processes."""
LEFT_OUT = 3
"""The exit code of a round that went on without some cases, which its record lists."""
FINAL = "labels/final"
"""Where MONAI Label keeps what its users submitted, below the folder of studies."""


class Medseg3DApp(MONAILabelApp):
    """``conf``: ``server`` (its address), ``dataset`` and ``work`` (for proposals and learning; without them, only prediction)."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.server = Server(conf.get("server", DEFAULT_SERVER), os.environ.get(TOKEN))
        self.names = {name: value for value, name in self.server.labels().items()}
        self.dataset = Path(conf["dataset"]) if conf.get("dataset") else None
        self.work = Path(conf["work"]) if conf.get("work") else None if self.dataset is None else self.dataset / "medseg3d-work"
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="medseg3d",
            description="Segmentation by a model that medseg3d serves. Not a medical device.",
            labels=self.names,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """The served model, by the name of its dataset."""
        return {self.server.model()["dataset"] or "medseg3d": Prediction(self.server, self.names)}

    def init_strategies(self) -> dict[str, Strategy]:
        """Which image comes next."""
        return {"proposals": NextProposal(None if self.work is None else self.work / "proposals" / "proposals.json")}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Learning from what was submitted, where the dataset is here."""
        if self.dataset is None or self.work is None:
            return {}
        return {"correct": LearnFromCorrections(self.dataset, self.work, Path(self.studies))}


class Prediction(InferTask):
    """One image to the server, its label map back."""

    def __init__(self, server: Server, labels: dict[str, int]) -> None:
        super().__init__(InferType.SEGMENTATION, labels, 3, "Segment by the model that medseg3d serves")
        self.server = server

    def is_valid(self) -> bool:
        """Whether it can be asked for; the server is asked when it is."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The file with the label map, and what its values mean."""
        handle, name = tempfile.mkstemp(suffix=".nii.gz", prefix="medseg3d-")
        os.close(handle)
        job = self.server.predict(request["image"], name)
        for warning in job["warnings"]:
            logger.warning("%s", warning)
        result = in_format(Path(name), str(request.get("result_extension") or ".nii.gz"))
        return str(result), {"label_names": self.labels, "warnings": job["warnings"], "seconds": job["seconds"]}


def in_format(file: Path, ending: str) -> Path:
    """The label map as the client wants it; 3D Slicer asks for .nrrd."""
    if ending in (".nii.gz", "nii.gz"):
        return file
    import SimpleITK

    target = file.with_name(file.name.removesuffix(".nii.gz") + "." + ending.lstrip("."))
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(file)), str(target), True)
    file.unlink()
    return target


class NextProposal(Strategy):
    """The first image of ``proposals.json`` that nobody has annotated; without one, the first of all such images."""

    def __init__(self, file: Path | None) -> None:
        super().__init__("As medseg3d propose lists them: what the model is unsure of, and what is unlike the rest")
        self.file = file

    def __call__(self, request: dict[str, Any], datastore: Any) -> str | None:
        """An id of the datastore."""
        waiting = sorted(datastore.get_unlabeled_images())
        proposed = []
        if self.file is not None and self.file.is_file():
            proposed = [each["case"] for each in json.loads(self.file.read_text(encoding="utf-8"))["proposed"]]
        by_case = {image.removesuffix("_0000"): image for image in waiting}
        return next((by_case[case] for case in proposed if case in by_case), waiting[0] if waiting else None)


class LearnFromCorrections(TrainTask):
    """``medseg3d correct`` with the final labels of the studies, in a process of its own."""

    def __init__(self, dataset: Path, work: Path, studies: Path) -> None:
        super().__init__("Learn from submitted labels; start medseg3d serve anew afterwards")
        self.dataset, self.work, self.studies = dataset, work, studies
        self._last: dict[str, Any] = {}

    def config(self) -> dict[str, Any]:
        """What a user may set."""
        return {"epochs": 0, "hours": 0.0}

    def stats(self) -> dict[str, Any]:
        """What the last round gave."""
        return self._last

    def info(self) -> dict[str, Any]:
        """For the client."""
        return {"description": self.description, "config": self.config(), "stats": self.stats()}

    def command(self, request: dict[str, Any]) -> list[str]:
        """The words of the command line; 0 epochs and hours leave the length to it."""
        words = [sys.executable, "-m", "medseg3d", "correct", str(self.dataset), "-w", str(self.work), "--json"]
        words += ["--corrections", str(self.studies / FINAL), "-i", str(self.studies)]
        for name in ("epochs", "hours"):
            if request.get(name):
                words += [f"--{name}", str(request[name])]
        return words

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """The record of the round; raises ``RuntimeError`` with what was wrong."""
        done = subprocess.run(self.command(request), capture_output=True, text=True, check=False)
        try:
            document = json.loads(done.stdout)
        except ValueError:
            raise RuntimeError(done.stderr.strip() or f"medseg3d correct ended with code {done.returncode}") from None
        if done.returncode == LEFT_OUT:
            logger.warning("%s", done.stderr.strip())
        elif done.returncode:
            raise RuntimeError(document.get("message", done.stderr.strip()))
        self._last = document
        return self._last
