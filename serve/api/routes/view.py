"""Routes for viewers: the whole forecast as one binary view, and single samples."""

import gzip
import hashlib
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse

from lesioncast.forecasting.view.kept_samples import MAX_KEPT_SAMPLES
from lesioncast.forecasting.view.saved_page import saved_page
from lesioncast.forecasting.view.volumes import ViewGrid, encode_mask
from serve.api.dependencies import Context, OwnedJob, ServiceContext, SucceededJob
from serve.api.problems import ApiProblemError, problem_responses
from serve.api.routes.results import attachment_headers, check_arm, missing_files_as_410
from serve.db.models import UNFINISHED, ForecastJob
from serve.forecast_view import JobView

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
    with missing_files_as_410():
        content = _job_view(context, job).build()
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
    view = _job_view(context, job)  # first: the request of a deleted forecast is erased
    check_arm(job, arm)
    with missing_files_as_410():
        masks, patient = view.samples().get(arm, ()), view.patient()
    if index >= len(masks):
        detail = f"index: expected a sample that is kept, got {index}; {arm} has {len(masks)}."
        raise ApiProblemError(404, detail, field="index")
    grid = ViewGrid(patient.case.grid)
    return BitsResponse(encode_mask(grid.from_slab(masks[index], order=0)))


@router.get(
    "/html",
    response_class=HTMLResponse,
    responses={
        200: {"description": "One HTML file that needs no service and no network."},
        **problem_responses(404, 409, 410),
    },
)
def get_saved_page(
    job: SucceededJob,
    context: Context,
    state: Annotated[
        str,
        Query(
            max_length=500,
            pattern=r"^(#[A-Za-z0-9=&._,%+-]*)?$",
            description="What is shown at first: the hash of an address of the page.",
        ),
    ] = "",
) -> HTMLResponse:
    """Return the page with the forecast inside, to keep or to send."""
    with missing_files_as_410():
        view = _job_view(context, job).build()
    name = f"{job.request.subject}_forecast.html"
    return HTMLResponse(saved_page(view, state=state), headers=attachment_headers(name))


def _job_view(context: ServiceContext, job: ForecastJob) -> JobView:
    """Return the view of a job. Raises ApiProblemError if it can have none."""
    if job.state not in (*UNFINISHED, "succeeded"):
        raise ApiProblemError(409, f"The forecast is {job.state}: it has no view.")
    return JobView(context, job)
