"""Paths of the service, also under the prefix of a reverse proxy or of Ray Serve.

The server says in `root_path` under which prefix it publishes the application: Ray Serve's
`route_prefix`, and `root_path` of its `http_options` for a proxy that removes the prefix. Headers
such as X-Forwarded-Prefix come from whoever sent the request, so nothing here reads them. Links
have neither scheme nor host, and lead back to wherever the client found the service.
"""

from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Request
from starlette.types import Scope

FORECASTS = "/v1/forecasts"
HEALTH_PREFIX = "/v2/health/"
PAGE_PREFIX = "/page/"


def root_path(scope: Scope) -> str:
    """Return the prefix under which the application is published, without a slash at its end."""
    return str(scope.get("root_path", "")).rstrip("/")


def route_path(scope: Scope) -> str:
    """Return the path of a request below the prefix, as the routes name it.

    Servers differ: in some the path holds the prefix, in some it does not.
    """
    path, root = str(scope["path"]), root_path(scope)
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


async def get_root(request: Request) -> str:
    """Return the prefix that all links of an answer begin with, quoted for URLs."""
    return quote(root_path(request.scope))


Root = Annotated[str, Depends(get_root)]


def forecast_link(root: str, forecast_id: str) -> str:
    """Return the path of a forecast under the prefix `root`."""
    return f"{root}{FORECASTS}/{forecast_id}"
