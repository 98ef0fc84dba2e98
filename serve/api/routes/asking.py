"""POST /v1/forecasts: an order as JSON, or as one field of a form whose others are images."""

import asyncio
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from serve.api.dependencies import ServiceContext, job_status, notify_worker
from serve.api.middleware import MULTIPART_FORM, media_type
from serve.api.problems import ApiProblemError
from serve.api.schemas import (
    ForecastParameters,
    ForecastRequest,
    UploadForecastRequest,
    check_subject,
    resolve_request,
)
from serve.artifacts import remove_upload, upload_dir
from serve.db.models import ForecastJob
from serve.db.repository import IdempotencyConflictError, QueueFullError
from serve.log import logger
from serve.uploads import UPLOAD_FIELDS, image_schema, prepare_upload, validate_covariates

JSON = "application/json"
MAX_CONCURRENT_PREPARATIONS = 2  # each holds the voxels of one image in memory

ResolvedRequest = dict[str, Any]
RequestT = TypeVar("RequestT", bound=ForecastParameters)


def add_asking(api: FastAPI, desk: ServiceContext) -> None:
    """The route by which forecasts are asked for."""
    preparing = asyncio.Semaphore(MAX_CONCURRENT_PREPARATIONS)

    @api.post(
        "/v1/forecasts", status_code=202, openapi_extra={"requestBody": _request_body_schema(desk)}
    )
    async def post(
        request: Request,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> JSONResponse:
        name, accepted = uuid.uuid4().hex, None
        try:
            kind = media_type(request.headers)
            if kind == MULTIPART_FORM and desk.upload is not None:
                settled = await _parse_upload_request(
                    desk, request, name, preparing, key=idempotency_key
                )
            elif kind == JSON:
                settled = _parse_stored_request(desk, await request.body())
            else:
                raise _unsupported_media_type(desk, kind)
            accepted = await _enqueue(desk, request, name, settled, key=idempotency_key)
        except Exception:  # not where the request is cancelled: it may be accepted all the same
            remove_upload(desk.settings.artifacts, name)
            raise
        if accepted.id != name:
            remove_upload(desk.settings.artifacts, name)
        logger.info("accepted", extra={"forecast": accepted.id})
        await notify_worker(desk)
        found = await run_in_threadpool(job_status, desk, accepted)
        headers = {"Location": f"/v1/forecasts/{accepted.id}", **desk.retry_after_headers}
        return JSONResponse(found, status_code=202, headers=headers)


def _request_body_schema(desk: ServiceContext) -> dict[str, Any]:
    """The request body for OpenAPI."""
    content: dict[str, Any] = {JSON: {"schema": ForecastRequest.model_json_schema()}}
    if desk.upload is not None:
        order = {
            "type": "string",
            "contentMediaType": JSON,
            "contentSchema": UploadForecastRequest.model_json_schema(),
        }
        schema = {
            "type": "object",
            "properties": {"order": order, **image_schema()},
            "required": ["w000/flair", "w048/flair"],
            "additionalProperties": False,
        }
        content[MULTIPART_FORM] = {"schema": schema}
    return {"required": True, "content": content}


def _unsupported_media_type(desk: ServiceContext, kind: str) -> ApiProblemError:
    takes = JSON if desk.upload is None else f"{JSON} or {MULTIPART_FORM}"
    detail = f"Content-Type: expected {takes}, got {kind[:80] or 'none'}."
    return ApiProblemError(415, detail, field="Content-Type")


def _parse_stored_request(desk: ServiceContext, body: bytes) -> ResolvedRequest:
    """An order of a subject of the mounted store."""
    order = _validate_json(ForecastRequest, body)
    check_subject(order, desk.subjects)
    return _resolve(desk, order)


def _validate_json(kind: type[RequestT], body: str | bytes) -> RequestT:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        wrong = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(wrong) from error


def _resolve(desk: ServiceContext, order: ForecastParameters) -> ResolvedRequest:
    return resolve_request(order, model=desk.model, settings=desk.settings)


async def _parse_upload_request(
    desk: ServiceContext,
    request: Request,
    name: str,
    preparing: asyncio.Semaphore,
    *,
    key: str | None,
) -> ResolvedRequest:
    """An order of a patient whose images came with it, which are prepared by then."""
    assert desk.upload is not None
    settings = desk.settings
    owner = request.state.owner
    if await run_in_threadpool(
        desk.records.is_full, settings.max_unfinished_forecasts, owner=owner, key=key
    ):
        raise _queue_full_error(desk)  # before anything is received
    limits = {"max_files": len(UPLOAD_FIELDS), "max_fields": 1, "max_part_size": settings.max_body}
    async with desk.forms.receive(request, **limits) as form:
        order, images = _split_form(form, max_file=settings.max_file)
        validate_covariates(order.covariates, desk.model.covariates)
        settled = _resolve(desk, order)
        async with preparing:
            digest = await run_in_threadpool(
                prepare_upload,
                upload_dir(settings.artifacts, name),
                {name: image.file for name, image in images.items()},
                order,
                made=desk.upload,
                arms=desk.model.arms,
                max_voxels=settings.max_voxels,
            )
    return settled | {"upload": digest}


def _split_form(
    form: FormData, *, max_file: int
) -> tuple[UploadForecastRequest, Mapping[str, UploadFile]]:
    """The order, and the images by name. Raises RequestError, naming the field."""
    text, images = "{}", {}
    for name, value in form.multi_items():
        if name in images or name not in ("order", *UPLOAD_FIELDS):
            detail = f"{name[:80]}: expected each once of order, {', '.join(UPLOAD_FIELDS)}."
            raise ApiProblemError(422, detail, field=name[:80])
        if isinstance(value, UploadFile) != (name in UPLOAD_FIELDS):
            wanted = "a file" if name in UPLOAD_FIELDS else "JSON as text, not as a file"
            raise ApiProblemError(422, f"{name}: expected {wanted}.", field=name)
        if isinstance(value, str):
            text = value
        elif value.size is not None and value.size > max_file:
            detail = f"{name}: expected at most {max_file} bytes, got {value.size}."
            raise ApiProblemError(413, detail, field=name)
        else:
            images[name] = value
    return _validate_json(UploadForecastRequest, text), images


async def _enqueue(
    desk: ServiceContext, request: Request, name: str, settled: ResolvedRequest, *, key: str | None
) -> ForecastJob:
    try:
        return await run_in_threadpool(
            desk.records.enqueue,
            name,
            request.state.owner,
            settled,
            total=len(settled["arms"]) * settled["samples"],
            block=desk.settings.seeds_per_block,
            key=key,
            limit=desk.settings.max_unfinished_forecasts,
            by=request.state.key,
        )
    except QueueFullError:
        raise _queue_full_error(desk) from None
    except IdempotencyConflictError:
        detail = "Idempotency-Key: expected the order it came with before; use another key."
        raise ApiProblemError(422, detail, field="Idempotency-Key") from None


def _queue_full_error(desk: ServiceContext) -> ApiProblemError:
    detail = f"{desk.settings.max_unfinished_forecasts} forecasts are unfinished; try again later."
    return ApiProblemError(429, detail, headers=desk.retry_after_headers)
