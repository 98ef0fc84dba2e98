"""API keys and their scopes, and the audit and the log, which name no patient."""

import asyncio
import base64
import errno
import hashlib
import json
import threading
import time as clock
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from ray._common.formatters import JSONFormatter
from sqlalchemy import create_engine, text
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from lesioncast.forecasting.pipeline import ForecastRun
from serve import keys
from serve.api import middleware
from serve.client import Client
from serve.db import audit, audit_key
from serve.db.audit import read_entries, verify_chain
from serve.db.audit_key import AuditKeyError, read_audit_keys
from serve.db.open import open_repository
from serve.keys import ApiKey, ApiKeyFile, hash_key, read_keys
from serve.settings import ServiceSettings
from storage import Store
from storage.store.case_table import Case
from tests.support.forecast import write_bundle, write_store
from tests.support.service import (
    Service,
    assert_problem,
    key_file,
    key_line,
    new_job,
    open_jobs,
    run_app,
    run_service,
    wait_for_success,
)

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
    folder = tmp_path_factory.mktemp("auth")
    write_store(folder / "store.zarr", folder / "bids", test=1)
    write_bundle(folder / "bundle")
    (folder / "keys.txt").write_text("\n".join(KEYS.values()))
    settings = ServiceSettings(
        bundle=folder / "bundle",
        store=folder / "store.zarr",
        artifacts=folder / "out",
        keys=folder / "keys.txt",
    )
    with run_service(settings) as service:
        yield service


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_may_do_only_what_its_scopes_allow(service: Service) -> None:
    url = f"{service.url}/v1/forecasts"
    problem = assert_problem(
        httpx2.post(url, json=ORDER, headers=bearer("reader")), 403, "Authorization"
    )
    assert hash_key("reader")[:8] in problem["detail"]
    answer = httpx2.post(url, json=ORDER, headers=bearer("forecaster"))
    assert answer.status_code == 202
    forecast_url = service.url + answer.headers["Location"]
    # Both keys belong to the same client.
    assert httpx2.get(forecast_url, headers=bearer("reader")).status_code == 200
    assert_problem(httpx2.get(forecast_url, headers=bearer("forecaster")), 403, "Authorization")
    assert_problem(httpx2.delete(forecast_url, headers=bearer("reader")), 403, "Authorization")
    files = {"series": ("1.dcm", b"")}
    answer = httpx2.post(f"{forecast_url}/segmentation", files=files, headers=bearer("reader"))
    assert_problem(answer, 403, "Authorization")
    assert httpx2.delete(forecast_url, headers=bearer("forecaster")).status_code == 204


@pytest.mark.parametrize(
    ("client", "status"),
    [(("127.0.0.1", 1), 200), (("::1", 1), 200), (("10.0.0.1", 1), 403), (("", 1), 403)],
)
def test_demo_mode_answers_only_loopback_clients(client: tuple[str, int], status: int) -> None:
    inside = middleware.AuthMiddleware(PlainTextResponse("inside"), keys=None)

    async def ask() -> httpx2.Response:
        transport = httpx2.ASGITransport(inside, client=client)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.get("/v2")

    assert asyncio.run(ask()).status_code == status


@pytest.mark.parametrize("with_keys", [True, False])
def test_websocket_is_refused_even_with_a_route_and_a_key(
    service: Service, with_keys: bool
) -> None:
    """A route that somebody adds later, behind a real server that can speak WebSocket."""

    async def greet(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("inside")

    assert service.settings.keys is not None
    key_file = ApiKeyFile(service.settings.keys) if with_keys else None
    inside = Starlette(
        routes=[WebSocketRoute("/v2/health/ws", greet), WebSocketRoute("/ws", greet)]
    )
    with run_app(middleware.AuthMiddleware(inside, keys=key_file), ws="websockets-sansio") as url:
        for path in ("/ws", "/v2/health/ws"):
            upgrade = {
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
            }
            with httpx2.stream("GET", url + path, headers=upgrade | bearer("full")) as answer:
                assert answer.status_code == 403


def test_a_key_expires_after_its_last_day(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(today: date) -> httpx2.Response:
        now = datetime.combine(today, time.max, UTC)
        monkeypatch.setattr(keys, "datetime", SimpleNamespace(now=lambda _: now))
        return httpx2.get(f"{service.url}/v2", headers=bearer("expiring"))

    assert ask(LAST).status_code == 200
    assert_problem(ask(LAST + timedelta(days=1)), 401, "Authorization")


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
    assert_problem(httpx2.get(url, headers=bearer("reader")), 401, "Authorization")
    for torn in ("torn", f"a {'é' * 64} read 2030-01-01"):
        service.settings.keys.write_text(torn)  # what counted before still counts
        assert httpx2.get(url, headers=bearer("new")).status_code == 200
    assert "line 1: expected a name, a sha256" in caplog.text
    service.settings.keys.write_text("")
    assert_problem(httpx2.get(url, headers=bearer("new")), 401, "Authorization")
    service.settings.keys.write_text(before)
    assert httpx2.get(url, headers=bearer("reader")).status_code == 200


def test_revoked_key_is_refused_once_the_changed_file_can_be_read(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk fails once, just after the file has changed and long before the next change."""
    assert service.settings.keys is not None
    url, path = f"{service.url}/v2", service.settings.keys
    before = path.read_text()

    def fail(path: Path) -> tuple[ApiKey, ...]:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(keys, "_TIME_STAMP_STEP_S", -1.0)  # the file counts as old at once
    try:
        path.write_text(before.replace(KEYS["expiring"], ""))
        with monkeypatch.context() as patch:
            patch.setattr(keys, "read_keys", fail)
            for _ in range(2):  # the log does not grow with each request
                assert httpx2.get(url, headers=bearer("expiring")).status_code == 200
                assert caplog.messages.count("keys.reload_failed") == 1
        assert_problem(httpx2.get(url, headers=bearer("expiring")), 401, "Authorization")
        assert httpx2.get(url, headers=bearer("reader")).status_code == 200
    finally:
        path.write_text(before)


def test_a_service_without_a_key_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("\n")
    with pytest.raises(ValueError, match="expected at least one key, got an empty file; add one"):
        ApiKeyFile(tmp_path / "keys.txt")


def test_a_key_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(key_line("a", "old"))
    key_file = ApiKeyFile(path)

    def read_and_write(path: Path) -> tuple[ApiKey, ...]:
        read = read_keys(path)
        path.write_text(key_line("a", "new") + key_line("a", "old"))
        return read

    path.write_text(key_line("a", "new"))
    monkeypatch.setattr(keys, "read_keys", read_and_write)
    assert key_file.find("old") is not None
    monkeypatch.undo()
    assert key_file.find("old") is not None
    assert key_file.find("new") is not None


def test_a_key_from_the_command_line_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys.main(["create", "hospital-a", "--scopes", "read", "--days", "30"]) == 0
    printed = capsys.readouterr()
    key = printed.err.split()[-1]
    assert key not in printed.out
    (tmp_path / "keys.txt").write_text(printed.out)
    entry = ApiKeyFile(tmp_path / "keys.txt").find(key)
    assert entry is not None
    assert (entry.name, entry.scopes) == ("hospital-a", ("read",))
    assert entry.until == datetime.now(UTC).date() + timedelta(days=30)
    for wrong in (["two words"], ["a", "--scopes", "everything"]):
        with pytest.raises(SystemExit):
            keys.main(["create", *wrong])


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
def test_an_invalid_line_of_the_key_file_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(key_line("a", "k", until=date(2030, 1, 1)) + line)
    with pytest.raises(ValueError, match="line 2: expected a name, a sha256"):
        read_keys(path)


def test_key_file_with_byte_order_marks_and_windows_line_ends_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    lines = [key_line(name, f"key of {name}").strip() for name in ("a", "b")]
    path.write_bytes("".join(f"\ufeff{line}\r\n" for line in lines).encode())
    assert [key.name for key in read_keys(path)] == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_key_file_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes(key_line("h\u00f4pital", "k").encode(encoding))
    with pytest.raises(
        ValueError, match=r"keys\.txt: expected UTF-8 text, got .*; save it as UTF-8"
    ):
        read_keys(path)


def test_key_revoked_within_one_step_of_the_clock_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lines of one length are swapped in place, and the time stamps are whole seconds."""
    path = tmp_path / "keys.txt"
    precise = keys._file_signature

    def whole_seconds(path: Path) -> tuple[int, int, int, int]:
        inode, size, *times = precise(path)
        modified, changed = (ns // 10**9 * 10**9 for ns in times)
        return inode, size, modified, changed

    monkeypatch.setattr(keys, "_file_signature", whole_seconds)
    clock.sleep(1 - clock.time() % 1)  # the next lines take less than the second that now begins
    path.write_text(key_line("a", "old"))
    file = ApiKeyFile(path)
    assert file.find("old") is not None
    path.write_text(key_line("a", "new"))
    assert file.find("old") is None
    assert file.find("new") is not None


def test_the_audit_records_client_and_outcome_without_the_patient(service: Service) -> None:
    url = service.settings.database_url
    with Client(service.url, key="full") as client:
        job = wait_for_success(client, client.create_forecast("sub-01", samples=2))
        client.delete(job)
    records = [json.loads(entry.record) for entry in read_entries(url)]
    mine = [record for record in records if record["forecast"] == job]
    assert [record["event"] for record in mine] == ["accepted", "succeeded", "deleted"]
    assert mine[0]["by"] == mine[2]["by"] == hash_key("full")[:8]
    assert mine[0]["samples"] == 2
    assert len(mine[1]["bundle"]) == 64
    assert all(record["client"] == "a" for record in mine)
    assert "sub-" not in json.dumps(records)
    keys_of_audit = read_audit_keys(service.settings.audit_key_path)
    assert list(verify_chain(read_entries(url), keys_of_audit)) == []


def test_the_audit_records_cancelled_and_failed_forecasts(service: Service) -> None:
    with Client(service.url, key="full") as client:
        service.paused = True
        cancelled = client.create_forecast("sub-01", samples=2)
        client.delete(cancelled)
        service.paused, service.fail_draws = False, True
        failed = client.create_forecast("sub-01", samples=2)
        assert list(client.stream_events(failed))[-1]["state"] == "failed"
        service.fail_draws = False
        client.delete(failed)
    records = [json.loads(entry.record) for entry in read_entries(service.settings.database_url)]
    by_job = {job: [r for r in records if r["forecast"] == job] for job in (cancelled, failed)}
    assert [record["event"] for record in by_job[cancelled]] == ["accepted", "cancelled"]
    assert by_job[cancelled][1]["by"] == hash_key("full")[:8]
    assert [record["event"] for record in by_job[failed]] == ["accepted", "failed", "deleted"]
    assert len(by_job[failed][1]["bundle"]) == 64
    assert "on purpose" not in json.dumps(records)


def test_no_line_of_the_log_names_a_subject(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(store: Store, case: Case, by_arm: object, run: ForecastRun) -> None:
        raise ValueError(f"{run.out / case.subject / 'ses-w048'}: expected something else")

    # Ray's own level is WARNING once a cluster was started in this process.
    with caplog.at_level("INFO", "ray.serve"), Client(service.url, key="full") as client:
        jobs = [wait_for_success(client, client.create_forecast("sub-01", samples=2))]
        monkeypatch.setattr("lesioncast.forecasting.pipeline.write_forecast", fail)
        jobs.append(client.create_forecast("sub-01", samples=2))
        assert list(client.stream_events(jobs[1]))[-1]["state"] == "failed"
        for job in jobs:
            client.delete(job)
    log_records = [record for record in caplog.records if record.name == "ray.serve"]
    # Ray Serve writes lines of its own, to the same log, if it was started in this process.
    ours = [record for record in log_records if getattr(record, "forecast", None) in jobs]
    assert {record.message for record in ours} == {
        "forecast.accepted",
        "forecast.finished",
        "forecast.failed",
        "forecast.deleted",
    }
    lines = "\n".join(JSONFormatter().format(record) for record in log_records)
    assert "/sub-*/ses-w048: expected something else" in lines
    assert "sub-01" not in lines + caplog.text


@pytest.fixture
def chain(tmp_path: Path) -> str:
    """Return a database that several threads have written to at the same time."""
    url = f"sqlite:///{tmp_path / 'forecasts.sqlite'}"
    records = open_jobs(url)

    def accept(thread: int) -> None:
        for number in range(5):
            records.enqueue(new_job(f"{thread}-{number}"), limit=99)

    threads = [threading.Thread(target=accept, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return url


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (
            "UPDATE audit SET record = replace(record, '\"a\"', '\"b\"') WHERE sequence = 7",
            "entry 7 was changed",
        ),
        (
            "DELETE FROM audit WHERE sequence = 7",
            "entry 7 is missing: expected it next, got entry 8",
        ),
        ("UPDATE audit SET previous_digest = digest WHERE sequence = 1", "entry 1 was changed"),
        # Every entry agrees with itself then, and with its number:
        (
            "DELETE FROM audit WHERE sequence = 7;"
            "UPDATE audit SET sequence = sequence - 1 WHERE sequence > 7",
            "entry 7 was changed",
        ),
        # Who has no key writes the chain anew with plain hashes, from the seventh entry to the end:
        (
            "UPDATE audit SET record = replace(record, '\"a\"', '\"b\"') WHERE sequence = 7;"
            + ";".join(
                "UPDATE audit SET digest = sha256(previous_digest || char(10) || record) "
                f"WHERE sequence = {number};"
                "UPDATE audit SET previous_digest = (SELECT digest FROM audit "
                f"WHERE sequence = {number}) WHERE sequence = {number + 1}"
                for number in range(7, 21)
            ),
            "entry 7 was changed",
        ),
        ("UPDATE audit SET key_id = '00000000' WHERE sequence = 7", "entry 7 cannot be verified"),
        # A record that says that the beginning was removed must be signed too:
        (
            "DELETE FROM audit WHERE sequence < 7;"
            "UPDATE audit SET record = json_object('event', 'audit_pruned', 'through', 6, "
            "'digest', (SELECT previous_digest FROM audit WHERE sequence = 7)) "
            "WHERE sequence = 20",
            "entry 1 is missing: expected it next, got entry 7",
        ),
    ],
)
def test_tampering_with_the_audit_is_detected(
    chain: str, tmp_path: Path, statements: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [chain, "--key", str(key_file(tmp_path))]
    assert len(read_entries(chain)) == 20
    assert audit.main(command) == 0
    assert capsys.readouterr().out.startswith("20 entries, as they were written")
    with create_engine(chain).begin() as connection:
        raw: Any = connection.connection.dbapi_connection
        raw.create_function("sha256", 1, lambda line: hashlib.sha256(line.encode()).hexdigest())
        for statement in statements.split(";"):
            connection.execute(text(statement))
    assert audit.main(command) == 1
    assert capsys.readouterr().out.startswith(message)


def test_missing_last_entries_are_detected_with_a_known_digest(chain: str, tmp_path: Path) -> None:
    command = [chain, "--key", str(key_file(tmp_path))]
    head = read_entries(chain)[-1].digest
    with create_engine(chain).begin() as connection:
        connection.execute(text("DELETE FROM audit WHERE sequence > 18"))
    assert audit.main(command) == 0  # a missing end does not show by itself
    assert audit.main([*command, "--head", head]) == 1
    for kept in (read_entries(chain)[-1].digest, read_entries(chain)[3].digest):
        assert audit.main([*command, "--head", kept]) == 0


def test_audit_key_is_rotated_and_lost_keys_are_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ServiceSettings(
        bundle=tmp_path, store=tmp_path, artifacts=tmp_path / "out", demo=True
    )
    path = settings.audit_key_path
    with closing(open_repository(settings)) as jobs:
        jobs.enqueue(new_job("0" * 32), limit=9)
    first = path.read_text()
    assert audit_key.main([str(path)]) == 0
    with closing(open_repository(settings)) as jobs:
        jobs.enqueue(new_job("1" * 32), limit=9)
    entries = read_entries(settings.database_url)
    assert len({entry.key_id for entry in entries}) == 2
    assert f"{entries[1].key_id} signs from now on" in capsys.readouterr().out
    command = [settings.database_url, "--key", str(path)]
    assert audit.main(command) == 0
    path.write_text(first)  # the newer key is lost
    assert audit.main(command) == 1
    assert "entry 2 cannot be verified: expected the key" in capsys.readouterr().out
    path.unlink()
    with pytest.raises(AuditKeyError, match="expected the key that signed the audit"):
        open_repository(settings)
    assert audit.main(command) == 1
    assert "restore it, or make one" in capsys.readouterr().err
    assert audit_key.main([str(path)]) == 0  # a deliberate new beginning
    open_repository(settings).close()


def test_audit_key_of_a_secret_is_only_read(tmp_path: Path) -> None:
    """Kubernetes mounts secrets read-only, as links to files that the pod's group can read."""
    key_file(tmp_path).rename(tmp_path / "data")
    (tmp_path / "data").chmod(0o440)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "audit.key").symlink_to(tmp_path / "data")
    before = secret.stat().st_mtime_ns
    settings = ServiceSettings(
        bundle=tmp_path,
        store=tmp_path,
        artifacts=tmp_path / "out",
        demo=True,
        audit_key=secret / "audit.key",
    )
    open_repository(settings).close()
    assert secret.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        ("0" * 64, 0o644, "only its owner and group can read, got mode 0644; run chmod 600"),
        ("0" * 63, 0o600, "line 1: expected 64 hexadecimal digits"),
        ("\n", 0o600, "expected a key, got an empty file"),
        ("\xff", 0o600, "expected a file of audit keys, got .*UTF-8"),
    ],
)
def test_audit_key_file_that_cannot_be_trusted_is_refused(
    tmp_path: Path, content: str, mode: int, sentence: str
) -> None:
    path = tmp_path / "audit.key"
    path.write_bytes(content.encode("latin-1"))
    path.chmod(mode)
    settings = ServiceSettings(
        bundle=tmp_path, store=tmp_path, artifacts=tmp_path / "out", demo=True, audit_key=path
    )
    with pytest.raises(AuditKeyError, match=sentence):
        open_repository(settings)
