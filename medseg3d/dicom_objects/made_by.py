"""Which model made a result, as the attributes of DICOM say it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medseg3d.version import __version__

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MANUFACTURER = "medseg3d"
SERIAL_NUMBER = "0"
"""DICOM asks for one; a program has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeBy:
    """``model``: the name of its dataset; ``version``: a digest that changes with everything that changes a prediction."""

    model: str
    version: str

    @property
    def name(self) -> str:
        """The model's name as a long string (LO)."""
        return self.model.replace("\\", " ")[:64] or "model"

    @property
    def software(self) -> tuple[str, ...]:
        """Versions of the package and of the model."""
        return (f"medseg3d {__version__}", f"model {self.version}")

    def describe_equipment(self, dataset: Dataset) -> None:
        """The module General Equipment."""
        dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, self.name
        dataset.DeviceSerialNumber, dataset.SoftwareVersions = SERIAL_NUMBER, list(self.software)


def made_by(model: str, identity: str) -> MadeBy:
    """Of a model's dataset and its identity."""
    return MadeBy(model=model, version=hashlib.blake2b(identity.encode(), digest_size=8).hexdigest())
