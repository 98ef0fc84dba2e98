"""Python client of the service: request, follow and download forecasts.

with Client("http://127.0.0.1:8000", key="...") as client:
    forecast_id = client.create_forecast("sub-0001", samples=32)
    for status in client.stream_events(forecast_id):
        print(status["progress"])
    result = client.result(forecast_id)
"""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict, Unpack

import httpx2

PROBLEM_MEDIA_TYPE = "application/problem+json"

Json = dict[str, Any]


class ForecastOptions(TypedDict, total=False):
    """Optional parameters of a forecast, with the names of the HTTP API.

    `samples` of each arm are drawn, 16 by default. With `tolerance`, sampling stops once the
    half-width of the 95 % interval of the active fraction is at most this value for every arm, and
    `samples` is the maximum. `sampler` replaces settings of the bundle: `num_steps`, `guidance` and
    `eta`. The model sees images of `sessions` only, of all sessions by default.
    """

    arms: Sequence[str] | None
    samples: int
    tolerance: float | None
    seed: int
    sampler: Mapping[str, float] | None
    reference_arm: str | None
    sessions: Sequence[str] | None


class ApiError(Exception):
    """An error answer of the service; `problem` is the problem document."""

    def __init__(self, problem: Json) -> None:
        super().__init__(f"{problem['status']} {problem['title']}: {problem['detail']}")
        self.problem = problem


class Client:
    """A connection to the service.

    Methods raise ApiError for error answers, and httpx2's errors if the service does not answer.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 60.0) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=timeout)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def create_forecast(
        self,
        subject: str | None = None,
        *,
        images: Mapping[str, Path] | None = None,
        covariates: Mapping[str, str | float | None] | None = None,
        patience: float = 60.0,
        **options: Unpack[ForecastOptions],
    ) -> str:
        """Request a forecast of a subject of the store, or of a patient with `images`.

        `images` are NIfTI files by field, such as `w048/flair`. With them, `subject` names the
        patient, and `covariates` are what is known of the patient. Returns the forecast's id.

        While the queue is full, the request is repeated for `patience` seconds, always with the
        same idempotency key, so that it creates only one forecast.
        """
        request: Json = {"subject": subject, "covariates": covariates, **options}
        request = {name: _to_json(value) for name, value in request.items() if value is not None}
        body = _request_kwargs(request, images)
        headers, give_up = {"Idempotency-Key": uuid.uuid4().hex}, time.monotonic() + patience
        while True:
            response = self._http.post("/v1/forecasts", headers=headers, **body)
            if response.status_code != 429 or time.monotonic() > give_up:
                return str(_raise_for_problem(response).json()["id"])
            time.sleep(float(response.headers["Retry-After"]))

    def status(self, forecast_id: str) -> Json:
        """Return state, progress and partial results of a forecast."""
        return dict(self._get(f"/v1/forecasts/{forecast_id}").json())

    def stream_events(self, forecast_id: str) -> Iterator[Json]:
        """Yield the status of a forecast at every change, until it has finished."""
        with self._http.stream("GET", f"/v1/forecasts/{forecast_id}/events") as response:
            if response.is_error:
                response.read()
            for line in _raise_for_problem(response).iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def result(self, forecast_id: str) -> Json:
        """Return the numbers of a succeeded forecast, as jobs/forecast.py writes them."""
        return dict(self._get(f"/v1/forecasts/{forecast_id}/result").json())

    def download_probability_map(self, forecast_id: str, arm: str, path: Path) -> None:
        """Write the probability map under an arm to `path`, as NIfTI (.nii.gz)."""
        path.write_bytes(self._get(f"/v1/forecasts/{forecast_id}/arms/{arm}").content)

    def download_derivative(self, forecast_id: str, path: Path) -> None:
        """Write all files of a result, a BIDS derivative, to `path` as a zip."""
        path.write_bytes(self._get(f"/v1/forecasts/{forecast_id}/derivative").content)

    def download_segmentation(
        self, forecast_id: str, series: Path, path: Path, *, threshold: float | None = None
    ) -> None:
        """Write a result to `path` as DICOM SEG on the series of the w048 FLAIR.

        `series` is the folder of that series. There is one segment for each arm: probabilities or,
        with `threshold`, the voxels at or above it.
        """
        images = sorted(file for file in series.rglob("*") if file.is_file())
        files = [("series", (image.name, image.read_bytes())) for image in images]
        params = {} if threshold is None else {"threshold": threshold}
        url = f"/v1/forecasts/{forecast_id}/segmentation"
        response = self._http.post(url, params=params, files=files)
        path.write_bytes(_raise_for_problem(response).content)

    def delete(self, forecast_id: str) -> None:
        """Cancel an unfinished forecast, or delete all files of a finished one."""
        _raise_for_problem(self._http.delete(f"/v1/forecasts/{forecast_id}"))

    def _get(self, url: str) -> httpx2.Response:
        return _raise_for_problem(self._http.get(url))


def _to_json(value: object) -> object:
    """Return a mapping as a dict and a sequence as a list, which JSON can encode."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _request_kwargs(request: Json, images: Mapping[str, Path] | None) -> Json:
    """Return the arguments of a POST: a JSON body, or a form if there are images."""
    if images is None:
        return {"json": request}
    files = {name: (name, path.read_bytes()) for name, path in images.items()}
    return {"data": {"request": json.dumps(request)}, "files": files}


def _raise_for_problem(response: httpx2.Response) -> httpx2.Response:
    if response.is_error:
        raise ApiError(_parse_problem(response))
    return response


def _parse_problem(response: httpx2.Response) -> Json:
    """Return the problem document of an error; proxies, Ray Serve's too, answer with plain text."""
    if response.headers.get("Content-Type") == PROBLEM_MEDIA_TYPE:
        return dict(response.json())
    return {
        "status": response.status_code, "title": response.reason_phrase, "detail": response.text,
    }  # fmt: skip
