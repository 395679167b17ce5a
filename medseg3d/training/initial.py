"""The weights that a training begins with (``--init``): what is taken over of them, and whether a run that is there began with them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medseg3d.errors import InputError, PlanMismatchError
from medseg3d.models.checkpoints import load_matching, load_tensors
from medseg3d.networks.family import Sharing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialWeights:
    """Tensors under the names of our networks, and where they come from."""

    source: str
    tensors: Mapping[str, torch.Tensor]

    @property
    def digest(self) -> str:
        """Changes when any tensor does."""
        found = hashlib.blake2b(digest_size=8)
        for name, tensor in sorted(self.tensors.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()


def read_initial(init: Path | InitialWeights | None) -> InitialWeights | None:
    """Of a weights file where a path is named."""
    return InitialWeights(source=str(init), tensors=load_tensors(init)[0]) if isinstance(init, Path) else init


def check_began_with(digest: str | None, initial: InitialWeights | None, folder: Path) -> None:
    """Raise :class:`InputError` where weights are named and the run in ``folder`` began with others, whose ``digest`` is known."""
    if initial is not None and initial.digest != digest:
        began = "with fresh weights" if digest is None else "with others"
        raise InputError(
            f"--init {initial.source}: {folder} holds a run that began {began}, and would only go on. Say --restart to begin anew with "
            "these weights, which deletes that run, or leave --init out to go on with it."
        )


def take_over(network: torch.nn.Module, initial: InitialWeights, *, only_shared: Sharing | None = None) -> bool:
    """Fill what fits by name and shape, and log the rest; True where the whole network was filled.

    With ``only_shared`` nothing is taken but what all domains share: the others, which an earlier run may have left there, have seen
    other cases. Raises :class:`PlanMismatchError` where nothing fits.
    """
    tensors = {name: tensor for name, tensor in initial.tensors.items() if only_shared is None or only_shared.domain_of(name) is None}
    unused, missing = load_matching(network, tensors)
    if len(unused) == len(tensors):
        raise PlanMismatchError(
            f"{initial.source}: none of its tensors fits this network. Name a model of the same family, as its weights.safetensors."
        )
    if only_shared is None:
        logger.warning("Weights from %s; not used: %s; not found, so fresh: %s.", initial.source, _some(unused), _some(missing))
    return not missing


def _some(names: Sequence[str]) -> str:
    """The first names and how many more."""
    return (", ".join(names[:5]) or "none") + (f" and {len(names) - 5} more" if len(names) > 5 else "")
