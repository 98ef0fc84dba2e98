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

from lesioncast.forecasting.adaptive import Block
from lesioncast.forecasting.sampling import Drawn
from serve.api.app import make_api
from serve.api.dependencies import open_desk
from serve.api.schemas import Patient
from serve.db.models import Job
from serve.db.repository import Records
from serve.inference.sampler import EngineStoppedError, Sampler
from serve.log import STRUCTURED
from serve.metrics import EngineMetrics, ForecastMetrics, RequestMetrics
from serve.settings import Settings
from serve.worker.retry import NobodyDrawsError
from serve.worker.worker import Forecaster, open_study, patient_of
from storage import open_store

GONE = (
    RayActorError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    BackPressureError,
)
TRIES, FIRST_WAIT, LONGEST_WAIT = 20, 0.5, 10.0
READY_SECONDS = 5.0
LIGHT = {"num_cpus": 0.1}  # above 0, so that a head without CPUs is left in peace
FAN_OUT = 4096  # above any peak: what really runs at a time is bounded by the engine's slots


@ray_serve.deployment(
    max_ongoing_requests=FAN_OUT, health_check_period_s=5, logging_config=STRUCTURED
)
class SamplerReplica:
    """`serve.inference.sampler.Sampler` behind a handle."""

    def __init__(self, settings: Settings) -> None:
        metrics = EngineMetrics(open_store(settings.store).spec.arms)
        self._sampler = Sampler(settings, metrics.stepped)

    async def draw(
        self,
        job: str,
        patient: Patient,
        arm: int,
        seeds: tuple[int, ...],
        changes: Mapping[str, Any],
    ) -> Drawn:
        """See `Sampler.draw`."""
        return await self._sampler.draw(job, patient, arm, seeds, changes)

    async def ready(self) -> bool:
        """Whether it can draw."""
        return self._sampler.alive

    def check_health(self) -> None:
        """Serve replaces a replica whose engine has stopped."""
        if not self._sampler.alive:
            raise EngineStoppedError("the engine has stopped")


@ray_serve.deployment(num_replicas=1, max_ongoing_requests=1000, logging_config=STRUCTURED)
class ForecasterReplica:
    """`serve.worker.worker.Forecaster` behind a handle; the only one."""

    def __init__(self, settings: Settings, sampler: DeploymentHandle[Any]) -> None:
        study = open_study(settings)
        arms = study.store.spec.arms

        async def draw(job: Job, block: Block) -> Drawn:
            arm = arms.index(block.arm)
            changes = job.order.get("sampler", {})
            return await drawn_by(sampler, job.id, patient_of(job), arm, block.seeds, changes)

        records = Records(settings.database_url)
        self._forecaster = Forecaster(records, study, draw, ForecastMetrics())
        self._sampler = sampler
        self._running = asyncio.get_running_loop().create_task(self._forecaster.run())

    async def wake(self) -> None:
        """There is something new."""
        self._forecaster.wake()

    async def ready(self) -> bool:
        """Whether it follows the records, and a sampler answers that it can draw."""
        return not self._running.done() and await answers(self._sampler)

    def check_health(self) -> None:
        """Serve replaces it once it has stopped looking into the records."""
        if self._running.done():
            raise RuntimeError("the forecaster has stopped")


async def answers(replicas: DeploymentHandle[Any]) -> bool:
    """Whether one of them says before long that it is ready."""
    try:
        return bool(await asyncio.wait_for(replicas.ready.remote(), READY_SECONDS))
    except (TimeoutError, *GONE):
        return False


async def drawn_by(sampler: DeploymentHandle[Any], *call: Any) -> Drawn:
    """One call of a sampler, again while replicas are gone: seeds name samples, so it may repeat.

    Serve itself never repeats a call in flight.
    """
    for attempt in range(TRIES):
        response = sampler.draw.remote(*call)
        try:
            drawn: Drawn = await response
            return drawn
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        except EngineStoppedError:  # perhaps by what it was to draw
            if attempt == TRIES - 1:
                raise
        except GONE as error:
            if attempt == TRIES - 1:
                raise NobodyDrawsError(f"no sampler answered {TRIES} times") from error
        await asyncio.sleep(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT))
    raise AssertionError("unreachable")


@ray_serve.deployment(max_ongoing_requests=1000, logging_config=STRUCTURED)
@ray_serve.ingress()
class Ingress:
    """The HTTP interface; it holds nothing that is not in the records."""

    def __init__(self, settings: Settings, forecaster: DeploymentHandle[Any]) -> None:
        self._settings, self._forecaster = settings, forecaster

    def __serve_build_asgi_app__(self) -> FastAPI:  # noqa: N807, Serve's name
        forecaster = self._forecaster

        async def wake() -> None:
            forecaster.wake.remote()  # not awaited: it looks for itself before long

        async def ready() -> bool:
            return await answers(forecaster)

        study, watch = open_study(self._settings), RequestMetrics()
        desk = open_desk(study, wake=wake, ready=ready, watch=watch)
        return make_api(desk)


def deployment(decorated: Any) -> ray_serve.Deployment:
    """What the decorator made of a class, which type checkers still take for the class."""
    made: ray_serve.Deployment = decorated
    return made


def build(args: Settings) -> ray_serve.Application:
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
        deployment(SamplerReplica)
        .options(
            ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
            autoscaling_config={
                "min_replicas": settings.min_samplers,
                "max_replicas": settings.samplers,
                "target_ongoing_requests": settings.target,
            },
        )
        .bind(settings)
    )
    return (
        deployment(Ingress)
        .options(ray_actor_options=LIGHT, num_replicas=settings.ingresses)
        .bind(
            settings,
            deployment(ForecasterReplica).options(ray_actor_options=LIGHT).bind(settings, sampler),
        )
    )
