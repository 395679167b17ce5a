"""What the programs around medseg3d offer their plugins, as far as ours use it, and a server that answers from a list."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import nibabel
import numpy as np
import pytest

INTEGRATIONS = Path(__file__).parents[2] / "integrations"


def load(path: Path, modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a file with these modules in the place of those that are not installed here."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, loaded)
    spec.loader.exec_module(loaded)
    return loaded


def module(name: str, **content: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(content)
    return made


class ScriptedServer:
    """Takes one job through some states; what was sent and forgotten is kept."""

    def __init__(self, label_map: Path, states: Sequence[str] = ("done",), message: str | None = None) -> None:
        self.label_map, self.states, self.message = label_map, list(states), message
        self.sent: list[np.ndarray] = []
        self.deleted: list[str] = []

    def labels(self) -> dict[int, str]:
        return {3: "shell", 7: "core"}

    def model(self) -> dict[str, Any]:
        return {
            "dataset": "Balls",
            "labels": [{"value": 0, "name": "background"}, {"value": 3, "name": "shell"}, {"value": 7, "name": "core"}],
        }

    def submit(self, file: Path) -> str:
        self.sent.append(np.asarray(nibabel.load(file).dataobj))
        return "job"

    def job(self, name: str) -> dict[str, Any]:
        state = self.states.pop(0)
        place = 2 if state == "queued" else None
        return {
            "state": state,
            "place": place,
            "stage": None,
            "message": self.message,
            "warnings": ["looks odd."],
            "seconds": {"segment": 1.0},
        }

    def fetch(self, name: str, target: Path) -> Path:
        shutil.copy(self.label_map, target)
        return Path(target)

    def delete(self, name: str) -> None:
        self.deleted.append(name)

    def predict(self, files: Any, target: str | Path, on: Callable[..., object] = lambda job: None) -> dict[str, Any]:
        self.submit(Path(files))
        self.fetch("job", Path(target))
        return {"state": "done", "warnings": ["looks odd."], "seconds": {"segment": 1.0}}


# ---- 3D Slicer


class Segment:
    def __init__(self, name: str, value: int) -> None:
        self.name, self.value = name, value

    def GetLabelValue(self) -> int:
        return self.value

    def SetName(self, name: str) -> None:
        self.name = name


class Node:
    def __init__(self, name: str, array: np.ndarray | None = None) -> None:
        self.name, self.array, self.reference = name, array, None
        self.segments: list[Segment] = []

    def GetName(self) -> str:
        return self.name

    def GetID(self) -> str:
        return f"id of {self.name}"

    def GetParentTransformNode(self) -> None:
        return None

    def CreateDefaultDisplayNodes(self) -> None:
        pass

    def SetReferenceImageGeometryParameterFromVolumeNode(self, volume: Node) -> None:
        self.reference = volume.GetID()

    def GetNodeReferenceID(self, role: str) -> str | None:
        return self.reference

    def GetSegmentation(self) -> Node:
        return self

    def GetNumberOfSegments(self) -> int:
        return len(self.segments)

    def GetNthSegment(self, number: int) -> Segment:
        return self.segments[number]

    def AddEmptySegment(self, identifier: str, name: str) -> str:
        self.segments.append(Segment(name, 0))
        return name


def slicer_modules() -> tuple[dict[str, Any], list[Node]]:
    """Slicer's modules, and the nodes of its scene."""
    scene: list[Node] = []

    def added(kind: str, name: str) -> Node:
        scene.append(Node(name))
        return scene[-1]

    def saved(node: Node, path: str) -> bool:
        if path.endswith(".seg.nrrd"):
            Path(path).write_text("\n".join(segment.name for segment in node.segments), encoding="utf-8")
        else:
            nibabel.save(nibabel.Nifti1Image(node.array, np.eye(4)), path)
        return True

    def loaded(path: str, properties: dict[str, Any]) -> Node:
        scene.append(Node("label map", np.asarray(nibabel.load(path).dataobj)))
        return scene[-1]

    def imported(label_map: Node, node: Node) -> None:
        node.segments = [Segment(f"Segment_{value}", int(value)) for value in np.unique(label_map.array) if value]

    util = types.SimpleNamespace(saveNode=saved, loadLabelVolume=loaded, getNodesByClass=lambda kind: [n for n in scene if n.segments])
    logic = types.SimpleNamespace(ImportLabelmapToSegmentationNode=imported)
    slicer = module(
        "slicer",
        util=util,
        mrmlScene=types.SimpleNamespace(AddNewNodeByClass=added, RemoveNode=scene.remove),
        modules=types.SimpleNamespace(segmentations=types.SimpleNamespace(logic=lambda: logic)),
        vtkMRMLSegmentationNode=types.SimpleNamespace(GetReferenceImageGeometryReferenceRole=lambda: "reference"),
        qMRMLNodeComboBox=MagicMock(),
    )
    slicer.__path__ = []  # type: ignore[attr-defined]

    class Base:
        def __init__(self, parent: Any = None) -> None:
            self.parent, self.layout = parent, MagicMock()

        def setup(self) -> None:
            pass

    scripted = module(
        "slicer.ScriptedLoadableModule", ScriptedLoadableModule=Base, ScriptedLoadableModuleLogic=Base, ScriptedLoadableModuleWidget=Base
    )
    return {
        "slicer": slicer,
        "slicer.ScriptedLoadableModule": scripted,
        "qt": MagicMock(QPushButton=lambda text: MagicMock(), QLabel=lambda text: MagicMock()),
        "ctk": MagicMock(),
    }, scene


# ---- MONAI Label


def monailabel_modules() -> dict[str, Any]:
    class MONAILabelApp:
        def __init__(self, app_dir: str, studies: str, conf: dict[str, str], name: str, description: str, labels: Any) -> None:
            self.studies, self.conf, self.labels = studies, conf, labels
            self.infers, self.trainers, self.strategies = self.init_infers(), self.init_trainers(), self.init_strategies()  # type: ignore[attr-defined]

    class InferTask:
        def __init__(self, type: str, labels: Any, dimension: int, description: str) -> None:
            self.type, self.labels, self.dimension, self.description = type, labels, dimension, description

    class Described:
        def __init__(self, description: str) -> None:
            self.description = description

    return {
        "monailabel": module("monailabel"),
        "monailabel.interfaces": module("monailabel.interfaces"),
        "monailabel.interfaces.tasks": module("monailabel.interfaces.tasks"),
        "monailabel.interfaces.app": module("monailabel.interfaces.app", MONAILabelApp=MONAILabelApp),
        "monailabel.interfaces.tasks.infer_v2": module(
            "monailabel.interfaces.tasks.infer_v2", InferTask=InferTask, InferType=types.SimpleNamespace(SEGMENTATION="segmentation")
        ),
        "monailabel.interfaces.tasks.strategy": module("monailabel.interfaces.tasks.strategy", Strategy=Described),
        "monailabel.interfaces.tasks.train": module("monailabel.interfaces.tasks.train", TrainTask=Described),
    }
