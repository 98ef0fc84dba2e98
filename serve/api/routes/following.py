"""How a forecast goes: its status, the same as events, and its end by who asked for it."""

import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from serve.api.dependencies import Desk, find_job, status_of, wake_forecaster
from serve.artifacts import remove_files
from serve.db.models import UNFINISHED, Job
from serve.log import logger

POLL_SECONDS = 0.25
QUIET_POLLS = 60  # a comment after as many keeps proxies from closing a silent stream


def add_following(api: FastAPI, desk: Desk) -> None:
    """The routes of one forecast, but for its results."""

    @api.get("/v1/forecasts/{job}")
    def get(job: str, request: Request) -> JSONResponse:
        status = status_of(desk, find_job(desk, job, request))
        return JSONResponse(status, headers=desk.wait if status["state"] in UNFINISHED else None)

    @api.delete("/v1/forecasts/{job}", status_code=204)
    async def delete(job: str, request: Request) -> Response:
        """Cancels a forecast that has not ended, and removes all files of one that has."""
        found = await run_in_threadpool(find_job, desk, job, request)
        by = request.state.key
        if await run_in_threadpool(desk.records.end, found.id, "cancelled", facts={"by": by}):
            desk.watch.cancelled()
        else:
            await run_in_threadpool(desk.records.forget, found.id, by=by)
        await wake_forecaster(desk)  # which stops drawing for it
        await run_in_threadpool(remove_files, desk.settings.artifacts, found.id)
        logger.info("deleted", extra={"forecast": found.id})
        return Response(status_code=204)

    @api.get("/v1/forecasts/{job}/events")
    async def events(job: str, request: Request) -> StreamingResponse:
        found = await run_in_threadpool(find_job, desk, job, request)
        return StreamingResponse(_events(desk, found), media_type="text/event-stream")


async def _events(desk: Desk, job: Job) -> AsyncIterator[str]:
    """Every change as a server-sent event; the last one is named by how the forecast ended."""
    last, quiet = "", 0
    while True:
        status = await run_in_threadpool(status_of, desk, job)
        data, state = json.dumps(status), status["state"]
        ended = state not in UNFINISHED
        if data != last:
            yield f"event: {state if ended else 'progress'}\ndata: {data}\n\n"
            last, quiet = data, 0
        elif (quiet := quiet + 1) % QUIET_POLLS == 0:
            yield ": still here\n\n"
        if ended:
            return
        await asyncio.sleep(POLL_SECONDS)
