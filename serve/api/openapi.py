"""What /openapi.json says beside what FastAPI reads from the routes.

The problems that each may answer with, what it gives where that is not JSON, the key that it wants.
"""

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from serve.api.middleware import HEALTH
from serve.api.problems import MEDIA_TYPE, SCHEMA

Document = dict[str, Any]

_JOB = "/v1/forecasts/{job}"
_FORM = (400, 408, 415, 422, 429)
_REFUSED: Mapping[str, tuple[int, ...]] = {
    "post /v1/forecasts": _FORM,
    f"get {_JOB}": (404,),
    f"delete {_JOB}": (404,),
    f"get {_JOB}/events": (404,),
    f"get {_JOB}/result": (404, 409, 410),
    f"get {_JOB}/arms/{{arm}}": (404, 409, 410),
    f"get {_JOB}/derivative": (404, 409, 410),
    f"post {_JOB}/segmentation": (404, 409, 410, *_FORM, 501),
    "get /v2": (),
    "get /v2/models/{name}": (404,),
    "get /v2/models/{name}/ready": (404,),
    f"get {HEALTH}live": (),
    f"get {HEALTH}ready": (),
}
_GIVEN = {
    f"get {_JOB}/events": "text/event-stream",
    f"get {_JOB}/arms/{{arm}}": "application/gzip",
    f"get {_JOB}/derivative": "application/zip",
    f"post {_JOB}/segmentation": "application/dicom",
}
_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key of python -m serve.api.middleware",
}


def describe(api: FastAPI, *, keys: bool) -> None:
    """Let `api` say it, when all its routes are there; `keys` says whether it wants one."""
    document = api.openapi()
    document["components"] = {"schemas": {"Problem": SCHEMA}}
    if keys:
        document["components"]["securitySchemes"] = {"bearer": _BEARER}
    for name, operation in _operations(document):
        inside = not name.partition(" ")[2].startswith(HEALTH)
        if keys and inside:
            operation["security"] = [{"bearer": []}]
        responses = operation["responses"]
        responses.pop("422", None)  # FastAPI's own, in another form
        if name in _GIVEN:
            responses["200"]["content"] = {_GIVEN[name]: {}}
        if name.endswith("/ready"):
            content = responses["200"]["content"]
            responses["503"] = {"description": "It cannot draw now", "content": content}
        everywhere = ((401,) if keys else ()) + (403, 413) if inside else ()
        for status in (*everywhere, *_REFUSED[name], 500):
            responses[str(status)] = _problem(status)


def _operations(document: Document) -> Iterator[tuple[str, Document]]:
    """Each with its name, such as `get /v2`."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def _problem(status: int) -> Document:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
