"""The event stream over HTTP: resumption, proxies, and how much it asks of the database."""

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, event

from serve.api import status_feed
from serve.api.routes import events
from serve.client import Client
from serve.settings import ServiceSettings
from tests.support.forecast import write_bundle, write_store
from tests.support.service import (
    Service,
    assert_problem,
    key_line,
    run_service,
    wait_for_success,
    wait_until,
)

A, B = ({"Authorization": f"Bearer key of {name}"} for name in "ab")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("events")
    write_store(root / "store.zarr", root / "bids", test=1)
    write_bundle(root / "bundle", lesion_loads=(1, 20))  # so that P(active) has a closed form
    (root / "keys.txt").write_text("".join(key_line(name, f"key of {name}") for name in "ab"))
    settings = ServiceSettings(
        bundle=root / "bundle",
        store=root / "store.zarr",
        artifacts=root / "out",
        keys=root / "keys.txt",
        seeds_per_block=2,
    )
    with run_service(settings) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, key="key of a") as client:
        yield client
    service.reset()


@pytest.fixture
def running(service: Service, client: Client) -> Iterator[str]:
    """Return the id of a forecast that waits for the test."""
    service.paused = True
    job = client.create_forecast("sub-01", samples=4)
    wait_until(lambda: client.status(job)["state"] == "running")
    yield job
    client.delete(job)


def stream(service: Service, job: str, **headers: str) -> Any:
    url = f"{service.url}/v1/forecasts/{job}/events"
    return httpx2.stream("GET", url, headers=A | headers, timeout=20)


def read_events(answer: httpx2.Response) -> list[httpx2.ServerSentEvent]:
    assert answer.status_code == 200
    return list(httpx2.EventSource(answer))


def test_no_proxy_may_hold_back_or_keep_events(service: Service, client: Client) -> None:
    job = wait_for_success(client, client.create_forecast("sub-01", samples=2))
    with stream(service, job) as answer:
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert answer.headers["Cache-Control"] == "no-store"
    for path in ("", "/result", "/derivative"):
        answer = httpx2.get(f"{service.url}/v1/forecasts/{job}{path}", headers=A)
        assert answer.headers["Cache-Control"] == "no-store"


def test_each_event_has_an_id_after_which_the_stream_resumes(
    service: Service, client: Client, running: str
) -> None:
    with stream(service, running) as answer:
        first = next(iter(httpx2.EventSource(answer)))
    assert first.id
    assert first.retry == 1000 * service.settings.retry_after
    seen: list[httpx2.ServerSentEvent] = []

    def follow() -> None:
        with stream(service, running, **{"Last-Event-ID": first.id}) as answer:
            seen.extend(read_events(answer))

    thread = threading.Thread(target=follow)
    thread.start()
    service.paused = False
    thread.join()
    assert seen[-1].event == "succeeded"
    assert first.id not in [each.id for each in seen]
    assert len({each.id for each in seen}) == len(seen)
    with stream(service, running, **{"Last-Event-ID": seen[0].id}) as answer:
        assert [each.id for each in read_events(answer)] in ([seen[-1].id], [])


def test_a_browser_that_has_the_last_event_is_told_not_to_connect_again(
    service: Service, client: Client
) -> None:
    job = wait_for_success(client, client.create_forecast("sub-01", samples=2))
    with stream(service, job) as answer:
        (last,) = read_events(answer)
    with stream(service, job, **{"Last-Event-ID": last.id}) as answer:
        assert answer.status_code == 204
    client.delete(job)
    with stream(service, job, **{"Last-Event-ID": last.id}) as answer:
        assert [each.event for each in read_events(answer)] == ["deleted"]


def test_many_streams_cost_as_many_queries_as_one(service: Service, running: str) -> None:
    def count_for(streams: int) -> int:
        queries: list[str] = []
        kept = []  # an iterator that is dropped closes its stream
        with ExitStack() as stack:
            for _ in range(streams):
                answer = stack.enter_context(stream(service, running))
                kept.append(answer.iter_text())
                next(kept[-1])
            time.sleep(0.3)  # whatever opening them has asked

            def count(*given: Any) -> None:
                queries.append(given[2])

            event.listen(Engine, "before_cursor_execute", count)
            time.sleep(1)
            event.remove(Engine, "before_cursor_execute", count)
        return len(queries)

    none, one, many = count_for(0), count_for(1), count_for(12)
    assert none < one
    assert many < 2 * one + 20


def test_open_streams_are_bounded_for_each_client(
    service: Service, running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_feed, "MAX_FOLLOWERS_PER_CLIENT", 2)
    unknown = f"{service.url}/v1/forecasts/{'0' * 32}/events"
    with stream(service, running), stream(service, running):
        with stream(service, running) as third:
            third.read()
            assert_problem(third, 429)
            assert int(third.headers["Retry-After"]) >= 1
        assert_problem(httpx2.get(unknown, headers=B), 404, "id")  # others have room
    url = f"{service.url}/v1/forecasts/{running}/events"

    def has_room() -> bool:
        with httpx2.stream("GET", url, headers=A, timeout=20) as answer:
            return answer.status_code == 200

    wait_until(has_room)
    monkeypatch.setattr(status_feed, "MAX_FOLLOWERS", 0)
    assert_problem(httpx2.get(url, headers=A), 429)


def test_a_stream_survives_a_database_that_is_away(
    service: Service, client: Client, running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def away(*_: object) -> None:
        failed.set()
        raise ConnectionError("the database is away on purpose")

    with stream(service, running) as answer:
        received = iter(httpx2.EventSource(answer))
        next(received)
        with monkeypatch.context() as patch:
            patch.setattr(status_feed, "read_versions", away)
            assert failed.wait(10)
        service.paused = False
        assert [each.event for each in received][-1] == "succeeded"


def test_the_client_follows_a_forecast_across_ends_of_the_stream(
    service: Service, client: Client, running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_STREAM_S", 0.2)
    asked: list[str | None] = []
    client._http.event_hooks["request"] = [
        lambda request: asked.append(request.headers.get("Last-Event-ID"))
    ]
    statuses = []
    for status in client.stream_events(running):
        statuses.append(json.dumps(status))
        service.budget, service.paused = len(statuses), False
    assert json.loads(statuses[-1])["state"] == "succeeded"
    assert len(set(statuses)) == len(statuses)
    assert asked[0] is None
    assert len(asked) > 1
    assert None not in asked[1:]


def test_a_forecast_that_is_gone_ends_its_stream(
    service: Service, running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stream(service, running) as answer:
        received = iter(httpx2.EventSource(answer))
        next(received)
        monkeypatch.setattr(status_feed, "read_versions", lambda *_: {})
        assert list(received) == []


def test_the_share_of_samples_and_the_exact_probability_have_names_of_their_own(
    service: Service, client: Client, running: str
) -> None:
    service.paused, service.budget = False, 4
    wait_until(lambda: client.status(running)["progress"]["done"] == 8)
    arms = set(client.status(running)["partial"])
    service.budget = 0
    with stream(service, running) as answer:
        status = json.loads(next(iter(httpx2.EventSource(answer))).data)
    assert {"active_fraction", "samples", "count_mean"} == set(status["partial"][min(arms)])
    service.budget = math.inf
    wait_for_success(client, running)
    for arm in client.result(running)["arms"].values():
        share = arm["active_fraction"]
        assert share["low"] <= share["value"] <= share["high"]
        assert share["low"] < share["high"]
        assert 4 * share["value"] == round(4 * share["value"])
        exact = arm["p_active"]
        assert (exact["exact"], exact["low"], exact["high"]) == (True, None, None)
        assert 0 < exact["value"] < 1


def test_a_tolerance_counts_on_the_even_spread_of_a_priors_samples(client: Client) -> None:
    job = wait_for_success(client, client.create_forecast("sub-01", samples=40, tolerance=0.2))
    result = client.result(job)
    assert 2 < result["samples"] < 16  # independent samples need 16 and more, whatever they show
    for arm in result["arms"].values():
        share = arm["active_fraction"]
        assert max(share["value"] - share["low"], share["high"] - share["value"]) <= 0.2
        assert abs(share["value"] - arm["p_active"]["value"]) <= 0.2
