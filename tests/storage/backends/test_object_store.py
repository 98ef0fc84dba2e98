"""Keep a store in an object store, through an S3 server on this machine."""

import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from storage import StorageError, StoreError, open_store, parse_location
from storage.backends.object_store import ObjectStoreBackend
from storage.backends.open import open_backend
from storage.convert.build_shard import ShardTask, build_shard
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion
from storage.convert.verify import verify
from storage.store.array_reader import open_arrays, read_rows
from tests.storage.convert.conversion import (
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
    """Empty the bucket and set the environment variables that lead to it."""
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
    """Return the content of every file of a store."""
    backend = open_backend(url)
    return {name: backend.read(name) for name in backend.list_files()}


def test_store_in_a_bucket_equals_the_store_in_a_folder(trial: Path, tmp_path: Path) -> None:
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
    again, builder = converted(trial, URL)
    assert builder.prepared + builder.copied == []
    assert again.table == remote.table


def test_killed_upload_is_resumed(
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
    _, builder = converted(trial, URL)
    assert len(builder.prepared) == 2  # the other shard was there
    local, _ = converted(trial, tmp_path / "store.zarr")
    assert contents(URL) == {n: c for n, c in tree(local.path).items() if n != ".lock"}


def test_second_writer_is_refused_at_its_commit(trial: Path) -> None:
    def convert_meanwhile(tasks: Sequence[ShardTask]) -> Iterator[int]:
        converted(trial, URL, seed=1)
        yield from map(build_shard, tasks)

    plan = plan_conversion(trial, URL, settings=SETTINGS, arms=bids.ARMS, seed=0)
    with pytest.raises(StorageError, match="one that another conversion has written since"):
        convert(plan, build=convert_meanwhile)
    assert open_store(URL).table.seed == 1
    assert convert(plan, build=Builder()).table.seed == 0


def test_unreachable_store_error_names_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=rf"^{URL}: expected a Zarr 3 store, got none"):
        open_store(URL)
    with pytest.raises(StorageError, match="s3://nobodys/store.zarr: expected"):
        open_store("s3://nobodys/store.zarr")
    with pytest.raises(StorageError, match="expected the URL of an object store, got"):
        open_store("gopher://trials/store.zarr")
