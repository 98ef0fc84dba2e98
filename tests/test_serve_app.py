"""The service on Ray Serve: replicas are killed under it, it is restarted, and nothing is lost."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest
import ray
from ray import serve as ray_serve
from tiny_forecast import SPEC, write_bundle, write_store

from serve.app import build
from serve.client import Client
from serve.settings import Settings

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SAMPLES = 24


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Of a service whose samples take long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("app")
    write_store(folder / "store.zarr", folder / "bids", test=2)
    write_bundle(folder / "bundle", num_steps=60)
    return Settings(
        bundle=folder / "bundle",
        store=folder / "store.zarr",
        artifacts=folder / "out",
        demo=True,
        block=2,
    )


@pytest.fixture(scope="module")
def client(ray_cluster: None, settings: Settings) -> Iterator[Client]:
    port = free_port()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    ray_serve.run(build(settings), name="lesioncast", route_prefix="/")
    with Client(f"http://127.0.0.1:{port}", timeout=300) as client:
        yield client
    ray_serve.shutdown()


def kill(deployment: str) -> None:
    """The one replica of a deployment dies as if its machine had failed."""
    names = [
        each["name"]
        for each in ray.util.list_named_actors(all_namespaces=True)
        if each["namespace"] == "serve" and f"#{deployment}#" in each["name"]
    ]
    assert names
    for name in names:
        ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)


def midway(client: Client, job: str) -> None:
    """Waits until some of its blocks are drawn; fails where it ends before it can be disturbed."""
    until(lambda: client.status(job)["progress"]["done"] > 0)
    assert client.status(job)["state"] == "running"


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def result(client: Client, job: str) -> dict:  # type: ignore[type-arg]
    until(lambda: client.status(job)["state"] not in ("accepted", "running"))
    return client.result(job)


def test_no_accepted_forecast_is_lost_or_changed_by_kills_and_a_restart(
    client: Client, settings: Settings
) -> None:
    undisturbed = result(client, client.ask("sub-02", samples=SAMPLES))
    assert list(undisturbed["arms"]) == list(SPEC.arms)
    for deployment in ("SamplerReplica", "ForecasterReplica"):
        job = client.ask("sub-02", samples=SAMPLES)
        midway(client, job)
        kill(deployment)
        assert result(client, job) == undisturbed
    job = client.ask("sub-02", samples=SAMPLES)
    midway(client, job)
    ray_serve.delete("lesioncast")
    ray_serve.run(build(settings), name="lesioncast", route_prefix="/")
    assert result(client, job) == undisturbed
