"""The service behind reverse proxies: nothing that it answers leads a client astray."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from serve.settings import ServiceSettings
from tests.support.forecast import write_bundle, write_store
from tests.support.service import Service, assert_problem, key_line, run_service

KEY = "the key of a"
BEARER = {"Authorization": f"Bearer {KEY}"}
FORWARDED = {
    "Host": "forecasts.hospital.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "elsewhere.example",
    "X-Forwarded-Prefix": "//elsewhere.example",
    "Forwarded": "proto=http;host=elsewhere.example",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proxies")
    write_store(folder / "store.zarr", folder / "bids", test=1)
    write_bundle(folder / "bundle")
    (folder / "keys.txt").write_text(key_line("a", KEY))
    return folder


@pytest.fixture(scope="module")
def service(root: Path) -> Iterator[Service]:
    settings = ServiceSettings(
        bundle=root / "bundle",
        store=root / "store.zarr",
        artifacts=root / "out",
        keys=root / "keys.txt",
    )
    with run_service(settings) as service:
        yield service


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/forecasts/"),
        ("GET", f"/v1/forecasts/{'0' * 32}/"),
        ("DELETE", f"/v1/forecasts/{'0' * 32}/"),
        ("GET", f"/v1/forecasts/{'0' * 32}/events/"),
        ("GET", "/v2/health/live/"),
        ("GET", "/v2/models/lesioncast/"),
        ("GET", "/v2/"),
        ("GET", "/openapi.json/"),
    ],
)
def test_a_slash_too_many_is_404_and_no_redirect(service: Service, method: str, path: str) -> None:
    answer = httpx2.request(method, service.url + path, headers=BEARER | FORWARDED)
    assert_problem(answer, 404)
    assert "location" not in answer.headers
