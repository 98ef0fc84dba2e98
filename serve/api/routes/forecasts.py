"""Routes of the resource forecast: request one, follow it, cancel or delete it."""

import uuid
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from serve.api.dependencies import (
    Caller,
    Context,
    CurrentCaller,
    OwnedJob,
    ServiceContext,
    notify_worker,
)
from serve.api.middleware import MULTIPART_FORM, media_type
from serve.api.paths import FORECASTS, Root, forecast_link
from serve.api.problems import ApiProblemError, problem_responses
from serve.api.requests import (
    RENAMED_FIELDS,
    REQUEST_FIELD,
    check_subject,
    parse_request,
    resolve_request,
)
from serve.api.schemas import (
    ForecastRequest,
    ForecastStatus,
    ResolvedRequest,
    UploadForecastRequest,
)
from serve.artifacts import remove_artifacts, remove_upload, upload_dir
from serve.db.models import UNFINISHED, ForecastJob
from serve.db.repository import IdempotencyConflictError, NewJob, QueueFullError
from serve.log import logger
from serve.uploads import UPLOAD_FIELDS, prepare_upload, validate_covariates

JSON = "application/json"

router = APIRouter(prefix=FORECASTS, tags=["forecasts"])
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        description="Requests of a client with the same key create only one forecast.",
    ),
]


# The body is read by hand, since it is JSON or a form; `serve.api.openapi` describes it.
@router.post("", status_code=202, responses=problem_responses(400, 408, 415, 422, 429))
async def create_forecast(
    context: Context,
    caller: CurrentCaller,
    request: Request,
    response: Response,
    root: Root,
    idempotency_key: IdempotencyKey = None,
) -> ForecastStatus:
    """Request a forecast; the header Location of the answer names it."""
    job_id = uuid.uuid4().hex
    try:
        resolved = await _read_request(context, caller, request, job_id, idempotency_key)
    except Exception:
        remove_upload(context.settings.artifacts, job_id)
        raise
    new = NewJob(
        id=job_id,
        owner=caller.owner,
        request=resolved,
        block_size=context.settings.seeds_per_block,
        requested_by=caller.key_id,
        idempotency_key=idempotency_key,
    )
    job = await _enqueue(context, new)
    logger.info("forecast.accepted", extra={"forecast": job.id})
    await notify_worker(context)
    response.headers["Location"] = forecast_link(root, job.id)
    response.headers.update(context.retry_after_headers)
    return await run_in_threadpool(context.statuses.read, job, root)


@router.get("/{forecast_id}", responses=problem_responses(404, 410))
def get_forecast(job: OwnedJob, context: Context, response: Response, root: Root) -> ForecastStatus:
    """Return state, progress and partial results of a forecast."""
    status = context.statuses.read(job, root)
    if status.state in UNFINISHED:
        response.headers.update(context.retry_after_headers)
    return status


@router.delete("/{forecast_id}", status_code=204, responses=problem_responses(404, 410))
async def delete_forecast(job: OwnedJob, context: Context, caller: CurrentCaller) -> None:
    """Cancel an unfinished forecast, or delete a finished one: its files and its request."""
    by = caller.key_id
    cancelled = await run_in_threadpool(context.jobs.finish, job.id, "cancelled", facts={"by": by})
    if cancelled:
        context.observer.count_cancelled()
    else:
        await run_in_threadpool(context.jobs.mark_deleted, job.id, by=by)
    await notify_worker(context)  # the worker stops drawing for a cancelled forecast
    await run_in_threadpool(remove_artifacts, context.settings.artifacts, job.id)
    event = "forecast.cancelled" if cancelled else "forecast.deleted"
    logger.info(event, extra={"forecast": job.id})


async def _read_request(
    context: ServiceContext,
    caller: Caller,
    request: Request,
    job_id: str,
    idempotency_key: str | None,
) -> ResolvedRequest:
    """Read and check the body of a request. Raises ApiProblemError that names the field."""
    content_type = media_type(request.headers)
    if content_type == MULTIPART_FORM:
        # Refuse before receiving the form; `enqueue` decides again when the job is committed.
        if await run_in_threadpool(
            context.jobs.is_full,
            context.settings.max_unfinished_forecasts,
            owner=caller.owner,
            idempotency_key=idempotency_key,
        ):
            raise _queue_full_error(context)
        return await _read_upload_request(context, request, job_id)
    if content_type == JSON:
        return _parse_stored_request(context, await request.body())
    raise _unsupported_media_type(content_type)


def _unsupported_media_type(content_type: str) -> ApiProblemError:
    expected = f"{JSON} or {MULTIPART_FORM}"
    detail = f"Content-Type: expected {expected}, got {content_type[:80] or 'none'}."
    return ApiProblemError(415, detail, field="Content-Type")


def _parse_stored_request(context: ServiceContext, body: bytes) -> ResolvedRequest:
    """Parse a request for a subject of the mounted store."""
    parameters = parse_request(ForecastRequest, body)
    check_subject(parameters.subject, context.subjects)
    return resolve_request(parameters, model=context.model, settings=context.settings)


async def _read_upload_request(
    context: ServiceContext, request: Request, job_id: str
) -> ResolvedRequest:
    """Receive a form with images, and convert the images to a store of one case."""
    settings = context.settings
    limits = {"max_files": len(UPLOAD_FIELDS), "max_fields": 1, "max_part_size": settings.max_body}
    async with context.forms.receive(request, **limits) as form:
        parameters, images = _split_form(form, max_file=settings.max_file)
        validate_covariates(parameters.covariates, context.model.covariates)
        resolved = resolve_request(parameters, model=context.model, settings=settings)
        async with context.preparing:
            digest = await run_in_threadpool(
                prepare_upload,
                upload_dir(settings.artifacts, job_id),
                {name: image.file for name, image in images.items()},
                parameters,
                settings=context.upload,
                arms=context.model.arms,
                max_voxels=settings.max_voxels,
            )
    return resolved.model_copy(update={"upload": digest})


def _split_form(
    form: FormData, *, max_file: int
) -> tuple[UploadForecastRequest, Mapping[str, UploadFile]]:
    """Return the request and the images by field. Raises ApiProblemError that names the field."""
    text, images = "{}", {}
    for name, value in form.multi_items():
        if name in images or name not in (REQUEST_FIELD, *UPLOAD_FIELDS):
            raise _unknown_field(name)
        if isinstance(value, UploadFile) != (name in UPLOAD_FIELDS):
            expected = "a file" if name in UPLOAD_FIELDS else "JSON as text, not as a file"
            raise ApiProblemError(422, f"{name}: expected {expected}.", field=name)
        if isinstance(value, str):
            text = value
        elif value.size is not None and value.size > max_file:
            detail = f"{name}: expected at most {max_file} bytes, got {value.size}."
            raise ApiProblemError(413, detail, field=name)
        else:
            images[name] = value
    return parse_request(UploadForecastRequest, text), images


def _unknown_field(name: str) -> ApiProblemError:
    if RENAMED_FIELDS.get(name) == REQUEST_FIELD:
        detail = f"{name}: this field is now called {REQUEST_FIELD}."
    else:
        fields = ", ".join((REQUEST_FIELD, *UPLOAD_FIELDS))
        detail = f"{name[:80]}: expected each once of {fields}."
    return ApiProblemError(422, detail, field=name[:80])


async def _enqueue(context: ServiceContext, new: NewJob) -> ForecastJob:
    """Commit a job, or return the earlier one of its idempotency key.

    The upload is removed only if the job certainly does not exist. Otherwise, and if the request is
    cancelled, the commit may still succeed. The worker removes uploads that stay without a job.
    """
    artifacts, limit = context.settings.artifacts, context.settings.max_unfinished_forecasts
    try:
        job = await run_in_threadpool(context.jobs.enqueue, new, limit=limit)
    except QueueFullError:
        remove_upload(artifacts, new.id)
        raise _queue_full_error(context) from None
    except IdempotencyConflictError:
        remove_upload(artifacts, new.id)
        detail = "Idempotency-Key: expected the request it came with before; use another key."
        raise ApiProblemError(422, detail, field="Idempotency-Key") from None
    except Exception:
        # The answer to COMMIT may have been lost, so that the database alone knows.
        committed = await run_in_threadpool(context.jobs.get, new.id)
        if committed is None:
            raise
        return committed
    if job.id != new.id:  # the earlier job has its own upload
        remove_upload(artifacts, new.id)
    return job


def _queue_full_error(context: ServiceContext) -> ApiProblemError:
    limit = context.settings.max_unfinished_forecasts
    detail = f"{limit} forecasts are unfinished; try again later."
    return ApiProblemError(429, detail, headers=context.retry_after_headers)
