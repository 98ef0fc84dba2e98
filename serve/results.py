"""What a forecast that has succeeded came to, as files."""

import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, StreamingResponse

from lesioncast.forecasting.derivative import forecast_path, summary_path
from serve.desk import Desk, find_job
from serve.files import result_folder
from serve.problems import RequestError
from serve.tables import UNFINISHED, Job

_PIECE, _IN_MEMORY = 2**20, 2**24  # bytes
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in a zip, so that equal results give equal zips


def add_results(api: FastAPI, desk: Desk) -> None:
    """The numbers, a map of each arm, and all of it as a BIDS derivative."""
    artifacts = desk.settings.artifacts

    @api.get("/v1/forecasts/{job}/result")
    def result(job: str, request: Request) -> FileResponse:
        found = find_succeeded(desk, job, request)
        path = summary_path(result_folder(artifacts, found.id), found.order["subject"])
        return FileResponse(path, media_type="application/json")

    @api.get("/v1/forecasts/{job}/arms/{arm}")
    def probability(job: str, arm: str, request: Request) -> FileResponse:
        found = find_succeeded(desk, job, request)
        arms = found.order["arms"]
        if arm not in arms:
            raise RequestError(
                404, f"Expected one of {', '.join(arms)}, got another arm.", field="arm"
            )
        path = forecast_path(result_folder(artifacts, found.id), found.order["subject"], arm)
        return FileResponse(path, media_type="application/gzip", filename=path.name)

    @api.get("/v1/forecasts/{job}/derivative")
    def derivative(job: str, request: Request) -> StreamingResponse:
        found = find_succeeded(desk, job, request)
        name = f"attachment; filename={found.id}.zip"
        return StreamingResponse(
            _pieces(_zipped(result_folder(artifacts, found.id))),
            media_type="application/zip",
            headers={"Content-Disposition": name},
        )


def find_succeeded(desk: Desk, job: str, request: Request) -> Job:
    """The asking client's forecast with that id. Raises RequestError where it has no result."""
    found = find_job(desk, job, request)
    if found.state == "succeeded":
        return found
    wait = desk.wait if found.state in UNFINISHED else None
    raise RequestError(409, f"The forecast is {found.state}: it has no result.", headers=wait)


def _zipped(folder: Path) -> IO[bytes]:
    """Every file of the folder; its images are compressed already."""
    made = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115, `_pieces` closes it
    with zipfile.ZipFile(made, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), path.read_bytes())
    made.seek(0)
    return made


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE):
            yield piece
