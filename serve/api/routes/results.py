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
from serve.api.dependencies import Desk, find_job
from serve.api.problems import RequestError
from serve.artifacts import result_folder
from serve.db.models import UNFINISHED, Job

_PIECE, _IN_MEMORY = 2**20, 2**24  # bytes
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in a zip, so that equal results give equal zips


def add_results(api: FastAPI, desk: Desk) -> None:
    """The numbers, a map of each arm, and all of it as a BIDS derivative."""
    artifacts = desk.settings.artifacts

    @api.get("/v1/forecasts/{job}/result")
    def result(job: str, request: Request) -> Response:
        found = find_succeeded(desk, job, request)
        path = summary_path(result_folder(artifacts, found.id), found.order["subject"])
        with kept():
            return Response(path.read_bytes(), media_type="application/json")

    @api.get("/v1/forecasts/{job}/arms/{arm}")
    def probability(job: str, arm: str, request: Request) -> Response:
        found = find_succeeded(desk, job, request)
        arms = found.order["arms"]
        if arm not in arms:
            raise RequestError(
                404, f"Expected one of {', '.join(arms)}, got another arm.", field="arm"
            )
        path = forecast_path(result_folder(artifacts, found.id), found.order["subject"], arm)
        headers = _named(path.name)
        with kept():
            return Response(path.read_bytes(), media_type="application/gzip", headers=headers)

    @api.get("/v1/forecasts/{job}/derivative")
    def derivative(job: str, request: Request) -> StreamingResponse:
        found = find_succeeded(desk, job, request)
        zipped = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115, `_pieces` closes it
        try:
            with kept():
                _zip(result_folder(artifacts, found.id), zipped)
            find_succeeded(desk, job, request)  # still, so that no file was missing
        except RequestError:
            zipped.close()
            raise
        headers = _named(f"{found.id}.zip")
        return StreamingResponse(_pieces(zipped), media_type="application/zip", headers=headers)


def find_succeeded(desk: Desk, job: str, request: Request) -> Job:
    """The asking client's forecast with that id. Raises RequestError where it has no result."""
    found = find_job(desk, job, request)
    if found.state == "succeeded":
        return found
    wait = desk.wait if found.state in UNFINISHED else None
    raise RequestError(409, f"The forecast is {found.state}: it has no result.", headers=wait)


@contextmanager
def kept() -> Iterator[None]:
    """Raises RequestError where a result is not there: its client may have deleted the forecast
    since that was found to have succeeded."""
    try:
        yield
    except (FileNotFoundError, ForecastError):
        raise RequestError(410, "The files of the forecast are no longer there.") from None


def _named(file: str) -> dict[str, str]:
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


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE):
            yield piece
