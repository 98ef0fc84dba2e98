"""The service under load, while every kind of its replicas is killed: `make faults`.

Each accepted forecast has to end in the result of an undisturbed one.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx2
import pytest
import ray
from ray import serve as ray_serve

from serve.app import build
from serve.client import Client
from serve.settings import ServiceSettings
from serve.uploads import UPLOAD_FIELDS
from tests.support.bids import path_of
from tests.support.ray_clusters import free_ports
from tests.support.service import trial_settings, wait_for_result, wait_until, write_trial_served

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]
DEPLOYMENTS = ("SamplerDeployment", "ForecastWorkerDeployment", "Ingress")
ROUNDS, PAUSE_S = 2, 4.0
UNLABELLED = "sub-03"
SAMPLES, SEEDS = 4, 3


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ServiceSettings:
    folder = tmp_path_factory.mktemp("load")
    write_trial_served(folder, unlabelled=UNLABELLED, num_steps=20)
    return trial_settings(
        folder, folder / "out", min_samplers=2, max_samplers=2, max_unfinished_forecasts=20
    )


@pytest.fixture(scope="module")
def url(ray_cluster: None, settings: ServiceSettings) -> Iterator[str]:
    (port,) = free_ports(1)
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    ray_serve.run(build(settings), name="lesioncast", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    ray_serve.shutdown()


class Load:
    """Clients that request forecasts, by name and with images, until they are stopped."""

    def __init__(self, url: str, images: dict[str, bytes]) -> None:
        self.url, self.images = url, images
        self.accepted: dict[str, int] = {}  # seed of each accepted forecast
        self.refused: Counter[int | str] = Counter()  # status, or type of an error
        self._numbers, self._stopped = count(), threading.Event()
        self._clients = [threading.Thread(target=self._run) for _ in range(3)]

    def __enter__(self) -> "Load":
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for client in self._clients:
            client.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.5):
            number = next(self._numbers)
            try:
                answer = self._post(number)
            except httpx2.TransportError as error:  # no answer: nothing was promised
                self.refused[type(error).__name__] += 1
                continue
            if answer.status_code == 202:
                self.accepted[answer.json()["id"]] = number % SEEDS
            else:
                self.refused[answer.status_code] += 1

    def _post(self, number: int) -> httpx2.Response:
        request = {"subject": UNLABELLED, "samples": SAMPLES, "seed": number % SEEDS}
        url = f"{self.url}/v1/forecasts"
        if number % 2:
            return httpx2.post(url, json=request, timeout=60)
        form = {"request": json.dumps(request)}
        return httpx2.post(url, data=form, files=self.images, timeout=60)


def kill(deployment: str) -> int:
    """Kill all replicas of a deployment; return how many there were."""
    names = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == "serve" and f"#{deployment}#" in actor["name"]
    ]
    for name in names:
        ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)
    return len(names)


def results(client: Client, jobs: dict[str, int]) -> dict[int, list[Any]]:
    """Return the results of the jobs that differ from each other, by seed."""
    found: dict[int, list[Any]] = {}
    for job, seed in jobs.items():
        result = wait_for_result(client, job)
        if result not in found.setdefault(seed, []):
            found[seed].append(result)
    return found


def test_no_accepted_forecast_is_lost_or_changed_when_every_replica_is_killed_under_load(
    url: str, settings: ServiceSettings
) -> None:
    bids = settings.store.parent / "bids"
    images = {
        name: path_of(bids, UNLABELLED, *name.split("/")).read_bytes()
        for name in UPLOAD_FIELDS
        if name != "w048/brain_mask"
    }
    killed = 0
    with Load(url, images) as load:
        wait_until(lambda: len(load.accepted) > 2, seconds=120)
        for _ in range(ROUNDS):
            for deployment in DEPLOYMENTS:
                before = len(load.accepted)
                time.sleep(PAUSE_S)
                killed += kill(deployment)
                wait_until(lambda before=before: len(load.accepted) > before, seconds=120)  # type: ignore[misc]
    assert killed >= ROUNDS * len(DEPLOYMENTS)
    with Client(url, timeout=300) as client:
        found = results(client, load.accepted)
    print(f"{len(load.accepted)} accepted, {killed} replicas killed, others: {load.refused}")
    assert len(load.accepted) > killed
    # By name or with images, killed or not: one seed has one result.
    assert {seed: len(different) for seed, different in found.items()} == dict.fromkeys(
        range(SEEDS), 1
    )
