"""Route that streams the status of a forecast as server-sent events."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from serve.api.dependencies import Context, CurrentCaller, OwnedJob
from serve.api.methods import is_head
from serve.api.paths import FORECASTS, Root
from serve.api.problems import ApiProblemError, problem_responses
from serve.api.schemas import ForecastStatus
from serve.api.status import forecast_links
from serve.api.status_feed import Follower, ForecastGoneError, StatusFeed
from serve.db.models import UNFINISHED
from storage.digest import sha256_bytes

KEEPALIVE_S = 15.0
"""After so long without a change, a comment keeps proxies from closing the stream."""
MAX_STREAM_S = 900.0
"""A client connects again after that, so that a revoked key does not go on reading."""
# nginx would hold events back; `NoStoreMiddleware` forbids caching.
STREAM_HEADERS = {"X-Accel-Buffering": "no"}

router = APIRouter(prefix=FORECASTS, tags=["forecasts"])


@dataclass(frozen=True)
class EventStream:
    """What a stream of one forecast begins with."""

    feed: StatusFeed
    owner: str
    #: Status at the time of the request.
    first: ForecastStatus
    #: Id of the event that the client saw last, None if it saw none.
    last_seen: str | None
    #: Prefix of all links.
    root: str
    #: Seconds after which a client should connect again.
    retry_s: int

    @property
    def finished(self) -> bool:
        """Return whether the client has seen the last event of a finished forecast."""
        return self.first.state not in UNFINISHED and event_id(self.first) == self.last_seen


class EventStreamResponse(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"

    # OpenAPI's status is the default of `status_code`.
    def __init__(self, stream: EventStream | None, status_code: int = 200) -> None:
        super().__init__((), status_code, STREAM_HEADERS)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, none for a HEAD. The place in the feed is free again afterwards."""
        if self._stream is None:
            await super().__call__(scope, receive, send)
            return
        with self._stream.feed.follow(self._stream.owner, self._stream.first.id) as follower:
            self.body_iterator = _events(self._stream, follower)
            await super().__call__(scope, receive, send)


@router.get(
    "/{forecast_id}/events",
    response_class=EventStreamResponse,
    responses={
        200: {"description": "Server-sent events; each data line is a ForecastStatus."},
        204: {"description": "The forecast has finished, and the client has seen its last event."},
        **problem_responses(404, 410, 429),
    },
)
async def stream_events(
    job: OwnedJob,
    context: Context,
    caller: CurrentCaller,
    root: Root,
    request: Request,
    last_event_id: Annotated[
        str | None, Header(description="Id of the last event seen; only later ones are sent.")
    ] = None,
) -> Response:
    """Stream the status at every change; the last event is named by the final state."""
    if is_head(request):
        return EventStreamResponse(None)
    first = await run_in_threadpool(context.statuses.read, job, root)
    stream = EventStream(
        context.feed, caller.owner, first, last_event_id, root, context.settings.retry_after
    )
    # A browser connects again after every end of a stream, but for a 204.
    if stream.finished:
        return Response(status_code=204)
    if not context.feed.has_room(caller.owner):
        detail = "Too many event streams are open; close some, or try again later."
        raise ApiProblemError(429, detail, headers=context.retry_after_headers)
    return EventStreamResponse(stream)


def event_id(status: ForecastStatus) -> str:
    """Return the id of the event of a status, the same in every process and under every prefix."""
    content = status.model_dump_json(by_alias=True, exclude={"links"})
    return sha256_bytes(content.encode())[:16]


async def _events(stream: EventStream, follower: Follower) -> AsyncIterator[str]:
    deadline = time.monotonic() + MAX_STREAM_S
    status, last_seen, retry = stream.first, stream.last_seen, f"retry: {stream.retry_s * 1000}\n"
    while True:
        if (new_id := event_id(status)) != last_seen:
            yield retry + _event(status, new_id, stream.root)
            last_seen, retry = new_id, ""
        remaining = deadline - time.monotonic()
        if status.state not in UNFINISHED or remaining <= 0:
            return
        try:
            following = await follower.next_status(min(KEEPALIVE_S, remaining))
        except ForecastGoneError:
            return
        if following is None:
            yield ": still here\n\n"
        status = following or status


def _event(status: ForecastStatus, new_id: str, root: str) -> str:
    name = "progress" if status.state in UNFINISHED else status.state
    status = status.model_copy(update={"links": forecast_links(root, status.id)})
    return f"id: {new_id}\nevent: {name}\ndata: {status.model_dump_json(by_alias=True)}\n\n"
