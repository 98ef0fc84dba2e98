"""A store in an object store, through a real S3 server on this machine."""

import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from storage import StorageError, StoreError, open_store, parse_location
from storage.backends.local import open_backend
from storage.backends.object_store import ObjectStoreBackend
from storage.convert.build_shard import ShardTask, build_shard
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion
from storage.convert.verify import verify
from storage.store.array_reader import open_arrays, read_rows
from tests.storage.test_incremental_conversion import (
    GEOMETRY,
    SETTINGS,
    Builder,
    Killed,
    converted,
    tree,
)
from tests.support import bids

URL = "s3://trials/ms/store.zarr"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty bucket, and an environment that leads to it."""
    for key, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    for method, path in (("POST", "moto-api/reset"), ("PUT", "trials")):
        request = urllib.request.Request(f"{endpoint}/{path}", method=method)
        urllib.request.urlopen(request).close()


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    bids.write_trial(tmp_path / "bids", 4, geometry=GEOMETRY)
    bids.path_of(tmp_path / "bids", "sub-03", "w048", "flair").write_bytes(b"")
    return tmp_path / "bids"


def contents(url: str) -> dict[str, bytes]:
    place = open_backend(url)
    return {name: place.read(name) for name in place.list_files()}


def test_a_store_in_a_bucket_is_the_store_in_a_folder(trial: Path, tmp_path: Path) -> None:
    local, _ = converted(trial, tmp_path / "store.zarr")
    remote, _ = converted(trial, parse_location(URL))
    here = {name: content for name, content in tree(local.path).items() if name != ".lock"}
    assert contents(URL) == here
    assert remote.path == URL
    assert remote.table == local.table
    for case in remote.cases:
        one, other = local.read(case.index), remote.read(case.index)
        for name, block in vars(one).items():
            np.testing.assert_array_equal(block, getattr(other, name))
    w096 = read_rows(open_arrays(URL)["flair"], [case.row for case in remote.cases], sessions=[2])
    assert w096.shape == (3, 1, *SETTINGS.slab)
    assert list(verify(remote, trial)) == []
    again, build = converted(trial, URL)
    assert build.prepared + build.copied == []
    assert again.table == remote.table


def test_an_upload_that_dies_is_gone_on_with(
    trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = ObjectStoreBackend.write, iter(range(17))

    def dying(self: ObjectStoreBackend, name: str, content: bytes) -> None:
        if next(left, None) is None:
            raise Killed
        write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStoreBackend, "write", dying)
        with pytest.raises(Killed):
            converted(trial, URL)
    assert sum(name.count("/") == 1 for name in contents(URL)) == 1  # one shard is finished
    with pytest.raises(StoreError, match=r"expected cases.json, got none: its conversion did not"):
        open_store(URL)
    _, build = converted(trial, URL)
    assert len(build.prepared) == 2  # the other shard was there
    local, _ = converted(trial, tmp_path / "store.zarr")
    assert contents(URL) == {n: c for n, c in tree(local.path).items() if n != ".lock"}


def test_the_second_of_two_writers_is_refused_at_its_commit(trial: Path) -> None:
    def meanwhile(builds: Sequence[ShardTask]) -> Iterator[int]:
        converted(trial, URL, seed=1)
        yield from map(build_shard, builds)

    plan = plan_conversion(trial, URL, settings=SETTINGS, arms=bids.ARMS, seed=0)
    with pytest.raises(StorageError, match="one that another conversion has put there since"):
        convert(plan, build=meanwhile)
    assert open_store(URL).table.seed == 1
    assert convert(plan, build=Builder()).table.seed == 0


def test_what_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=rf"^{URL}: expected a Zarr 3 store, got none"):
        open_store(URL)
    with pytest.raises(StorageError, match="s3://nobodys/store.zarr: expected"):
        open_store("s3://nobodys/store.zarr")
    with pytest.raises(StorageError, match="expected the URL of an object store, got"):
        open_store("gopher://trials/store.zarr")
