"""What the routes share: what may be asked for, where it is kept, and who is told of it."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from fastapi import Request

from lesioncast.forecasting.ensemble import share_active, wilson_interval
from serve.api.multipart import Forms
from serve.api.problems import RequestError
from serve.api.routes.models import Served, served
from serve.db.models import UNFINISHED, Job
from serve.db.repository import Records
from serve.keys import KeyFile
from serve.log import logger
from serve.settings import Settings
from serve.uploads import upload_settings
from serve.worker.worker import Study
from storage import StoreSettings


class Watch(Protocol):
    """Who is told what became of requests; see `serve.metrics.RequestMetrics`."""

    def refused(self, status: int) -> None:
        """A request was answered by a problem."""

    def cancelled(self) -> None:
        """A client ended a forecast."""


@dataclass(frozen=True)
class Desk:
    """See `open_desk`; `upload` says how uploads are prepared, None where there are none."""

    settings: Settings
    records: Records
    subjects: Sequence[str]
    model: Served
    upload: StoreSettings | None
    keys: KeyFile | None
    forms: Forms
    wake: Callable[[], Awaitable[None]]
    ready: Callable[[], Awaitable[bool]]
    watch: Watch

    @property
    def wait(self) -> dict[str, str]:
        """The header that says when to ask again."""
        return wait_of(self.settings)


def wait_of(settings: Settings) -> dict[str, str]:
    """See `Desk.wait`."""
    return {"Retry-After": str(settings.retry_after)}


def open_desk(
    study: Study,
    *,
    wake: Callable[[], Awaitable[None]],
    ready: Callable[[], Awaitable[bool]],
    watch: Watch,
) -> Desk:
    """The desk of a study; keeps nothing of the bundle's weights."""
    settings = study.settings
    return Desk(
        settings=settings,
        records=Records(settings.database_url),
        subjects=[case.subject for case in study.store.cases],
        model=served(study.bundle),
        upload=upload_settings(settings, study.store.spec),
        keys=None if settings.keys is None else KeyFile(settings.keys),
        forms=Forms(wait_of(settings)),
        wake=wake,
        ready=ready,
        watch=watch,
    )


async def wake_forecaster(desk: Desk) -> None:
    """Has it look into the records now. Where it is away it will do so of itself."""
    try:
        await desk.wake()
    except Exception:
        logger.warning("the forecaster is away", exc_info=True)


def find_job(desk: Desk, job: str, request: Request) -> Job:
    """The forecast with that id, if it is the asking client's. What is no id never reaches the
    database, which may not even hold it as text."""
    is_id = re.fullmatch("[0-9a-f]{32}", job) is not None
    found = desk.records.find(job, owner=request.state.owner) if is_id else None
    if found is None:
        raise RequestError(404, "No forecast has this id.", field="id")
    return found


def status_of(desk: Desk, job: Job) -> dict[str, Any]:
    """How far a forecast is by now, and what its samples say so far.

    Its state is read after its samples, which are dropped at its end: a running one never seems to
    have fewer than before.
    """
    lesions: dict[str, list[Any]] = {arm: [] for arm in job.order["arms"]}
    for arm, some in desk.records.lesions(job.id, desk.model.digest):
        lesions[arm] += some
    job = desk.records.find(job.id) or job
    if job.state not in UNFINISHED:
        lesions.clear()
    done = sum(map(len, lesions.values()))
    here = f"/v1/forecasts/{job.id}"
    column = 1 if desk.settings.opening else 0
    links = {name: f"{here}/{name}" for name in ("events", "result", "derivative")}
    return {
        "id": job.id,
        "state": job.state,
        "order": job.order,
        "progress": {"done": job.total if job.state == "succeeded" else done, "total": job.total},
        "partial": {
            arm: _so_far(np.array([each[column] for each in some]))
            for arm, some in lesions.items()
            if some
        },
        "error": job.error,
        "links": {"self": here, **links},
    }


def _so_far(counts: np.ndarray[Any, Any]) -> dict[str, Any]:
    share = share_active(counts)
    low, high = wilson_interval(share, len(counts))
    return {
        "samples": len(counts),
        "p_active": {"value": share, "low": low, "high": high},
        "count_mean": float(counts.mean()),
    }
