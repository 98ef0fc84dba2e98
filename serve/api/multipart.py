"""Multipart forms: a few at a time, each within a bounded time, and text in UTF-8 only."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers

from serve.api.problems import ApiProblemError

MAX_CONCURRENT_FORMS = 8  # each may take up to `max_upload` bytes of the temporary folder
FORM_TIMEOUT_S = 600.0  # a client that stalls must not keep its place forever


class FormReceiver:
    """Receive at most `MAX_CONCURRENT_FORMS` forms at a time.

    `retry_headers` are the headers of a 429, which say when to try again.
    """

    def __init__(self, retry_headers: Mapping[str, str]) -> None:
        self._retry_headers, self._open = retry_headers, 0

    @asynccontextmanager
    async def receive(self, request: Request, **limits: int) -> AsyncIterator[FormData]:
        """Receive the form of a request, and delete its temporary files afterwards.

        `limits` are arguments of Starlette's `Request.form`. Raises ApiProblemError if too many
        forms are open, and for a form that is too slow or not in UTF-8.
        """
        _require_utf8(request.headers)
        if self._open >= MAX_CONCURRENT_FORMS:
            detail = f"{MAX_CONCURRENT_FORMS} forms are being received; try again later."
            raise ApiProblemError(429, detail, headers=self._retry_headers)
        self._open += 1
        try:
            form = await _read_form(request, limits)
            try:
                yield form
            finally:
                await form.close()
        finally:
            self._open -= 1


async def _read_form(request: Request, limits: Mapping[str, int]) -> FormData:
    try:
        async with asyncio.timeout(FORM_TIMEOUT_S):
            return await request.form(**limits)
    except TimeoutError:
        raise ApiProblemError(
            408, f"Expected the whole form within {FORM_TIMEOUT_S:g} s."
        ) from None


def _require_utf8(headers: Headers) -> None:
    """Reject other charsets.

    They can produce field names that JSON cannot represent, or are not text encodings.
    """
    _, parameters = parse_options_header(headers.get("content-type"))
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in ("utf-8", "utf8"):
        detail = f"Content-Type: expected the charset utf-8, got {charset[:80]}."
        raise ApiProblemError(415, detail, field="Content-Type")
