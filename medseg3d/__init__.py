"""medseg3d: from a folder of 3D medical images to a trained, measured, explained segmentation model.

One data's way through the package, a stage per name:

``images`` raw files, read and written · ``data`` what belongs together, and what is wrong with it · ``fingerprint`` what the data is
like · ``planning`` → ``plan`` what was decided · ``preprocessing`` → store · ``patches`` → ``networks`` → ``training`` · ``prediction``
logits → label map on the original grid · ``validation`` what validation decides, such as postprocessing · ``evaluation`` metrics ·
``models`` what is carried away and predicts again · ``reporting`` the page. ``workflows`` holds each verb of the ``commandline`` on one
page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medseg3d.version import __version__

__all__ = ["__version__", "load_model", "run", "use_extension"]

if TYPE_CHECKING:
    from medseg3d.extensions import use_extension
    from medseg3d.models.loading import load_model
    from medseg3d.workflows.run import run


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that ``import medseg3d`` is instant."""
    if name == "load_model":
        from medseg3d.models.loading import load_model

        return load_model
    if name == "run":
        from medseg3d.workflows.run import run

        return run
    if name == "use_extension":
        from medseg3d.extensions import use_extension

        return use_extension
    raise AttributeError(f"module 'medseg3d' has no attribute {name!r}")
