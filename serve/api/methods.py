"""HTTP methods beside those of the routes: HEAD, OPTIONS, and the header Allow of a 405."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.paths import route_path
from serve.api.problems import problem_response


class HeadMiddleware:
    """ASGI middleware that answers HEAD as GET, without the body.

    The routes see a GET. `is_head` tells them of it, where a body would have no end.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on as GET, and drop the content of its answer."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        # A copy: the server looks at its own scope to see that no body follows.
        state = scope.get("state", {}) | {"head": True}
        await self._app({**scope, "method": "GET", "state": state}, receive, send_without_body)


def is_head(request: Request) -> bool:
    """Return whether a request is a HEAD that `HeadMiddleware` passed on as GET."""
    return bool(getattr(request.state, "head", False))


def install_method_handler(app: FastAPI) -> None:
    """Answer OPTIONS with 204 and a method that a path lacks with 405, both with Allow."""

    @app.exception_handler(405)
    async def answer_other_method(request: Request, error: HTTPException) -> Response:
        # The router names the methods of one route only, where several share a path.
        named = (error.headers or {}).get("Allow", "").split(",")
        methods = {name.strip() for name in named} - {""}
        methods |= set(_documented_methods(app.openapi()["paths"], route_path(request.scope)))
        if "GET" in methods:
            methods.add("HEAD")
        headers = {"Allow": ", ".join(sorted(methods | {"OPTIONS"}))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        return problem_response(405, f"Expected one of {headers['Allow']}.", headers=headers)


def _documented_methods(paths: dict[str, dict[str, Any]], path: str) -> Iterable[str]:
    for template, operations in paths.items():
        if compile_path(template)[0].match(path):
            yield from (method.upper() for method in operations)
