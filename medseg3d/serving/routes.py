"""The endpoints: what a request asks for, and how it is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.routing import Match, Route

from medseg3d.dicom_objects.outputs import ENDINGS, Outputs, outputs_of
from medseg3d.errors import InputError, MedsegError, StorageError
from medseg3d.models.model import Model
from medseg3d.options import DicomOptions, OutputType
from medseg3d.records import to_plain
from medseg3d.reporting.viewer_parts import script_source
from medseg3d.serving.answers import STATUS, HealthAnswer, JobAnswer, ModelAnswer, Refusal, describe_health, describe_job, describe_model
from medseg3d.serving.attached import taken
from medseg3d.serving.jobs import Failure, Job, Jobs, QueueFullError, StoppingError, failure_of
from medseg3d.serving.page import overview_script, render_page
from medseg3d.serving.reader import Reader, ReaderDefectError
from medseg3d.serving.settings import ServeSettings
from medseg3d.serving.upload import UploadLimits, receive_upload
from medseg3d.serving.view import packed_slice, read_scene

LOOK_SECONDS = 1.0
"""How often it is looked whether a client that waits is still there."""
MAX_WARNINGS_HEADER = 4000
"""Characters of a JSON list; the job itself has them whole."""
PAGE_POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src {script_source(overview_script())}; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""The page runs its own script, which asks this server only, and loads nothing."""
KNOWN_FIELDS = ("wait", "view", "output")
"""Of the form, beside the files."""

Described = dict[int | str, dict[str, Any]]
"""Answers by their status, for the description of the interface."""


def refusals(*statuses: int) -> Described:
    """The statuses of an endpoint that come with a reason; 401, 403 and 500 may come from all."""
    return {status: {"model": Refusal} for status in (401, 403, *statuses, 500)}


LABEL_MAP: dict[str, Any] = {
    "content": {"application/gzip": {}, "application/dicom": {}},
    "description": "The label map, on the grid of the image; or what was asked for in DICOM.",
}


def upload_form() -> dict[str, Any]:
    """For the description of the interface: the form is read as it streams, not by FastAPI."""
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "properties": {
                            "file": {
                                "type": "array",
                                "minItems": 1,
                                "items": {"type": "string", "contentMediaType": "application/octet-stream"},
                                "description": f"One image ({taken()}), one per channel, or one .zip of a DICOM series.",
                            },
                            "wait": {"type": "boolean", "default": True, "description": "As the parameter of the same name."},
                            "view": {
                                "type": "boolean",
                                "default": False,
                                "description": "Keep slices of image and label map for a viewer.",
                            },
                            "output": {"type": "string", "description": "As the parameter of the same name."},
                        },
                    }
                }
            },
        }
    }


def routes(model: Model, jobs: Jobs, reader: Reader, settings: ServeSettings) -> APIRouter:
    """All endpoints of a server."""
    router = APIRouter()
    described, device = describe_model(model), str(model.device.device)

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def overview() -> HTMLResponse:
        page = render_page(described, describe_health(described, device, jobs), settings)
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-store"})

    @router.get("/health", responses=refusals())
    async def health() -> HealthAnswer:
        """Whether the server works, and how busy it is; needs no token."""
        return describe_health(described, device, jobs)

    @router.get("/model", responses=refusals())
    async def about_model() -> ModelAnswer:
        """What the model segments, and from what."""
        return described

    answers: Described = {200: LABEL_MAP, 202: {"model": JobAnswer}, **refusals(400, 408, 410, 413, 415, 422, 503, 507)}

    @router.post("/predict", response_model=None, responses=answers, openapi_extra=upload_form())
    async def predict(request: Request, wait: bool | None = None, output: str | None = None) -> Response:
        """Predict an image: the label map with `wait=true`, the job with `wait=false`. `output` is nifti, or of a DICOM series dicom-seg,
        dicom-rtstruct, dicom-sr, or several with commas between, of which the first is answered."""
        async with _new_job(jobs, request.client.host if request.client else "") as job:
            limits = UploadLimits(max_bytes=settings.max_upload_bytes, max_seconds=60 * settings.max_upload_minutes)
            upload = await receive_upload(request, job.upload, limits=limits, check=jobs.check_open)
            flags = _flags(upload.fields)
            outputs = _outputs(settings, output or upload.fields.get("output"))
            is_waiting = flags.get("wait", True) if wait is None else wait
            case = await asyncio.to_thread(reader.case, upload.files, max_unpacked_bytes=settings.max_unpacked_bytes)
            jobs.enqueue(job, case, is_viewed=flags.get("view", False), outputs=outputs)
        if not is_waiting:
            place = f"/jobs/{job.id}"
            return JSONResponse(to_plain(describe_job(job, jobs)), 202, headers={"Location": place, "Cache-Control": "no-store"})
        await _ended(job, jobs, request)
        return _label_map(job, jobs)

    router.include_router(_job_routes(jobs))
    return router


def _job_routes(jobs: Jobs) -> APIRouter:
    """What can be asked of a job that was sent."""
    router = APIRouter()

    @router.get("/jobs/{name}", responses=refusals(404, 422))
    def job_state(name: str, response: Response) -> JobAnswer:
        """How a job does."""
        response.headers["Cache-Control"] = "no-store"
        return describe_job(_known(jobs, name), jobs)

    ended: Described = {200: LABEL_MAP, **refusals(404, 409, 410, 422, 503, 507)}

    @router.get("/jobs/{name}/labels", response_class=FileResponse, responses=ended)
    def job_labels(name: str, output: OutputType | None = None) -> FileResponse:
        """The label map of a job that is done, or another `output` that it was sent for; 409 before, and what went wrong otherwise."""
        return _label_map(_known(jobs, name), jobs, output)

    @router.get("/jobs/{name}/view", responses=refusals(404, 409, 410, 422, 503, 507), response_model=None)
    def job_view(name: str) -> JSONResponse:
        """What a viewer needs to know of a job that was sent with `view=true`: axes, spacing, channels, labels."""
        return JSONResponse(_scene(_known(jobs, name), jobs), headers={"Cache-Control": "no-store"})

    slices: Described = {200: {"content": {"application/octet-stream": {}}, "description": "The layers of the slice, one after the other."}}

    @router.get("/jobs/{name}/view/{axis}/{index}", responses={**slices, **refusals(404, 409, 410, 422, 503, 507)}, response_class=Response)
    def job_slice(name: str, axis: int, index: int) -> Response:
        """A slice normal to an axis (0: from inferior to superior, 1: from posterior to anterior, 2: from left to right)."""
        job = _known(jobs, name)
        scene = _scene(job, jobs)
        try:
            packed = packed_slice(job.view, scene, axis, index)
        except IndexError:
            raise HTTPException(404, f"No such slice; the image has {scene['shape']}.") from None
        except FileNotFoundError:
            raise HTTPException(410, "The job's slices were deleted.") from None
        headers = {"Content-Encoding": "deflate", "Cache-Control": "no-store"}
        return Response(packed, media_type="application/octet-stream", headers=headers)

    @router.delete("/jobs/{name}", status_code=204, responses=refusals(404, 422))
    def delete_job(name: str) -> None:
        """Forget a job and its files; a prediction that runs is thrown away when it ends."""
        jobs.delete(_known(jobs, name))

    return router


def add_refusals(app: FastAPI) -> None:
    """Answers to what the queue refuses."""

    @app.exception_handler(QueueFullError)
    async def full(request: Request, error: QueueFullError) -> JSONResponse:
        jobs: Jobs = request.app.state.jobs
        headers = {"Retry-After": str(jobs.retry_after), "Connection": "close"}  # the body is not read
        return JSONResponse({"detail": "The queue is full. Try again later."}, 503, headers=headers)

    @app.exception_handler(StoppingError)
    async def stopping(request: Request, error: StoppingError) -> JSONResponse:
        jobs: Jobs = request.app.state.jobs
        headers = {"Retry-After": str(jobs.retry_after), "Connection": "close"}
        return JSONResponse({"detail": "The server is stopping. Send it again later."}, 503, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def odd(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()[:5])
        return JSONResponse({"detail": f"{wrong}."}, 422)

    @app.exception_handler(405)
    async def other_method(request: Request, error: Exception) -> JSONResponse:
        matching = [route for route in app.routes if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE]
        allowed = sorted({method for route in matching for method in route.methods or ()})
        return JSONResponse({"detail": "Method Not Allowed"}, 405, headers={"Allow": ", ".join(allowed)})

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:  # the web server logs it
        return JSONResponse({"detail": "The server failed by a defect of its own; its log says more."}, 500)


@asynccontextmanager
async def _new_job(jobs: Jobs, client: str) -> AsyncIterator[Job]:
    """A job to be queued inside of the block; if it is not, nothing is left of it, and what was wrong with it is answered."""
    try:
        job = jobs.open(client)
    except StorageError:
        raise HTTPException(STATUS["storage"], "The server's disk is full or failed; nothing more can be taken.") from None
    try:
        yield job
    except (MedsegError, MemoryError, ReaderDefectError) as error:
        raise _refusal(failure_of(error, job), jobs) from None
    finally:
        if job.state == "receiving":
            await asyncio.to_thread(jobs.delete, job)


def _known(jobs: Jobs, name: str) -> Job:
    job = jobs.find(name)
    if job is None:
        raise HTTPException(404, "No such job; it may have been deleted, or ended too long ago.")
    return job


def _flags(fields: dict[str, str]) -> dict[str, bool]:
    """The form's fields that say yes or no; unknown ones are refused, as they may be slips."""
    unknown = sorted(set(fields) - set(KNOWN_FIELDS))
    if unknown:
        advice = "; to send a file with curl, put an @ before its name" if "file" in unknown else ""
        raise InputError(f"Unknown fields of the form: {', '.join(unknown)[:200]}; expected {', '.join(KNOWN_FIELDS)}{advice}.")
    answers = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    flags = {}
    for name, given in fields.items():
        if name == "output":
            continue
        text = given.strip().lower()
        if text not in answers:
            raise InputError(f"{name}={text[:50]}: expected true or false.")
        flags[name] = answers[text]
    return flags


async def _ended(job: Job, jobs: Jobs, request: Request) -> None:
    """Wait for the end of a job; one that still waits for its turn when its client goes away is dropped."""
    end = asyncio.wrap_future(job.ended)
    while not end.done():
        await asyncio.wait({end}, timeout=LOOK_SECONDS)
        if not end.done() and await request.is_disconnected() and jobs.place(job) is not None:
            await asyncio.to_thread(jobs.delete, job)


def _scene(job: Job, jobs: Jobs) -> dict[str, Any]:
    _check_done(job, jobs)
    scene = read_scene(job.view)
    if scene is None:
        raise HTTPException(404, "No slices are kept of this job: it was sent without view=true, or others came after it.")
    return scene


def _check_done(job: Job, jobs: Jobs) -> None:
    if job.failure is not None:
        raise _refusal(job.failure, jobs, job)
    if job.state != "done" or job.case is None:
        raise HTTPException(409, f"The job is {job.state}.", {"Retry-After": "1"})


def _outputs(settings: ServeSettings, asked: str | None) -> Outputs:
    """What is written of a job: what was asked for, else what the server is set to."""
    if asked is None:
        return outputs_of(settings)
    types = tuple(word.strip() for word in asked.split(",") if word.strip())
    return outputs_of(DicomOptions(output_type=types, segmentation_type=settings.segmentation_type, codes=settings.codes))  # type: ignore[arg-type]  # checked there


def _label_map(job: Job, jobs: Jobs, kind: OutputType | None = None) -> FileResponse:
    _check_done(job, jobs)
    wanted = kind or job.outputs.main
    if wanted not in job.outputs.types:
        raise HTTPException(404, f"The job was sent for {', '.join(job.outputs.types)}. Send it again with output={wanted}.")
    seconds = {f"X-Seconds-{stage.capitalize()}": f"{value:.4f}" for stage, value in job.seconds.items()}
    headers = {"X-Job-Id": job.id, "X-Num-Warnings": str(len(job.warnings)), "Cache-Control": "no-store", **seconds}
    if job.warnings:
        headers["X-Warnings"] = warnings_header(job.warnings)
    name, kept_as = job.case.name if job.case else job.id, "application/gzip" if wanted == "nifti" else "application/dicom"
    return FileResponse(job.file_of(wanted), headers=headers, media_type=kept_as, filename=name + ENDINGS[wanted])


def warnings_header(warnings: Sequence[str]) -> str:
    """As many whole warnings as fit, a JSON list in ASCII; a single one that is longer is cut.

    >>> warnings_header(["the unit is odd", "x" * MAX_WARNINGS_HEADER])
    '["the unit is odd"]'
    """
    kept = list(warnings)
    while len(kept) > 1 and len(json.dumps(kept)) > MAX_WARNINGS_HEADER:
        kept.pop()
    text = json.dumps(kept)
    return text if len(text) <= MAX_WARNINGS_HEADER else json.dumps([kept[0][: MAX_WARNINGS_HEADER // 6 - 1]])


def _refusal(failure: Failure, jobs: Jobs, job: Job | None = None) -> HTTPException:
    headers = {} if job is None else {"X-Job-Id": job.id}
    if failure.reason == "stopped":
        headers["Retry-After"] = str(jobs.retry_after)
    return HTTPException(STATUS[failure.reason], failure.message, headers)
