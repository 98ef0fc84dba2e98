"""The records on PostgreSQL: on a private server of this test, which skips where there is none."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from serve.client import Client
from serve.db.audit import read_entries, verify_chain
from serve.db.repository import JobRepository, QueueFullError
from serve.settings import ServiceSettings
from tests.support.forecast import write_bundle, write_store
from tests.support.service import finished, refused, running, until

pytestmark = pytest.mark.slow


def programs() -> Path:
    """The folder of the newest server's programs."""
    found = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"))[::-1]
    if not found:
        pytest.skip("no PostgreSQL here, so that nothing is shown of it: apt install postgresql")
    return found[0]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A database of a server that may not be root's."""
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


def test_records_of_several_processes_keep_one_chain_and_one_job_a_key(url: str) -> None:
    order = {"arms": ["placebo"], "samples": 2, "seed": 2**63 - 1}
    named: list[str] = []

    def accept(thread: int) -> None:
        records = JobRepository(url)
        for number in range(5):
            for job, key in ((f"{thread}-{number}", None), (f"{thread}-{number}-key", "one")):
                done = records.enqueue(
                    job, "a", order, total=2, block=2, key=key, limit=99, by="key"
                )
                named.extend([done.id] if key else [])
        records.close()

    threads = [threading.Thread(target=accept, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    entries, records = read_entries(url), JobRepository(url)
    assert len(entries) == 21
    assert list(verify_chain(entries)) == []
    assert len(named) == 20
    assert len(set(named)) == 1
    assert {job.order["seed"] for job in records.unfinished()} == {2**63 - 1}
    with pytest.raises(QueueFullError):
        records.enqueue("more", "a", order, total=2, block=2, key=None, limit=21, by="key")
    for job in records.unfinished():
        assert records.finish(job.id, "cancelled")
        assert not records.finish(job.id, "succeeded")
    records.close()


def test_an_id_that_it_could_not_hold_is_not_there(url: str, tmp_path: Path) -> None:
    with running(settings_in(tmp_path, url)) as service:
        refused(httpx2.get(f"{service.url}/v1/forecasts/%00"), 404, "id")


def settings_in(folder: Path, url: str) -> ServiceSettings:
    write_store(folder / "store.zarr", folder / "bids", test=2)
    write_bundle(folder / "bundle")
    return ServiceSettings(
        bundle=folder / "bundle",
        store=folder / "store.zarr",
        artifacts=folder / "out",
        database=url,
        demo=True,
        seeds_per_block=2,
    )


def test_a_service_on_it_goes_on_after_a_restart(url: str, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, url)
    with running(settings) as first, Client(first.url) as client:
        whole = client.result(finished(client, client.create_forecast("sub-02", samples=4)))
        first.budget = 3
        job = client.create_forecast("sub-02", samples=4)
        until(lambda: client.status(job)["progress"] == {"done": 6, "total": 12})
    with running(settings) as second, Client(second.url) as client:
        assert client.result(finished(client, job)) == whole
        assert len(second.drawn) == 3
    assert list(verify_chain(read_entries(url))) == []
