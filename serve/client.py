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

from serve.retry_after import DEFAULT_WAIT_S, retry_after_seconds

PROBLEM_MEDIA_TYPE = "application/problem+json"
BUSY_STATUSES = (429, 502, 503, 504)
"""Answers of a busy service, or of a gateway before one that restarts."""
UNFINISHED = ("accepted", "running")

Json = dict[str, Any]


class ForecastOptions(TypedDict, total=False):
    """Optional parameters of a forecast, with the names of the HTTP API.

    `samples` of each arm are drawn, 16 by default. With `tolerance`, sampling stops once the
    active fraction is at most this far from either end of its 95 % interval, for every arm, and
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
    """An error answer of the service; `problem` is the problem document.

    `retry_after_s` are the seconds after which to ask again, if that may help.
    """

    def __init__(self, problem: Json, retry_after_s: float = DEFAULT_WAIT_S) -> None:
        super().__init__(f"{problem['status']} {problem['title']}: {problem['detail']}")
        self.problem, self.retry_after_s = problem, retry_after_s


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

        While the queue is full or a gateway has no service to reach, the request is repeated for
        `patience` seconds, always with the same idempotency key, so that it creates only one
        forecast. Raises ApiError at once if the service asks for a longer wait.
        """
        request: Json = {"subject": subject, "covariates": covariates, **options}
        request = {name: _to_json(value) for name, value in request.items() if value is not None}
        body = _request_kwargs(request, images)
        headers, give_up = {"Idempotency-Key": uuid.uuid4().hex}, time.monotonic() + patience
        while True:
            response = self._http.post("/v1/forecasts", headers=headers, **body)
            wait = _wait_seconds(response)
            busy = response.status_code in BUSY_STATUSES
            if not busy or time.monotonic() + wait > give_up:
                return str(_raise_for_problem(response).json()["id"])
            time.sleep(wait)

    def list_forecasts(
        self, *, states: Sequence[str] = (), subject: str | None = None
    ) -> Iterator[Json]:
        """Yield this client's forecasts, the newest first; only some states, or one subject."""
        only: Json = {"state": list(states)} | ({} if subject is None else {"subject": subject})
        yield from self._pages("/v1/forecasts", "forecasts", only)

    def list_subjects(self, search: str = "") -> Iterator[Json]:
        """Yield the subjects of the mounted store whose name contains `search`, by name."""
        yield from self._pages("/v1/subjects", "subjects", {"search": search})

    def _pages(self, url: str, name: str, params: Json) -> Iterator[Json]:
        """Yield the entries `name` of all pages of a list."""
        while True:
            page = _raise_for_problem(self._http.get(url, params=params)).json()
            yield from page[name]
            if page["next_cursor"] is None:
                return
            params = params | {"cursor": page["next_cursor"]}

    def status(self, forecast_id: str) -> Json:
        """Return state, progress and partial results of a forecast."""
        return dict(self._get(f"/v1/forecasts/{forecast_id}").json())

    def stream_events(self, forecast_id: str, *, patience: float = 60.0) -> Iterator[Json]:
        """Yield the status of a forecast at every change, until it has finished.

        Gateways and the service end a stream after some time. The client then connects again, and
        for `patience` seconds also if that fails. Only the first connection must succeed at once.
        """
        connected, last_id = False, ""
        give_up = time.monotonic() + patience
        while True:
            wait = DEFAULT_WAIT_S
            try:
                for event in self._connect(forecast_id, last_id):
                    connected, last_id = True, event.id or last_id
                    give_up = time.monotonic() + patience
                    if event.data:
                        status: Json = json.loads(event.data)
                        yield status
                        if status["state"] not in UNFINISHED:
                            return
            except (ApiError, httpx2.TransportError) as error:
                if isinstance(error, ApiError):
                    wait = error.retry_after_s
                if not connected or not _may_pass(error) or time.monotonic() + wait > give_up:
                    raise
            time.sleep(wait)

    def _connect(self, forecast_id: str, last_id: str) -> Iterator[httpx2.ServerSentEvent]:
        """Yield the events after `last_id` until the stream ends."""
        url = f"/v1/forecasts/{forecast_id}/events"
        headers = {"Last-Event-ID": last_id} if last_id else {}
        with self._http.stream("GET", url, headers=headers) as response:
            if not response.is_success:
                response.read()
            yield from httpx2.EventSource(_raise_for_problem(response))

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
        """Write a result to `path` as DICOM SEG on the series of the current FLAIR.

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
    if not response.is_success:
        raise ApiError(_parse_problem(response), _wait_seconds(response))
    return response


def _wait_seconds(response: httpx2.Response) -> float:
    return retry_after_seconds(response.headers.get("Retry-After"))


def _may_pass(error: ApiError | httpx2.TransportError) -> bool:
    return not isinstance(error, ApiError) or error.problem["status"] in BUSY_STATUSES


def _parse_problem(response: httpx2.Response) -> Json:
    """Return the problem document of an error; proxies, Ray Serve's too, answer with plain text."""
    if response.headers.get("Content-Type", "").partition(";")[0] == PROBLEM_MEDIA_TYPE:
        return dict(response.json())
    detail = response.text
    if response.is_redirect:  # not followed: it may lead to http, with the key in clear
        target = response.headers.get("Location", "elsewhere")
        detail = f"expected an answer, got a redirect to {target}; give the URL of the service"
    return {"status": response.status_code, "title": response.reason_phrase, "detail": detail}
