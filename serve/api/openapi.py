"""The OpenAPI document, completed with what FastAPI cannot read from the routes.

That is the request bodies that are read by hand, the schema of problems, the problems that every
route may answer with, and authentication.
"""

from collections.abc import Iterator
from typing import Any, get_args

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from lesioncast.forecasting.view.schemas import ViewHeader
from serve.api.middleware import MULTIPART_FORM
from serve.api.paths import HEALTH_PREFIX
from serve.api.problems import Problem, problem_responses
from serve.api.requests import REQUEST_FIELD
from serve.api.routes.segmentation import DICOM, MAX_FILES, SERIES_FIELD
from serve.api.schemas import (
    ForecastRequest,
    ForecastState,
    ForecastStatus,
    UploadForecastRequest,
)
from serve.db.models import UNFINISHED
from serve.keys import CREATE_COMMAND
from serve.uploads import REQUIRED_UPLOAD_FIELDS, UPLOAD_FIELDS

Document = dict[str, Any]

JSON = "application/json"
_REFERENCE = "#/components/schemas/{model}"
_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": f"An API key, made with {CREATE_COMMAND}",
}


def customize_openapi(app: FastAPI, *, keys: bool) -> None:
    """Complete the document of `app`, after all routes are added.

    `keys` says whether requests need an API key.
    """
    document = app.openapi()  # FastAPI keeps this object and serves it
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # every 422 is a problem document
        schemas.pop(name, None)
    models = (Problem, ForecastRequest, UploadForecastRequest, ViewHeader)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REFERENCE
    )
    for name, schema in definitions["$defs"].items():
        schemas.setdefault(name, schema)
    if keys:
        components["securitySchemes"] = {"bearer": _BEARER}
    for path, operation in _operations(document):
        _describe_common_answers(path, operation, keys=keys)
    forecasts = document["paths"]["/v1/forecasts"]["post"]
    forecasts["requestBody"] = _forecast_body()
    events = document["paths"]["/v1/forecasts/{forecast_id}/events"]["get"]["responses"]["200"]
    events["content"]["text/event-stream"]["schema"] = _event()
    segmentation = document["paths"]["/v1/forecasts/{forecast_id}/segmentation"]["post"]
    segmentation["requestBody"] = _series_body()


def _operations(document: Document) -> Iterator[tuple[str, Document]]:
    """Yield every operation with its path."""
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def _describe_common_answers(path: str, operation: Document, *, keys: bool) -> None:
    """Add the problems that middleware answers with, and remove FastAPI's own form of a 422."""
    responses = operation["responses"]
    if JSON in responses.get("422", {}).get("content", {}):
        del responses["422"]
    common = [500, 503]
    if not path.startswith(HEALTH_PREFIX):
        common += [403, 413]
        if keys:
            common.append(401)
            operation["security"] = [{"bearer": []}]
    for status, response in problem_responses(*common).items():
        # Probes answer 503 in a form of their own too.
        described = responses.setdefault(str(status), response)
        described["content"] = described["content"] | response["content"]


def _forecast_body() -> Document:
    file = {
        "type": "string",
        "contentMediaType": "application/octet-stream",
        "format": "binary",
        "description": "NIfTI, .nii or .nii.gz",
    }
    request = {
        "type": "string",
        "contentMediaType": JSON,
        "contentSchema": _reference(UploadForecastRequest),
    }
    schema = {
        "type": "object",
        "properties": {REQUEST_FIELD: request, **dict.fromkeys(UPLOAD_FIELDS, file)},
        "required": list(REQUIRED_UPLOAD_FIELDS),
        "additionalProperties": False,
    }
    content = {JSON: {"schema": _reference(ForecastRequest)}, MULTIPART_FORM: {"schema": schema}}
    return {"required": True, "content": content}


def _event() -> Document:
    """Describe one server-sent event: before OpenAPI 3.2, a schema is that of an event."""
    data = {
        "type": "string",
        "contentMediaType": JSON,
        "contentSchema": _reference(ForecastStatus),
    }
    states = get_args(ForecastState)
    name = {"enum": ["progress", *(state for state in states if state not in UNFINISHED)]}
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "event": name,
            "data": data,
            "retry": {"type": "integer"},
        },
        "required": ["id", "event", "data"],
    }


def _series_body() -> Document:
    file = {"type": "string", "contentMediaType": DICOM, "format": "binary"}
    series = {
        "type": "array",
        "description": "DICOM, one image a file; pixels may be left out",
        "items": file,
        "minItems": 1,
        "maxItems": MAX_FILES,
    }
    schema = {
        "type": "object",
        "properties": {SERIES_FIELD: series},
        "required": [SERIES_FIELD],
        "additionalProperties": False,
    }
    return {"required": True, "content": {MULTIPART_FORM: {"schema": schema}}}


def _reference(model: type) -> Document:
    return {"$ref": _REFERENCE.format(model=model.__name__)}
