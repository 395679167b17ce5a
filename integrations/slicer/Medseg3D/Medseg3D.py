"""A module of 3D Slicer: the volume on the screen goes to ``medseg3d serve``, its segments come back by name, and corrections are saved.

Add this folder under Edit, Application Settings, Modules, Additional module paths. Nothing has to be installed in Slicer's Python.
"""

from __future__ import annotations

import re
import tempfile
import traceback
from pathlib import Path

import ctk
import qt
import slicer
from medseg3d_client import ENDED, Server, ServerError
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)

POLL_MS = 1000
"""Between two looks at a job; Slicer stays usable meanwhile."""
SETTINGS = "Medseg3D"
DEFAULT_ADDRESS = "http://127.0.0.1:8000"


class Medseg3D(ScriptedLoadableModule):
    """What the list of modules shows."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = "medseg3d"
        parent.categories = ["Segmentation"]
        parent.dependencies = ["Segmentations"]
        parent.contributors = ["the medseg3d authors"]
        parent.helpText = "Segments a volume with a model that medseg3d serve keeps warm. Not a medical device: look at every segmentation."
        parent.acknowledgementText = ""


class Medseg3DWidget(ScriptedLoadableModuleWidget):
    """Address and token, the volume, one button to segment, one to save a correction."""

    def setup(self):
        super().setup()
        self.logic = Medseg3DLogic()
        self.timer = qt.QTimer()
        self.timer.setInterval(POLL_MS)
        self.timer.connect("timeout()", self.onTimer)
        settings = qt.QSettings()
        form = qt.QFormLayout()
        self.address = qt.QLineEdit(str(settings.value(f"{SETTINGS}/address") or DEFAULT_ADDRESS))
        self.token = qt.QLineEdit()  # never stored: settings are plain text
        self.token.setEchoMode(qt.QLineEdit.Password)
        self.volume = slicer.qMRMLNodeComboBox()
        self.volume.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.volume.addEnabled = False
        self.volume.setMRMLScene(slicer.mrmlScene)
        self.corrections = ctk.ctkPathLineEdit()
        self.corrections.filters = ctk.ctkPathLineEdit.Dirs
        self.corrections.currentPath = str(settings.value(f"{SETTINGS}/corrections") or "")
        self.segment = qt.QPushButton("Segment")
        self.stop = qt.QPushButton("Stop")
        self.save = qt.QPushButton("Save correction")
        self.status = qt.QLabel("")
        self.status.wordWrap = True
        for label, widget in (
            ("Server", self.address),
            ("Token", self.token),
            ("Volume", self.volume),
            ("", self.segment),
            ("", self.stop),
            ("Corrections", self.corrections),
            ("", self.save),
            ("", self.status),
        ):
            form.addRow(label, widget)
        self.layout.addLayout(form)
        self.layout.addStretch(1)
        self.segment.connect("clicked(bool)", self.onSegment)
        self.stop.connect("clicked(bool)", self.onStop)
        self.save.connect("clicked(bool)", self.onSave)
        self._show("")

    def cleanup(self):
        """Slicer closes or reloads the module."""
        self.timer.stop()
        self.logic.stop()

    def onSegment(self, *_):
        """Send the chosen volume."""
        qt.QSettings().setValue(f"{SETTINGS}/address", self.address.text)
        self._do(lambda: self.logic.start(self.address.text, self.token.text, self.volume.currentNode()))
        if self.logic.is_running:
            self.timer.start()

    def onStop(self, *_):
        """Wait no more."""
        self.timer.stop()
        self.logic.stop()
        self._show("Stopped.")

    def onTimer(self):
        """Look at the job."""
        self._do(self.logic.look)
        if not self.logic.is_running:
            self.timer.stop()

    def onSave(self, *_):
        """Save the segmentation of the chosen volume as a correction."""
        qt.QSettings().setValue(f"{SETTINGS}/corrections", self.corrections.currentPath)
        self._do(lambda: self.logic.save_correction(self.volume.currentNode(), self.corrections.currentPath))

    def _do(self, work):
        try:
            self._show(work())
        except (ServerError, ValueError, OSError, RuntimeError) as error:
            self.logic.stop()
            traceback.print_exc()  # into Slicer's Python console
            self._show(str(error))

    def _show(self, text):
        self.status.text = text
        self.segment.enabled = not self.logic.is_running
        self.stop.enabled = self.logic.is_running


class Medseg3DLogic(ScriptedLoadableModuleLogic):
    """A volume to the server and back, one at a time; ``start``, then ``look`` until it is not running any more."""

    def __init__(self):
        super().__init__()
        self._server = self._job = self._volume = None
        self._labels = {}
        self._saved = {}

    @property
    def is_running(self):
        """A volume is at the server."""
        return self._job is not None

    def start(self, address, token, volume, server=None):
        """Send a volume; returns what to show."""
        if volume is None:
            raise ValueError("Choose a volume first.")
        if self.is_running:
            raise ValueError("A volume is being segmented; wait, or press Stop.")
        self._server = server or Server(address, token)
        self._labels = self._server.labels()
        with tempfile.TemporaryDirectory(prefix="medseg3d-") as folder:
            file = Path(folder) / "volume.nii.gz"  # the patient's name stays here
            if not slicer.util.saveNode(volume, str(file)):
                raise RuntimeError("The volume could not be written as NIfTI.")
            self._job = self._server.submit(file)
        self._volume = volume
        return f"{volume.GetName()}: sent."

    def look(self):
        """How the job does; when it is done, its segments are in the scene. Returns what to show."""
        if not self.is_running:
            return ""
        job = self._server.job(self._job)
        name = self._volume.GetName()
        if job["state"] not in ENDED:
            return f"{name}: {job['stage'] or job['state']}" + (f", place {job['place']}" if job["place"] else "")
        try:
            if job["state"] != "done":
                raise ServerError(job["message"] or f"The job was {job['state']}.")
            with tempfile.TemporaryDirectory(prefix="medseg3d-") as folder:
                file = self._server.fetch(self._job, Path(folder) / "labels.nii.gz")
                self._into_scene(file)
        finally:
            self.stop()
        return f"{name}: done. " + " ".join(job["warnings"])

    def stop(self):
        """Let the server forget what is running, if anything is."""
        job, self._job = self._job, None
        if job is not None:
            try:
                self._server.delete(job)
            except ServerError:
                traceback.print_exc()  # a server that is gone has nothing left to forget

    def _into_scene(self, file):
        """The label map as a segmentation of the volume, each segment under its name; absent ones are there and empty, for corrections."""
        label_map = slicer.util.loadLabelVolume(str(file), {"show": False})
        try:
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{self._volume.GetName()} segmentation")
            node.CreateDefaultDisplayNodes()
            node.SetReferenceImageGeometryParameterFromVolumeNode(self._volume)
            slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(label_map, node)
        finally:
            slicer.mrmlScene.RemoveNode(label_map)
        segmentation = node.GetSegmentation()
        missing = dict(self._labels)
        for number in range(segmentation.GetNumberOfSegments()):
            segment = segmentation.GetNthSegment(number)
            name = missing.pop(segment.GetLabelValue(), None)
            if name is not None:
                segment.SetName(name)
        for name in missing.values():
            segmentation.AddEmptySegment("", name)
        parent = self._volume.GetParentTransformNode()
        if parent is not None:
            node.SetAndObserveTransformNodeID(parent.GetID())

    def save_correction(self, volume, folder):
        """Save the segmentation of a volume as ``CASE.seg.nrrd``, which ``medseg3d correct`` reads by the names of its segments."""
        if volume is None or not folder:
            raise ValueError("Choose a volume, and the folder for corrections (DATASET/corrections).")
        role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
        nodes = [node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if node.GetNodeReferenceID(role) == volume.GetID()]
        if not nodes:
            raise ValueError(f"{volume.GetName()} has no segmentation.")
        target = Path(folder) / f"{case_name(volume.GetName())}.seg.nrrd"
        if target.exists() and self._saved.get(volume.GetID()) != target:
            raise ValueError(f"{target} is there already, perhaps of another patient. Name the volume after its case, or move that file.")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not slicer.util.saveNode(nodes[-1], str(target)):
            raise RuntimeError(f"{target}: could not be written.")
        self._saved[volume.GetID()] = target
        return f"Saved: {target}"


def case_name(name):
    """The case that a volume is called after: without the number of the first channel, which nnU-Net's names end with, and what no file
    may have. Four other digits are a part of the name.

    >>> case_name("liver_007_0000"), case_name("patient_0012"), case_name("CT: 2/3")
    ('liver_007', 'patient_0012', 'CT_ 2_3')
    """
    return re.sub(r'[\\/:*?"<>|]', "_", re.sub("_0000$", "", name.strip()))
