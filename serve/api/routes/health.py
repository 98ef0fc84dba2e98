"""Liveness and readiness probes; they need no API key."""

from fastapi import APIRouter, Response

from serve.api.dependencies import Context
from serve.api.schemas import ServerLive, ServerReady

router = APIRouter(prefix="/v2/health", tags=["health"])


@router.get("/live")
async def server_live() -> ServerLive:
    """Answer that the server runs."""
    return ServerLive(live=True)


@router.get("/ready", responses={503: {"model": ServerReady, "description": "Nothing can draw."}})
async def server_ready(context: Context, response: Response) -> ServerReady:
    """Answer 200 if the forecast worker and a sampler are ready, 503 otherwise."""
    ready = await context.ready()
    response.status_code = 200 if ready else 503
    return ServerReady(ready=ready)
