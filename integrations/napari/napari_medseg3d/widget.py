"""The dock widget: an image layer goes to a medseg3d model or server, a labels layer comes back; napari stays usable meanwhile."""

from magicgui import magic_factory
from napari.layers import Image
from napari.qt.threading import FunctionWorker, thread_worker
from napari.types import LayerDataTuple
from napari.utils.notifications import show_warning
from qtpy.QtCore import QTimer

from napari_medseg3d.segment import known_affine, segment

# napari looks at the annotations of this function, so that they are no texts here.


@magic_factory(call_button="Segment", model={"label": "model or server"})
def segment_widget(image: Image, model: str = "http://127.0.0.1:8000") -> FunctionWorker[LayerDataTuple]:
    """``model``: a work folder, a .medseg3d file, or the address of ``medseg3d serve`` (its token in MEDSEG3D_TOKEN)."""
    if known_affine(image.metadata) is None:
        show_warning("The layer does not say where left and right are; its axes count as DICOM's. See the plugin's page.")
    place = {name: getattr(image, name) for name in ("scale", "translate", "rotate", "shear", "affine")}

    @thread_worker(start_thread=False, progress={"desc": f"medseg3d: {image.name}"})
    def work() -> LayerDataTuple:
        values, names = segment(image.data, image.scale, image.metadata, model)
        metadata = {key: value for key, value in image.metadata.items() if key == "affine"} | {"labels": names}
        return values, {"name": f"{image.name} segmentation", "metadata": metadata, **place}, "labels"

    worker = work()
    QTimer.singleShot(0, worker.start)  # after napari has connected what becomes of the result
    return worker
