"""FastAPI dependencies of the routes: the service's context, the caller and the forecast."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from fastapi import Depends, Path, Request

from serve.api.multipart import FormReceiver
from serve.api.problems import ApiProblemError
from serve.api.status import StatusReader
from serve.api.status_feed import StatusFeed
from serve.db.models import UNFINISHED, ForecastJob
from serve.db.open import open_repository
from serve.db.repository import JobRepository
from serve.keys import ApiKeyFile
from serve.log import logger
from serve.model_info import ModelInfo, MountedModel, model_info
from serve.settings import ServiceSettings
from storage import Store, StoreSettings
from storage.store.case_table import Case

MAX_CONCURRENT_PREPARATIONS = 2  # each holds the voxels of one image in memory


class RequestObserver(Protocol):
    """Receives what happens to requests; see `serve.metrics.RequestMetrics`."""

    def count_problem(self, status: int) -> None:
        """Count a request that was answered by a problem document."""

    def count_cancelled(self) -> None:
        """Count a forecast that its client cancelled."""


@dataclass(frozen=True)
class ServiceContext:
    """Objects that all routes use.

    `upload` holds the settings that uploads are prepared with. `keys` is None in demo mode. `wake`
    tells the forecast worker that the jobs have changed; `ready` asks whether forecasts can be
    drawn.
    """

    settings: ServiceSettings
    jobs: JobRepository
    statuses: StatusReader
    feed: StatusFeed
    store: Store
    subjects: Mapping[str, Case]
    model: ModelInfo
    upload: StoreSettings
    keys: ApiKeyFile | None
    forms: FormReceiver
    wake: Callable[[], Awaitable[None]]
    ready: Callable[[], Awaitable[bool]]
    observer: RequestObserver
    preparing: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT_PREPARATIONS)
    )
    # A segmentation holds the maps of all arms in memory: one at a time.
    segmenting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    @property
    def retry_after_headers(self) -> dict[str, str]:
        """Return the header that says when to ask again."""
        return retry_after_headers(self.settings)


def retry_after_headers(settings: ServiceSettings) -> dict[str, str]:
    """Return the header that says when to ask again."""
    return {"Retry-After": str(settings.retry_after)}


def create_context(
    mounted: MountedModel,
    *,
    wake: Callable[[], Awaitable[None]],
    ready: Callable[[], Awaitable[bool]],
    observer: RequestObserver,
) -> ServiceContext:
    """Create the context for a bundle and a store."""
    settings, model = mounted.settings, model_info(mounted.bundle)
    jobs = open_repository(settings)
    statuses = StatusReader(jobs, model.digest, settings.apply_opening)
    return ServiceContext(
        settings=settings,
        jobs=jobs,
        statuses=statuses,
        feed=StatusFeed(statuses),
        store=mounted.store,
        subjects={case.subject: case for case in mounted.store.cases},
        model=model,
        upload=mounted.store.settings.for_patient(),
        keys=None if settings.keys is None else ApiKeyFile(settings.keys),
        forms=FormReceiver(retry_after_headers(settings)),
        wake=wake,
        ready=ready,
        observer=observer,
    )


@dataclass(frozen=True)
class Caller:
    """The client that sent a request: its name and the id of its API key."""

    owner: str
    key_id: str


# FastAPI runs synchronous dependencies in a thread. These two only read attributes, so they are
# coroutines; `get_job_or_404` reads the database and stays in a thread.


async def get_context(request: Request) -> ServiceContext:
    """Return the context that `create_app` stored with the application."""
    context: ServiceContext = request.app.state.context
    return context


async def get_caller(request: Request) -> Caller:
    """Return the client that `AuthMiddleware` authenticated."""
    return Caller(request.state.owner, request.state.key)


Context = Annotated[ServiceContext, Depends(get_context)]
CurrentCaller = Annotated[Caller, Depends(get_caller)]
ForecastId = Annotated[str, Path(description="Id of the forecast: 32 hexadecimal digits.")]


def get_job_or_404(forecast_id: ForecastId, context: Context, caller: CurrentCaller) -> ForecastJob:
    """Return the caller's forecast. Raises ApiProblemError if the caller has none of this id.

    The status is 410 for a forecast that was removed after `keep_days`.

    Malformed ids are rejected before the query: PostgreSQL cannot store some of them, such as NUL
    bytes, and would raise.
    """
    well_formed = re.fullmatch("[0-9a-f]{32}", forecast_id) is not None
    job = context.jobs.get(forecast_id, owner=caller.owner) if well_formed else None
    if job is None:
        raise ApiProblemError(404, "No forecast has this id.", field="id")
    if job.state == "expired":
        days = context.settings.keep_days
        raise ApiProblemError(410, f"The forecast was removed {days:g} days after its end.")
    return job


def get_succeeded_or_409(
    forecast_id: ForecastId, context: Context, caller: CurrentCaller
) -> ForecastJob:
    """Return the caller's forecast. Raises ApiProblemError if it has no result."""
    job = get_job_or_404(forecast_id, context, caller)
    if job.state == "succeeded":
        return job
    headers = context.retry_after_headers if job.state in UNFINISHED else None
    raise ApiProblemError(409, f"The forecast is {job.state}: it has no result.", headers=headers)


OwnedJob = Annotated[ForecastJob, Depends(get_job_or_404)]
SucceededJob = Annotated[ForecastJob, Depends(get_succeeded_or_409)]


async def notify_worker(context: ServiceContext) -> None:
    """Tell the forecast worker to look at the jobs now."""
    try:
        await context.wake()
    except Exception:
        # No error for the client: the worker polls the database and finds the change itself.
        logger.warning("worker.unreachable", exc_info=True)
