"""Routes that serve the result files of a succeeded forecast."""

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

from fastapi import APIRouter, Response
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lesioncast.errors import ForecastError
from lesioncast.forecasting.output.bids import forecast_path, summary_path
from lesioncast.forecasting.output.summary import ForecastSummary
from serve.api.dependencies import Context, CurrentCaller, SucceededJob, get_succeeded_or_409
from serve.api.problems import ApiProblemError, problem_responses
from serve.artifacts import result_dir
from serve.db.models import ForecastJob
from serve.worker.retry import is_transient
from storage.atomic import PARTIAL_SUFFIX

CHUNK_BYTES = 2**20
MAX_BYTES_IN_MEMORY = 2**24  # of a zip; a larger one goes to a temporary file
ZIP_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # of every file, so that equal results give equal zips

router = APIRouter(prefix="/v1/forecasts/{forecast_id}", tags=["results"])


class GzipResponse(Response):
    """A gzipped file."""

    media_type = "application/gzip"


class ZipResponse(StreamingResponse):
    """A zip archive in chunks. It closes the archive, also if the client leaves before the end."""

    media_type = "application/zip"

    # OpenAPI's status is the default of `status_code`.
    def __init__(
        self, archive: IO[bytes], status_code: int = 200, *, headers: Mapping[str, str]
    ) -> None:
        super().__init__(_iter_chunks(archive), status_code, headers)
        self._archive = archive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the archive."""
        with self._archive:
            await super().__call__(scope, receive, send)


@router.get("/result", response_model=ForecastSummary, responses=problem_responses(404, 409, 410))
def get_result(job: SucceededJob, context: Context) -> Response:
    """Return the numbers of every arm."""
    path = summary_path(result_dir(context.settings.artifacts, job.id), job.request.subject)
    # The file is sent as it is, which a response model would only parse and write again.
    with missing_files_as_410():
        return Response(path.read_bytes(), media_type="application/json")


@router.get(
    "/arms/{arm}",
    response_class=GzipResponse,
    responses={
        200: {"description": "Probability map as .nii.gz, on the grid of the current FLAIR."},
        **problem_responses(404, 409, 410),
    },
)
def get_probability_map(
    job: SucceededJob,
    arm: Annotated[str, PathParameter(description="One of the forecast's arms.")],
    context: Context,
) -> GzipResponse:
    """Return the probability map under one arm."""
    check_arm(job, arm)
    with missing_files_as_410():
        folder = result_dir(context.settings.artifacts, job.id)
        path = forecast_path(folder, job.request.subject, arm)
        return GzipResponse(path.read_bytes(), headers=attachment_headers(path.name))


@router.get(
    "/derivative",
    response_class=ZipResponse,
    responses={
        200: {"description": "All files of the result, a BIDS derivative, as a zip."},
        **problem_responses(404, 409, 410),
    },
)
def get_derivative(job: SucceededJob, context: Context, caller: CurrentCaller) -> ZipResponse:
    """Return all files of the result."""
    archive = tempfile.SpooledTemporaryFile(MAX_BYTES_IN_MEMORY)  # noqa: SIM115, the response closes it
    try:
        with missing_files_as_410():
            _zip(result_dir(context.settings.artifacts, job.id), archive)
        # If the client deleted the forecast meanwhile, files may be missing from the zip.
        get_succeeded_or_409(job.id, context, caller)
    except ApiProblemError:
        archive.close()
        raise
    return ZipResponse(archive, headers=attachment_headers(f"{job.id}.zip"))


def check_arm(job: ForecastJob, arm: str) -> None:
    """Raise ApiProblemError 404 if the arm is not one of the forecast's."""
    arms = job.request.arms
    if arm not in arms:
        detail = f"arm: expected one of {', '.join(arms)}, got another arm."
        raise ApiProblemError(404, detail, field="arm")


@contextmanager
def missing_files_as_410() -> Iterator[None]:
    """Raise ApiProblemError 410 if a file of the result is missing.

    The client may have deleted the forecast since its state was read.
    """
    try:
        yield
    except (FileNotFoundError, ForecastError) as error:
        if is_transient(error):  # a disk does not answer: the files may well be there
            raise
        raise ApiProblemError(410, "The files of the forecast are no longer there.") from None


def attachment_headers(file_name: str) -> dict[str, str]:
    """Return the header that makes browsers save a response under a name."""
    return {"Content-Disposition": f'attachment; filename="{file_name}"'}


def _zip(folder: Path, target: IO[bytes]) -> None:
    """Write every file of a folder to a zip, without compression: images are gzipped already.

    What a killed writer left unfinished is no file of the result. Raises FileNotFoundError if the
    folder has no file.
    """
    files = (path for path in folder.rglob("*") if path.is_file())
    paths = sorted(path for path in files if not path.name.endswith(PARTIAL_SUFFIX))
    if not paths:
        raise FileNotFoundError(folder)
    with zipfile.ZipFile(target, "w") as archive:
        for path in paths:
            name = path.relative_to(folder).as_posix()
            archive.writestr(zipfile.ZipInfo(name, ZIP_TIMESTAMP), path.read_bytes())
    target.seek(0)


def _iter_chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
