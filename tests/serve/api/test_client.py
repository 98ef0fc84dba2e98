"""The client before gateways that answer in their own way, close streams and redirect."""

import json
import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest

from serve import client as client_module
from serve.client import ApiError, Client
from serve.retry_after import DEFAULT_WAIT_S, MAX_WAIT_S, MIN_WAIT_S, retry_after_seconds

JOB = "0" * 32
Answer = Callable[[httpx2.Request], httpx2.Response]


def client_before(answers: list[httpx2.Response], asked: list[httpx2.Request]) -> Client:
    """Return a client of a gateway that gives these answers, and the last one ever after."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return answers[min(len(asked), len(answers)) - 1]

    client = Client("http://service")
    client._http = httpx2.Client(base_url="http://s", transport=httpx2.MockTransport(answer))
    return client


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Let the client's clock go on while it sleeps, in no time."""
    seconds: list[float] = []
    began = time.monotonic()
    monkeypatch.setattr(client_module.time, "sleep", seconds.append)
    monkeypatch.setattr(client_module.time, "monotonic", lambda: began + sum(seconds))
    return seconds


def date_in(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Retry-After", "1")],
        [("Retry-After", "1"), ("Retry-After", "2")],
        [("Retry-After", "0")],
        [("Retry-After", "-5")],
        [("Retry-After", "1.5")],
        [("Retry-After", "soon")],
        [("Retry-After", "nan")],
        [("Retry-After", "")],
        [("Retry-After", date_in(20))],
        [("Retry-After", date_in(-3600))],
    ],
)
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_service_is_asked_again_with_the_same_key(
    slept: list[float], status: int, headers: list[tuple[str, str]]
) -> None:
    asked: list[httpx2.Request] = []
    busy = httpx2.Response(status, headers=headers, text="Too Many Requests")
    client = client_before([busy, busy, httpx2.Response(202, json={"id": JOB})], asked)
    assert client.create_forecast("sub-01") == JOB
    assert len(asked) == 3
    assert len({request.headers["Idempotency-Key"] for request in asked}) == 1
    assert len(slept) == 2
    assert all(MIN_WAIT_S <= seconds <= 21 for seconds in slept)


# Names of cases without the time of day: every process must collect the same names.
@pytest.mark.parametrize(
    "value",
    ["86400", "1e400", "9" * 400, date_in(1e6)],
    ids=["a day", "infinite", "many digits", "a date"],
)
def test_a_wait_beyond_the_patience_is_an_error_at_once(slept: list[float], value: str) -> None:
    asked: list[httpx2.Request] = []
    busy = httpx2.Response(429, headers={"Retry-After": value}, text="later")
    with pytest.raises(ApiError, match="429") as raised:
        client_before([busy], asked).create_forecast("sub-01", patience=60)
    assert (len(asked), slept) == (1, [])
    assert 60 < raised.value.retry_after_s <= MAX_WAIT_S


def test_a_service_that_stays_busy_is_given_up_within_the_patience(slept: list[float]) -> None:
    with pytest.raises(ApiError, match="503"):
        client_before([httpx2.Response(503)], []).create_forecast("sub-01", patience=10)
    assert 8 < sum(slept) <= 10


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, DEFAULT_WAIT_S), ("7", 7), ("3, 9", 9), ("inf", MAX_WAIT_S), ("x, 2", 2)],
)
def test_retry_after_is_read_in_every_form(value: str | None, seconds: float) -> None:
    assert retry_after_seconds(value) == seconds
    assert math.isclose(retry_after_seconds(date_in(100)), 100, abs_tol=2)


def events(*states: str) -> httpx2.Response:
    text = "".join(
        f"id: {state}\nevent: e\ndata: {json.dumps({'id': JOB, 'state': state})}\n\n"
        for state in states
    )
    return httpx2.Response(200, text=text, headers={"Content-Type": "text/event-stream"})


def test_a_stream_that_a_gateway_ends_is_continued(slept: list[float]) -> None:
    asked: list[httpx2.Request] = []
    cut_off = httpx2.Response(
        200, text='id: half\ndata: {"id": "', headers={"Content-Type": "text/event-stream"}
    )
    bad_gateway = httpx2.Response(502, text="Bad Gateway")
    answers = [events("accepted", "running"), events(), bad_gateway, cut_off, events("succeeded")]
    seen = [status["state"] for status in client_before(answers, asked).stream_events(JOB)]
    assert seen == ["accepted", "running", "succeeded"]
    sent = [request.headers.get("Last-Event-ID") for request in asked]
    assert sent == [None, *["running"] * 4]
    assert len(slept) == 4


def test_a_stream_that_cannot_be_continued_is_an_error(slept: list[float]) -> None:
    gone = client_before([events("running"), httpx2.Response(404, text="gone")], [])
    with pytest.raises(ApiError, match="404"):
        list(gone.stream_events(JOB))
    away = client_before([events("running"), httpx2.Response(503, text="away")], [])
    with pytest.raises(ApiError, match="503"):
        list(away.stream_events(JOB, patience=10))
    assert sum(slept) <= 12
    page = httpx2.Response(200, text="<html>", headers={"Content-Type": "text/html"})
    with pytest.raises(httpx2.SSEError, match="text/event-stream"):
        list(client_before([page], []).stream_events(JOB))


def test_a_redirect_is_an_error_that_names_its_target(slept: list[float]) -> None:
    moved = httpx2.Response(301, headers={"Location": "https://service/v1/forecasts"})
    with pytest.raises(ApiError, match="got a redirect to https://service/v1/forecasts; give"):
        client_before([moved], []).create_forecast("sub-01")


def test_a_problem_with_a_charset_is_read_as_one(slept: list[float]) -> None:
    problem = {"status": 404, "title": "Not Found", "detail": "No forecast has this id."}
    answer = httpx2.Response(
        404,
        content=json.dumps(problem),
        headers={"Content-Type": "application/problem+json; charset=utf-8"},
    )
    with pytest.raises(ApiError, match="404 Not Found: No forecast has this id"):
        client_before([answer], []).status(JOB)
