"""What a forecast that has succeeded came to, as files."""

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from lesioncast.errors import ForecastError
from lesioncast.forecasting.output.bids import forecast_path, summary_path
from serve.api.dependencies import ServiceContext, get_job_or_404
from serve.api.problems import ApiProblemError
from serve.artifacts import result_dir
from serve.db.models import UNFINISHED, ForecastJob

_PIECE, _IN_MEMORY = 2**20, 2**24  # bytes
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in a zip, so that equal results give equal zips


def add_results(api: FastAPI, desk: ServiceContext) -> None:
    """The numbers, a map of each arm, and all of it as a BIDS derivative."""
    artifacts = desk.settings.artifacts

    @api.get("/v1/forecasts/{job}/result")
    def result(job: str, request: Request) -> Response:
        found = get_succeeded_or_409(desk, job, request)
        path = summary_path(result_dir(artifacts, found.id), found.order["subject"])
        with missing_files_as_410():
            return Response(path.read_bytes(), media_type="application/json")

    @api.get("/v1/forecasts/{job}/arms/{arm}")
    def probability(job: str, arm: str, request: Request) -> Response:
        found = get_succeeded_or_409(desk, job, request)
        arms = found.order["arms"]
        if arm not in arms:
            raise ApiProblemError(
                404, f"Expected one of {', '.join(arms)}, got another arm.", field="arm"
            )
        path = forecast_path(result_dir(artifacts, found.id), found.order["subject"], arm)
        headers = _attachment_headers(path.name)
        with missing_files_as_410():
            return Response(path.read_bytes(), media_type="application/gzip", headers=headers)

    @api.get("/v1/forecasts/{job}/derivative")
    def derivative(job: str, request: Request) -> StreamingResponse:
        found = get_succeeded_or_409(desk, job, request)
        zipped = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115, `_pieces` closes it
        try:
            with missing_files_as_410():
                _zip(result_dir(artifacts, found.id), zipped)
            get_succeeded_or_409(desk, job, request)  # still, so that no file was missing
        except ApiProblemError:
            zipped.close()
            raise
        headers = _attachment_headers(f"{found.id}.zip")
        return StreamingResponse(
            _iter_chunks(zipped), media_type="application/zip", headers=headers
        )


def get_succeeded_or_409(desk: ServiceContext, job: str, request: Request) -> ForecastJob:
    """The asking client's forecast with that id. Raises RequestError where it has no result."""
    found = get_job_or_404(desk, job, request)
    if found.state == "succeeded":
        return found
    wait = desk.retry_after_headers if found.state in UNFINISHED else None
    raise ApiProblemError(409, f"The forecast is {found.state}: it has no result.", headers=wait)


@contextmanager
def missing_files_as_410() -> Iterator[None]:
    """Raises RequestError where a result is not there: its client may have deleted the forecast
    since that was found to have succeeded."""
    try:
        yield
    except (FileNotFoundError, ForecastError):
        raise ApiProblemError(410, "The files of the forecast are no longer there.") from None


def _attachment_headers(file: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{file}"'}


def _zip(folder: Path, into: IO[bytes]) -> None:
    """Every file of the folder; its images are compressed already. Raises FileNotFoundError where
    there is none."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise FileNotFoundError(folder)
    with zipfile.ZipFile(into, "w") as archive:
        for path in paths:
            name = path.relative_to(folder).as_posix()
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), path.read_bytes())
    into.seek(0)


def _iter_chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE):
            yield piece
