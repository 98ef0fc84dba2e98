"""Routes for viewers: the whole forecast as one binary view, and single samples."""

import gzip
import hashlib
from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter

from lesioncast.forecasting.disclaimers import bundle_warnings
from serve.api.dependencies import Context, OwnedJob, ServiceContext
from serve.api.problems import ApiProblemError, problem_responses
from serve.api.routes.results import missing_files_as_410
from serve.db.models import UNFINISHED, ForecastJob
from serve.patients import store_for_patient
from serve.view.build import (
    ViewSource,
    build_finished_view,
    build_partial_view,
    finished_samples,
    masks_by_arm,
)
from serve.view.kept_samples import MAX_KEPT_SAMPLES
from serve.view.volumes import ViewGrid, encode_mask
from serve.worker.loaded_model import patient_for_job

VIEW_MEDIA_TYPE = "application/vnd.lesioncast.view"

router = APIRouter(prefix="/v1/forecasts/{forecast_id}", tags=["view"])


class ViewResponse(Response):
    """A view: a JSON header and its layers."""

    media_type = VIEW_MEDIA_TYPE


class BitsResponse(Response):
    """A mask, eight voxels a byte."""

    media_type = "application/octet-stream"


@router.get(
    "/view",
    response_class=ViewResponse,
    responses={
        200: {"description": "Header (`ViewHeader`) and layers; see serve/API.md."},
        304: {"description": "The view is that of the header If-None-Match."},
        **problem_responses(404, 409, 410),
    },
)
def get_view(job: OwnedJob, context: Context, request: Request) -> Response:
    """Return images, lesions, probabilities and numbers of a forecast in one message.

    While the forecast runs, the probabilities are the shares of the samples drawn so far.
    """
    content = _build(context, job)
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        content = gzip.compress(content, compresslevel=1, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return ViewResponse(content, headers=headers)


@router.get(
    "/arms/{arm}/samples/{index}",
    response_class=BitsResponse,
    responses={
        200: {"description": "Bits of the mask, on the grid of the view."},
        **problem_responses(404, 409, 410),
    },
)
def get_sample(
    job: OwnedJob,
    context: Context,
    arm: Annotated[str, PathParameter(description="One of the forecast's arms.")],
    index: Annotated[
        int, PathParameter(ge=0, lt=MAX_KEPT_SAMPLES, description="Number of the sample, from 0.")
    ],
) -> BitsResponse:
    """Return the mask of one sample under one arm.

    Samples of the same number share their seed, so that arms can be compared sample by sample.
    """
    if arm not in job.request.arms:
        detail = f"arm: expected one of {', '.join(job.request.arms)}, got another arm."
        raise ApiProblemError(404, detail, field="arm")
    source = _source(context, job)
    if job.state in UNFINISHED:
        masks = masks_by_arm(context.jobs.load_blocks(job.id, context.model.digest))
    else:
        masks = dict(finished_samples(source).masks)
    if index >= len(masks.get(arm, ())):
        detail = f"index: expected a sample that is kept, got {index}; {arm} has "
        raise ApiProblemError(404, f"{detail}{len(masks.get(arm, ()))}.", field="index")
    grid = ViewGrid(source.case.grid)
    return BitsResponse(encode_mask(grid.from_slab(masks[arm][index], order=0)))


def _build(context: ServiceContext, job: ForecastJob) -> bytes:
    source = _source(context, job)
    if job.state in UNFINISHED:
        return build_partial_view(source, context.jobs.load_blocks(job.id, context.model.digest))
    with missing_files_as_410():
        return build_finished_view(source)


def _source(context: ServiceContext, job: ForecastJob) -> ViewSource:
    """Return what the view of a job is built from. Raises ApiProblemError if it has none."""
    if job.state not in (*UNFINISHED, "succeeded"):
        raise ApiProblemError(409, f"The forecast is {job.state}: it has no view.")
    settings = context.settings
    patient = patient_for_job(job)
    with missing_files_as_410():
        store = store_for_patient(patient, context.store, settings.artifacts)
        case = store.case(patient.subject)
    return ViewSource(
        job=job,
        case=case,
        store=store,
        artifacts=settings.artifacts,
        bundle=context.model.digest,
        visits=context.model.visits,
        truth=settings.truth if settings.demo else None,
        opening=settings.apply_opening,
        warnings=bundle_warnings(settings.bundle, context.model.digest),
    )
