"""What the server says, as records: of itself, of its model, and of a job."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from medseg3d.models.model import Model
from medseg3d.serving.jobs import Job, Jobs, Reason, State
from medseg3d.version import __version__

STATUS: dict[Reason, int] = {"input": 422, "memory": 507, "storage": 507, "defect": 500, "stopped": 503, "deleted": 410}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelAnswer:
    """A value in the label map and what it means."""

    value: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationAnswer:
    """One of the networks that are averaged; spacing (mm) and window (voxels) in the network's order of axes."""

    name: str
    family: str
    num_folds: int
    spacing_mm: tuple[float, ...]
    window: tuple[int, ...]
    is_mirrored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """What the model segments, and from what; ``identity`` changes when anything changes that changes a label map."""

    dataset: str
    identity: str
    channels: tuple[str, ...]
    labels: tuple[LabelAnswer, ...]
    configurations: tuple[ConfigurationAnswer, ...]
    num_training_cases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """The part of :class:`ModelAnswer` that everyone may know."""

    identity: str
    channels: tuple[str, ...]
    labels: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthAnswer:
    """Whether the server works, and how busy it is."""

    status: Literal["ok", "stopping"]
    version: str
    model: ModelSummary
    device: str
    queue_length: int
    is_predicting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAnswer:
    """A job: ``place`` in the queue (1 is next), the ``stage`` it is in, ``seconds`` of the stages, where the label map is."""

    id: str
    state: State
    place: int | None
    stage: str | None
    seconds: dict[str, float]
    message: str | None
    warnings: tuple[str, ...]
    labels: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request was not served, in a sentence."""

    detail: str


def describe_model(model: Model) -> ModelAnswer:
    """What a model says of itself."""
    names, values = model.plan.labels.names, model.plan.labels.values
    return ModelAnswer(
        dataset=model.plan.dataset,
        identity=identity_digest(model),
        channels=model.plan.channels,
        labels=tuple(LabelAnswer(value=value, name=name) for name, value in zip(names, values, strict=True)),
        configurations=tuple(
            ConfigurationAnswer(
                name=member.configuration.name,
                family=member.configuration.network.family,
                num_folds=len(member.networks),
                spacing_mm=member.configuration.spacing,
                window=member.configuration.patch_size,
                is_mirrored=member.mirroring and bool(member.configuration.mirror_axes),
            )
            for member in model.members
        ),
        num_training_cases=model.plan.num_training,
    )


def identity_digest(model: Model) -> str:
    """The model's identity as a short text."""
    return hashlib.blake2b(model.identity.encode(), digest_size=8).hexdigest()


def describe_health(model: ModelAnswer, device: str, jobs: Jobs) -> HealthAnswer:
    """How the server does."""
    return HealthAnswer(
        status="stopping" if jobs.is_stopping else "ok",
        version=__version__,
        model=ModelSummary(identity=model.identity, channels=model.channels, labels={label.name: label.value for label in model.labels}),
        device=device,
        queue_length=jobs.num_waiting,
        is_predicting=jobs.is_running,
    )


def describe_job(job: Job, jobs: Jobs) -> JobAnswer:
    """How a job does."""
    return JobAnswer(
        id=job.id,
        state=job.state,
        place=jobs.place(job),
        stage=job.stage,
        seconds={stage: round(seconds, 4) for stage, seconds in job.seconds.items()},
        message=job.failure.message if job.failure else None,
        warnings=tuple(job.warnings),
        labels=f"/jobs/{job.id}/labels" if job.state == "done" else None,
    )
