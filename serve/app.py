"""The service on Ray Serve.

    serve run serve.app:build bundle=out/demo/bundle store=out/demo/store.zarr demo=true
    serve run serve/service.yaml

An ingress takes requests into the records, one forecaster runs what they hold, and sampler replicas
draw. Whichever dies is started again by Serve and goes on from the records.
"""

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from lesioncast.forecasting.adaptive import SampleBlock
from lesioncast.forecasting.sampling import SampleBatch
from serve.api.app import create_app
from serve.api.dependencies import create_context
from serve.api.schemas import PatientRef
from serve.db.models import ForecastJob
from serve.db.repository import JobRepository
from serve.inference.sampler import EngineStoppedError, SamplerWorker
from serve.log import JSON_LOGGING_CONFIG
from serve.metrics import EngineMetrics, ForecastMetrics, RequestMetrics
from serve.settings import ServiceSettings
from serve.worker.retry import SamplersUnavailableError
from serve.worker.worker import ForecastWorker, load_model_and_store, patient_for_job
from storage import open_store

UNAVAILABLE_ERRORS = (
    RayActorError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    BackPressureError,
)
MAX_ATTEMPTS, INITIAL_BACKOFF_S, MAX_BACKOFF_S = 20, 0.5, 10.0
READY_TIMEOUT_S = 5.0
LIGHTWEIGHT_ACTOR_OPTIONS = {
    "num_cpus": 0.1
}  # above 0, so that a head without CPUs is left in peace
MAX_ONGOING_DRAWS = (
    4096  # above any peak: what really runs at a time is bounded by the engine's slots
)


@ray_serve.deployment(
    max_ongoing_requests=MAX_ONGOING_DRAWS,
    health_check_period_s=5,
    logging_config=JSON_LOGGING_CONFIG,
)
class SamplerDeployment:
    """`serve.inference.sampler.Sampler` behind a handle."""

    def __init__(self, settings: ServiceSettings) -> None:
        metrics = EngineMetrics(open_store(settings.store).spec.arms)
        self._sampler = SamplerWorker(settings, metrics.on_step)

    async def draw(
        self,
        job: str,
        patient: PatientRef,
        arm: int,
        seeds: tuple[int, ...],
        changes: Mapping[str, Any],
    ) -> SampleBatch:
        """See `Sampler.draw`."""
        return await self._sampler.draw(job, patient, arm, seeds, changes)

    async def ready(self) -> bool:
        """Whether it can draw."""
        return self._sampler.alive

    def check_health(self) -> None:
        """Serve replaces a replica whose engine has stopped."""
        if not self._sampler.alive:
            raise EngineStoppedError("the engine has stopped")


@ray_serve.deployment(num_replicas=1, max_ongoing_requests=1000, logging_config=JSON_LOGGING_CONFIG)
class ForecastWorkerDeployment:
    """`serve.worker.worker.Forecaster` behind a handle; the only one."""

    def __init__(self, settings: ServiceSettings, sampler: DeploymentHandle[Any]) -> None:
        study = load_model_and_store(settings)
        arms = study.store.spec.arms

        async def draw(job: ForecastJob, block: SampleBlock) -> SampleBatch:
            arm = arms.index(block.arm)
            changes = job.order.get("sampler", {})
            return await draw_with_retries(
                sampler, job.id, patient_for_job(job), arm, block.seeds, changes
            )

        records = JobRepository(settings.database_url)
        self._forecaster = ForecastWorker(records, study, draw, ForecastMetrics())
        self._sampler = sampler
        self._running = asyncio.get_running_loop().create_task(self._forecaster.run())

    async def wake(self) -> None:
        """There is something new."""
        self._forecaster.wake()

    async def ready(self) -> bool:
        """Whether it follows the records, and a sampler answers that it can draw."""
        return not self._running.done() and await is_ready(self._sampler)

    def check_health(self) -> None:
        """Serve replaces it once it has stopped looking into the records."""
        if self._running.done():
            raise RuntimeError("the forecaster has stopped")


async def is_ready(replicas: DeploymentHandle[Any]) -> bool:
    """Whether one of them says before long that it is ready."""
    try:
        return bool(await asyncio.wait_for(replicas.ready.remote(), READY_TIMEOUT_S))
    except (TimeoutError, *UNAVAILABLE_ERRORS):
        return False


async def draw_with_retries(sampler: DeploymentHandle[Any], *call: Any) -> SampleBatch:
    """One call of a sampler, again while replicas are gone: seeds name samples, so it may repeat.

    Serve itself never repeats a call in flight.
    """
    for attempt in range(MAX_ATTEMPTS):
        response = sampler.draw.remote(*call)
        try:
            drawn: SampleBatch = await response
            return drawn
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        except EngineStoppedError:  # perhaps by what it was to draw
            if attempt == MAX_ATTEMPTS - 1:
                raise
        except UNAVAILABLE_ERRORS as error:
            if attempt == MAX_ATTEMPTS - 1:
                raise SamplersUnavailableError(
                    f"no sampler answered {MAX_ATTEMPTS} times"
                ) from error
        await asyncio.sleep(min(INITIAL_BACKOFF_S * 2**attempt, MAX_BACKOFF_S))
    raise AssertionError("unreachable")


@ray_serve.deployment(max_ongoing_requests=1000, logging_config=JSON_LOGGING_CONFIG)
@ray_serve.ingress()
class Ingress:
    """The HTTP interface; it holds nothing that is not in the records."""

    def __init__(self, settings: ServiceSettings, forecaster: DeploymentHandle[Any]) -> None:
        self._settings, self._forecaster = settings, forecaster

    def __serve_build_asgi_app__(self) -> FastAPI:  # noqa: N807, Serve's name
        forecaster = self._forecaster

        async def wake() -> None:
            forecaster.wake.remote()  # not awaited: it looks for itself before long

        async def ready() -> bool:
            return await is_ready(forecaster)

        study, watch = load_model_and_store(self._settings), RequestMetrics()
        desk = create_context(study, wake=wake, ready=ready, watch=watch)
        return create_app(desk)


def as_deployment(decorated: Any) -> ray_serve.Deployment:
    """What the decorator made of a class, which type checkers still take for the class."""
    made: ray_serve.Deployment = decorated
    return made


def build(args: ServiceSettings) -> ray_serve.Application:
    """The application; see `Settings` for what it may be told.

    Raises ValueError in demo mode behind HAProxy, from which every client looks local.
    """
    if args.demo and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        raise ValueError(
            "demo: expected Serve's own proxy, got RAY_SERVE_ENABLE_HA_PROXY=1, behind which every "
            "client looks local; start it with keys=FILE"
        )
    settings = args.absolute()
    settings.artifacts.mkdir(parents=True, exist_ok=True)
    sampler = (
        as_deployment(SamplerDeployment)
        .options(
            ray_actor_options={
                "num_cpus": settings.cpus_per_sampler,
                "num_gpus": settings.gpus_per_sampler,
            },
            autoscaling_config={
                "min_replicas": settings.min_samplers,
                "max_replicas": settings.max_samplers,
                "target_ongoing_requests": settings.target_ongoing_requests,
            },
        )
        .bind(settings)
    )
    return (
        as_deployment(Ingress)
        .options(
            ray_actor_options=LIGHTWEIGHT_ACTOR_OPTIONS, num_replicas=settings.ingress_replicas
        )
        .bind(
            settings,
            as_deployment(ForecastWorkerDeployment)
            .options(ray_actor_options=LIGHTWEIGHT_ACTOR_OPTIONS)
            .bind(settings, sampler),
        )
    )
