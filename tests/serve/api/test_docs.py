"""The description of the API at /docs, over HTTP: complete, offline, and in demo mode alone."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx2
import pytest

from serve.settings import ServiceSettings
from tests.support.forecast import write_bundle, write_store
from tests.support.service import Service, assert_problem, key_line, run_service

KEY = {"Authorization": "Bearer key"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    write_store(folder / "store.zarr", folder / "bids", test=1)
    write_bundle(folder / "bundle")
    (folder / "keys.txt").write_text(key_line("a", "key"))
    return folder


def settings_in(root: Path, name: str, **given: object) -> ServiceSettings:
    folders = {"bundle": root / "bundle", "store": root / "store.zarr", "artifacts": root / name}
    return ServiceSettings(**folders, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def demo(root: Path) -> Iterator[Service]:
    """Run a service behind a proxy that removes the prefix /lesioncast."""
    with run_service(settings_in(root, "demo", demo=True), root_path="/lesioncast") as service:
        yield service


def test_every_operation_and_schema_is_on_the_page(demo: Service) -> None:
    page = httpx2.get(f"{demo.url}/docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    document = httpx2.get(f"{demo.url}/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f"<h2><code>{method.upper()} {path}</code></h2>" in page.text
            assert f'id="{operation["operationId"]}"' in page.text
    for name in document["components"]["schemas"]:
        assert f'<section id="{name}">' in page.text
    ids = set(re.findall(r'id="([^"]+)"', page.text))
    assert set(re.findall(r'href="#([^"]+)"', page.text)) <= ids


def test_the_page_needs_no_script_and_no_other_server(demo: Service) -> None:
    page = httpx2.get(f"{demo.url}/docs")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "<script" not in page.text
    assert not re.search(r" (style|on[a-z]+)=", page.text)
    links = set(re.findall(r'(?:src|href)="([^#"][^"]*)"', page.text))
    assert links == {"/lesioncast/page/docs.css", "/lesioncast/openapi.json"}
    for link in links:
        assert httpx2.get(urljoin(demo.url, link.removeprefix("/lesioncast"))).status_code == 200


def test_with_keys_there_is_no_such_page(root: Path) -> None:
    with run_service(settings_in(root, "keys", keys=root / "keys.txt")) as service:
        assert_problem(httpx2.get(f"{service.url}/docs"), 401, "Authorization")
        assert_problem(httpx2.get(f"{service.url}/docs", headers=KEY), 404)
