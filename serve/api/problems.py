"""Errors as problem documents (RFC 9457) that name the field."""

import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.worker.retry import failure_of

MEDIA_TYPE = "application/problem+json"


EXAMPLES: Mapping[int, tuple[str, str | None]] = {
    400: ("There was an error parsing the body.", None),
    401: (
        "Expected a known API key, of today, in the header Authorization: Bearer KEY.",
        "Authorization",
    ),
    403: ("Expected a key that may forecast, got 1a2b3c4d, which may not.", "Authorization"),
    404: ("No forecast has this id.", "id"),
    408: ("Expected the whole form within 600 s.", None),
    409: ("The forecast is running: it has no result.", None),
    410: ("The files of the forecast are no longer there.", None),
    413: ("Expected a body of at most 65536 bytes, got 70000.", None),
    415: ("Content-Type: expected application/json, got text/plain.", "Content-Type"),
    422: ("samples: expected at most 256, got 1000.", "samples"),
    429: ("64 forecasts are unfinished; try again later.", None),
    500: ("The service failed at this request; its log says why.", None),
    501: ("This service was installed without the extra dicom.", None),
    503: ("Expected an answer within the service, but the database is away; try again.", None),
}
"""Detail and field of a problem of each status, as examples in OpenAPI."""
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which to ask again.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_CHALLENGE = {
    "WWW-Authenticate": {"description": "Always Bearer.", "schema": {"type": "string"}},
}
HEADERS: Mapping[int, Mapping[str, Any]] = {
    401: _CHALLENGE,
    409: _RETRY_AFTER,
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}
"""Headers of a problem by status, as OpenAPI describes them."""


class FieldProblem(BaseModel):
    """A field of the request and what is wrong with it."""

    field: str = Field(description="Path of the field, such as `arms.1` or `Authorization`.")
    detail: str


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: Literal["about:blank"]
    title: str = Field(description="Phrase of the HTTP status.")
    status: int
    detail: str = Field(description="A sentence that says what is wrong and what to do.")
    errors: list[FieldProblem] = Field(
        default_factory=list, description="Fields at fault; absent if none is."
    )


class ApiProblemError(Exception):
    """An error with its HTTP status, a sentence, and the field at fault, if there is one."""

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
        """Return the error as an HTTP response."""
        fields = [] if self.field is None else [FieldProblem(field=self.field, detail=self.detail)]
        return problem_response(self.status, self.detail, fields=fields, headers=self.headers)


def problem_response(
    status: int,
    detail: str,
    *,
    fields: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return a problem document as an HTTP response."""
    problem = Problem(
        type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail
    )
    if fields:
        problem.errors = list(fields)
    return JSONResponse(
        problem.model_dump(exclude_unset=True),
        status_code=status,
        headers=dict(headers) if headers else None,
        media_type=MEDIA_TYPE,
    )


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that answers with problems of these statuses.

    `serve.api.openapi` adds the schema that they refer to. FastAPI's own `model` key would declare
    the media type application/json.
    """
    return {status: _describe(status) for status in statuses}


def _describe(status: int) -> dict[str, Any]:
    detail, field = EXAMPLES[status]
    content = {
        "schema": {"$ref": "#/components/schemas/Problem"},
        "example": json.loads(bytes(ApiProblemError(status, detail, field=field).response().body)),
    }
    described: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: content},
    }
    return described | ({"headers": HEADERS[status]} if status in HEADERS else {})


class ProblemCounterMiddleware:
    """ASGI middleware that calls `count` with the status of each problem, also of a crash."""

    def __init__(self, app: ASGIApp, count: Callable[[int], None]) -> None:
        self._app, self._count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and look at the headers of its response."""

        async def count_and_send(message: Message) -> None:
            if (b"content-type", MEDIA_TYPE.encode()) in message.get("headers", ()):
                self._count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, count_and_send)
        except Exception as error:
            # Starlette answers an unhandled error outside of this middleware.
            self._count(503 if failure_of(error).transient else 500)
            raise


def install_problem_handlers(app: FastAPI, *, retry_headers: Mapping[str, str]) -> None:
    """Answer every error of `app` with a problem document.

    `retry_headers` are the headers of a 503, which say when to try again.
    """

    @app.exception_handler(ApiProblemError)
    async def answer_api_problem(_: Request, error: ApiProblemError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def answer_validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        # The first part of `loc` is where the field is: body, query or header.
        fields = [
            FieldProblem(field=".".join(map(str, each["loc"][1:])) or "body", detail=each["msg"])
            for each in error.errors()
        ]
        detail = "; ".join(f"{each.field}: {each.detail}" for each in fields)
        return problem_response(422, detail, fields=fields)

    @app.exception_handler(HTTPException)
    async def answer_http_exception(_: Request, error: HTTPException) -> JSONResponse:
        return problem_response(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    async def answer_unexpected_error(_: Request, error: Exception) -> JSONResponse:
        # Starlette raises the error again afterwards, so that the server logs the traceback.
        failure = failure_of(error)
        if failure.transient:
            detail = f"Expected an answer within the service, but {failure.reason}; try again."
            return problem_response(503, detail, headers=retry_headers)
        return problem_response(500, "The service failed at this request; its log says why.")
