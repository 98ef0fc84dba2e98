"""Who may do what with which key, and what is written of it, without a patient's name."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from ray._common.formatters import JSONFormatter
from sqlalchemy import create_engine, text
from starlette.responses import PlainTextResponse

from lesioncast.forecasting.pipeline import ForecastRun
from serve import keys
from serve.api import middleware
from serve.client import Client
from serve.db import audit
from serve.db.audit import read_entries, verify_chain
from serve.db.repository import JobRepository
from serve.keys import ApiKey, ApiKeyFile, hash_key, read_keys
from serve.settings import ServiceSettings
from storage import Store
from storage.store.case_table import Case
from tests.support.forecast import write_bundle, write_store
from tests.support.service import Service, finished, key_line, refused, running

LAST = date(2030, 1, 31)
ORDER = {"subject": "sub-01", "samples": 2}
KEYS = {
    "reader": key_line("a", "reader", scopes=("read",)),
    "forecaster": key_line("a", "forecaster", scopes=("forecast",)),
    "full": key_line("a", "full"),
    "expiring": key_line("a", "expiring", until=LAST),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("doors")
    write_store(folder / "store.zarr", folder / "bids", test=1)
    write_bundle(folder / "bundle")
    (folder / "keys.txt").write_text("\n".join(KEYS.values()))
    settings = ServiceSettings(
        bundle=folder / "bundle",
        store=folder / "store.zarr",
        artifacts=folder / "out",
        keys=folder / "keys.txt",
    )
    with running(settings) as service:
        yield service


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_may_do_what_its_scopes_say(service: Service) -> None:
    url = f"{service.url}/v1/forecasts"
    problem = refused(httpx2.post(url, json=ORDER, headers=bearer("reader")), 403, "Authorization")
    assert hash_key("reader")[:8] in problem["detail"]
    answer = httpx2.post(url, json=ORDER, headers=bearer("forecaster"))
    assert answer.status_code == 202
    here = service.url + answer.headers["Location"]
    assert httpx2.get(here, headers=bearer("reader")).status_code == 200  # of the same client
    refused(httpx2.get(here, headers=bearer("forecaster")), 403, "Authorization")
    refused(httpx2.delete(here, headers=bearer("reader")), 403, "Authorization")
    files = {"series": ("1.dcm", b"")}
    answer = httpx2.post(f"{here}/segmentation", files=files, headers=bearer("reader"))
    refused(answer, 403, "Authorization")
    assert httpx2.delete(here, headers=bearer("forecaster")).status_code == 204


@pytest.mark.parametrize(
    ("client", "status"),
    [(("127.0.0.1", 1), 200), (("::1", 1), 200), (("10.0.0.1", 1), 403), (("", 1), 403)],
)
def test_demo_mode_answers_clients_of_this_machine_alone(
    client: tuple[str, int], status: int
) -> None:
    inside = middleware.AuthMiddleware(
        PlainTextResponse("inside"), keys=None, max_body=1, max_form=1
    )

    async def ask() -> httpx2.Response:
        transport = httpx2.ASGITransport(inside, client=client)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.get("/v2")

    assert asyncio.run(ask()).status_code == status


def test_a_key_expires_after_its_last_day(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(today: date) -> httpx2.Response:
        now = datetime.combine(today, time.max, UTC)
        monkeypatch.setattr(keys, "datetime", SimpleNamespace(now=lambda _: now))
        return httpx2.get(f"{service.url}/v2", headers=bearer("expiring"))

    assert ask(LAST).status_code == 200
    refused(ask(LAST + timedelta(days=1)), 401, "Authorization")


def test_keys_are_rotated_while_the_service_runs(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    assert service.settings.keys is not None
    before = service.settings.keys.read_text()
    new = key_line("a", "new")
    url = f"{service.url}/v2"
    service.settings.keys.write_text(before + "\n" + new)
    assert httpx2.get(url, headers=bearer("new")).status_code == 200
    assert httpx2.get(url, headers=bearer("reader")).status_code == 200
    service.settings.keys.write_text(new)
    refused(httpx2.get(url, headers=bearer("reader")), 401, "Authorization")
    for torn in ("torn", f"a {'é' * 64} read 2030-01-01"):
        service.settings.keys.write_text(torn)  # what counted before still counts
        assert httpx2.get(url, headers=bearer("new")).status_code == 200
    assert "line 1: expected a name, a sha256" in caplog.text
    service.settings.keys.write_text("")
    refused(httpx2.get(url, headers=bearer("new")), 401, "Authorization")
    service.settings.keys.write_text(before)
    assert httpx2.get(url, headers=bearer("reader")).status_code == 200


def test_a_service_without_a_key_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("\n")
    with pytest.raises(ValueError, match="expected a key or more; make one with"):
        ApiKeyFile(tmp_path / "keys.txt")


def test_keys_that_are_written_as_they_are_read_wait_for_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(key_line("a", "old"))
    known = ApiKeyFile(path)

    def read_and_write(path: Path) -> tuple[ApiKey, ...]:
        read = read_keys(path)
        path.write_text(key_line("a", "new") + key_line("a", "old"))
        return read

    path.write_text(key_line("a", "new"))
    monkeypatch.setattr(keys, "read_keys", read_and_write)
    assert known.find("old") is not None
    monkeypatch.undo()
    assert known.find("old") is not None
    assert known.find("new") is not None


def test_the_command_makes_a_key_that_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert middleware.main(["hospital-a", "--scopes", "read", "--days", "30"]) == 0
    printed = capsys.readouterr()
    key = printed.err.split()[-1]
    assert key not in printed.out
    (tmp_path / "keys.txt").write_text(printed.out)
    found = ApiKeyFile(tmp_path / "keys.txt").find(key)
    assert found is not None
    assert (found.name, found.scopes) == ("hospital-a", ("read",))
    assert found.until == datetime.now(UTC).date() + timedelta(days=30)
    for wrong in (["two words"], ["a", "--scopes", "everything"]):
        with pytest.raises(SystemExit):
            middleware.main(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "a",
        "a b read 2030-01-01",
        key_line("a", "k").replace("read", "x"),
        f"a {'z' * 64} read 2030-01-01",
        f"a {'é' * 64} read 2030-01-01",
        f"a {'0' * 63} read 2030-01-01",
        f"a {'0' * 64} read 2030-01-32",
    ],
)
def test_a_line_that_is_no_key_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(key_line("a", "k", until=date(2030, 1, 1)) + line)
    with pytest.raises(ValueError, match="line 2: expected a name, a sha256"):
        read_keys(path)


def test_the_audit_says_who_asked_and_how_it_ended_but_of_nobody(service: Service) -> None:
    url = service.settings.database_url
    with Client(service.url, key="full") as client:
        job = finished(client, client.create_forecast("sub-01", samples=2))
        client.delete(job)
    records = [json.loads(entry.record) for entry in read_entries(url)]
    mine = [record for record in records if record["forecast"] == job]
    assert [record["event"] for record in mine] == ["accepted", "succeeded", "deleted"]
    assert mine[0]["by"] == mine[2]["by"] == hash_key("full")[:8]
    assert mine[0]["samples"] == 2
    assert len(mine[1]["bundle"]) == 64
    assert all(record["client"] == "a" for record in mine)
    assert "sub-" not in json.dumps(records)
    assert list(verify_chain(read_entries(url))) == []


def test_the_audit_says_how_what_did_not_succeed_ended(service: Service) -> None:
    with Client(service.url, key="full") as client:
        service.held = True
        cancelled = client.create_forecast("sub-01", samples=2)
        client.delete(cancelled)
        service.held, service.broken = False, True
        failed = client.create_forecast("sub-01", samples=2)
        assert list(client.stream_events(failed))[-1]["state"] == "failed"
        service.broken = False
        client.delete(failed)
    records = [json.loads(entry.record) for entry in read_entries(service.settings.database_url)]
    found = {job: [r for r in records if r["forecast"] == job] for job in (cancelled, failed)}
    assert [record["event"] for record in found[cancelled]] == ["accepted", "cancelled"]
    assert found[cancelled][1]["by"] == hash_key("full")[:8]
    assert [record["event"] for record in found[failed]] == ["accepted", "failed", "deleted"]
    assert len(found[failed][1]["bundle"]) == 64
    assert "on purpose" not in json.dumps(records)


def test_no_line_of_the_log_names_a_subject(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(store: Store, case: Case, by_arm: object, run: ForecastRun) -> None:
        raise ValueError(f"{run.out / case.subject / 'ses-w048'}: expected something else")

    with Client(service.url, key="full") as client:
        jobs = [finished(client, client.create_forecast("sub-01", samples=2))]
        monkeypatch.setattr("lesioncast.forecasting.pipeline.write_forecast", fail)
        jobs.append(client.create_forecast("sub-01", samples=2))
        assert list(client.stream_events(jobs[1]))[-1]["state"] == "failed"
        for job in jobs:
            client.delete(job)
    found = [record for record in caplog.records if record.name == "ray.serve"]
    assert {record.message for record in found} == {"accepted", "ended", "failed", "deleted"}
    lines = "\n".join(JSONFormatter().format(record) for record in found)
    assert "/sub-*/ses-w048: expected something else" in lines
    assert "sub-01" not in lines + caplog.text


@pytest.fixture
def chain(tmp_path: Path) -> str:
    """A database in which several threads have written at a time."""
    url = f"sqlite:///{tmp_path / 'forecasts.sqlite'}"
    records = JobRepository(url)
    order = {"arms": ["placebo"], "samples": 2}

    def accept(thread: int) -> None:
        for number in range(5):
            records.enqueue(
                f"{thread}-{number}", "a", order, total=2, block=2, key=None, limit=99, by="key"
            )

    threads = [threading.Thread(target=accept, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return url


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (
            "UPDATE audit SET record = replace(record, '\"a\"', '\"b\"') WHERE number = 7",
            "entry 7: ",
        ),
        ("DELETE FROM audit WHERE number = 7", "entry 7: expected it, got entry 8"),
        ("UPDATE audit SET before = digest WHERE number = 1", "entry 1: "),
        # Every entry agrees with itself then, and with its number:
        (
            "DELETE FROM audit WHERE number = 7;"
            "UPDATE audit SET number = number - 1 WHERE number > 7",
            "entry 7: expected what was written",
        ),
        (
            "UPDATE audit SET record = '{}' WHERE number = 7;"
            "UPDATE audit SET digest = sha256(before || char(10) || record) WHERE number = 7",
            "entry 8: expected what was written",
        ),
    ],
)
def test_what_is_changed_in_the_audit_is_named(
    chain: str, harm: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(read_entries(chain)) == 20
    assert audit.main([chain]) == 0
    assert capsys.readouterr().out.startswith("20 entries, as they were written")
    with create_engine(chain).begin() as connection:
        raw: Any = connection.connection.dbapi_connection
        raw.create_function("sha256", 1, lambda line: hashlib.sha256(line.encode()).hexdigest())
        for each in harm.split(";"):
            connection.execute(text(each))
    assert audit.main([chain]) == 1
    assert capsys.readouterr().out.startswith(found)


def test_the_last_entries_are_missed_beside_a_digest_that_was_kept(chain: str) -> None:
    head = read_entries(chain)[-1].digest
    with create_engine(chain).begin() as connection:
        connection.execute(text("DELETE FROM audit WHERE number > 18"))
    assert list(verify_chain(read_entries(chain))) == []
    assert audit.main([chain, "--head", head]) == 1
    for kept in (read_entries(chain)[-1].digest, read_entries(chain)[3].digest):
        assert audit.main([chain, "--head", kept]) == 0
