"""The database: its schema has a version, and a database of another version is refused."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from serve.db import audit
from serve.db.repository import IdempotencyConflictError
from serve.db.schema import SCHEMA_VERSION, DatabaseSchemaError
from tests.support.service import key_file, new_job, open_jobs

OLD_TABLES = (
    "CREATE TABLE jobs (id VARCHAR PRIMARY KEY, owner VARCHAR, 'order' JSON, block INTEGER)",
    "CREATE TABLE drawn (job VARCHAR, first INTEGER, packed BLOB, width INTEGER)",
    "CREATE TABLE audit (number INTEGER PRIMARY KEY, record VARCHAR, before VARCHAR)",
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'forecasts.sqlite'}"


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def test_tables_and_columns_have_the_documented_names(url: str) -> None:
    open_jobs(url).close()
    engine = create_engine(url)
    tables = inspect(engine)
    assert set(tables.get_table_names()) == {"audit", "blocks", "jobs", "schema_version"}
    names = {
        table: {c["name"] for c in tables.get_columns(table)} for table in tables.get_table_names()
    }
    engine.dispose()
    assert names["blocks"] >= {"first_seed_index", "masks_zlib", "mask_width"}
    assert names["audit"] == {"sequence", "record", "previous_digest", "digest", "key_id"}
    assert "idempotency_key" not in names["jobs"]


def test_a_database_without_a_version_is_refused(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(url, *OLD_TABLES)
    message = f"expected a database of schema {SCHEMA_VERSION}, got schema 1.*move it away"
    with pytest.raises(DatabaseSchemaError, match=message):
        open_jobs(url)
    assert audit.main([url, "--key", str(key_file(tmp_path))]) == 1
    assert "got schema 1" in capsys.readouterr().err


def test_a_database_of_a_later_version_is_refused(url: str) -> None:
    open_jobs(url).close()
    execute(url, f"UPDATE schema_version SET version = {SCHEMA_VERSION + 1}")
    with pytest.raises(DatabaseSchemaError, match=f"got schema {SCHEMA_VERSION + 1}"):
        open_jobs(url)


def test_several_processes_may_create_the_tables_at_once(url: str) -> None:
    errors: list[Exception] = []

    def open_and_close() -> None:
        try:
            open_jobs(url).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_and_close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    execute(url, f"DELETE FROM schema_version WHERE version = {SCHEMA_VERSION}")


def test_a_stored_request_is_read_back_as_it_was(url: str) -> None:
    jobs = open_jobs(url)
    new = new_job("a" * 32, idempotency_key="once")
    jobs.enqueue(new, limit=9)
    job = jobs.get(new.id)
    assert job is not None
    assert job.request == new.request
    assert job.total == new.total == 2
    assert jobs.enqueue(new_job("b" * 32, idempotency_key="once"), limit=9).id == new.id
    other = new_job("c" * 32, idempotency_key="once")
    changed = other.request.model_copy(update={"seed": 1})
    with pytest.raises(IdempotencyConflictError):
        jobs.enqueue(
            type(other)(other.id, other.owner, changed, 2, "key", other.idempotency_key), limit=9
        )
    jobs.close()
