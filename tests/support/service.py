"""The service over HTTP in this process, without Ray, which only carries calls to replicas."""

import asyncio
import math
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

import httpx2
import uvicorn
from starlette.types import ASGIApp

from lesioncast.forecasting.adaptive import SampleBlock
from lesioncast.forecasting.sampling import SampleBatch
from lesioncast.imaging.covariates import Covariate
from serve.api.app import create_app
from serve.api.dependencies import create_context
from serve.api.schemas import ResolvedRequest
from serve.client import Client
from serve.db.audit_key import AuditKeys
from serve.db.models import ForecastJob
from serve.db.open import open_repository
from serve.db.repository import JobRepository, NewJob
from serve.inference.reports import StepStats
from serve.inference.sampler import SamplerWorker
from serve.keys import SCOPES, ApiKey, hash_key
from serve.model_info import mount_model
from serve.patients import patient_for_job
from serve.settings import ServiceSettings
from serve.worker.loaded_model import load_model
from serve.worker.worker import ForecastWorker
from storage import StoreSettings
from storage.convert.build_shard import build_shard
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion
from storage.private_files import private_file
from tests.support.bids import ARMS, Geometry, write_participants, write_trial
from tests.support.forecast import GEOMETRY, SPEC, write_bundle

AUDIT_KEYS = AuditKeys((bytes(32),))


@dataclass
class Service:
    """A running service, with switches that disturb it and records of what it did."""

    settings: ServiceSettings
    url: str = ""
    #: Draws wait while it is set.
    paused: bool = False
    #: Draws raise while it is set.
    fail_draws: bool = False
    #: The forecast worker is not told about new jobs, and has to poll.
    ignore_wakeups: bool = False
    #: Blocks that may still be drawn; further draws wait.
    budget: float = math.inf
    #: Seconds that the engine rests after each step.
    step_delay_s: float = 0.0
    #: States of finished forecasts.
    finished: list[str] = field(default_factory=list)
    #: Seconds from acceptance to the first samples of forecasts.
    first_samples_s: list[float] = field(default_factory=list)
    #: Type and outcome of errors of forecasts.
    errors: list[tuple[str, str]] = field(default_factory=list)
    #: Codes of the warnings of finished forecasts.
    warnings: list[str] = field(default_factory=list)
    #: Status codes of problem documents.
    problems: list[int] = field(default_factory=list)
    #: Blocks that were drawn.
    drawn: list[SampleBlock] = field(default_factory=list)
    #: Slots in use after the last step.
    slots: int = 0
    #: Steps of all engines.
    steps: int = 0

    def reset(self) -> None:
        """Remove all disturbances."""
        self.paused = self.fail_draws = self.ignore_wakeups = False
        self.budget, self.step_delay_s = math.inf, 0.0


class RecordingObserver:
    """Record what the worker and the routes report."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def set_backlog(self, pending: int, oldest_seconds: float) -> None:
        pass

    def observe_first_samples(self, seconds: float) -> None:
        self.service.first_samples_s.append(seconds)

    def observe_finished(self, state: str, seconds: float) -> None:
        self.service.finished.append(state)

    def count_warnings(self, codes: Iterable[str]) -> None:
        self.service.warnings.extend(sorted(set(codes)))

    def count_error(self, error: str, outcome: str) -> None:
        self.service.errors.append((error, outcome))

    def count_problem(self, status: int) -> None:
        self.service.problems.append(status)

    def count_cancelled(self) -> None:
        self.service.finished.append("cancelled")


@contextmanager
def run_service(settings: ServiceSettings, *, root_path: str = "") -> Iterator[Service]:
    """Run the service on a free port of this machine until the block ends.

    `root_path` is the prefix that a proxy before it removes.
    """
    service = Service(settings)
    observer = RecordingObserver(service)
    loaded, jobs = load_model(settings), open_repository(settings)

    def on_step(step: StepStats) -> None:
        service.slots, service.steps = step.running, service.steps + 1
        time.sleep(service.step_delay_s)

    sampler = SamplerWorker(settings, on_step)

    async def draw(job: ForecastJob, block: SampleBlock) -> SampleBatch:
        while service.paused or service.budget <= 0:
            await asyncio.sleep(0.01)
        service.budget -= 1
        if service.fail_draws:
            raise RuntimeError("broken on purpose")
        arm = loaded.store.spec.arms.index(block.arm)
        drawn = await sampler.draw(
            job.id, patient_for_job(job), arm, block.seeds, job.request.sampler
        )
        service.drawn.append(block)
        return drawn

    worker = ForecastWorker(jobs, loaded, draw, observer)

    async def wake() -> None:
        if service.ignore_wakeups:
            raise RuntimeError("unreachable on purpose")
        worker.wake()

    async def ready() -> bool:
        return not service.fail_draws

    context = create_context(mount_model(settings), wake=wake, ready=ready, observer=observer)
    app = create_app(context)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        task = asyncio.create_task(worker.run())
        yield
        task.cancel()

    app.router.lifespan_context = lifespan
    try:
        with run_app(app, root_path=root_path) as service.url:
            yield service
    finally:
        context.jobs.close()
        jobs.close()


@contextmanager
def run_app(
    app: ASGIApp, *, ws: Literal["none", "websockets-sansio"] = "none", root_path: str = ""
) -> Iterator[str]:
    """Serve an ASGI application on a free port of this machine; yield its URL."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="warning", ws=ws, root_path=root_path
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """Wait until the condition is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"expected the condition within {seconds} s"
        time.sleep(0.02)


def wait_for_result(client: Client, job: str) -> dict[str, Any]:
    """Return a job's result once it has finished, even if replicas are lost meanwhile."""
    wait_until(lambda: client.status(job)["state"] not in ("accepted", "running"), seconds=300)
    return client.result(job)


def wait_for_success(client: Client, job: str) -> str:
    """Return the job's id once it has succeeded."""
    assert [status["state"] for status in client.stream_events(job)][-1] == "succeeded"
    return job


def assert_problem(
    response: httpx2.Response, status: int, field: str | None = None
) -> dict[str, Any]:
    """Assert that a response is a problem document about `field`, and return the document."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    if field is not None:
        assert [error["field"] for error in problem["errors"]] == [field]
    return problem


def key_line(
    name: str, key: str, *, scopes: tuple[str, ...] = SCOPES, until: date = date.max
) -> str:
    """Return the line of a key file for a key."""
    return ApiKey(name, hash_key(key), scopes, until).line + "\n"


def write_trial_served(
    root: Path,
    *,
    unlabelled: str,
    geometry: Geometry = GEOMETRY,
    covariates: tuple[Covariate, ...] = (),
    num_steps: int = 3,
) -> None:
    """Write a trial without week 96, its store and a bundle that fits it."""
    bids = root / "bids"
    trial = write_trial(bids, 3, geometry=geometry)
    arms = dict(zip(trial, ARMS, strict=True))
    write_participants(bids, arms | {unlabelled: "n/a"})
    for path in list(bids.rglob("ses-w096")):
        shutil.rmtree(path)
    # Others than the defaults, with which uploads must not be prepared.
    settings = StoreSettings(SPEC.slab, SPEC.spacing, resample=False, percentiles=(5.0, 90.0))
    plan = plan_conversion(bids, root / "store.zarr", settings=settings, arms=ARMS, seed=0)
    convert(plan, build=lambda tasks: map(build_shard, tasks))
    write_bundle(root / "bundle", settings=settings, covariates=covariates, num_steps=num_steps)


def trial_settings(root: Path, artifacts: Path, **given: object) -> ServiceSettings:
    """Return settings for that trial, by default in demo mode."""
    return ServiceSettings(
        bundle=root / "bundle",
        artifacts=artifacts,
        seeds_per_block=2,
        **({"store": root / "store.zarr", "demo": True} | given),  # type: ignore[arg-type]
    )


def open_jobs(url: str) -> JobRepository:
    """Return the jobs of a database that no service has opened, with a fixed key of the audit."""
    return JobRepository(url, AUDIT_KEYS)


def key_file(folder: Path) -> Path:
    """Write the file of the keys of `open_jobs`."""
    path = private_file(folder / "audit.key")
    path.write_text("".join(f"{key.hex()}\n" for key in AUDIT_KEYS.keys))
    return path


def new_job(job_id: str, *, idempotency_key: str | None = None) -> NewJob:
    """Return a job of two samples under one arm, with the largest seed that is allowed."""
    request = ResolvedRequest(
        subject="sub-01", arms=("placebo",), reference_arm="placebo", sessions=("w000", "w048"),
        samples=2, seed=2**63 - 1,
    )  # fmt: skip
    return NewJob(
        job_id, "a", request, block_size=2, requested_by="key", idempotency_key=idempotency_key
    )
