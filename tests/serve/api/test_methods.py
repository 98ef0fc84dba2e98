"""Methods beside those of the routes: HEAD, OPTIONS, and those that a path lacks."""

from collections.abc import Iterator

import httpx2
import pytest

from serve.client import Client
from serve.settings import ServiceSettings
from tests.support.forecast import SPEC, write_bundle, write_store
from tests.support.service import (
    Service,
    assert_problem,
    key_line,
    run_service,
    wait_for_success,
)

READER, FORECASTER = {"Authorization": "Bearer reader"}, {"Authorization": "Bearer forecaster"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("methods")
    write_store(root / "store.zarr", root / "bids", test=1)
    write_bundle(root / "bundle")
    keys = [key_line("a", "reader", scopes=("read",)), key_line("a", "forecaster")]
    (root / "keys.txt").write_text("".join(keys))
    settings = ServiceSettings(
        bundle=root / "bundle",
        store=root / "store.zarr",
        artifacts=root / "out",
        keys=root / "keys.txt",
    )
    with run_service(settings) as service:
        yield service


@pytest.fixture(scope="module")
def job(service: Service) -> str:
    with Client(service.url, key="forecaster") as client:
        return wait_for_success(client, client.create_forecast("sub-01", samples=2))


def test_head_answers_what_get_does_without_its_body(service: Service, job: str) -> None:
    paths = ["", "/result", f"/arms/{SPEC.arms[0]}", "/derivative"]
    for path in [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2",
        "/v2/models/lesioncast",
        "/openapi.json",
        *(f"/v1/forecasts/{job}{path}" for path in paths),
    ]:
        head = httpx2.head(service.url + path, headers=READER)
        get = httpx2.get(service.url + path, headers=READER)
        assert (head.status_code, head.content) == (get.status_code, b"") == (200, b""), path
        for name in ("content-type", "content-length", "content-disposition"):
            assert head.headers.get(name) == get.headers.get(name), (path, name)
    assert httpx2.head(f"{service.url}/v1/forecasts/{job}").status_code == 401
    assert httpx2.head(f"{service.url}/elsewhere", headers=READER).status_code == 404


def test_head_of_an_event_stream_ends_though_the_forecast_runs(service: Service) -> None:
    service.paused = True
    with Client(service.url, key="forecaster") as client:
        job = client.create_forecast("sub-01", samples=2)
        url = f"{service.url}/v1/forecasts/{job}/events"
        answer = httpx2.head(url, headers=READER, timeout=10)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        client.delete(job)
    service.paused = False


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v2/health/live", "GET, HEAD, OPTIONS"),
        ("/v1/forecasts/{job}", "DELETE, GET, HEAD, OPTIONS"),
        ("/v1/forecasts/{job}/segmentation", "OPTIONS, POST"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
    ],
)
def test_other_methods_are_told_which_there_are(
    service: Service, job: str, path: str, allowed: str
) -> None:
    url = service.url + path.format(job=job)
    for method in ("PUT", "PATCH", "TRACE"):
        answer = httpx2.request(method, url, headers=FORECASTER)
        assert_problem(answer, 405)
        assert answer.headers["Allow"] == allowed
    options = httpx2.options(url, headers=READER)
    assert (options.status_code, options.headers["Allow"]) == (204, allowed)
    assert_problem(httpx2.options(f"{service.url}/elsewhere", headers=READER), 404)
