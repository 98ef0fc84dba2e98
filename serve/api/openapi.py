"""What /openapi.json says beside what FastAPI reads from the routes.

The problems that each may answer with, what it gives where that is not JSON, the key that it wants.
"""

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from serve.api.middleware import HEALTH_PREFIX
from serve.api.problems import MEDIA_TYPE, SCHEMA

Document = dict[str, Any]

_FORECAST_PATH = "/v1/forecasts/{job}"
_FORM_STATUSES = (400, 408, 415, 422, 429)
_PROBLEM_STATUSES: Mapping[str, tuple[int, ...]] = {
    "post /v1/forecasts": _FORM_STATUSES,
    f"get {_FORECAST_PATH}": (404,),
    f"delete {_FORECAST_PATH}": (404,),
    f"get {_FORECAST_PATH}/events": (404,),
    f"get {_FORECAST_PATH}/result": (404, 409, 410),
    f"get {_FORECAST_PATH}/arms/{{arm}}": (404, 409, 410),
    f"get {_FORECAST_PATH}/derivative": (404, 409, 410),
    f"post {_FORECAST_PATH}/segmentation": (404, 409, 410, *_FORM_STATUSES, 501),
    "get /v2": (),
    "get /v2/models/{name}": (404,),
    "get /v2/models/{name}/ready": (404,),
    f"get {HEALTH_PREFIX}live": (),
    f"get {HEALTH_PREFIX}ready": (),
}
_RESPONSE_MEDIA_TYPES = {
    f"get {_FORECAST_PATH}/events": "text/event-stream",
    f"get {_FORECAST_PATH}/arms/{{arm}}": "application/gzip",
    f"get {_FORECAST_PATH}/derivative": "application/zip",
    f"post {_FORECAST_PATH}/segmentation": "application/dicom",
}
_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key of python -m serve.api.middleware",
}


def customize_openapi(api: FastAPI, *, keys: bool) -> None:
    """Let `api` say it, when all its routes are there; `keys` says whether it wants one."""
    document = api.openapi()
    document["components"] = {"schemas": {"Problem": SCHEMA}}
    if keys:
        document["components"]["securitySchemes"] = {"bearer": _BEARER}
    for name, operation in _operations(document):
        inside = not name.partition(" ")[2].startswith(HEALTH_PREFIX)
        if keys and inside:
            operation["security"] = [{"bearer": []}]
        responses = operation["responses"]
        responses.pop("422", None)  # FastAPI's own, in another form
        if name in _RESPONSE_MEDIA_TYPES:
            responses["200"]["content"] = {_RESPONSE_MEDIA_TYPES[name]: {}}
        if name.endswith("/ready"):
            content = responses["200"]["content"]
            responses["503"] = {"description": "It cannot draw now", "content": content}
        everywhere = ((401,) if keys else ()) + (403, 413) if inside else ()
        for status in (*everywhere, *_PROBLEM_STATUSES[name], 500):
            responses[str(status)] = _problem(status)


def _operations(document: Document) -> Iterator[tuple[str, Document]]:
    """Each with its name, such as `get /v2`."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def _problem(status: int) -> Document:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
