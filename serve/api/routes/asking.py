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

from serve.api.dependencies import Desk, status_of, wake_forecaster
from serve.api.middleware import FORM, media_type
from serve.api.problems import RequestError
from serve.api.schemas import Order, UploadOrder, Wishes, require_subject, settle
from serve.artifacts import remove_upload, upload_folder
from serve.db.models import Job
from serve.db.repository import KeyReusedError, QueueFullError
from serve.log import logger
from serve.uploads import IMAGES, image_schema, prepare_upload, require_known

JSON = "application/json"
PREPARED_TOGETHER = 2  # each holds the voxels of one image in memory

Settled = dict[str, Any]
Wished = TypeVar("Wished", bound=Wishes)


def add_asking(api: FastAPI, desk: Desk) -> None:
    """The route by which forecasts are asked for."""
    preparing = asyncio.Semaphore(PREPARED_TOGETHER)

    @api.post("/v1/forecasts", status_code=202, openapi_extra={"requestBody": _body(desk)})
    async def post(
        request: Request,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> JSONResponse:
        name, accepted = uuid.uuid4().hex, None
        try:
            kind = media_type(request.headers)
            if kind == FORM and desk.upload is not None:
                settled = await _uploaded(desk, request, name, preparing, key=idempotency_key)
            elif kind == JSON:
                settled = _stored(desk, await request.body())
            else:
                raise _unknown_media(desk, kind)
            accepted = await _accept(desk, request, name, settled, key=idempotency_key)
        except Exception:  # not where the request is cancelled: it may be accepted all the same
            remove_upload(desk.settings.artifacts, name)
            raise
        if accepted.id != name:
            remove_upload(desk.settings.artifacts, name)
        logger.info("accepted", extra={"forecast": accepted.id})
        await wake_forecaster(desk)
        found = await run_in_threadpool(status_of, desk, accepted)
        headers = {"Location": f"/v1/forecasts/{accepted.id}", **desk.wait}
        return JSONResponse(found, status_code=202, headers=headers)


def _body(desk: Desk) -> dict[str, Any]:
    """The request body for OpenAPI."""
    content: dict[str, Any] = {JSON: {"schema": Order.model_json_schema()}}
    if desk.upload is not None:
        order = {
            "type": "string",
            "contentMediaType": JSON,
            "contentSchema": UploadOrder.model_json_schema(),
        }
        schema = {
            "type": "object",
            "properties": {"order": order, **image_schema()},
            "required": ["w000/flair", "w048/flair"],
            "additionalProperties": False,
        }
        content[FORM] = {"schema": schema}
    return {"required": True, "content": content}


def _unknown_media(desk: Desk, kind: str) -> RequestError:
    takes = JSON if desk.upload is None else f"{JSON} or {FORM}"
    detail = f"Content-Type: expected {takes}, got {kind[:80] or 'none'}."
    return RequestError(415, detail, field="Content-Type")


def _stored(desk: Desk, body: bytes) -> Settled:
    """An order of a subject of the mounted store."""
    order = _parse(Order, body)
    require_subject(order, desk.subjects)
    return _settle(desk, order)


def _parse(kind: type[Wished], body: str | bytes) -> Wished:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        wrong = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(wrong) from error


def _settle(desk: Desk, order: Wishes) -> Settled:
    return settle(order, model=desk.model, settings=desk.settings)


async def _uploaded(
    desk: Desk, request: Request, name: str, preparing: asyncio.Semaphore, *, key: str | None
) -> Settled:
    """An order of a patient whose images came with it, which are prepared by then."""
    assert desk.upload is not None
    settings = desk.settings
    owner = request.state.owner
    if await run_in_threadpool(desk.records.is_full, settings.unfinished, owner=owner, key=key):
        raise _full(desk)  # before anything is received
    limits = {"max_files": len(IMAGES), "max_fields": 1, "max_part_size": settings.max_body}
    async with desk.forms.received(request, **limits) as form:
        order, images = _fields(form, max_file=settings.max_file)
        require_known(order.covariates, desk.model.covariates)
        settled = _settle(desk, order)
        async with preparing:
            digest = await run_in_threadpool(
                prepare_upload,
                upload_folder(settings.artifacts, name),
                {name: image.file for name, image in images.items()},
                order,
                made=desk.upload,
                arms=desk.model.arms,
                max_voxels=settings.max_voxels,
            )
    return settled | {"upload": digest}


def _fields(form: FormData, *, max_file: int) -> tuple[UploadOrder, Mapping[str, UploadFile]]:
    """The order, and the images by name. Raises RequestError, naming the field."""
    text, images = "{}", {}
    for name, value in form.multi_items():
        if name in images or name not in ("order", *IMAGES):
            detail = f"{name[:80]}: expected each once of order, {', '.join(IMAGES)}."
            raise RequestError(422, detail, field=name[:80])
        if isinstance(value, UploadFile) != (name in IMAGES):
            wanted = "a file" if name in IMAGES else "JSON as text, not as a file"
            raise RequestError(422, f"{name}: expected {wanted}.", field=name)
        if isinstance(value, str):
            text = value
        elif value.size is not None and value.size > max_file:
            detail = f"{name}: expected at most {max_file} bytes, got {value.size}."
            raise RequestError(413, detail, field=name)
        else:
            images[name] = value
    return _parse(UploadOrder, text), images


async def _accept(
    desk: Desk, request: Request, name: str, settled: Settled, *, key: str | None
) -> Job:
    try:
        return await run_in_threadpool(
            desk.records.accept,
            name,
            request.state.owner,
            settled,
            total=len(settled["arms"]) * settled["samples"],
            block=desk.settings.block,
            key=key,
            limit=desk.settings.unfinished,
            by=request.state.key,
        )
    except QueueFullError:
        raise _full(desk) from None
    except KeyReusedError:
        detail = "Idempotency-Key: expected the order it came with before; use another key."
        raise RequestError(422, detail, field="Idempotency-Key") from None


def _full(desk: Desk) -> RequestError:
    detail = f"{desk.settings.unfinished} forecasts are unfinished; try again later."
    return RequestError(429, detail, headers=desk.wait)
