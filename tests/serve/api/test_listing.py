"""Lists of forecasts and subjects: pages in a stable order, and nothing of another client."""

import base64
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve.client import Client
from serve.settings import ServiceSettings
from storage import open_store
from tests.support.forecast import write_bundle, write_store
from tests.support.service import Service, assert_problem, key_line, run_service

A, B = ({"Authorization": f"Bearer key of {name}"} for name in "ab")
SUBJECTS = ["sub-01", "sub-02", "sub-03", "sub-04", "sub-05"]
URL = "/v1/forecasts"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listing")
    write_store(folder / "store.zarr", folder / "bids", test=len(SUBJECTS))
    write_bundle(folder / "bundle")
    (folder / "keys.txt").write_text("".join(key_line(name, f"key of {name}") for name in "ab"))
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
        service.paused = True
        yield service
        service.paused = False


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service.url, headers=A, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def jobs(http: httpx2.Client) -> list[str]:
    """Return the ids of seven forecasts of a client, the newest first: the third is cancelled."""
    jobs: list[str] = []
    for number in range(7):
        request = {"subject": SUBJECTS[number % 3], "samples": 2}
        jobs.insert(0, http.post(URL, json=request).json()["id"])
        http.post(URL, json=request, headers=B)
    assert http.delete(f"{URL}/{jobs[2]}").status_code == 204
    return jobs


def pages(http: httpx2.Client, url: str, **params: Any) -> Iterator[dict[str, Any]]:
    while True:
        answer = http.get(url, params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        yield page
        if page["next_cursor"] is None:
            return
        params["cursor"] = page["next_cursor"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 200])
def test_pages_hold_every_own_forecast_once_the_newest_first(
    http: httpx2.Client, jobs: list[str], limit: int
) -> None:
    found = list(pages(http, URL, limit=limit))
    assert all(len(page["forecasts"]) == limit for page in found[:-1])
    listed = [each for page in found for each in page["forecasts"]]
    assert [each["id"] for each in listed] == jobs
    times = [datetime.fromisoformat(each["created"]) for each in listed]
    assert times == sorted(times, reverse=True)
    assert all(time.tzinfo is not None for time in times)


def test_a_forecast_in_a_list_leads_to_its_status(http: httpx2.Client, jobs: list[str]) -> None:
    for listed in http.get(URL).json()["forecasts"]:
        status = http.get(listed["links"]["self"]).json()
        assert status["id"] == listed["id"] in jobs
        assert status["links"] == listed["links"]
        assert (listed["finished"] is None) == (listed["state"] in ("accepted", "running"))


def test_forecasts_are_filtered_by_state_and_subject(http: httpx2.Client, jobs: list[str]) -> None:
    def ids(**params: Any) -> list[str]:
        found = pages(http, URL, limit=2, **params)
        return [each["id"] for page in found for each in page["forecasts"]]

    unfinished = ["running", "accepted"]
    assert ids(state=unfinished) == [job for job in jobs if job != jobs[2]]
    assert ids(state="cancelled") == [jobs[2]]
    assert ids(state=[*unfinished, "cancelled"]) == jobs
    assert ids(state="failed") == []
    assert ids(subject="sub-03") == [jobs[1], jobs[4]]
    assert ids(subject="sub-03", state="cancelled") == []
    for other in ("sub-04", "sub-0", "SUB-03", "%", "sub-0_", "", "\0", '"sub-03"'):
        assert ids(subject=other) == []


def test_no_list_shows_a_forecast_of_another_client(
    service: Service, http: httpx2.Client, jobs: list[str]
) -> None:
    cursor = http.get(URL, params={"limit": 1}).json()["next_cursor"]
    assert_problem(httpx2.get(service.url + URL), 401, "Authorization")
    for params in ({}, {"cursor": cursor}, {"subject": "sub-01"}):
        others = http.get(URL, params=params, headers=B).json()["forecasts"]
        assert others
        assert not {each["id"] for each in others} & set(jobs)


def test_the_client_lists_all_pages(service: Service, jobs: list[str]) -> None:
    with Client(service.url, key="key of a") as client:
        client._http.params = {"limit": 2}
        assert [each["id"] for each in client.list_forecasts()] == jobs
        assert [each["id"] for each in client.list_forecasts(states=["cancelled"])] == [jobs[2]]
        assert len(list(client.list_forecasts(subject="sub-03"))) == 2
        assert [each["subject"] for each in client.list_subjects("-02")] == ["sub-02"]


def test_a_page_stays_where_it_was_when_forecasts_are_added(
    http: httpx2.Client, jobs: list[str]
) -> None:
    first = http.get(URL, params={"limit": 3}).json()
    new = http.post(URL, json={"subject": "sub-05", "samples": 2}).json()["id"]
    rest = http.get(URL, params={"cursor": first["next_cursor"]}).json()
    assert [each["id"] for each in first["forecasts"] + rest["forecasts"]] == jobs
    assert http.get(URL).json()["forecasts"][0]["id"] == new


def test_subjects_are_paged_and_searched(http: httpx2.Client, root: Path) -> None:
    store = open_store(root / "store.zarr")
    every = [case.subject for case in store.cases]
    assert set(SUBJECTS) <= set(every)
    found = list(pages(http, "/v1/subjects", limit=2))
    assert [each["subject"] for page in found for each in page["subjects"]] == sorted(every)
    assert {page["total"] for page in found} == {len(every)}
    one = http.get("/v1/subjects", params={"search": "UB-02"}).json()
    case = store.case("sub-02")
    assert one["subjects"] == [{"subject": "sub-02", "arm": case.arm, "split": case.split}]
    none = http.get("/v1/subjects", params={"search": "nobody"}).json()
    assert none == {"subjects": [], "total": 0, "next_cursor": None}


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": "é"}, "cursor"),
        ({"cursor": ""}, "cursor"),
        ({"cursor": encoded("[1, 2, 3]")}, "cursor"),
        ({"cursor": encoded('[1.0, "\\u0000"]')}, "cursor"),
        ({"cursor": encoded('{"id": 1}')}, "cursor"),
        ({"cursor": "A" * 401}, "cursor"),
    ],
)
def test_a_wrong_parameter_of_a_list_is_named(
    http: httpx2.Client, params: dict[str, Any], field: str
) -> None:
    for url in (URL, "/v1/subjects"):
        assert_problem(http.get(url, params=params), 422, field)


def test_a_wrong_filter_is_named(http: httpx2.Client) -> None:
    assert_problem(http.get(URL, params={"state": "done"}), 422, "state.0")
    assert_problem(http.get(URL, params={"subject": "s" * 65}), 422, "subject")
    assert_problem(http.get("/v1/subjects", params={"search": "s" * 65}), 422, "search")
