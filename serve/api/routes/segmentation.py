"""A forecast as DICOM SEG on the series of the w048 FLAIR, which the client sends.

Of each file only what stands before its pixels is kept, for as long as the answer takes.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, BinaryIO

from fastapi import FastAPI, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from lesioncast.forecasting.output.bids import read_maps
from serve.api.dependencies import ServiceContext
from serve.api.middleware import MULTIPART_FORM, media_type
from serve.api.problems import ApiProblemError
from serve.api.routes.results import get_succeeded_or_409, missing_files_as_410
from serve.artifacts import result_dir

DICOM = "application/dicom"
MAX_FILES = 1000
MAX_HEADER_BYTES = 2**19  # bytes
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        MULTIPART_FORM: {
            "schema": {
                "type": "object",
                "properties": {
                    "series": {
                        "type": "array",
                        "description": "DICOM, one image a file; pixels may be left out",
                        "items": {
                            "type": "string",
                            "contentMediaType": DICOM,
                            "format": "binary",
                        },
                        "minItems": 1,
                        "maxItems": MAX_FILES,
                    }
                },
                "required": ["series"],
                "additionalProperties": False,
            }
        }
    },
}


def add_segmentation(api: FastAPI, desk: ServiceContext) -> None:
    """The route by which a forecast becomes a DICOM SEG."""
    alone = asyncio.Semaphore(1)  # each holds the maps of all arms in memory

    @api.post("/v1/forecasts/{job}/segmentation", openapi_extra={"requestBody": _BODY})
    async def segmentation(
        job: str,
        request: Request,
        threshold: Annotated[float | None, Query(gt=0, le=1, allow_inf_nan=False)] = None,
    ) -> Response:
        found = await run_in_threadpool(get_succeeded_or_409, desk, job, request)
        kind = media_type(request.headers)
        if kind != MULTIPART_FORM:
            detail = f"Content-Type: expected {MULTIPART_FORM}, got {kind[:80] or 'none'}."
            raise ApiProblemError(415, detail, field="Content-Type")
        folder, subject = result_dir(desk.settings.artifacts, found.id), found.order["subject"]
        async with desk.forms.receive(request, max_files=MAX_FILES, max_fields=1) as form, alone:
            files = [each.file for each in _series_files(form)]
            with missing_files_as_410():
                made = await run_in_threadpool(
                    _build_segmentation, folder, subject, files, threshold
                )
        await run_in_threadpool(get_succeeded_or_409, desk, job, request)  # no map was missing
        named = f"attachment; filename={subject}_seg.dcm"
        return Response(made, media_type=DICOM, headers={"Content-Disposition": named})


def _series_files(form: FormData) -> list[UploadFile]:
    """The files of the form. Raises RequestError, naming the field, for anything else."""
    files = []
    for name, value in form.multi_items():
        if name != "series" or not isinstance(value, UploadFile):
            detail = f"{name[:80]}: expected files in fields called series, and no other field."
            raise ApiProblemError(422, detail, field=name[:80])
        files.append(value)
    return files


def _build_segmentation(
    folder: Path, subject: str, files: Sequence[BinaryIO], threshold: float | None
) -> bytes:
    """The maps in `folder` on the series in `files`; the SEG that jobs/export.py would make."""
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
            (series / f"{number:04d}").write_bytes(file.read(MAX_HEADER_BYTES))
        try:
            write_segmentation(segmentation, read_series(series), path)
        except DicomError as error:
            # A file is named by its place in the form, and the folder by the field.
            reason = str(error).replace(str(series), "series")
            raise ApiProblemError(422, reason, field="series") from None
        return path.read_bytes()
