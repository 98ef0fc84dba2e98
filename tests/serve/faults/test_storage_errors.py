"""Outages of a storage postpone a forecast for a bounded time; a refusal fails it, with reason."""

import asyncio
import errno
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from obstore.exceptions import GenericError, PermissionDeniedError
from ray.exceptions import RayTaskError

from lesioncast.errors import ForecastError
from serve.api.routes import results
from serve.artifacts import result_dir
from serve.client import Client
from serve.inference.sampler import SamplerWorker
from serve.settings import ServiceSettings
from serve.worker import retry
from serve.worker.loaded_model import LoadedModel
from serve.worker.retry import failure_of, is_transient
from storage import StoreError, open_store
from storage.atomic import PARTIAL_SUFFIX
from storage.errors import StoreUnavailableError
from storage.store import array_reader
from tests.support.bids import path_of
from tests.support.service import (
    Service,
    assert_problem,
    run_service,
    trial_settings,
    wait_for_success,
    wait_until,
    write_trial_served,
)

SECRET = "/mnt/hospital/sub-02/flair"  # in the text of every error, and in no answer
UNLABELLED = "sub-03"
LIMIT_S = 1


class ClientError(Exception):
    """An error like botocore's, which holds the answer of the object store."""

    def __init__(self, status: int) -> None:
        super().__init__(SECRET)
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class EndpointConnectionError(Exception):
    """An error like botocore's of the same name, which holds nothing but a text."""


class NoCredentialsError(Exception):
    """An error like botocore's of the same name."""


class FSTimeoutError(TimeoutError):
    """An error like fsspec's of the same name."""


class HttpResponseError(Exception):
    """An error like azure's, gcsfs's and aiohttp's, which state a status."""

    def __init__(self, status: int) -> None:
        super().__init__(SECRET)
        self.status_code = status


OUTAGES = {
    "stale": OSError(errno.ESTALE, "stale", SECRET),
    "disk": OSError(errno.EIO, "io", SECRET),
    "full": OSError(errno.ENOSPC, "full", SECRET),
    "reset": ConnectionResetError(errno.ECONNRESET, "reset"),
    "closed": ConnectionResetError(SECRET),
    "timeout": TimeoutError(SECRET),
    "fsspec": FSTimeoutError(SECRET),
    "obstore": GenericError(SECRET),
    "botocore": EndpointConnectionError(SECRET),
    "slow down": ClientError(503),
    "azure": HttpResponseError(429),
}
REFUSALS = {
    "access": PermissionError(errno.EACCES, "denied", SECRET),
    "read-only": OSError(errno.EROFS, "read-only", SECRET),
    "gone": FileNotFoundError(errno.ENOENT, "gone", SECRET),
    "obstore": PermissionDeniedError(SECRET),
    "botocore": ClientError(403),
    "credentials": NoCredentialsError(SECRET),
    "azure": HttpResponseError(404),
}


def wrapped(cause: Exception, *, kind: Callable[[str], Exception] = ForecastError) -> Exception:
    """Return an error that was raised from `cause`."""
    try:
        raise kind(SECRET) from cause
    except Exception as error:
        return error


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    write_trial_served(folder, unlabelled=UNLABELLED)
    return folder


@pytest.fixture(scope="module")
def settings(root: Path) -> ServiceSettings:
    return trial_settings(root, root / "out", give_up_after=LIMIT_S, retry_after=1)


@pytest.fixture(scope="module")
def service(settings: ServiceSettings) -> Iterator[Service]:
    with run_service(settings) as service:
        yield service


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    monkeypatch.setattr(retry, "INITIAL_DELAY_S", 0.05)
    service.errors.clear()


def failing_reads(
    monkeypatch: pytest.MonkeyPatch, error: Exception, *, times: int | None
) -> list[Exception]:
    """Make the store's reads fail so many times, or always; return a list of what was raised."""
    read, raised = array_reader._read, list[Exception]()

    def fail(*given: Any) -> Any:
        # `_read_error` reads again to find the row at fault, which must not count.
        if times is None or len(raised) < times:
            raised.append(error)
            raise error
        return read(*given)

    monkeypatch.setattr(array_reader, "_read", fail)
    return raised


def ended(client: Client, **request: Any) -> dict[str, Any]:
    """Return the last status of a new forecast."""
    job = client.create_forecast("sub-02", samples=2, **request)
    return list(client.stream_events(job))[-1]


@pytest.mark.parametrize("name", ["stale", "closed", "fsspec", "slow down"])
def test_an_outage_behind_an_error_of_the_store_postpones_the_forecast(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    raised = failing_reads(monkeypatch, OUTAGES[name], times=2)
    status = ended(client)
    assert raised
    assert (status["state"], status["error"]) == ("succeeded", None)
    assert {outcome for _, outcome in service.errors} == {"postponed"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("access", "Permission denied"),
        ("read-only", "Read-only file system"),
        ("botocore", "a storage refuses the access with status 403"),
    ],
)
def test_a_refusal_fails_the_forecast_at_once_and_the_status_says_why(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    def refuse(*_: object) -> None:
        raise REFUSALS[name]

    monkeypatch.setattr(LoadedModel, "write_result", refuse)
    status = ended(client)
    log = f"the service's log says more, under {status['id']}."
    assert (status["state"], status["error"]) == ("failed", f"The forecast failed: {reason}; {log}")
    wait_until(lambda: [outcome for _, outcome in service.errors] == ["failed"])


def test_an_outage_that_lasts_fails_the_forecast_after_a_bounded_time(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_reads(monkeypatch, OUTAGES["disk"], times=None)
    status = ended(client)
    assert status["state"] == "failed"
    assert status["error"].startswith(
        f"The forecast was given up after {LIMIT_S} s of attempts: Input/output error; the service"
    )
    assert SECRET not in status["error"]
    wait_until(lambda: {outcome for _, outcome in service.errors} == {"postponed", "failed"})


def test_a_forecast_that_makes_progress_between_outages_is_not_given_up(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every attempt saves one block before an outage ends it, and all take longer than allowed."""
    monkeypatch.setattr(retry, "MAX_DELAY_S", 0.1)
    draw, attempts = SamplerWorker.draw, list[float]()

    async def draw_one(*given: Any) -> Any:
        if not attempts or time.monotonic() - attempts[-1] > 0.3:
            attempts.append(time.monotonic())
            return await draw(*given)
        await asyncio.sleep(0.4)
        raise OUTAGES["disk"]

    monkeypatch.setattr(SamplerWorker, "draw", draw_one)
    job = client.create_forecast("sub-02", samples=4)
    assert list(client.stream_events(job))[-1]["state"] == "succeeded"
    assert attempts[-1] - attempts[0] > LIMIT_S
    assert {outcome for _, outcome in service.errors} == {"postponed"}


@pytest.mark.parametrize("route", ["result", "arms/placebo", "derivative"])
def test_a_result_on_a_disk_that_does_not_answer_is_not_called_gone(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    job = wait_for_success(client, client.create_forecast("sub-01", samples=2, seed=3))
    url = f"{service.url}/v1/forecasts/{job}/{route}"
    with monkeypatch.context() as patch:

        def fail(_: Path) -> bytes:
            raise OUTAGES["stale"]

        patch.setattr(results.Path, "read_bytes", fail)
        problem = assert_problem(httpx2.get(url), 503)
    assert "Stale file handle" in problem["detail"]
    assert SECRET not in problem["detail"]
    assert httpx2.get(url).status_code == 200


def test_what_a_killed_writer_left_is_in_no_derivative(client: Client, service: Service) -> None:
    job = wait_for_success(client, client.create_forecast("sub-01", samples=2, seed=4))
    url = f"{service.url}/v1/forecasts/{job}/derivative"
    whole = httpx2.get(url).content
    anat = next(result_dir(service.settings.artifacts, job).rglob("anat"))
    (anat / f".map.nii.gz.0123{PARTIAL_SUFFIX}").write_bytes(b"a half")
    assert httpx2.get(url).content == whole


def test_an_upload_on_a_disk_that_does_not_answer_is_not_called_broken(
    service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("w000/flair", "w048/flair")
    files = {name: path_of(root / "bids", UNLABELLED, *name.split("/")) for name in names}
    contents = {name: path.read_bytes() for name, path in files.items()}
    with monkeypatch.context() as patch:

        def fail(path: Path) -> bytes:
            raise OSError(errno.EIO, "io", str(path))

        patch.setattr(Path, "read_bytes", fail)
        response = httpx2.post(f"{service.url}/v1/forecasts", files=contents, timeout=60)
    problem = assert_problem(response, 503)
    assert response.headers["Retry-After"] == "1"
    assert "Input/output error" in problem["detail"]
    assert service.problems[-1] == 503


@pytest.mark.parametrize("error", OUTAGES.values(), ids=OUTAGES)
def test_outages_are_transient_at_any_depth(error: Exception) -> None:
    for each in (error, wrapped(error), wrapped(wrapped(error, kind=StoreError))):
        failure = failure_of(each)
        assert failure.transient
        assert failure.reason is not None
        assert SECRET not in failure.reason


@pytest.mark.parametrize("error", REFUSALS.values(), ids=REFUSALS)
def test_refusals_are_permanent_at_any_depth(error: Exception) -> None:
    for each in (error, wrapped(error), wrapped(wrapped(error, kind=StoreError))):
        failure = failure_of(each)
        assert not failure.transient
        assert failure.reason is not None
        assert SECRET not in failure.reason


def test_an_error_about_the_content_of_a_file_is_no_outage() -> None:
    for error in (OSError("Expected 10 bytes, got 5"), ValueError("a bug"), StoreError("corrupt")):
        assert not is_transient(wrapped(error))


def test_an_outage_stays_one_on_the_way_from_a_sampler(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray pickles the error alone, and its cause is lost."""
    store = open_store(root / "store.zarr")
    for name, expected in (("disk", True), ("access", False)):
        error = {**OUTAGES, **REFUSALS}[name]
        failing_reads(monkeypatch, error, times=None)
        with pytest.raises(StoreError) as raised:
            store.read(0)
        monkeypatch.undo()
        arrived = pickle.loads(pickle.dumps(raised.value))
        assert isinstance(arrived, StoreUnavailableError) == expected
        task_error = RayTaskError("draw", "traceback", arrived, "", 1, "127.0.0.1")
        assert is_transient(task_error.as_instanceof_cause()) == expected
    raw = RayTaskError("draw", "traceback", OUTAGES["stale"], "", 1, "127.0.0.1")
    assert failure_of(raw.as_instanceof_cause()).reason == "Stale file handle"
