"""Forms as they come in: a few at a time, each within a bounded time, and text as UTF-8 alone."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers

from serve.api.problems import ApiProblemError

MAX_CONCURRENT_FORMS = 8  # each may lie in the temporary folder with `max_upload` bytes
FORM_TIMEOUT_S = 600.0  # for one to come in: a client that fell silent must not keep its place


class FormReceiver:
    """Receives forms, at most `TOGETHER` at a time; `wait` are the headers that say when to ask
    again."""

    def __init__(self, wait: Mapping[str, str]) -> None:
        self._wait, self._open = wait, 0

    @asynccontextmanager
    async def receive(self, request: Request, **limits: int) -> AsyncIterator[FormData]:
        """The form that comes with a request, whose files are gone afterwards; `limits` are those
        of Starlette. Raises RequestError where there is no room, and for one that cannot be read.
        """
        _require_utf8(request.headers)
        if self._open >= MAX_CONCURRENT_FORMS:
            detail = f"{MAX_CONCURRENT_FORMS} forms are being received; try again later."
            raise ApiProblemError(429, detail, headers=self._wait)
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
    """Others would give names that no answer can hold, or are no encodings of text at all."""
    _, parameters = parse_options_header(headers.get("content-type"))
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in ("utf-8", "utf8"):
        detail = f"Content-Type: expected the charset utf-8, got {charset[:80]}."
        raise ApiProblemError(415, detail, field="Content-Type")
