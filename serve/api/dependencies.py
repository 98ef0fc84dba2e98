"""What the routes share: what may be asked for, where it is kept, and who is told of it."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from fastapi import Request

from lesioncast.forecasting.ensemble import active_fraction, wilson_interval
from serve.api.multipart import FormReceiver
from serve.api.problems import ApiProblemError
from serve.api.routes.models import ModelInfo, model_info
from serve.db.models import UNFINISHED, ForecastJob
from serve.db.repository import JobRepository
from serve.keys import ApiKeyFile
from serve.log import logger
from serve.settings import ServiceSettings
from serve.uploads import upload_settings
from serve.worker.worker import LoadedModel
from storage import StoreSettings


class RequestObserver(Protocol):
    """Who is told what became of requests; see `serve.metrics.RequestMetrics`."""

    def count_problem(self, status: int) -> None:
        """A request was answered by a problem."""

    def cancelled(self) -> None:
        """A client ended a forecast."""


@dataclass(frozen=True)
class ServiceContext:
    """See `open_desk`; `upload` says how uploads are prepared, None where there are none."""

    settings: ServiceSettings
    records: JobRepository
    subjects: Sequence[str]
    model: ModelInfo
    upload: StoreSettings | None
    keys: ApiKeyFile | None
    forms: FormReceiver
    wake: Callable[[], Awaitable[None]]
    ready: Callable[[], Awaitable[bool]]
    watch: RequestObserver

    @property
    def retry_after_headers(self) -> dict[str, str]:
        """The header that says when to ask again."""
        return retry_after_headers(self.settings)


def retry_after_headers(settings: ServiceSettings) -> dict[str, str]:
    """See `Desk.wait`."""
    return {"Retry-After": str(settings.retry_after)}


def create_context(
    study: LoadedModel,
    *,
    wake: Callable[[], Awaitable[None]],
    ready: Callable[[], Awaitable[bool]],
    watch: RequestObserver,
) -> ServiceContext:
    """The desk of a study; keeps nothing of the bundle's weights."""
    settings = study.settings
    return ServiceContext(
        settings=settings,
        records=JobRepository(settings.database_url),
        subjects=[case.subject for case in study.store.cases],
        model=model_info(study.bundle),
        upload=upload_settings(settings, study.store.spec),
        keys=None if settings.keys is None else ApiKeyFile(settings.keys),
        forms=FormReceiver(retry_after_headers(settings)),
        wake=wake,
        ready=ready,
        watch=watch,
    )


async def notify_worker(desk: ServiceContext) -> None:
    """Has it look into the records now. Where it is away it will do so of itself."""
    try:
        await desk.wake()
    except Exception:
        logger.warning("the forecaster is away", exc_info=True)


def get_job_or_404(desk: ServiceContext, job: str, request: Request) -> ForecastJob:
    """The forecast with that id, if it is the asking client's. What is no id never reaches the
    database, which may not even hold it as text."""
    is_id = re.fullmatch("[0-9a-f]{32}", job) is not None
    found = desk.records.get(job, owner=request.state.owner) if is_id else None
    if found is None:
        raise ApiProblemError(404, "No forecast has this id.", field="id")
    return found


def job_status(desk: ServiceContext, job: ForecastJob) -> dict[str, Any]:
    """How far a forecast is by now, and what its samples say so far.

    Its state is read after its samples, which are dropped at its end: a running one never seems to
    have fewer than before.
    """
    lesions: dict[str, list[Any]] = {arm: [] for arm in job.order["arms"]}
    for arm, some in desk.records.lesion_counts(job.id, desk.model.digest):
        lesions[arm] += some
    job = desk.records.get(job.id) or job
    if job.state not in UNFINISHED:
        lesions.clear()
    done = sum(map(len, lesions.values()))
    here = f"/v1/forecasts/{job.id}"
    column = 1 if desk.settings.apply_opening else 0
    links = {name: f"{here}/{name}" for name in ("events", "result", "derivative")}
    return {
        "id": job.id,
        "state": job.state,
        "order": job.order,
        "progress": {"done": job.total if job.state == "succeeded" else done, "total": job.total},
        "partial": {
            arm: _partial_estimate(np.array([each[column] for each in some]))
            for arm, some in lesions.items()
            if some
        },
        "error": job.error,
        "links": {"self": here, **links},
    }


def _partial_estimate(counts: np.ndarray[Any, Any]) -> dict[str, Any]:
    share = active_fraction(counts)
    low, high = wilson_interval(share, len(counts))
    return {
        "samples": len(counts),
        "p_active": {"value": share, "low": low, "high": high},
        "count_mean": float(counts.mean()),
    }
