"""Send many small requests at once to Ray Serve and check their results and the memory.

    PYTHONPATH=.:platform python tests/benchmarks/service/service_load.py \
        --requests 200 --rounds 3

`--kill-every` kills the sampler replica at that interval in seconds; no accepted request may fail.
The networks have a few thousand weights, so that the service is measured and not the sampling.
"""

import argparse
import asyncio
import logging
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import quantiles

import httpx2
import ray
from ray import serve as ray_serve

from lesioncast.cluster.connection import RaySettings, ray_cluster
from serve.app import build
from serve.settings import ServiceSettings
from tests.benchmarks.data.worker_memory import memory_now
from tests.support.forecast import SPEC, write_bundle, write_store
from tests.support.ray_clusters import free_ports

ORDER = {
    "subject": "sub-01",
    "samples": 2,
    "arms": [SPEC.arms[0]],
    "sampler": {"num_steps": 3},
}
APPLICATION = "lesioncast"
ENDED = ("succeeded", "failed", "cancelled")
POLL_SECONDS = 1.0
HEAD = (
    "| round | ends | answer p50 / p95 | result p50 / p95 | all | memory after | kills |\n"
    "|---|---|---|---|---|---|---|"
)


@contextmanager
def service_on_ray(settings: ServiceSettings) -> Iterator[str]:
    """Run the service in the connected cluster until the block ends; yield its URL."""
    (port,) = free_ports(1)
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    deploy(settings)
    yield f"http://127.0.0.1:{port}"
    ray_serve.shutdown()


def deploy(settings: ServiceSettings) -> None:
    """Start the application, or start it again after `ray_serve.delete(APPLICATION)`."""
    ray_serve.run(build(settings), name=APPLICATION, route_prefix="/")


async def ask(http: httpx2.AsyncClient, number: int) -> tuple[str, float, float]:
    """Send one request; return how it ended and the seconds to its answer and to its end."""
    began = time.monotonic()
    answer = await http.post("/v1/forecasts", json=ORDER | {"seed": number})
    answered = time.monotonic() - began
    if answer.status_code != 202:
        return str(answer.status_code), answered, answered
    while True:
        await asyncio.sleep(POLL_SECONDS)
        status = await http.get(answer.headers["Location"])
        if status.status_code != 200:
            return f"status {status.status_code}", answered, time.monotonic() - began
        if status.json()["state"] in ENDED:
            return status.json()["state"], answered, time.monotonic() - began


async def one_round(url: str, number: int) -> list[tuple[str, float, float]]:
    """Send many requests at once."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        return await asyncio.gather(*(ask(http, each) for each in range(number)))


@contextmanager
def kill_replicas(every: float) -> Iterator[list[float]]:
    """Kill the sampler replicas at an interval in seconds; yield the times of the kills."""
    over, kills = threading.Event(), list[float]()

    def kill() -> None:
        while not over.wait(every):
            for each in ray.util.list_named_actors(all_namespaces=True):
                if each["namespace"] == "serve" and "#SamplerDeployment#" in each["name"]:
                    with suppress(ValueError):  # it is gone already
                        actor = ray.get_actor(each["name"], namespace="serve")
                        ray.kill(actor, no_restart=True)
                        kills.append(time.monotonic())

    thread = threading.Thread(target=kill, daemon=True)
    if every:
        thread.start()
    yield kills
    over.set()
    if every:
        thread.join()


def row(name: int, ends: list[tuple[str, float, float]], seconds: float, kills: int) -> str:
    """Return one line of the table."""
    results = [end for state, _, end in ends if state == "succeeded"]
    answers = [answered for _, answered, _ in ends]
    words = ", ".join(f"{count} {state}" for state, count in Counter(e[0] for e in ends).items())
    return (
        f"| {name} | {words} | {_cuts(answers)} | {_cuts(results)} | {seconds:.0f} s "
        f"| {memory_now():.0f} MiB | {kills} |"
    )


def _cuts(values: list[float]) -> str:
    if len(values) < 2:
        return "n/a"
    cuts = quantiles(values, n=20)
    return f"{cuts[9]:.1f} / {cuts[18]:.1f} s"


def measure(url: str, *, requests: int, rounds: int, kill_every: float = 0.0) -> None:
    """Print one line per round of requests to the service at `url`, which this process started.

    Raise AssertionError if a request ends neither in a result nor in a 429.
    """
    print(f"memory before: {memory_now():.0f} MiB\n{HEAD}", flush=True)
    for number in range(1, rounds + 1):
        began = time.monotonic()
        with kill_replicas(kill_every) as kills:
            ends = asyncio.run(one_round(url, requests))
        print(row(number, ends, time.monotonic() - began, len(kills)), flush=True)
        lost = [state for state, *_ in ends if state not in ("succeeded", "429")]
        if lost:
            raise AssertionError(f"expected a result or a 429 each, got {Counter(lost)}")


def main() -> None:
    """Start a service on a small store and print one line per round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kill-every", type=float, default=0.0, help="seconds; 0 kills nothing")
    args = parser.parse_args()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name, ray_cluster(RaySettings(num_cpus=2)):
        folder = Path(name)
        write_store(folder / "store.zarr", folder / "bids", test=2)
        write_bundle(folder / "bundle")
        settings = ServiceSettings(
            bundle=folder / "bundle",
            store=folder / "store.zarr",
            artifacts=folder / "out",
            demo=True,
        )
        with service_on_ray(settings) as url:
            measure(url, requests=args.requests, rounds=args.rounds, kill_every=args.kill_every)


if __name__ == "__main__":
    main()
