"""The service over HTTP in this process: all but Ray, which only carries calls to replicas."""

import asyncio
import math
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
import yaml

from lesioncast.config import load_config
from lesioncast.forecasting.adaptive import SampleBlock
from lesioncast.forecasting.sampling import SampleBatch
from lesioncast.imaging.covariates import Covariate
from serve.api.app import create_app
from serve.api.dependencies import create_context
from serve.client import Client
from serve.db.models import ForecastJob
from serve.db.repository import JobRepository
from serve.inference.sampler import SamplerWorker, StepStats
from serve.keys import SCOPES, ApiKey, hash_key
from serve.settings import ServiceSettings
from serve.worker.worker import ForecastWorker, load_model_and_store, patient_for_job
from storage.convert.build_shard import build_shard
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion
from tests.support.bids import ARMS, Geometry, write_participants, write_trial
from tests.support.forecast import GEOMETRY, SPEC, write_bundle

DEMO = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "demo.yaml"


@dataclass
class Service:
    """One that runs; `held` or with its `budget` of blocks drawn, it waits; `broken`, it fails;
    `deaf`, its forecaster is not told of anything. After each step it rests for `pace` seconds."""

    settings: ServiceSettings
    url: str = ""
    held: bool = False
    broken: bool = False
    deaf: bool = False
    budget: float = math.inf
    ended: list[str] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    problems: list[int] = field(default_factory=list)
    drawn: list[SampleBlock] = field(default_factory=list)
    slots: int = 0
    steps: int = 0
    pace: float = 0.0


class Watch:
    """Notes what the forecaster and the routes tell of forecasts and requests."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def set_backlog(self, number: int, oldest: float) -> None:
        pass

    def observe_first_samples(self, seconds: float) -> None:
        self.service.began.append(seconds)

    def observe_finished(self, state: str, seconds: float) -> None:
        self.service.ended.append(state)

    def count_error(self, error: str, outcome: str) -> None:
        self.service.errors.append((error, outcome))

    def count_problem(self, status: int) -> None:
        self.service.problems.append(status)

    def cancelled(self) -> None:
        self.service.ended.append("cancelled")


@contextmanager
def running(settings: ServiceSettings) -> Iterator[Service]:
    """The service on a free port of this machine, for as long as the block lasts."""
    settings.artifacts.mkdir(parents=True, exist_ok=True)
    service = Service(settings)
    study, records = load_model_and_store(settings), JobRepository(settings.database_url)

    def observe(step: StepStats) -> None:
        service.slots, service.steps = step.running, service.steps + 1
        time.sleep(service.pace)

    sampler = SamplerWorker(settings, observe)

    async def draw(job: ForecastJob, block: SampleBlock) -> SampleBatch:
        while service.held or service.budget <= 0:
            await asyncio.sleep(0.01)
        service.budget -= 1
        if service.broken:
            raise RuntimeError("broken on purpose")
        arm = study.store.spec.arms.index(block.arm)
        drawn = await sampler.draw(
            job.id, patient_for_job(job), arm, block.seeds, job.order.get("sampler", {})
        )
        service.drawn.append(block)
        return drawn

    forecaster = ForecastWorker(records, study, draw, Watch(service))

    async def wake() -> None:
        if service.deaf:
            raise RuntimeError("away on purpose")
        forecaster.wake()

    async def ready() -> bool:
        return not service.broken

    desk = create_context(study, wake=wake, ready=ready, watch=Watch(service))
    api = create_app(desk)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        task = asyncio.create_task(forecaster.run())
        yield
        task.cancel()

    api.router.lifespan_context = lifespan
    config = uvicorn.Config(api, host="127.0.0.1", port=0, log_level="warning", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    service.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield service
    finally:
        server.should_exit = True
        thread.join()
        desk.records.close()
        records.close()


def until(true: Callable[[], bool], *, seconds: float = 60) -> None:
    """Waits for it; fails where it never comes true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def result(client: Client, job: str) -> dict[str, Any]:
    """The job's result, once it has ended, however often the service is lost on the way."""
    until(lambda: client.status(job)["state"] not in ("accepted", "running"), seconds=300)
    return client.result(job)


def finished(client: Client, job: str) -> str:
    """The job, once it has succeeded."""
    assert [status["state"] for status in client.stream_events(job)][-1] == "succeeded"
    return job


def refused(answer: httpx2.Response, status: int, field: str | None = None) -> dict[str, Any]:
    """The problem that a refusal is, which names that field."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    if field is not None:
        assert [each["field"] for each in problem["errors"]] == [field]
    return problem


def key_line(
    name: str, key: str, *, scopes: tuple[str, ...] = SCOPES, until: date = date.max
) -> str:
    """What a file of keys says of a key."""
    return ApiKey(name, hash_key(key), scopes, until).line + "\n"


def write_trial_served(
    root: Path,
    *,
    unlabelled: str,
    geometry: Geometry = GEOMETRY,
    covariates: tuple[Covariate, ...] = (),
) -> None:
    """A trial without week 96, its store, the configuration that made it, and a bundle."""
    bids = root / "bids"
    trial = write_trial(bids, 3, geometry=geometry)
    arms = dict(zip(trial, ARMS, strict=True))
    write_participants(bids, arms | {unlabelled: "n/a"})
    for path in list(bids.rglob("ses-w096")):
        shutil.rmtree(path)
    raw = yaml.safe_load(DEMO.read_text())
    raw["store"] = {"slab": list(SPEC.slab), "spacing": list(SPEC.spacing), "resample": False}
    (root / "config.yaml").write_text(yaml.safe_dump(raw))
    made = load_config(root / "config.yaml").store
    plan = plan_conversion(bids, root / "store.zarr", settings=made, arms=ARMS, seed=0)
    convert(plan, build=lambda builds: map(build_shard, builds))
    write_bundle(root / "bundle", covariates=covariates)


def trial_settings(root: Path, artifacts: Path, **given: object) -> ServiceSettings:
    """Of a service of that trial, in demo mode if nothing else is given, which takes uploads."""
    return ServiceSettings(
        bundle=root / "bundle",
        store=root / "store.zarr",
        artifacts=artifacts,
        seeds_per_block=2,
        **({"config": root / "config.yaml", "demo": True} | given),  # type: ignore[arg-type]
    )
