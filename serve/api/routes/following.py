"""How a forecast goes: its status, the same as events, and its end by who asked for it."""

import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from serve.api.dependencies import ServiceContext, get_job_or_404, job_status, notify_worker
from serve.artifacts import remove_artifacts
from serve.db.models import UNFINISHED, ForecastJob
from serve.log import logger

POLL_SECONDS = 0.25
KEEPALIVE_POLLS = 60  # a comment after as many keeps proxies from closing a silent stream


def add_following(api: FastAPI, desk: ServiceContext) -> None:
    """The routes of one forecast, but for its results."""

    @api.get("/v1/forecasts/{job}")
    def get(job: str, request: Request) -> JSONResponse:
        status = job_status(desk, get_job_or_404(desk, job, request))
        return JSONResponse(
            status, headers=desk.retry_after_headers if status["state"] in UNFINISHED else None
        )

    @api.delete("/v1/forecasts/{job}", status_code=204)
    async def delete(job: str, request: Request) -> Response:
        """Cancels a forecast that has not ended, and removes all files of one that has."""
        found = await run_in_threadpool(get_job_or_404, desk, job, request)
        by = request.state.key
        if await run_in_threadpool(desk.records.finish, found.id, "cancelled", facts={"by": by}):
            desk.watch.cancelled()
        else:
            await run_in_threadpool(desk.records.mark_deleted, found.id, by=by)
        await notify_worker(desk)  # which stops drawing for it
        await run_in_threadpool(remove_artifacts, desk.settings.artifacts, found.id)
        logger.info("deleted", extra={"forecast": found.id})
        return Response(status_code=204)

    @api.get("/v1/forecasts/{job}/events")
    async def events(job: str, request: Request) -> StreamingResponse:
        found = await run_in_threadpool(get_job_or_404, desk, job, request)
        return StreamingResponse(_event_stream(desk, found), media_type="text/event-stream")


async def _event_stream(desk: ServiceContext, job: ForecastJob) -> AsyncIterator[str]:
    """Every change as a server-sent event; the last one is named by how the forecast ended."""
    last, quiet = "", 0
    while True:
        status = await run_in_threadpool(job_status, desk, job)
        data, state = json.dumps(status), status["state"]
        ended = state not in UNFINISHED
        if data != last:
            yield f"event: {state if ended else 'progress'}\ndata: {data}\n\n"
            last, quiet = data, 0
        elif (quiet := quiet + 1) % KEEPALIVE_POLLS == 0:
            yield ": still here\n\n"
        if ended:
            return
        await asyncio.sleep(POLL_SECONDS)
