"""A model and settings in, a web application out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from medseg3d.models.model import Model
from medseg3d.serving.gate import Gate
from medseg3d.serving.jobs import Job, Jobs
from medseg3d.serving.predict_upload import predict_upload
from medseg3d.serving.reader import Reader
from medseg3d.serving.routes import add_refusals, routes
from medseg3d.serving.settings import ServeSettings
from medseg3d.version import __version__

SWEEP_SECONDS = 30.0
"""How exactly the time is kept for which label maps are."""
ABOUT = "Images in, label maps out, on the grid of the image. Not a medical device: no clinical clearance."


def build_app(model: Model, settings: ServeSettings, reader: Reader | None = None) -> FastAPI:
    """The application that serves a model, for one event loop; ``app.state.jobs`` is its queue.

    The thread that predicts, the processes that read and the folder of the jobs' files live from the application's start to its end;
    a ``reader`` that is given is the caller's to close.
    """
    reading = reader or Reader(model.plan)

    def work(job: Job, tell: Callable[[str], None]) -> dict[str, float]:
        if job.case is None:
            raise ValueError(f"Job {job.id} was queued without a case")
        view = job.view if job.is_viewed else None
        return predict_upload(job.case, job.labels, model=model, reader=reading, tell=tell, view=view, outputs=job.outputs)

    jobs = Jobs(work, max_jobs=settings.max_jobs, keep_seconds=60 * settings.keep_minutes, max_kept=settings.max_kept)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with jobs:
            sweeping = asyncio.create_task(_sweep(jobs))
            if reader is None:
                threading.Thread(target=reading.warm, name="readers", daemon=True).start()
            yield
            sweeping.cancel()
        if reader is None:
            reading.close()

    app = FastAPI(title="medseg3d", version=__version__, description=ABOUT, lifespan=lifespan, redoc_url=None)
    app.state.jobs = jobs
    app.add_middleware(Gate, token=settings.token)
    add_refusals(app)
    app.include_router(routes(model, jobs, reading, settings))
    return app


async def _sweep(jobs: Jobs) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        await asyncio.to_thread(jobs.sweep)
