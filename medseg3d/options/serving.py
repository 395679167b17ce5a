"""Options of a server: its address, its limits, and how its model predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from medseg3d.options.dicom import DicomOptions
from medseg3d.options.option import Option
from medseg3d.options.prediction import ModelOptions


@dataclass(frozen=True, kw_only=True)
class ServerOptions(DicomOptions):
    """Limits of a server, and its address.

    ``max_upload_mb`` is for one request, which may take ``max_upload_minutes``; ``max_unpacked_mb`` for the content of one zip;
    ``max_jobs`` may be in work or wait at once. A label map is kept for ``keep_minutes``, and at most ``max_kept`` are. ``output_type`` is
    what clients get that ask for nothing else.
    """

    host: Annotated[str, Option("--host", "address to listen on (default: this machine only; others need a token)", metavar="HOST")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Option("--port", "0 takes a free one (default: 8000)", metavar="PORT", at_least=0, at_most=65535)] = 8000
    token: Annotated[
        str | None, Option("--token", "what clients must send (default: the environment variable MEDSEG3D_TOKEN)", metavar="TOKEN")
    ] = None
    max_upload_mb: Annotated[float, Option("--max-upload-mb", "of one upload (default: 2048)", metavar="MB", unit="MiB", above=0)] = 2048
    max_upload_minutes: Annotated[
        float, Option("--max-upload-minutes", "that one upload may take (default: 30)", metavar="MIN", unit="minutes", above=0)
    ] = 30
    max_unpacked_mb: Annotated[float, Option("--max-unpacked-mb", "of a zip (default: 8192)", metavar="MB", unit="MiB", above=0)] = 8192
    max_jobs: Annotated[int, Option("--max-jobs", "jobs that wait (default: 16)", metavar="N", at_least=1)] = 16
    keep_minutes: Annotated[
        float, Option("--keep-minutes", "results are kept so long (default: 60)", metavar="MIN", unit="minutes", above=0)
    ] = 60
    max_kept: Annotated[int, Option("--max-kept", "results that are kept at once (default: 100)", metavar="N", at_least=1)] = 100


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ServerOptions, ModelOptions):
    """Options of ``serve``."""
