"""The database on a private PostgreSQL server; skipped if PostgreSQL is not installed."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from serve.client import ApiError, Client
from serve.db.audit import read_entries, verify_chain
from serve.db.listing import JobQuery, list_jobs, read_versions
from serve.db.repository import QueueFullError
from serve.settings import ServiceSettings
from tests.serve.database.guide import guide_commands, run_commands
from tests.support.forecast import write_bundle, write_store
from tests.support.service import (
    AUDIT_KEYS,
    assert_problem,
    key_file,
    key_line,
    new_job,
    open_jobs,
    run_service,
    wait_for_success,
    wait_until,
)

pytestmark = pytest.mark.slow


def programs() -> Path:
    """Return the folder of the newest server's programs."""
    folders = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))[::-1]
    if not folders:
        pytest.skip("no PostgreSQL here, so that nothing is shown of it: apt install postgresql")
    return folders[0]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Start a server, which refuses to run as root, and return the URL of its database."""
    folder, bin_folder = Path(tempfile.mkdtemp()), programs()
    root = os.geteuid() == 0
    user = "nobody" if root else pwd.getpwuid(os.geteuid()).pw_name
    if root:
        shutil.chown(folder, user)

    def run(program: str, *arguments: str) -> None:
        command = [str(bin_folder / program), "-D", str(folder / "data"), *arguments]
        done = subprocess.run(
            command, cwd=folder, user=user if root else None, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    try:
        run("initdb", "--auth=trust", "--username=lesioncast", "--encoding=UTF8", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "--log", str(folder / "log"), "--wait", "--options", options, "start")
        try:
            yield f"postgresql+psycopg://lesioncast@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "--mode=fast", "stop")
    finally:
        shutil.rmtree(folder)


def test_concurrent_writers_keep_one_audit_chain_and_one_job_per_key(url: str) -> None:
    named: list[str] = []

    def accept(thread: int) -> None:
        records = open_jobs(url)
        for number in range(5):
            for job, key in ((f"{thread}-{number}", None), (f"{thread}-{number}-key", "one")):
                done = records.enqueue(new_job(job, idempotency_key=key), limit=99)
                named.extend([done.id] if key else [])
        records.close()

    threads = [threading.Thread(target=accept, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries, records = read_entries(url), open_jobs(url)
    assert len(entries) == 21
    assert list(verify_chain(entries, AUDIT_KEYS)) == []
    assert len(named) == 20
    assert len(set(named)) == 1
    assert {job.request.seed for job in records.unfinished()} == {2**63 - 1}
    with pytest.raises(QueueFullError):
        records.enqueue(new_job("more"), limit=21)
    for job in records.unfinished():
        assert records.finish(job.id, "cancelled")
        assert not records.finish(job.id, "succeeded")
    records.close()


def test_an_id_that_postgresql_cannot_store_is_404(url: str, tmp_path: Path) -> None:
    with run_service(settings_in(tmp_path, url)) as service:
        assert_problem(httpx2.get(f"{service.url}/v1/forecasts/%00"), 404, "id")


def settings_in(folder: Path, url: str) -> ServiceSettings:
    write_store(folder / "store.zarr", folder / "bids", test=2)
    write_bundle(folder / "bundle")
    return ServiceSettings(
        bundle=folder / "bundle",
        store=folder / "store.zarr",
        artifacts=folder / "out",
        database=url,
        audit_key=key_file(folder),  # of the entries that earlier tests have written
        demo=True,
        seeds_per_block=2,
    )


def test_a_service_on_postgresql_continues_after_a_restart(url: str, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, url)
    with run_service(settings) as first, Client(first.url) as client:
        whole = client.result(wait_for_success(client, client.create_forecast("sub-02", samples=4)))
        first.budget = 3
        job = client.create_forecast("sub-02", samples=4)
        wait_until(lambda: client.status(job)["progress"] == {"done": 6, "total": 12})
    with run_service(settings) as second, Client(second.url) as client:
        assert client.result(wait_for_success(client, job)) == whole
        assert len(second.drawn) == 3
    assert list(verify_chain(read_entries(url), AUDIT_KEYS)) == []


def test_restored_postgresql_continues_what_was_unfinished(url: str, tmp_path: Path) -> None:
    """The backup and the restore of the operator's guide, with a deletion in between."""
    settings = settings_in(tmp_path, url)
    keys = tmp_path / "keys.txt"
    keys.write_text(key_line("hospital", "secret"))
    assert settings.audit_key is not None
    places = {
        "ARTIFACTS": settings.artifacts,
        "BACKUP": tmp_path / "backup",
        "KEYS": keys,
        "AUDIT_KEY": settings.audit_key,
        "DATABASE": url.replace("+psycopg", ""),
    }
    with run_service(settings) as first, Client(first.url) as client:
        done = wait_for_success(client, client.create_forecast("sub-02", samples=4))
        whole = client.result(done)
        first.budget = 3
        job = client.create_forecast("sub-02", samples=4)
        wait_until(lambda: client.status(job)["progress"] == {"done": 6, "total": 12})
        run_commands(guide_commands("Backup", without="sqlite3.connect"), places, path=programs())
        client.delete(done)
        lost = client.create_forecast("sub-01", samples=2)
    shutil.rmtree(settings.artifacts)
    copied = guide_commands("Restore", without='"$BACKUP/forecasts.sqlite"')
    run_commands(copied, places, path=programs())
    with run_service(settings) as second, Client(second.url) as client:
        assert client.result(done) == whole  # deleted after the backup: it has to be deleted again
        assert client.result(wait_for_success(client, job)) == whole
        assert len(second.drawn) == 3
        with pytest.raises(ApiError, match="404 Not Found"):
            client.status(lost)
    assert list(verify_chain(read_entries(url), AUDIT_KEYS)) == []


def test_forecasts_are_listed_and_followed(url: str) -> None:
    jobs = open_jobs(url)
    ids = [f"{number:032x}" for number in range(3)]
    for job_id in ids:
        jobs.enqueue(new_job(job_id), limit=99)
    query = JobQuery(owner="a", states=("accepted",), subject="sub-01", after=None, limit=2)
    first = list_jobs(jobs, query)
    rest = list_jobs(jobs, replace(query, after=first[-1].place))
    assert [job.id for job in first + rest][:3] == ids[::-1]
    assert list_jobs(jobs, replace(query, owner="b")) == []
    assert list_jobs(jobs, replace(query, subject="sub-02")) == []
    before = read_versions(jobs, ids, "digest")
    assert before.keys() == set(ids)
    jobs.finish(ids[1], "cancelled")
    after = read_versions(jobs, ids, "digest")
    assert [after[job_id][1] != before[job_id][1] for job_id in ids] == [False, True, False]
    jobs.close()
