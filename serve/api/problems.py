"""What is wrong with a request, as RFC 9457 problem JSON that names the field."""

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEDIA_TYPE = "application/problem+json"
_TEXT = {"type": "string"}
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"const": "about:blank"},
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": _TEXT, "detail": _TEXT},
                "required": ["field", "detail"],
            },
        },
    },
    "required": ["type", "title", "status", "detail"],
}


class ApiProblemError(Exception):
    """A refusal with its HTTP status, a sentence, and the field that is at fault, if one is."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.field, self.headers = status, detail, field, headers

    def response(self) -> JSONResponse:
        """As HTTP."""
        fields = [] if self.field is None else [(self.field, self.detail)]
        return problem_response(self.status, self.detail, fields=fields, headers=self.headers)


def problem_response(
    status: int,
    detail: str,
    *,
    fields: Sequence[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem document; `fields` are pairs of a field's path and what is wrong with it."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if fields:
        content["errors"] = [{"field": field, "detail": wrong} for field, wrong in fields]
    sent = dict(headers) if headers else None
    return JSONResponse(content, status_code=status, headers=sent, media_type=MEDIA_TYPE)


class ProblemCounterMiddleware:
    """ASGI middleware: `told` gets the status of every problem, and of what is answered 500."""

    def __init__(self, app: ASGIApp, told: Callable[[int], None]) -> None:
        self._app, self._told = app, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on."""

        async def sending(message: Message) -> None:
            if (b"content-type", MEDIA_TYPE.encode()) in message.get("headers", ()):
                self._told(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            self._told(500)
            raise


def install_problem_handlers(api: FastAPI) -> None:
    """Every error of `api` leaves as a problem."""

    @api.exception_handler(ApiProblemError)
    async def refused(_: Request, error: ApiProblemError) -> JSONResponse:
        return error.response()

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        fields = [
            (".".join(map(str, each["loc"][1:])) or "body", each["msg"]) for each in error.errors()
        ]
        detail = "; ".join(f"{field}: {wrong}" for field, wrong in fields)
        return problem_response(422, detail, fields=fields)

    @api.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return problem_response(error.status_code, str(error.detail), headers=error.headers)

    @api.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> JSONResponse:
        """Starlette raises it again afterwards, so that the server logs the traceback."""
        return problem_response(500, "The service failed at this request; its log says why.")
