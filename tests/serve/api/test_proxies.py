"""The service behind reverse proxies: nothing that it answers leads a client astray."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest

from serve.api.app import create_app
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


def settings_in(root: Path, name: str, **given: object) -> ServiceSettings:
    return ServiceSettings(
        bundle=root / "bundle",
        store=root / "store.zarr",
        artifacts=root / name,
        **({"keys": root / "keys.txt"} | given),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def service(root: Path) -> Iterator[Service]:
    with run_service(settings_in(root, "out")) as service:
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


@pytest.fixture(scope="module")
def prefixed(root: Path) -> Iterator[Service]:
    """Run the service behind a proxy that removes the prefix /lesioncast."""
    with run_service(settings_in(root, "prefixed"), root_path="/lesioncast") as service:
        yield service


@pytest.fixture(scope="module")
def demo(root: Path) -> Iterator[Service]:
    with run_service(settings_in(root, "demo", keys=None, demo=True)) as service:
        yield service


def behind_the_proxy(service: Service, link: str) -> str:
    """Return the URL to which a proxy passes a link that it publishes under /lesioncast."""
    assert link.startswith("/lesioncast/v1/forecasts/"), link
    return service.url + link.removeprefix("/lesioncast")


def test_health_needs_no_key_under_a_prefix(prefixed: Service) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert httpx2.get(prefixed.url + path).status_code == 200
    for path in ("/v2", "/openapi.json", "/v1/forecasts/v2/health/live"):
        assert_problem(httpx2.get(prefixed.url + path), 401, "Authorization")


def test_every_link_holds_the_prefix_of_the_server_and_none_of_a_header(prefixed: Service) -> None:
    headers = BEARER | FORWARDED
    request = {"subject": "sub-01", "samples": 2}
    accepted = httpx2.post(f"{prefixed.url}/v1/forecasts", json=request, headers=headers)
    assert accepted.status_code == 202
    url = behind_the_proxy(prefixed, accepted.headers["Location"])
    status = httpx2.get(url, headers=headers).json()
    assert status["links"]["self"] == accepted.headers["Location"]
    events = httpx2.get(behind_the_proxy(prefixed, status["links"]["events"]), headers=headers)
    assert '"self":"/lesioncast/v1/forecasts/' in events.text
    for link in status["links"].values():
        assert httpx2.get(behind_the_proxy(prefixed, link), headers=headers).status_code == 200
    document = httpx2.get(f"{prefixed.url}/openapi.json", headers=headers).json()
    assert document["servers"] == [{"url": "/lesioncast"}]


@pytest.mark.parametrize("root_path", ["/lesioncast", "/lesioncast/", ""])
@pytest.mark.parametrize("in_path", [True, False])
def test_the_prefix_opens_no_route_without_a_key(root_path: str, in_path: bool) -> None:
    """Ask the application as servers do that keep the prefix in the path or leave it out."""
    context = SimpleNamespace(
        settings=ServiceSettings(bundle=Path("bundle"), store=Path("store"), demo=True),
        keys=SimpleNamespace(find=lambda key: None),
        upload=None,
        observer=SimpleNamespace(count_problem=lambda status: None),
    )
    app = create_app(context)  # type: ignore[arg-type]
    transport = httpx2.ASGITransport(app, root_path=root_path)

    async def get(path: str) -> int:
        async with httpx2.AsyncClient(transport=transport, base_url="http://s") as http:
            return (await http.get(path)).status_code

    def ask(path: str) -> int:
        return asyncio.run(get(f"{root_path.rstrip('/')}{path}" if in_path else path))

    assert ask("/v2/health/live") == 200
    assert ask("/v2/health/unknown") == 404
    for path in ("/v2", "/v2/models/lesioncast", f"/v1/forecasts/{'0' * 32}", "/openapi.json"):
        assert ask(path) == 401
        assert ask(f"//v2/health/..{path}") in (401, 404)


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Forwarded-Host"])
def test_demo_mode_refuses_what_a_proxy_forwarded(demo: Service, name: str) -> None:
    assert httpx2.get(f"{demo.url}/v2").status_code == 200
    assert_problem(httpx2.get(f"{demo.url}/v2", headers={name: "127.0.0.1"}), 403)
