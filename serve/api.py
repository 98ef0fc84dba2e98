"""The HTTP interface: forecasts under /v1, health under /v2 as in the Open Inference Protocol."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from lesioncast.evaluation.ensembles import p_active, wilson_interval
from lesioncast.forecasting.derivative import forecast_path, summary_path
from serve.doors import Doors, Keys
from serve.orders import Order, settle
from serve.problems import RequestError, add_problems
from serve.records import UNFINISHED, Job, KeyReusedError, QueueFullError, Records
from serve.settings import Settings

POLL_SECONDS = 0.25
QUIET_POLLS = 60  # a comment after as many keeps proxies from closing a silent stream


@dataclass(frozen=True)
class Desk:
    """What the routes need: what may be asked for, where it is kept, and who is told of it."""

    settings: Settings
    records: Records
    subjects: Sequence[str]
    arms: Sequence[str]
    keys: Keys | None
    wake: Callable[[], Awaitable[None]]
    cancel: Callable[[str], Awaitable[None]]
    ready: Callable[[], Awaitable[bool]]


def make_api(desk: Desk) -> FastAPI:
    """The application, open to whom `desk.keys` names."""
    api = FastAPI(title="lesioncast", version="1", docs_url=None, redoc_url=None)
    api.add_middleware(Doors, keys=desk.keys, max_body=desk.settings.max_body)
    add_problems(api)
    _add_health(api, desk)
    _add_forecasts(api, desk)
    _add_results(api, desk)
    return api


def _add_health(api: FastAPI, desk: Desk) -> None:
    @api.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @api.get("/v2/health/ready")
    async def ready() -> JSONResponse:
        able = await desk.ready()
        return JSONResponse({"ready": able}, status_code=200 if able else 503)


def _add_forecasts(api: FastAPI, desk: Desk) -> None:
    wait = {"Retry-After": str(desk.settings.retry_after)}

    @api.post("/v1/forecasts", status_code=202)
    async def post(
        order: Order,
        request: Request,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> JSONResponse:
        settings = desk.settings
        settled = settle(
            order, subjects=desk.subjects, arms=desk.arms, max_samples=settings.max_samples
        )
        try:
            job = await run_in_threadpool(
                desk.records.accept,
                request.state.owner,
                settled,
                total=len(settled["arms"]) * settled["samples"],
                block=settings.block,
                key=idempotency_key,
                limit=settings.unfinished,
            )
        except QueueFullError:
            detail = f"{settings.unfinished} forecasts are unfinished; try again later."
            raise RequestError(429, detail, headers=wait) from None
        except KeyReusedError:
            detail = "Idempotency-Key: expected the order it came with before; use another key."
            raise RequestError(422, detail, field="Idempotency-Key") from None
        await desk.wake()
        found = await run_in_threadpool(status_of, desk, job)
        headers = {"Location": f"/v1/forecasts/{job.id}", **wait}
        return JSONResponse(found, status_code=202, headers=headers)

    @api.get("/v1/forecasts/{job}")
    def get(job: str, request: Request) -> JSONResponse:
        found = _job(desk, job, request)
        return JSONResponse(
            status_of(desk, found), headers=wait if found.state in UNFINISHED else None
        )

    @api.delete("/v1/forecasts/{job}", status_code=204)
    async def delete(job: str, request: Request) -> Response:
        found = await run_in_threadpool(_job, desk, job, request)
        ended = await run_in_threadpool(desk.records.end, found.id, "cancelled")
        if not ended and found.state not in (*UNFINISHED, "cancelled"):
            raise RequestError(409, f"The forecast has {found.state}; it cannot be cancelled.")
        await desk.cancel(found.id)
        return Response(status_code=204)

    @api.get("/v1/forecasts/{job}/events")
    async def events(job: str, request: Request) -> StreamingResponse:
        found = await run_in_threadpool(_job, desk, job, request)
        return StreamingResponse(_events(desk, found.id), media_type="text/event-stream")


def _add_results(api: FastAPI, desk: Desk) -> None:
    @api.get("/v1/forecasts/{job}/result")
    def result(job: str, request: Request) -> FileResponse:
        found = _succeeded(desk, job, request)
        path = summary_path(_folder(desk, found), found.order["subject"])
        return FileResponse(path, media_type="application/json")

    @api.get("/v1/forecasts/{job}/arms/{arm}")
    def probability(job: str, arm: str, request: Request) -> FileResponse:
        found = _succeeded(desk, job, request)
        arms = found.order["arms"]
        if arm not in arms:
            raise RequestError(
                404, f"Expected one of {', '.join(arms)}, got another arm.", field="arm"
            )
        path = forecast_path(_folder(desk, found), found.order["subject"], arm)
        return FileResponse(path, media_type="application/gzip", filename=path.name)


def _job(desk: Desk, job: str, request: Request) -> Job:
    found = desk.records.find(job, owner=request.state.owner)
    if found is None:
        raise RequestError(404, "No forecast has this id.", field="id")
    return found


def _succeeded(desk: Desk, job: str, request: Request) -> Job:
    found = _job(desk, job, request)
    if found.state == "succeeded":
        return found
    wait = {"Retry-After": str(desk.settings.retry_after)} if found.state in UNFINISHED else None
    raise RequestError(409, f"The forecast is {found.state}: it has no result.", headers=wait)


def _folder(desk: Desk, job: Job) -> Path:
    """Named by the id that the service gave, never by what a client sent."""
    return desk.settings.artifacts / job.id


def status_of(desk: Desk, job: Job) -> dict[str, Any]:
    """How far a forecast is, and what its samples say so far."""
    lesions: dict[str, list[Any]] = {arm: [] for arm in job.order["arms"]}
    for arm, some in desk.records.lesions(job.id):
        lesions[arm] += some
    done = sum(map(len, lesions.values()))
    here = f"/v1/forecasts/{job.id}"
    column = 1 if desk.settings.opening else 0
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
        "links": {"self": here, "events": f"{here}/events", "result": f"{here}/result"},
    }


def _so_far(counts: np.ndarray[Any, Any]) -> dict[str, Any]:
    share = p_active(counts)
    low, high = wilson_interval(share, len(counts))
    return {
        "samples": len(counts),
        "p_active": {"value": share, "low": low, "high": high},
        "count_mean": float(counts.mean()),
    }


async def _events(desk: Desk, job: str) -> AsyncIterator[str]:
    """Every change as a server-sent event; the last one is named by how the forecast ended."""
    last, quiet = "", 0
    while True:
        found = await run_in_threadpool(desk.records.find, job)
        if found is None:
            return
        data = json.dumps(await run_in_threadpool(status_of, desk, found))
        ended = found.state not in UNFINISHED
        if data != last:
            yield f"event: {found.state if ended else 'progress'}\ndata: {data}\n\n"
            last, quiet = data, 0
        elif (quiet := quiet + 1) % QUIET_POLLS == 0:
            yield ": still here\n\n"
        if ended:
            return
        await asyncio.sleep(POLL_SECONDS)
