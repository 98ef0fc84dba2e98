"""The service from Python: ask, follow, fetch.

with Client("http://127.0.0.1:8000", key="...") as client:
    job = client.ask("sub-0001", samples=32)
    for status in client.follow(job):
        print(status["progress"])
    record = client.result(job)
"""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

PROBLEM = "application/problem+json"

Json = dict[str, Any]


class ApiError(Exception):
    """The service's answer to a request that it does not fulfil; `problem` is the document."""

    def __init__(self, problem: Json) -> None:
        super().__init__(f"{problem['status']} {problem['title']}: {problem['detail']}")
        self.problem = problem


class Client:
    """One connection. Methods raise RefusedError, and httpx2's errors where nobody answers."""

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
        arms: Sequence[str] | None = None,
        samples: int = 16,
        error: float | None = None,
        seed: int = 0,
        sampler: Mapping[str, float] | None = None,
        reference_arm: str | None = None,
        sessions: Sequence[str] | None = None,
        patience: float = 60.0,
    ) -> str:
        """Ask for a forecast of a subject of the store, or of a patient with these `images`.

        Images are NIfTI files by name, such as w048/flair; `subject` and `covariates` are then what
        the order of an upload says. With `error` sampling stops when the share of samples with
        lesions is known to it; `sampler` are changes to the bundle's own; of the `sessions` named
        alone images are shown. Returns the id.

        While the queue is full, asks again for `patience` seconds, always with one idempotency key.
        """
        order = {
            "subject": subject, "arms": None if arms is None else list(arms), "samples": samples,
            "error": error, "seed": seed, "reference_arm": reference_arm, "sampler": sampler,
            "sessions": None if sessions is None else list(sessions),
            "covariates": None if covariates is None else dict(covariates),
        }  # fmt: skip
        sent = _request_kwargs(
            {name: value for name, value in order.items() if value is not None}, images
        )
        headers, until = {"Idempotency-Key": uuid.uuid4().hex}, time.monotonic() + patience
        while True:
            answer = self._http.post("/v1/forecasts", headers=headers, **sent)
            if answer.status_code != 429 or time.monotonic() > until:
                return str(_raise_for_problem(answer).json()["id"])
            time.sleep(float(answer.headers["Retry-After"]))

    def status(self, job: str) -> Json:
        """How far it is, and what its samples say so far."""
        return dict(_raise_for_problem(self._http.get(f"/v1/forecasts/{job}")).json())

    def stream_events(self, job: str) -> Iterator[Json]:
        """Its status at every change, until it has ended."""
        with self._http.stream("GET", f"/v1/forecasts/{job}/events") as answer:
            if answer.is_error:
                answer.read()
            for line in _raise_for_problem(answer).iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def result(self, job: str) -> Json:
        """The numbers of a forecast that has succeeded, as jobs/forecast.py writes them."""
        return dict(_raise_for_problem(self._http.get(f"/v1/forecasts/{job}/result")).json())

    def download_probability_map(self, job: str, arm: str, path: Path) -> None:
        """Write the probability map under an arm as NIfTI to `path` (.nii.gz)."""
        path.write_bytes(
            _raise_for_problem(self._http.get(f"/v1/forecasts/{job}/arms/{arm}")).content
        )

    def download_derivative(self, job: str, path: Path) -> None:
        """Write all of a result, a BIDS derivative, as a zip to `path`."""
        path.write_bytes(
            _raise_for_problem(self._http.get(f"/v1/forecasts/{job}/derivative")).content
        )

    def download_segmentation(
        self, job: str, series: Path, path: Path, *, threshold: float | None = None
    ) -> None:
        """Write a result as DICOM SEG to `path`: a segment of probabilities for each arm or, with a
        `threshold`, of the voxels at or above it. `series` is the folder with the DICOM images of
        the FLAIR of week 48."""
        images = sorted(each for each in series.rglob("*") if each.is_file())
        sent = [("series", (each.name, each.read_bytes())) for each in images]
        asked = {} if threshold is None else {"threshold": threshold}
        here = f"/v1/forecasts/{job}/segmentation"
        path.write_bytes(
            _raise_for_problem(self._http.post(here, params=asked, files=sent)).content
        )

    def delete(self, job: str) -> None:
        """Stop a forecast that has not ended; of one that has, remove all that was kept."""
        _raise_for_problem(self._http.delete(f"/v1/forecasts/{job}"))


def _request_kwargs(order: Json, images: Mapping[str, Path] | None) -> Json:
    """The body of a request: JSON, or a form with files."""
    if images is None:
        return {"json": order}
    files = {name: (name, path.read_bytes()) for name, path in images.items()}
    return {"data": {"order": json.dumps(order)}, "files": files}


def _raise_for_problem(answer: httpx2.Response) -> httpx2.Response:
    if answer.is_error:
        raise ApiError(_parse_problem(answer))
    return answer


def _parse_problem(answer: httpx2.Response) -> Json:
    """What the service says is wrong; a proxy before it, Serve's too, says it as text."""
    if answer.headers.get("Content-Type") == PROBLEM:
        return dict(answer.json())
    return {"status": answer.status_code, "title": answer.reason_phrase, "detail": answer.text}
