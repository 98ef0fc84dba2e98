"""Route that returns a forecast as DICOM SEG on the series of the current FLAIR.

The client sends that series. Of each file only the header is kept, until the answer is sent.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from lesioncast.forecasting.output.bids import read_maps
from serve.api.dependencies import Context, CurrentCaller, SucceededJob, get_succeeded_or_409
from serve.api.middleware import MULTIPART_FORM, media_type
from serve.api.problems import ApiProblemError, problem_responses
from serve.api.routes.results import attachment_headers, missing_files_as_410
from serve.artifacts import result_dir

DICOM = "application/dicom"
MAX_FILES = 1000
MAX_HEADER_BYTES = 2**19
SERIES_FIELD = "series"

router = APIRouter(prefix="/v1/forecasts/{forecast_id}", tags=["results"])


class DicomResponse(Response):
    """A DICOM file."""

    media_type = DICOM


# The form is read by hand, to bound its files; `serve.api.openapi` describes it.
@router.post(
    "/segmentation",
    response_class=DicomResponse,
    responses={
        200: {"description": "DICOM SEG with a segment for each arm."},
        **problem_responses(400, 404, 408, 409, 410, 415, 422, 429, 501),
    },
)
async def create_segmentation(
    job: SucceededJob,
    context: Context,
    caller: CurrentCaller,
    request: Request,
    threshold: Annotated[
        float | None,
        Query(
            gt=0,
            le=1,
            allow_inf_nan=False,
            description="Make masks of the voxels at or above it; probabilities by default.",
        ),
    ] = None,
) -> DicomResponse:
    """Convert the probability maps to a DICOM SEG on the series that the client sends."""
    content_type = media_type(request.headers)
    if content_type != MULTIPART_FORM:
        detail = f"Content-Type: expected {MULTIPART_FORM}, got {content_type[:80] or 'none'}."
        raise ApiProblemError(415, detail, field="Content-Type")
    folder, subject = result_dir(context.settings.artifacts, job.id), job.request.subject
    async with (
        context.forms.receive(request, max_files=MAX_FILES, max_fields=1) as form,
        context.segmenting,
    ):
        files = [upload.file for upload in _series_files(form)]
        with missing_files_as_410():
            content = await run_in_threadpool(
                _build_segmentation, folder, subject, files, threshold
            )
    # If the client deleted the forecast meanwhile, maps may be missing from the segmentation.
    await run_in_threadpool(get_succeeded_or_409, job.id, context, caller)
    return DicomResponse(content, headers=attachment_headers(f"{subject}_seg.dcm"))


def _series_files(form: FormData) -> list[UploadFile]:
    """Return the files of the form. Raises ApiProblemError that names any other field."""
    files = []
    for name, value in form.multi_items():
        if name != SERIES_FIELD or not isinstance(value, UploadFile):
            detail = (
                f"{name[:80]}: expected files in fields called {SERIES_FIELD}, and no other field."
            )
            raise ApiProblemError(422, detail, field=name[:80])
        files.append(value)
    return files


def _build_segmentation(
    folder: Path, subject: str, files: Sequence[BinaryIO], threshold: float | None
) -> bytes:
    """Return the DICOM SEG that jobs/export.py would write, on the series in `files`."""
    try:
        from lesioncast.forecasting.output.dicom_seg import forecast_segmentation
        from storage.export.dicom_seg import write_segmentation
        from storage.export.dicom_series import DicomError, read_series
    except ModuleNotFoundError as error:
        if error.name not in ("highdicom", "pydicom"):
            raise
        raise ApiProblemError(501, "This service was installed without the extra dicom.") from None
    segmentation = forecast_segmentation(read_maps(folder, subject), threshold=threshold)
    with TemporaryDirectory() as temporary:
        series, path = Path(temporary, "series"), Path(temporary, f"{subject}_seg.dcm")
        series.mkdir()
        for number, file in enumerate(files, start=1):
            # Pixels are not needed: a header that is longer than this is broken.
            (series / f"{number:04d}").write_bytes(file.read(MAX_HEADER_BYTES))
        try:
            write_segmentation(segmentation, read_series(series), path)
        except DicomError as error:
            # Name a file by its position in the form, and the folder by the form's field.
            reason = str(error).replace(str(series), SERIES_FIELD)
            raise ApiProblemError(422, reason, field=SERIES_FIELD) from None
        return path.read_bytes()
